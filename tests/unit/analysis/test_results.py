"""Figures of a run, and where its utterances left."""

import numpy as np
import pandas as pd
import pytest

from speechbrain_ee.analysis.results import (
    COLUMNS,
    exit_results,
    write_results,
    write_results_report,
)


def test_where_utterances_left():
    taken = np.repeat([3, 5, 12], [20, 70, 10])
    table = exit_results(taken)
    assert set(COLUMNS) <= set(table)
    figures = table.set_index(["metric", "group"])
    mean = figures.loc["mean exit layer", "all"]
    assert mean["value"] == pytest.approx(5.3)
    error = 1.96 * taken.std() / 10
    assert mean["low"] == pytest.approx(5.3 - error, abs=0.1)
    assert mean["high"] == pytest.approx(5.3 + error, abs=0.1)
    shares = figures.loc["left at layer (%)"]
    assert shares["value"].to_dict() == {"3": 20, "5": 70, "12": 10}
    assert (shares["low"] < shares["value"]).all()
    assert (figures["utterances"] == 100).all()


def test_all_at_one_layer():
    figures = exit_results([6] * 4)[["value", "low", "high"]]
    assert figures.values.tolist() == [[6.0] * 3, [100.0] * 3]


def test_the_report_shows_exits_where_there_are_some(tmp_path):
    rate = {"metric": "PER", "group": "all", "value": 5.4, "low": 5, "high": 6}
    plain = pd.DataFrame([rate | {"utterances": 4}])
    write_results(tmp_path, "clean", plain)
    text = write_results_report(tmp_path, "dev").read_text()
    assert "## Exits" not in text and not [*tmp_path.glob("exits_*")]
    both = pd.concat([plain, exit_results([2, 4, 4, 4])])
    write_results(tmp_path, "noisy", both)
    text = write_results_report(tmp_path, "dev").read_text()
    assert "| noisy | mean exit layer | all | 3.50 | 2.50 – 4.00 | 4 |" in text
    assert "| noisy | left at layer (%) | 4 | 75.00 |" in text
    assert "![Exits of noisy](exits_noisy.png)" in text
    assert [path.name for path in tmp_path.glob("exits_*")] == [
        "exits_noisy.png"
    ]
