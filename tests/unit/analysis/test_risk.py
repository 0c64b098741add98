"""Learn then Test: p-values, families of thresholds, and what they promise."""

import math
from functools import partial

import numpy as np
import pytest

from speechbrain_ee.analysis.replay import exits_at
from speechbrain_ee.analysis.risk import (
    betting,
    excess_loss,
    hoeffding_bentkus,
    learn_then_test,
    one_threshold,
    threshold_by_exit,
    utterances_needed,
)
from speechbrain_ee.analysis.traces import Traces
from tests.unit.analysis.synthetic import make_table

TRACES = Traces.from_frame(make_table(60))
P_VALUES = {"betting": betting, "hoeffding_bentkus": hoeffding_bentkus}


def test_a_loss_is_what_the_last_exit_would_have_saved():
    traces = Traces(
        list("abcd"), [2, 4], [[9, 0], [0, 3], [1, 0], [1, 1]], [4, 4, 0, 5]
    )
    # At most 1; what leaving gains is no negative loss; no words, one too many
    assert excess_loss(traces)[:, 0].tolist() == [1, 0, 1, 0]
    assert not excess_loss(traces)[:, 1].any()


def slow_hoeffding_bentkus(losses, alpha):
    """The formula, term by term."""
    n, total = len(losses), sum(losses)
    mean = min(total / n, alpha)
    kl = (1 - mean) * math.log((1 - mean) / (1 - alpha))
    if mean:
        kl += mean * math.log(mean / alpha)
    tail = sum(
        math.comb(n, k) * alpha**k * (1 - alpha) ** (n - k)
        for k in range(math.ceil(total) + 1)
    )
    return min(math.exp(-n * kl), math.e * tail, 1)


def slow_betting(losses, alpha, delta):
    """One bet after another."""
    n, seen, spread = len(losses), [], alpha * (1 - alpha)
    capital = most = 1.0
    for loss in losses:
        variance = spread / (len(seen) + 1)
        bet = min(1, math.sqrt(2 * math.log(1 / delta) / (n * variance)))
        capital *= 1 - bet * (loss - alpha)
        most = max(most, capital)
        seen.append(loss)
        spread += (loss - (alpha + sum(seen)) / (len(seen) + 1)) ** 2
    return 1 / most


@pytest.mark.parametrize("alpha", [0.02, 0.3])
def test_p_values_are_those_of_the_formulae(alpha):
    rng = np.random.default_rng(0)
    scale = np.array([0, 0.01, 0.05, 0.3, 1])
    losses = scale * rng.random((50, 5)) ** 3
    for found, slow in (
        (hoeffding_bentkus(losses, alpha), slow_hoeffding_bentkus),
        (betting(losses, alpha, 0.05), partial(slow_betting, delta=0.05)),
    ):
        expected = [slow(column, alpha) for column in losses.T]
        assert found == pytest.approx(expected, rel=1e-9)
        assert found[0] < found[-1] <= 1


@pytest.mark.parametrize("name", P_VALUES)
@pytest.mark.parametrize(
    "draw",
    [
        lambda rng, shape: (rng.random(shape) < 0.05).astype(float),
        lambda rng, shape: rng.beta(0.1, 1.9, shape),
    ],
    ids=["all or nothing", "small losses"],
)
def test_p_values_are_small_no_more_often_than_they_may(name, draw):
    # 4000 sets with a mean loss of just alpha, which must not be rejected.
    losses = draw(np.random.default_rng(0), (300, 4000))
    p_values = P_VALUES[name](losses, 0.05)
    for level in (0.05, 0.1, 0.3):
        assert (p_values <= level).mean() < level + 0.01


def test_betting_needs_fewer_utterances_where_losses_are_small():
    losses = np.random.default_rng(0).beta(0.1, 8, (1000, 200))  # mean 0.012
    rejected = {k: (p(losses, 0.02) <= 0.1).mean() for k, p in P_VALUES.items()}
    assert rejected["betting"] > 0.9 > 0.2 > rejected["hoeffding_bentkus"]


@pytest.mark.parametrize("name", P_VALUES)
@pytest.mark.parametrize("alpha", [0.01, 0.1, 0.5])
def test_the_number_of_utterances_needed_is_the_least(name, alpha):
    p_value = P_VALUES[name]
    needed = utterances_needed(alpha, 0.1, p_value)
    enough = [p_value(np.zeros((n, 1)), alpha)[0] <= 0.1 for n in range(1, 400)]
    assert enough.index(True) + 1 == needed
    assert all(enough[needed - 1 :])


def test_the_first_that_is_not_rejected_ends_the_test():
    def p_value(losses, alpha):
        """The losses themselves."""
        return losses[0]

    row = np.full((1, 100), 0.01)
    assert learn_then_test(row, 0.02, p_value=p_value) == 99
    for place in (1, 31, 32, 33, 99):
        one = row.copy()
        one[0, place] = 0.2  # those behind it do not count
        assert learn_then_test(one, 0.02, p_value=p_value) == place - 1
    assert learn_then_test(row[:, :1] + 1, 0.02, p_value=p_value) is None
    assert learn_then_test(row * np.nan, 0.02, p_value=p_value) is None


@pytest.mark.parametrize("family", [one_threshold, threshold_by_exit])
@pytest.mark.parametrize("score", ["entropy", "margin"])
@pytest.mark.parametrize("points", [5, 200])
def test_families_lead_from_full_depth_to_the_first_exit(family, score, points):
    settings = family(TRACES, score, points)
    assert len(settings) <= points + 2
    taken = exits_at(TRACES, score, settings)
    assert (taken[:, 0] == 2).all() and (taken[:, -1] == 0).all()
    assert (np.diff(taken, axis=1) <= 0).all()
    assert len(np.unique(taken.mean(axis=0))) > 3


def test_each_exit_learns_whom_it_can_let_go():
    # The same values mean errors at the first exit, and none at the second.
    rng = np.random.default_rng(0)
    values = rng.random(200)
    errors = np.stack([values > 0.3, np.zeros(200), np.zeros(200)], axis=1)
    scores = {"entropy": np.tile(values[:, None], 3)}
    traces = Traces(range(200), [2, 4, 6], errors, np.ones(200), scores=scores)
    settings = threshold_by_exit(traces, "entropy")[1:-1]
    assert 0.1 < settings[0, 0] < 0.3
    assert (settings[:, 1] == values.max()).all()
    assert settings[-1, 0] == values.max()  # who pays any price


def test_an_exit_without_a_value_lets_nobody_go():
    table = make_table(20)
    table.loc[table["exit_layer"] == 2, "entropy"] = np.nan
    traces = Traces.from_frame(table)
    settings = threshold_by_exit(traces, "entropy")
    assert (settings[:-1, 0] == -np.inf).all()
    assert (exits_at(traces, "entropy", settings) > 0).all()
