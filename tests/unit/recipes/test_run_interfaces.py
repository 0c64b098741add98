"""Tests of the script that compares interfaces on real speech."""

import numpy as np
import pandas as pd
import pytest

from speechbrain_ee.downstreams import ConvTransformerCTC, UtteranceClassifier
from speechbrain_ee.interfaces import HierarchicalConv, WeightedSum
from tests.unit.recipes.scripts import load_script

SCRIPT = load_script("recipes/SUPERB/run_interfaces.py")
STATES = [128] * 13  # of the small HuBERT


def _parameters(*modules):
    return sum(x.numel() for one in modules for x in one.parameters())


def _recogniser(d_ffn):
    sizes = {"linear_size": 80, "num_layers": 2, "d_model": 64, "nhead": 4}
    return ConvTransformerCTC(input_size=128, labels=28, d_ffn=d_ffn, **sizes)


def _classifier(proj_size, classes):
    return UtteranceClassifier(128, num_classes=[classes], proj_size=proj_size)


@pytest.mark.parametrize(
    ("task", "make"),
    [
        ("commands", _recogniser),
        ("languages", lambda size: _classifier(size, 4)),
        ("speakers", lambda size: _classifier(size, 34)),
    ],
)
def test_matched_weighted_sum_has_as_many_parameters(task, make):
    *_, flags = SCRIPT["TASKS"][task]
    usual, matched = (int(flag.split("=")[1]) for flag in flags)
    wanted = _parameters(HierarchicalConv(STATES), make(usual))
    got = _parameters(WeightedSum(STATES), make(matched))
    assert got == pytest.approx(wanted, rel=1e-3)


def test_differences_are_paired_and_over_seeds():
    ids = [f"u{i}" for i in range(50)]
    index = pd.MultiIndex.from_product(
        [["speakers test"], ids, [1]], names=["set", "id", "ref_len"]
    )
    wrong = np.arange(50) % 5 == 0
    table = pd.DataFrame(
        {
            "hubert/weighted_sum/1": wrong,
            "hubert/weighted_sum/2": wrong,
            "hubert/concat/1": ~wrong,
            "hubert/concat/2": wrong,
        },
        index=index,
        dtype=float,
    )
    rows = SCRIPT["summarise"](table).set_index("model")
    assert rows.loc["hubert/weighted_sum", "error_rate"] == pytest.approx(20)
    concat = rows.loc["hubert/concat"]
    assert concat["error_rate"] == pytest.approx(50)
    assert concat["seeds"] == 2
    assert concat["seeds_sd"] == pytest.approx(60 / np.sqrt(2))
    assert concat["difference_low"] < concat["difference"] == pytest.approx(30)

    fewer = SCRIPT["summarise"](table.drop(columns="hubert/weighted_sum/2"))
    concat = fewer.set_index("model").loc["hubert/concat"]
    assert concat["difference"] == pytest.approx(60)  # of the seed both have


def test_what_is_kept_is_not_trained_again():
    index = pd.MultiIndex.from_tuples(
        [("speakers test", "a", 1), ("commands test", "b", 9)],
        names=["set", "id", "ref_len"],
    )
    kept = pd.DataFrame({"hubert/concat/1234": [1.0, None]}, index=index)
    is_kept = SCRIPT["is_kept"]
    assert is_kept(("speakers", "hubert", "concat", 1234), kept)
    assert not is_kept(("commands", "hubert", "concat", 1234), kept)
    assert not is_kept(("speakers", "hubert", "concat", 1235), kept)
