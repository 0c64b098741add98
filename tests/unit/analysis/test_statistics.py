"""Statistics: against plain resampling, scipy, and cases that are known."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import spearmanr

from speechbrain_ee.analysis.replay import (
    exits_at,
    outcome,
    score_thresholds,
)
from speechbrain_ee.analysis.statistics import (
    Bootstrap,
    against_random,
    area_under_curve,
    compare_scores,
    exit_table,
    rank_correlation,
    rule_curve,
    savings,
)
from speechbrain_ee.analysis.traces import Traces
from speechbrain_ee.chance import random_exit_probabilities

EXITS = [2, 4, 6]


def good_and_bad_scores(utterances=300, seed=0):
    """Entropy knows where errors are; the margin is noise."""
    rng = np.random.default_rng(seed)
    hard = rng.random((utterances, 1))
    errors = rng.poisson(9 * hard / [1, 3, 9])
    ref_len = rng.integers(5, 15, utterances)
    entropy = errors / ref_len[:, None] + 0.01 * rng.random(errors.shape)
    scores = {"entropy": entropy, "margin": rng.random(errors.shape)}
    return Traces(range(utterances), EXITS, errors, ref_len, scores=scores)


def test_resamples_are_as_large_as_the_set_and_seeded():
    bootstrap = Bootstrap(30, resamples=50)
    assert bootstrap.weights.shape == (50, 30)
    assert (bootstrap.weights.sum(axis=1) == 30).all()
    same, other = Bootstrap(30, 50), Bootstrap(30, 50, seed=1)
    assert (bootstrap.weights == same.weights).all()
    assert (bootstrap.weights != other.weights).any()


def test_intervals_are_those_of_plain_resampling():
    rng = np.random.default_rng(3)
    errors, ref_len = rng.poisson(2, (40, 2)), rng.integers(1, 20, 40)
    bootstrap = Bootstrap(40, resamples=200, level=0.9)
    rates, means = [], []
    for times in bootstrap.weights.astype(int):
        drawn = np.repeat(np.arange(40), times)
        rates.append(100 * errors[drawn].sum(axis=0) / ref_len[drawn].sum())
        means.append(errors[drawn].mean(axis=0))
    value, low, high = bootstrap.error_rate_interval(errors, ref_len)
    assert value == pytest.approx(100 * errors.sum(axis=0) / ref_len.sum())
    assert low == pytest.approx(np.percentile(rates, 5, axis=0))
    assert high == pytest.approx(np.percentile(rates, 95, axis=0))
    value, low, high = bootstrap.mean_interval(errors)
    assert value == pytest.approx(errors.mean(axis=0))
    assert low == pytest.approx(np.percentile(means, 5, axis=0))


def test_a_system_alone_has_the_interval_that_it_has_among_others():
    rng = np.random.default_rng(4)
    errors, ref_len = rng.poisson(2, (40, 3)), rng.integers(1, 20, 40)
    bootstrap = Bootstrap(40)
    together = bootstrap.error_rate_interval(errors, ref_len)
    for column, figures in enumerate(zip(*together)):
        alone = bootstrap.error_rate_interval(errors[:, column], ref_len)
        assert alone == pytest.approx(figures)


def test_the_interval_of_a_share_is_the_known_one():
    right = np.arange(1000) % 4 == 0
    value, low, high = Bootstrap(1000, resamples=4000).mean_interval(right)
    margin = 1.96 * math.sqrt(0.25 * 0.75 / 1000)
    assert value == 0.25
    assert value - low == pytest.approx(margin, rel=0.1)
    assert high - value == pytest.approx(margin, rel=0.1)


def test_differences_are_paired():
    rng = np.random.default_rng(5)
    errors, ref_len = rng.poisson(3, 100), np.full(100, 10)
    bootstrap = Bootstrap(100)
    assert bootstrap.difference_interval(errors, errors, ref_len) == (0, 0, 0)
    one_more = bootstrap.difference_interval(errors + 1, errors, ref_len)
    assert one_more == pytest.approx((10, 10, 10))
    _, low, high = bootstrap.error_rate_interval(errors, ref_len)
    assert high - low > 4


def test_exits_are_tabled_with_their_intervals():
    traces = good_and_bad_scores()
    table = exit_table(traces)
    assert table.columns.tolist() == ["exit_layer", "error_rate", "low", "high"]
    assert table["exit_layer"].tolist() == EXITS
    assert table["error_rate"].tolist() == pytest.approx(
        (100 * traces.errors.sum(axis=0) / traces.ref_len.sum()).tolist()
    )
    assert (table["low"] < table["error_rate"]).all()
    assert (table["error_rate"] < table["high"]).all()
    assert table["low"][0] > table["high"][1]


def test_an_area_by_hand():
    depth, rate = [2, 4, 8], [30, 10, 10]
    assert area_under_curve(depth, rate, 2, 8) == pytest.approx(80 / 6)
    assert area_under_curve(depth, rate, 3, 4) == pytest.approx(15)
    assert area_under_curve(depth, rate, 3, 8) == pytest.approx(55 / 5)
    assert area_under_curve([8, 2, 4], [10, 30, 10], 2, 8) == pytest.approx(
        80 / 6
    )


def test_points_at_one_depth_make_a_step():
    area = area_under_curve([2, 4, 4, 6], [20, 20, 10, 10], 2, 6)
    assert area == pytest.approx(15)


def test_areas_of_many_curves_are_those_of_each():
    rng = np.random.default_rng(0)
    depth = np.sort(rng.uniform(2, 6, (5, 30)))
    depth[:, 0], depth[:, -1] = 2, 6
    rate = rng.random((5, 30))
    areas = area_under_curve(depth, rate, 2.5, 5.5)
    fine = np.linspace(2.5, 5.5, 200_001)
    for area, xs, ys in zip(areas, depth, rate):
        assert area == pytest.approx(np.interp(fine, xs, ys).mean(), rel=1e-4)


@pytest.mark.parametrize("lowest, highest", [(1, 4), (2, 7), (4, 4), (5, 3)])
def test_a_range_off_the_curve_is_refused(lowest, highest):
    with pytest.raises(ValueError, match="under a curve from 2 to 6"):
        area_under_curve([2, 6], [1, 1], lowest, highest)


def test_a_good_score_beats_noise_and_equals_itself():
    traces = good_and_bad_scores()
    found = compare_scores(traces, "entropy", "margin", points=50)
    assert found["difference"] == found["area_one"] - found["area_other"]
    assert found["low"] < found["difference"] < found["high"] < 0
    assert (found["lowest"], found["highest"]) == (2, 6)
    turned = compare_scores(traces, "margin", "entropy", points=50)
    assert turned["difference"] == pytest.approx(-found["difference"])
    assert turned["low"] == pytest.approx(-found["high"])
    same = compare_scores(traces, "margin", "margin")
    assert (same["difference"], same["low"], same["high"]) == (0, 0, 0)


def test_an_area_is_that_of_the_swept_curve():
    traces = good_and_bad_scores()
    thresholds = score_thresholds(traces, "entropy")
    curve = outcome(traces, exits_at(traces, "entropy", thresholds))
    area = area_under_curve(curve["mean_exit_layer"], curve["error_rate"], 2, 6)
    found = compare_scores(traces, "entropy", "margin")
    assert found["area_one"] == pytest.approx(area)


def test_scores_are_compared_at_depths_that_both_reach():
    traces = good_and_bad_scores()
    traces.scores["margin"][:100, 0] = np.nan  # a third cannot leave at once
    found = compare_scores(traces, "entropy", "margin")
    assert found["lowest"] == pytest.approx(2 + 2 / 3)
    assert np.isfinite([found["low"], found["high"]]).all()
    traces.scores["margin"][:] = np.nan
    with pytest.raises(ValueError, match="from a mean depth of 6 to 6"):
        compare_scores(traces, "entropy", "margin")


def test_a_good_score_gains_on_chance_and_noise_does_not():
    traces = good_and_bad_scores()
    inner = score_thresholds(traces, "entropy", 9)[4:7]
    good = against_random(traces, "entropy", inner)
    assert (good["gain_low"] > 0).all()
    assert (good["gain_low"] < good["gain"]).all()
    assert (good["gain"] < good["gain_high"]).all()
    assert good["gain"].tolist() == pytest.approx(
        (good["random_error_rate"] - good["error_rate"]).tolist()
    )
    noise = against_random(traces, "margin", [0.3, 0.5, 0.7, 0.9])
    assert (noise["gain_low"] < 0).all()
    assert (noise["gain_high"] > 0).all()


def test_random_is_met_at_the_same_depth():
    traces = good_and_bad_scores()
    row = against_random(traces, "entropy", [0.3]).loc[0]
    chances = random_exit_probabilities(EXITS, row["mean_exit_layer"])
    expected = exit_table(traces)["error_rate"] @ chances
    assert row["random_error_rate"] == pytest.approx(expected)
    replayed = outcome(traces, exits_at(traces, "entropy", [0.3])).loc[0]
    assert row["mean_exit_layer"] == replayed["mean_exit_layer"]
    assert row["error_rate"] == pytest.approx(replayed["error_rate"])


def test_all_of_a_comparison_is_taken_from_the_same_resample():
    traces = good_and_bad_scores(30)
    thresholds = score_thresholds(traces, "entropy", 3)
    for seed in range(3):
        bootstrap = Bootstrap(30, resamples=1, seed=seed)
        times = bootstrap.weights[0].astype(int)
        drawn = traces.subset(np.repeat(np.arange(30), times))
        given = against_random(traces, "entropy", thresholds, bootstrap)
        expected = against_random(drawn, "entropy", thresholds)
        assert given["gain_low"].tolist() == pytest.approx(
            expected["gain"].tolist(), abs=1e-9
        )


def test_at_the_ends_there_is_nothing_to_gain():
    traces = good_and_bad_scores()
    ends = against_random(traces, "entropy", [math.inf, -math.inf])
    assert ends["mean_exit_layer"].tolist() == [2, 6]
    assert (ends[["gain", "gain_low", "gain_high"]] == 0).all(axis=None)


@pytest.mark.parametrize("score", ["entropy", "margin"])
@pytest.mark.parametrize("loss", [0, 1, 5, 100])
def test_savings_are_the_best_of_all_thresholds(score, loss):
    traces = good_and_bad_scores()
    found = savings(traces, score, loss)
    thresholds = score_thresholds(traces, score)
    table = outcome(traces, exits_at(traces, score, thresholds))
    limit = table["error_rate"].iloc[-1] + loss
    depth = table["mean_exit_layer"][table["error_rate"] <= limit].min()
    assert found["mean_layers_run"] == depth
    assert found["saved"] == pytest.approx(100 * (1 - depth / 6))
    assert found["error_rate"] <= limit
    replayed = outcome(traces, exits_at(traces, score, found["threshold"]))
    assert replayed["mean_exit_layer"][0] == depth
    assert replayed["error_rate"][0] == pytest.approx(found["error_rate"])
    assert found["saved_low"] <= found["saved"] <= found["saved_high"]
    low, high = found["error_rate_low"], found["error_rate_high"]
    assert low < found["error_rate"] < high


def test_savings_count_the_layers_that_ran():
    traces = good_and_bad_scores()
    skipping = replace(traces, layers_run=np.tile([1, 2, 4], (300, 1)))
    assert savings(skipping, "entropy", 100)["saved"] == 75
    assert savings(traces, "entropy", 100)["saved"] == pytest.approx(200 / 3)


def test_of_thresholds_that_do_the_same_the_strictest_is_named():
    traces = good_and_bad_scores()
    found = savings(traces, "entropy", 100)
    assert found["threshold"] == traces.scores["entropy"][:, 0].max()


def test_what_no_threshold_reaches_is_refused():
    with pytest.raises(ValueError, match="no threshold of entropy reaches"):
        savings(good_and_bad_scores(), "entropy", loss=-50)


def test_rank_correlation_is_that_of_scipy_with_ties():
    traces = good_and_bad_scores(60)
    traces.scores["margin"] = traces.scores["margin"].round(1)
    table = rank_correlation(traces, "margin")
    assert table["exit_layer"].tolist() == EXITS
    quality = -traces.errors / traces.ref_len[:, None]
    for k, found in enumerate(table["correlation"]):
        expected = spearmanr(traces.scores["margin"][:, k], quality[:, k])
        assert found == pytest.approx(expected.statistic)
    assert (table["low"] < table["correlation"]).all()
    assert (table["correlation"] < table["high"]).all()


def test_curves_of_several_seeds_are_averaged_at_the_same_depth():
    one, other = good_and_bad_scores(40), good_and_bad_scores(40)
    other.errors = other.errors + 1
    bootstrap = Bootstrap(40, resamples=50)
    alone = rule_curve([one], "entropy", bootstrap=bootstrap)
    both = rule_curve([one, other], "entropy", bootstrap=bootstrap)
    more = 100 * 40 / one.ref_len.sum() / 2
    assert both["error_rate"].to_numpy() == pytest.approx(
        alone["error_rate"].to_numpy() + more
    )
    assert (alone["low"] <= alone["error_rate"]).mean() > 0.9
    # At its ends a curve is that of the first and of the last exit.
    ends = exit_table(one, bootstrap).iloc[[0, -1]]
    for column in ("error_rate", "low", "high"):
        assert alone[column].iloc[[0, -1]].tolist() == pytest.approx(
            ends[column].tolist()
        )


def test_each_resample_is_ranked_anew():
    traces = good_and_bad_scores(25)
    quality = -traces.errors[:, 0] / traces.ref_len
    for seed in range(5):
        bootstrap = Bootstrap(25, resamples=1, seed=seed)
        drawn = np.repeat(np.arange(25), bootstrap.weights[0].astype(int))
        margin = traces.scores["margin"][drawn, 0]
        expected = spearmanr(margin, quality[drawn]).statistic
        table = rank_correlation(traces, "margin", bootstrap)
        assert table["low"][0] == pytest.approx(expected)
        assert table["high"][0] == pytest.approx(expected)


def test_a_good_score_goes_with_few_errors_whatever_its_direction():
    traces = good_and_bad_scores()
    turned = {"max_probability": 1 - traces.scores["entropy"]}
    entropy = rank_correlation(traces, "entropy")
    assert (entropy["low"] > 0.5).all()
    probability = rank_correlation(
        replace(traces, scores=turned), "max_probability"
    )
    assert probability["correlation"].tolist() == pytest.approx(
        entropy["correlation"].tolist()
    )


def test_never_confident_ranks_below_all_others():
    errors = [[0], [1], [2], [3]]
    scores = {"entropy": [[0.1], [0.2], [0.3], [math.inf]]}
    traces = Traces(range(4), [2], errors, [4] * 4, scores=scores)
    assert rank_correlation(traces, "entropy")["correlation"][0] == (
        pytest.approx(1)
    )


def test_nothing_correlates_with_a_constant():
    scores = {"margin": [[0.5, 0.1, math.nan], [0.5, 0.2, math.nan]]}
    errors = [[0, 2, 1], [1, 2, 0]]
    traces = Traces(["a", "b"], EXITS, errors, [4, 4], scores=scores)
    table = rank_correlation(traces, "margin")
    assert table[["correlation", "low", "high"]].isna().all(axis=None)


def test_utterances_without_a_reference_do_not_rank():
    scores = {"margin": [[0.9], [0.5], [0.1], [0.99]]}
    errors = [[0], [1], [2], [7]]
    traces = Traces(range(4), [2], errors, [4, 4, 4, 0], scores=scores)
    found = rank_correlation(traces, "margin")
    assert found["correlation"][0] == pytest.approx(1)
    assert found["low"][0] == pytest.approx(1)


def test_a_bootstrap_of_another_set_is_refused():
    traces = good_and_bad_scores(30)
    with pytest.raises(ValueError, match="30 utterances, but .* from 31"):
        exit_table(traces, Bootstrap(31))
