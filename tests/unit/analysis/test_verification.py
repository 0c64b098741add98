"""Tests of trials and their errors."""

import numpy as np
import pytest
import torch
from speechbrain.utils.metric_stats import EER, minDCF

from speechbrain_ee.analysis.verification import (
    draw_trials,
    equal_error_rate,
    minimum_cost,
    read_trials,
    trial_interval,
)


def scored(seed, decimals):
    """Scores of trials, with ties where decimals are few."""
    rng = np.random.default_rng(seed)
    same = rng.random(80) < 0.4
    scores = np.round(rng.normal(size=80) + 1.2 * same, decimals)
    return scores, same


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("decimals", [0, 1, 6])
def test_rates_are_those_of_speechbrain(seed, decimals):
    scores, same = scored(seed, decimals)
    sides = torch.tensor(scores[same]), torch.tensor(scores[~same])
    expected, _ = EER(*sides)
    assert equal_error_rate(scores, same) == pytest.approx(100 * expected, 1e-5)
    for p_target in (0.01, 0.05):
        cost, _ = minDCF(*sides, p_target=p_target)
        found = minimum_cost(scores, same, p_target=p_target)
        assert found == pytest.approx(cost / p_target, rel=1e-4)


@pytest.mark.parametrize("figure", [equal_error_rate, minimum_cost])
def test_a_weight_counts_a_trial_so_often(figure):
    scores, same = scored(1, 1)
    weights = np.random.default_rng(2).integers(0, 4, size=80)
    repeated = figure(np.repeat(scores, weights), np.repeat(same, weights))
    assert figure(scores, same, weights) == pytest.approx(repeated)


def test_an_interval_covers_its_value_and_depends_on_the_seed_alone():
    scores, same = scored(3, 6)
    first = trial_interval(equal_error_rate, scores, same, resamples=200)
    assert first.low < first.value < first.high
    assert 5 < first.high - first.low < 40
    assert first == trial_interval(
        equal_error_rate, scores, same, resamples=200
    )


def test_separable_scores_have_no_errors():
    scores, same = np.array([0.9, 0.8, 0.3]), np.array([True, True, False])
    assert equal_error_rate(scores, same) == 0
    assert equal_error_rate(-scores, same) == 100
    assert minimum_cost(scores, same) == 0
    assert minimum_cost(-scores, same) == 1


def test_drawn_trials_are_true_and_drawn_once():
    speakers = [k % 3 for k in range(12)]
    names = [f"u{k}" for k in range(12)]
    trials = draw_trials(names, speakers, 20)
    assert [t.same for t in trials] == [True] * 10 + [False] * 10
    known = dict(zip(names, speakers, strict=True))
    for trial in trials:
        assert trial.enrol != trial.test
        assert trial.same == (known[trial.enrol] == known[trial.test])
    assert len({frozenset(trial[1:]) for trial in trials}) == 20
    assert trials == draw_trials(names, speakers, 20)
    assert trials != draw_trials(names, speakers, 20, seed=1)
    # There are no more than 3 * 6 pairs of one speaker, and 48 of two.
    assert len(draw_trials(names, speakers, 1000)) == 18 + 48


def test_there_must_be_pairs_of_both_kinds():
    for speakers in ([1, 1, 1], [1, 2, 3]):
        with pytest.raises(ValueError, match="no trials of both kinds"):
            draw_trials("abc", speakers, 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 a b\nsame a c\n", "line 2: 'same a c' is no trial; write 1"),
        ("1 a b\n0 a\n", "line 2: '0 a' is no trial"),
        ("1 a b\n1 a c\n", "2 trials, but not of both kinds"),
        ("", "0 trials, but not of both kinds"),
    ],
)
def test_what_is_no_list_of_trials_is_told(text, message, tmp_path):
    path = tmp_path / "trials.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_trials(path)
    with pytest.raises(FileNotFoundError, match="no list of trials .*lines"):
        read_trials(tmp_path / "none.txt")
