"""Thresholds chosen on dev hold for the score as it was traced."""

import pytest

from speechbrain_ee.analysis.calibration import calibrated_thresholds
from speechbrain_ee.analysis.replay import exits_at, outcome
from speechbrain_ee.analysis.traces import Traces
from speechbrain_ee.exits import get_selector
from tests.unit.analysis.synthetic import make_table

TRACES = Traces.from_frame(make_table())


@pytest.mark.parametrize("loss", [0, 5])
def test_the_loss_on_dev_is_kept_and_a_larger_one_saves_more(loss):
    chosen = calibrated_thresholds(TRACES, ["entropy"], ["entropy"], loss)
    threshold = chosen[f"entropy_dev+{loss}"]["threshold"]
    row = outcome(TRACES, exits_at(TRACES, "entropy", [threshold])).iloc[0]
    last = 100 * TRACES.errors[:, -1].sum() / TRACES.ref_len.sum()
    assert last <= row["error_rate"] <= last + loss
    stricter = calibrated_thresholds(TRACES, ["entropy"], ["entropy"], 0)
    assert threshold >= stricter["entropy_dev+0"]["threshold"]


def test_the_options_of_a_score_stay_with_its_threshold():
    traced = [{"score": "entropy", "normalization": "vocabulary"}, "margin"]
    chosen = calibrated_thresholds(TRACES, traced, ["entropy", "margin"])
    selector = get_selector(chosen["entropy_dev+1"])
    assert selector.score.options == {"normalization": "vocabulary"}
    assert chosen["margin_dev+1"]["score"] == "margin"


def test_what_was_not_traced_is_passed_over():
    assert calibrated_thresholds(TRACES, ["margin"], ["entropy"]) == {}
