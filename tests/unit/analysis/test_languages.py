"""Error rates over languages."""

import numpy as np
import pandas as pd
import pytest

from speechbrain_ee.analysis.languages import language_results


def traces(**columns):
    rows = {
        "errors": [1, 3, 0, 2, 9],
        "ref_len": [10, 10, 40, 4, 10],
        "language": ["eng", "eng", "deu", "dan", "tur"],
        "few_shot": ["False", "False", "False", "True", "True"],
        "unit": "character",
        **columns,
    }
    return pd.DataFrame(rows)


def values(table):
    return table.set_index(["metric", "group"])["value"].to_dict()


def test_languages_count_the_same_and_utterances_are_pooled_beside_it():
    assert values(language_results(traces())) == pytest.approx(
        {
            ("CER", "normal"): (20 + 0) / 2,
            ("CER", "normal, pooled"): 100 * 4 / 60,
            ("CER", "few-shot"): (50 + 90) / 2,
            ("CER", "few-shot, pooled"): 100 * 11 / 14,
            ("CER", "dan"): 50,
            ("CER", "deu"): 0,
            ("CER", "eng"): 20,
            ("CER", "tur"): 90,
        }
    )


def test_true_and_false_may_be_text_or_not():
    as_bool = traces(few_shot=[False, False, False, True, True])
    assert values(language_results(as_bool)) == values(
        language_results(traces())
    )


def test_phones_have_a_rate_of_their_own():
    table = language_results(traces(unit="phone"))
    assert set(table["metric"]) == {"PER"}


def test_languages_found_are_an_accuracy_beside_the_text():
    found = language_results(
        traces(
            ref=["[eng] A", "[eng] B", "[deu] C", "[dan] D", "[tur] E"],
            language_errors=[0, 1, 0, 1, 0],
        )
    )
    told = values(found)
    assert told["LID accuracy", "normal"] == 75
    assert told["LID accuracy", "normal, pooled"] == pytest.approx(200 / 3)
    assert told["LID accuracy", "few-shot"] == 50
    assert told["CER", "eng"] == 20


def test_where_there_is_no_text_there_is_no_error_rate():
    found = language_results(
        traces(
            ref=["[eng]", "[eng]", "[deu]", "[dan]", "[tur]"],
            language_errors=[0, 1, 0, 1, 0],
        )
    )
    assert set(found["metric"]) == {"LID accuracy"}


def test_intervals_are_those_of_utterances_drawn_again_in_each_language():
    rng = np.random.default_rng(0)
    count = 400
    table = language_results(
        pd.DataFrame(
            {
                "errors": rng.binomial(10, 0.3, 2 * count),
                "ref_len": 10,
                "language": ["eng", "deu"] * count,
                "few_shot": False,
                "unit": "character",
            }
        )
    ).set_index("group")
    # The rate of a language has a standard error of sqrt(.21 / 4000), the mean
    # of two 1 / sqrt(2) of that.
    width = table["high"] - table["low"]
    expected = 100 * 2 * 1.96 * np.sqrt(0.3 * 0.7 / (10 * count))
    assert width["eng"] == pytest.approx(expected, rel=0.15)
    assert width["normal"] == pytest.approx(expected / np.sqrt(2), rel=0.15)
    assert (table["low"] < table["value"]).all()
    assert (table["value"] < table["high"]).all()
    assert table["utterances"]["normal"] == 2 * count
