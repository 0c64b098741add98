"""What the loop measured, beside what the traces foretell."""

import numpy as np
import pytest
import torch

from speechbrain_ee.analysis.loops import loop_row
from speechbrain_ee.analysis.statistics import exit_table
from speechbrain_ee.analysis.traces import Traces
from speechbrain_ee.exits import FixedLayer, MaxLayers, Threshold
from speechbrain_ee.runtime import Departures
from tests.unit.analysis.synthetic import LAYERS, make_table

TRACES = Traces.from_frame(make_table().sort_values(["id", "exit_layer"]))


def leave_at(layers, rows):
    """An account of some utterances that left there."""
    layers = torch.as_tensor(layers)
    return Departures(
        hypotheses=[()] * len(rows),
        exit_layer=layers,
        layers_run=layers,
        frames=torch.full((len(rows),), 100),
        macs=1e6 * layers.double(),
        seconds=0.01 * layers.double(),
        front_end_seconds=0.5,
    )


def row_of(selector, rng):
    """All utterances in another order than the traces have, in two batches."""
    order = rng.permutation(len(TRACES))
    places = rng.integers(len(LAYERS), size=len(TRACES))
    layers = np.array(LAYERS)[places]
    batches = [leave_at(layers[i], i) for i in np.array_split(order, 2)]
    row = loop_row(
        "mine",
        selector,
        batches,
        TRACES.errors[order, places[order]],
        TRACES.ref_len[order],
        TRACES.ids[order],
        TRACES,
        audio_seconds=100.0,
    )
    return row, layers


def test_replayed_seconds_are_those_of_the_same_exits():
    row, layers = row_of(FixedLayer(2), np.random.default_rng(0))
    assert row["replayed_seconds"] == pytest.approx(0.01 * layers.sum())
    assert row["seconds"] == pytest.approx(row["replayed_seconds"])
    assert row["real_time_factor"] == pytest.approx(row["seconds"] / 100 + 0.01)


def test_replayed_seconds_count_the_questions_to_the_score():
    selector = Threshold("entropy", 0.1)
    row, layers = row_of(selector, np.random.default_rng(0))
    asked = np.minimum(np.searchsorted(LAYERS, layers) + 1, len(LAYERS) - 1)
    expected = (0.01 * layers + 0.001 * asked).sum()
    assert row["replayed_seconds"] == pytest.approx(expected)


def test_only_a_threshold_by_itself_is_told_as_one():
    rule = Threshold("entropy", 0.1)
    row, _ = row_of(rule, np.random.default_rng(0))
    assert (row["score"], row["threshold"]) == ("entropy", 0.1)
    row, _ = row_of(MaxLayers(4, rule), np.random.default_rng(0))
    assert row["score"] is None


def test_seconds_of_a_score_that_was_not_timed_are_not_made_up():
    row, _ = row_of(Threshold("margin", 0.5), np.random.default_rng(0))
    assert row["replayed_seconds"] is None


def test_intervals_agree_with_those_of_the_traces():
    order = np.random.default_rng(1).permutation(len(TRACES))
    row = loop_row(
        "last",
        FixedLayer(6),
        [leave_at([6] * len(TRACES), order)],
        TRACES.errors[order, -1],
        TRACES.ref_len[order],
        TRACES.ids[order],
    )
    last = exit_table(TRACES).iloc[-1]
    for name in ("error_rate", "low", "high"):
        assert row[name] == pytest.approx(last[name])
