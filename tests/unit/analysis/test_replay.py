"""Replay: the same decisions as the loop's selectors, and what they cost."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from speechbrain_ee.analysis.replay import (
    exits_at,
    fixed_exits,
    oracle_exits,
    outcome,
    patience_exits,
    score_thresholds,
    sweep,
    threshold_per_exit,
)
from speechbrain_ee.analysis.traces import Traces
from speechbrain_ee.chance import random_exit_probabilities
from speechbrain_ee.exits import Oracle, Patience, Threshold, get_score
from speechbrain_ee.heads import ExitOutput

EXITS = [2, 4, 5, 9]


def random_traces(utterances=40, exits=EXITS, seed=0):
    """Traces with all columns, where more layers help."""
    rng = np.random.default_rng(seed)
    shape = utterances, len(exits)
    hardness = rng.random((utterances, 1)) / np.arange(1, shape[1] + 1)
    entropy = hardness + 0.1 * rng.random(shape)
    entropy[rng.random(shape) < 0.1] = np.nan
    return Traces(
        ids=[f"{i:03}" for i in range(utterances)],
        exit_layers=exits,
        errors=rng.poisson(8 * hardness),
        ref_len=rng.integers(1, 20, utterances),
        layers_run=np.tile(exits, (utterances, 1)) - 1,
        frames=np.tile(rng.integers(10, 99, (utterances, 1)), shape[1]),
        macs=rng.random(shape).cumsum(axis=1),
        seconds=rng.random(shape).cumsum(axis=1),
        hyp=rng.choice(["", "A", "B"], shape),
        scores={"entropy": entropy, "margin": rng.random(shape)},
        score_seconds={"entropy": rng.random(shape)},
    )


def walk(selector, outputs):
    """The exit index at which each utterance leaves the real selector."""
    selector.prepare([output.exit_layer for output in outputs])
    taken = torch.full((len(outputs[0]),), len(outputs) - 1)
    running = torch.ones(len(taken), dtype=torch.bool)
    for index, output in enumerate(outputs[:-1]):
        leave = running & selector(output)
        taken[leave] = index
        running &= ~leave
    return taken.numpy()


def chain(log_probs):
    """Outputs of successive exits, each knowing the one before."""
    outputs, previous = [], None
    for exit_layer, one in zip(EXITS, log_probs):
        frames = torch.full((one.shape[0],), one.shape[1])
        previous = ExitOutput(one, frames, exit_layer, previous=previous)
        outputs.append(previous)
    return outputs


@pytest.mark.parametrize(
    "score", ["entropy", "max_probability", "kl_to_previous"]
)
def test_thresholds_decide_as_the_selector_does(score):
    generator = torch.manual_seed(0)
    log_probs = 2 * torch.randn(len(EXITS), 60, 3, 4, generator=generator)
    log_probs = log_probs.log_softmax(dim=-1)
    log_probs[1, :10] = math.nan
    log_probs[0, 20:30, :, 0] = -math.inf
    outputs = chain(log_probs)
    values = torch.stack([get_score(score)(one) for one in outputs], dim=1)
    assert values.isnan().any()
    traces = Traces(
        range(60),
        EXITS,
        np.zeros((60, len(EXITS))),
        np.ones(60),
        scores={score: values.double().numpy()},
    )
    thresholds = score_thresholds(traces, score, points=10)
    thresholds = np.concatenate([thresholds, np.linspace(0, 1.4, 15)])
    taken = exits_at(traces, score, thresholds)
    assert {1, 2, 3} <= set(taken.flat)
    for column, threshold in enumerate(thresholds.tolist()):
        expected = walk(Threshold(score, threshold), outputs)
        assert taken[:, column].tolist() == expected.tolist()

    low, middle, high = np.nanquantile(values, [0.3, 0.5, 0.7]).tolist()
    by_exit = [
        [low, high, middle, low],
        {2: high, 5: low},
        {4: middle},
        {},
    ]
    rows = [threshold_per_exit(traces, score, one) for one in by_exit]
    taken = exits_at(traces, score, rows)
    for column, threshold in enumerate(by_exit):
        expected = walk(Threshold(score, threshold), outputs)
        assert taken[:, column].tolist() == expected.tolist()
    assert len(np.unique(taken[:, 0])) >= 3 and (taken[:, 3] == 3).all()


@pytest.mark.parametrize(
    ("threshold", "told"),
    [([0.1, 0.2], "2 thresholds for 4 exits"), ({3: 0.1}, "no exit after")],
)
def test_thresholds_for_other_exits_are_refused(threshold, told):
    traces = random_traces()
    with pytest.raises(ValueError, match=told):
        threshold_per_exit(traces, "entropy", threshold)
    with pytest.raises(ValueError, match=r"shape \(1, 2\) for 4 exits"):
        exits_at(traces, "entropy", [[0.1, 0.2]])


@pytest.mark.parametrize("score", ["entropy", "margin"])
@pytest.mark.parametrize("threshold", [0.1, 0.7, 0.3])
def test_a_value_at_the_threshold_is_rounded_as_in_the_loop(score, threshold):
    value = torch.tensor([threshold])  # single precision
    traces = Traces(
        ["a"], [2, 4], [[0, 0]], [1], scores={score: [[value.item(), 0.0]]}
    )
    assert get_score(score).is_confident(value, threshold)
    assert exits_at(traces, score, threshold).tolist() == [[0]]


def test_infinite_scores_never_reach_infinite_thresholds():
    scores = {"margin": [[math.inf, 0.5, math.nan]]}
    traces = Traces(["a"], [2, 4, 6], [[0, 0, 0]], [1], scores=scores)
    taken = exits_at(traces, "margin", [-math.inf, 0.5, math.inf])
    assert taken.tolist() == [[1, 1, 2]]


def test_one_exit_leaves_no_choice():
    scores = {"margin": [[0.5]]}
    traces = Traces(["a"], [6], [[1]], [2], scores=scores, hyp=[["A"]])
    assert exits_at(traces, "margin", [0.1, 0.9]).tolist() == [[0, 0]]
    curve = sweep(traces)
    assert curve["selector"].tolist() == (
        ["margin", "margin", "fixed", "random", "oracle"]
    )
    assert (curve["error_rate"] == 50).all()


@pytest.mark.parametrize("patience", [2, 3, 4, 5])
def test_patience_decides_as_the_selector_does(patience):
    labels = torch.randint(3, (len(EXITS), 99), generator=torch.manual_seed(1))
    log_probs = torch.nn.functional.one_hot(labels, 3)[:, :, None].float().log()
    hyp = np.array(["", "A", "B"], dtype=object)[labels.T.numpy()]
    errors = np.zeros((99, len(EXITS)))
    traces = Traces(range(99), EXITS, errors, np.ones(99), hyp=hyp)
    taken = patience_exits(traces, patience)
    assert taken.tolist() == walk(Patience(patience), chain(log_probs)).tolist()
    assert set(taken) == set(range(min(patience, 4) - 1, 4))


def test_patience_needs_transcripts_and_two_exits():
    traces = random_traces()
    with pytest.raises(ValueError, match="patience must be at least 2, not 1"):
        patience_exits(traces, 1)
    with pytest.raises(ValueError, match="traces: .* add a column hyp"):
        patience_exits(replace(traces, hyp=None), 2)


def test_the_oracle_is_that_of_the_selector(tmp_path):
    traces = random_traces()
    path = tmp_path / "traces.csv"
    rows = [
        f"{name},{layer},{errors:g}"
        for name, row in zip(traces.ids, traces.errors)
        for layer, errors in zip(EXITS, row)
    ]
    path.write_text("\n".join(["id,exit_layer,errors", *rows]))
    best = traces.exit_layers[oracle_exits(traces)]
    assert Oracle.from_traces(path).best_exits == dict(zip(traces.ids, best))


def test_outcome_counts_what_each_utterance_met():
    traces = random_traces()
    taken = np.random.default_rng(1).integers(0, len(EXITS), (40, 3))
    table = outcome(traces, taken, "entropy")
    for column, row in enumerate(table.itertuples()):
        found = list(enumerate(taken[:, column]))
        layers = [EXITS[k] for _, k in found]
        frames = [traces.frames[n, k] for n, k in found]
        seconds = 0.0
        for n, k in found:
            asked = min(k + 1, len(EXITS) - 1)  # nobody at the last exit
            seconds += traces.seconds[n, k]
            seconds += sum(traces.score_seconds["entropy"][n, :asked])
        assert row.mean_exit_layer == pytest.approx(np.mean(layers))
        assert row.frame_weighted_exit_layer == pytest.approx(
            np.average(layers, weights=frames)
        )
        assert row.mean_layers_run == pytest.approx(np.mean(layers) - 1)
        assert row.error_rate == pytest.approx(
            100
            * sum(traces.errors[n, k] for n, k in found)
            / sum(traces.ref_len)
        )
        assert row.macs == pytest.approx(
            np.mean([traces.macs[n, k] for n, k in found])
        )
        assert row.seconds == pytest.approx(seconds)


def test_seconds_of_a_score_are_counted_only_where_it_decides():
    traces = random_traces()
    taken = oracle_exits(traces)
    plain = outcome(traces, taken)["seconds"][0]
    assert plain == pytest.approx(traces.seconds[range(40), taken].sum())
    assert outcome(traces, taken, "entropy")["seconds"][0] > plain
    # not timed: then nobody knows
    assert math.isnan(outcome(traces, taken, "margin")["seconds"][0])


def test_what_traces_do_not_tell_is_nan():
    full = random_traces()
    bare = Traces(full.ids, EXITS, full.errors, full.ref_len)
    table = outcome(bare, fixed_exits(bare))
    unknown = ["frame_weighted_exit_layer", "mean_layers_run", "macs"]
    assert table[[*unknown, "seconds"]].isna().all(axis=None)
    assert table["mean_exit_layer"].tolist() == EXITS
    assert "patience" not in set(sweep(bare)["selector"])


def test_thresholds_are_values_from_lenient_to_strict():
    traces = random_traces(utterances=200)
    inner = traces.scores["margin"][:, :-1]
    few = score_thresholds(traces, "margin", points=7)
    assert few[0] == -math.inf and few[-1] == math.inf
    assert len(few) == 9
    assert set(few[1:-1]) <= set(inner.flat)
    assert few[1] == inner.min() and few[-2] == inner.max()
    assert (np.diff(few) > 0).all()
    share = [(inner <= one).mean() for one in few[1:-1]]
    assert share == pytest.approx(np.linspace(0, 1, 7), abs=0.01)

    entropy = traces.scores["entropy"][:, :-1]
    every = score_thresholds(traces, "entropy", points=10_000)
    expected = sorted(set(entropy[np.isfinite(entropy)]), reverse=True)
    assert every.tolist() == [math.inf, *expected, -math.inf]


def test_a_sweep_leads_from_leaving_early_to_never_leaving():
    traces = random_traces()
    curve = sweep(traces, points=20)
    assert curve.columns.tolist() == (
        "selector,threshold,mean_exit_layer,mean_layers_run,error_rate,macs,"
        "seconds"
    ).split(",")
    assert curve["selector"].value_counts().to_dict() == {
        "entropy": 22,
        "margin": 22,
        "random": 21,
        "fixed": 4,
        "patience": 3,
        "oracle": 1,
    }
    parts = dict(list(curve.groupby("selector")))
    for score in ("entropy", "margin"):
        depth = parts[score]["mean_exit_layer"]
        assert depth.is_monotonic_increasing
        assert depth.iloc[-1] == EXITS[-1]
        last = traces.errors[:, -1].sum() / traces.ref_len.sum()
        assert parts[score]["error_rate"].iloc[-1] == pytest.approx(100 * last)
    assert parts["margin"]["mean_exit_layer"].iloc[0] == EXITS[0]
    assert parts["entropy"]["mean_exit_layer"].iloc[0] > EXITS[0]  # NaN there
    assert parts["fixed"]["threshold"].tolist() == EXITS
    assert parts["patience"]["threshold"].tolist() == [2, 3, 4]
    assert parts["oracle"]["threshold"].isna().all()
    best = parts["oracle"]["error_rate"].item()
    assert best <= curve["error_rate"].min() + 1e-9
    assert best < parts["fixed"]["error_rate"].min()


def test_a_sweep_of_chosen_scores_has_these_only():
    curve = sweep(random_traces(), scores=["margin"])
    assert "margin" in set(curve["selector"])
    assert "entropy" not in set(curve["selector"])
    with pytest.raises(ValueError, match="no score 'purity'"):
        sweep(random_traces(), scores=["purity"])


def test_the_random_rows_are_what_is_expected_of_a_draw():
    traces = random_traces()
    curve = sweep(traces).set_index("selector")
    random, fixed = curve.loc["random"], curve.loc["fixed"]
    assert random["threshold"].tolist() == np.linspace(2, 9, 21).tolist()
    assert random["mean_exit_layer"].tolist() == pytest.approx(
        random["threshold"].tolist()
    )
    for end in (0, -1):
        assert random.iloc[end, 1:].tolist() == fixed.iloc[end, 1:].tolist()
    chances = random_exit_probabilities(EXITS, random["threshold"].iloc[7])
    draws = np.random.default_rng(0).choice(4, (40, 20_000), p=chances)
    drawn = outcome(traces, draws).mean()
    for column in ("mean_layers_run", "error_rate", "macs", "seconds"):
        assert random[column].iloc[7] == pytest.approx(drawn[column], rel=0.01)
