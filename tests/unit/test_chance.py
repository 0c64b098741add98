"""Leaving by chance."""

import math

import numpy as np
import pytest

from speechbrain_ee.chance import (
    neighbour_exit_probabilities,
    random_exit_probabilities,
)

EXITS = [2, 4, 5, 9]


def test_random_probabilities_have_the_mean_and_the_largest_entropy():
    means = np.linspace(2.01, 8.99, 50).reshape(5, 10)
    chances = random_exit_probabilities(EXITS, means)
    assert chances.shape == (5, 10, 4)
    assert chances.sum(axis=-1) == pytest.approx(np.ones((5, 10)))
    assert chances @ EXITS == pytest.approx(means)
    # ∝ exp(λ · layer): log-ratios per layer are the same between all exits
    slopes = np.diff(np.log(chances)) / np.diff(EXITS)
    assert slopes == pytest.approx(slopes[..., :1] + np.zeros(3), abs=1e-9)


def test_random_probabilities_are_certain_at_the_ends():
    chances = random_exit_probabilities(EXITS, [2, 5, 9])
    assert chances[0].tolist() == [1, 0, 0, 0]
    assert (chances[1] > 0.1).all()
    assert chances[2].tolist() == [0, 0, 0, 1]
    assert random_exit_probabilities([12], 12).tolist() == [1]


def test_neighbours_alone_make_up_the_mean():
    means = np.linspace(2, 9, 36).reshape(4, 9)
    chances = neighbour_exit_probabilities(EXITS, means)
    assert chances.sum(axis=-1) == pytest.approx(np.ones((4, 9)))
    assert chances @ EXITS == pytest.approx(means)
    for mean, chance in zip(means.ravel(), chances.reshape(-1, 4)):
        used = np.array(EXITS)[chance > 1e-9]
        assert len(used) <= 2 and used[0] <= mean + 1e-9
        assert used[-1] >= mean - 1e-9
        assert np.ptp(np.flatnonzero(chance > 1e-9)) <= 1
    assert neighbour_exit_probabilities([12], 12).tolist() == [1]


@pytest.mark.parametrize("mean", [1.9, 9.1, math.nan])
@pytest.mark.parametrize(
    "share", [random_exit_probabilities, neighbour_exit_probabilities]
)
def test_a_mean_outside_the_exits_is_refused(share, mean):
    with pytest.raises(ValueError, match=r"from 2 to 9, the exits \[2, 4, 5"):
        share(EXITS, [4, mean])
