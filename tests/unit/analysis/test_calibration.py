"""Thresholds chosen on dev: what they promise, and for which model."""

from dataclasses import replace

import numpy as np
import pytest

from speechbrain_ee.analysis.calibration import (
    calibrate,
    calibrated_thresholds,
    describe,
    keep_risk,
    meet_compute,
    traced_score,
    write_rule,
)
from speechbrain_ee.analysis.replay import (
    exits_at,
    outcome,
    threshold_per_exit,
)
from speechbrain_ee.analysis.risk import excess_loss, one_threshold
from speechbrain_ee.analysis.traces import Traces
from speechbrain_ee.exits import get_score, get_selector, read_selector
from tests.unit.analysis.synthetic import LAYERS, make_table

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


def replayed(threshold):
    """What a threshold does on the traces."""
    row = threshold_per_exit(TRACES, "entropy", threshold)
    return outcome(TRACES, exits_at(TRACES, "entropy", row[None])).loc[0]


@pytest.mark.parametrize("per_exit", [False, True])
@pytest.mark.parametrize("layers", [2.5, 3.4, 5.9])
def test_the_strictest_threshold_within_a_compute_is_taken(layers, per_exit):
    threshold = meet_compute(TRACES, "entropy", layers, per_exit=per_exit)
    met = replayed(threshold)
    assert layers - 0.5 < met["mean_layers_run"] <= layers
    macs = met["macs"]
    same = meet_compute(TRACES, "entropy", macs=macs, per_exit=per_exit)
    assert replayed(same)["macs"] == macs


def test_thresholds_of_their_own_make_fewer_errors_at_the_same_compute():
    traces = draw(np.random.default_rng(0), 3000, offset=1.0)
    rates = {}
    for per_exit in (False, True):
        threshold = meet_compute(traces, "entropy", 4, per_exit=per_exit)
        row = threshold_per_exit(traces, "entropy", threshold)
        found = outcome(traces, exits_at(traces, "entropy", row[None])).loc[0]
        rates[per_exit] = found["error_rate"]
    assert rates[True] < rates[False] - 0.5


@pytest.mark.parametrize(
    ("target", "told"),
    [
        ({"layers": 1.9}, "layers: no threshold of entropy.*the least is 2"),
        ({"macs": 1}, "macs: no threshold"),
        ({"risk": 0}, "risk: 0 must lie between 0 and 1"),
        ({"risk": 0.02, "delta": 1.5}, "delta: 1.5 must lie"),
        ({"risk": 0.02}, "40 utterances are too few.*Give at least 146"),
        ({"risk": 0.02, "per_exit": True}, "Give at least 155"),
        ({}, "give one target"),
        ({"layers": 3, "risk": 0.02}, "give one target"),
    ],
)
def test_targets_that_cannot_be_met_are_refused(target, told):
    with pytest.raises(ValueError, match=told):
        calibrate(TRACES, get_score("entropy"), **target)


def test_a_model_with_one_exit_is_refused():
    traces = Traces.from_frame(make_table(layers=[6]))
    with pytest.raises(ValueError, match="one exit: nothing to choose"):
        calibrate(traces, get_score("entropy"), layers=6)


def test_macs_must_be_in_the_traces():
    traces = replace(TRACES, macs=None)
    with pytest.raises(ValueError, match="no column macs: give layers"):
        calibrate(traces, get_score("entropy"), macs=1e9)
    rule = calibrate(traces, get_score("entropy"), layers=4)[1]
    assert "macs" not in rule["calibration"]


def test_the_number_of_utterances_that_is_asked_for_is_enough():
    table = make_table(146)
    threshold, found = keep_risk(Traces.from_frame(table), "entropy", 0.02)
    assert found["tested"] == 117
    short = Traces.from_frame(table[table["id"] != "utterance-9"])
    with pytest.raises(ValueError, match="Give at least 146"):
        keep_risk(short, "entropy", 0.02)


def draw(rng, utterances, offset=0.0):
    """Utterances with one word, whose entropy tells the chance of an error.

    Offset: how much more an entropy of the first exit has to mean there.
    """
    hard = rng.random((utterances, 1))
    chance = hard * [0.5, 0.2, 0.02]
    errors = rng.random((utterances, 3)) < chance
    entropy = hard - offset * np.array([1, 0, 0]) * hard
    return Traces(
        *(range(utterances), [2, 4, 6], errors, np.ones(utterances)),
        scores={"entropy": entropy + 0.1 * rng.random((utterances, 3))},
    )


@pytest.mark.parametrize("per_exit", [False, True])
def test_the_true_risk_is_kept_but_for_delta(per_exit):
    rng = np.random.default_rng(0)
    world = draw(rng, 50_000)
    rows = []
    for _ in range(100):
        traces = draw(rng, 400)
        threshold, _ = keep_risk(
            traces, "entropy", 0.1, delta=0.2, per_exit=per_exit
        )
        rows.append(threshold_per_exit(traces, "entropy", threshold))
    taken = exits_at(world, "entropy", rows)
    risks = np.take_along_axis(excess_loss(world), taken, axis=1).mean(axis=0)
    assert (risks > 0.1).mean() <= 0.2
    assert np.mean(risks) > 0.05  # and they make use of the budget
    # Taking what the development set itself shows would break the promise.
    naive = [savings_by_risk(draw(rng, 400), 0.1) for _ in range(100)]
    taken = exits_at(world, "entropy", naive)
    risks = np.take_along_axis(excess_loss(world), taken, axis=1).mean(axis=0)
    assert (risks > 0.1).mean() > 0.3


def savings_by_risk(traces, alpha):
    """The most lenient threshold whose observed risk is within a budget."""
    rows = one_threshold(traces, "entropy")
    taken = exits_at(traces, "entropy", rows)
    risks = np.take_along_axis(excess_loss(traces), taken, axis=1).mean(axis=0)
    return rows[np.flatnonzero(risks <= alpha)[-1]]


def test_where_leaving_is_never_safe_all_run_to_the_end():
    table = make_table(200)
    table["errors"] = 4 * (table["exit_layer"] < 6)
    table["entropy"] = 0.5
    traces = Traces.from_frame(table)
    rule = calibrate(traces, get_score("entropy"), risk=0.02)[1]
    assert rule["calibration"]["mean_exit_layer"] == 6
    assert "No threshold that leaves earlier passed" in describe(rule)
    by_exit = calibrate(traces, get_score("entropy"), risk=0.02, per_exit=True)
    assert by_exit[1]["threshold"] == {}


def test_the_order_of_the_utterances_is_a_random_one():
    # As recipes trace them: short ones, which are easy here, first.
    table = make_table(400)
    table["errors"] *= (table["id"].str[10:].astype(int) > 200).to_numpy()
    found = keep_risk(Traces.from_frame(table), "entropy", 0.05)[1]
    hard = keep_risk(
        Traces.from_frame(table.iloc[::-1].reset_index(drop=True)),
        *("entropy", 0.05),
    )[1]
    assert found["tested"] == hard["tested"] == 320
    assert found["mean_loss"] == pytest.approx(hard["mean_loss"], abs=0.015)


@pytest.mark.parametrize("per_exit", [False, True])
@pytest.mark.parametrize("target", [{"layers": 4}, {"risk": 0.05}])
def test_a_written_rule_is_read_as_it_was(target, per_exit, tmp_path):
    traces = Traces.from_frame(make_table(200))
    score = get_score("entropy", normalization="unit")
    label, rule = calibrate(traces, score, **target, per_exit=per_exit)
    path = tmp_path / "thresholds.yaml"
    write_rule(path, label, rule)
    assert read_selector(path) == rule
    selector = get_selector(path)
    selector.prepare(list(LAYERS))
    assert selector.score == score
    assert (
        ("per_exit" in label)
        == per_exit
        == isinstance(selector.threshold, dict)
    )
    known = rule["calibration"]
    row = threshold_per_exit(traces, "entropy", selector.threshold)
    taken = exits_at(traces, "entropy", row[None])
    figures = outcome(traces, taken).loc[0]
    assert known["mean_exit_layer"] == figures["mean_exit_layer"] < 6
    assert known["error_rate"] == figures["error_rate"]
    assert known["utterances"] == 200
    (name,) = target
    assert known[name] == target[name]


def test_scores_are_those_that_the_run_has_traced(tmp_path):
    (tmp_path / "debug").mkdir()
    text = """
scores:
    - {score: entropy, normalization: unit}
    - margin
    - !name:speechbrain_ee.exits.sentence_confidence
        k: 50
exits: !new:speechbrain_ee.heads.CTCHeads
"""
    traces = tmp_path / "traces_dev.csv"
    wanted = {"score": "entropy"}
    assert traced_score(traces, wanted).definition["normalization"] == "nats"
    with pytest.raises(ValueError, match="its run is not there.*{score: entr"):
        traced_score(traces, "entropy")
    (tmp_path / "hyperparams.yaml").write_text(text)
    for place in (traces, tmp_path / "debug" / "traces_dev.csv"):
        assert traced_score(place, "entropy").options == {
            "normalization": "unit"
        }
        assert traced_score(place, {"score": "margin"}).name == "margin"
        with pytest.raises(ValueError, match="'unit'.*, not .*'nats'"):
            traced_score(place, wanted)
        with pytest.raises(ValueError, match="does not name it"):
            traced_score(place, "sentence_confidence")
