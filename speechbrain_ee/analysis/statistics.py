"""Statistics: how sure one can be of what traces show.

Intervals are percentiles of the bootstrap over utterances. Whatever is compared
is computed on the same resamples (paired).

Authors
 * SpeechBrain-EE contributors 2026
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from speechbrain_ee.analysis.replay import exits_at, score_thresholds
from speechbrain_ee.analysis.traces import Traces
from speechbrain_ee.chance import random_exit_probabilities


class Interval(NamedTuple):
    """A figure and the interval around it, or arrays of them.

    Arguments
    ---------
    value : float or np.ndarray
        On the set as it is.
    low : float or np.ndarray
        Lower end.
    high : float or np.ndarray
        Upper end.

    Example
    -------
    >>> Interval(2.0, 1.5, 2.5).high
    2.5
    """

    value: float | np.ndarray
    low: float | np.ndarray
    high: float | np.ndarray


class Bootstrap:
    """Resamples of the utterances of a set, the same for all that is asked.

    Arguments
    ---------
    utterances : int
        Their number, N.
    resamples : int
        How many sets of N utterances are drawn, B.
    level : float
        Share of the resamples that lie within an interval.
    seed : int
        Seed of the draw.

    Example
    -------
    >>> bootstrap = Bootstrap(4)
    >>> bootstrap.weights.shape
    (1000, 4)
    >>> bootstrap.mean_interval(np.full(4, 2.0))._asdict() == {
    ...     "value": 2,
    ...     "low": 2,
    ...     "high": 2,
    ... }
    True
    """

    def __init__(
        self,
        utterances: int,
        resamples: int = 1000,
        level: float = 0.95,
        seed: int = 0,
    ):
        self.level = level
        share = np.full(utterances, 1 / utterances)
        draw = np.random.default_rng(seed).multinomial
        #: How often each resample holds each utterance, of shape (B, N).
        self.weights = draw(utterances, share, size=resamples).astype(float)

    def bounds(self, samples: np.ndarray) -> tuple:
        """Percentiles of something computed on each resample.

        Arguments
        ---------
        samples : np.ndarray
            Of shape (B,) or (B, T); NaN makes NaN.

        Returns
        -------
        tuple
            Lower and upper ends.

        Example
        -------
        >>> low, high = Bootstrap(4, level=0.5).bounds(np.arange(101))
        >>> float(low), float(high)
        (25.0, 75.0)
        """
        tail = (1 - self.level) / 2
        return tuple(np.quantile(samples, [tail, 1 - tail], axis=0))

    def error_rates(
        self, errors: np.ndarray, ref_len: np.ndarray
    ) -> np.ndarray:
        """The error rate of each resample.

        Arguments
        ---------
        errors : np.ndarray
            Of shape (N,) or, for T systems, (N, T).
        ref_len : np.ndarray
            What they are counted against, of shape (N,).

        Returns
        -------
        np.ndarray
            In percent, of shape (B,) or (B, T).

        Example
        -------
        >>> rates = Bootstrap(2).error_rates(np.ones(2), np.full(2, 4.0))
        >>> float(rates.min()), float(rates.max())
        (25.0, 25.0)
        """
        total = self.weights @ ref_len
        return (100 * (self.weights @ errors).T / total).T

    def error_rate_interval(
        self, errors: np.ndarray, ref_len: np.ndarray
    ) -> Interval:
        """Interval of an error rate.

        Arguments
        ---------
        errors : np.ndarray
            Of shape (N,) or, for T systems, (N, T).
        ref_len : np.ndarray
            What they are counted against, of shape (N,).

        Returns
        -------
        Interval
            In percent.

        Example
        -------
        >>> errors, ref_len = np.array([0, 1] * 50), np.full(100, 4)
        >>> rate, low, high = Bootstrap(100).error_rate_interval(
        ...     errors, ref_len
        ... )
        >>> float(rate), bool(9 < low < 11 < 14 < high < 16)
        (12.5, True)
        """
        return Interval(
            _error_rate(errors, ref_len),
            *self.bounds(self.error_rates(errors, ref_len)),
        )

    def mean_interval(self, values: np.ndarray) -> Interval:
        """Interval of a mean over utterances.

        Arguments
        ---------
        values : np.ndarray
            Of shape (N,) or (N, T).

        Returns
        -------
        Interval

        Example
        -------
        >>> mean, low, high = Bootstrap(100).mean_interval(np.arange(100))
        >>> float(mean), bool(low < 45 < 54 < high)
        (49.5, True)
        """
        samples = self.weights @ values / self.weights.shape[1]
        return Interval(np.mean(values, axis=0), *self.bounds(samples))

    def difference_interval(
        self, errors: np.ndarray, others: np.ndarray, ref_len: np.ndarray
    ) -> Interval:
        """Interval of the difference of two systems on the same utterances.

        Arguments
        ---------
        errors : np.ndarray
            Of one system, of shape (N,) or (N, T).
        others : np.ndarray
            Of the other.
        ref_len : np.ndarray
            What they are counted against, of shape (N,).

        Returns
        -------
        Interval
            Error rate of the one minus that of the other, in percent.

        Example
        -------
        >>> errors, ref_len = np.array([0, 1] * 50), np.full(100, 4)
        >>> bootstrap = Bootstrap(100)
        >>> found = bootstrap.difference_interval(errors, errors + 1, ref_len)
        >>> float(found.value)
        -25.0
        """
        difference = np.subtract(errors, others)
        return self.error_rate_interval(difference, ref_len)


def exit_table(
    traces: Traces, bootstrap: Bootstrap | None = None
) -> pd.DataFrame:
    """The error rate of each exit, if all leave there.

    Arguments
    ---------
    traces : Traces
        A set of utterances.
    bootstrap : Bootstrap, optional
        The resamples; 1000 of 95 % unless given.

    Returns
    -------
    pandas.DataFrame
        ``exit_layer``, ``error_rate``, ``low``, ``high``.

    Example
    -------
    >>> traces = Traces(["a", "b"], [2, 4], [[1, 0], [1, 0]], [4, 4])
    >>> exit_table(traces)
       exit_layer  error_rate   low  high
    0           2        25.0  25.0  25.0
    1           4         0.0   0.0   0.0
    """
    rate, low, high = _resamples(traces, bootstrap).error_rate_interval(
        traces.errors, traces.ref_len
    )
    return pd.DataFrame(
        {
            "exit_layer": traces.exit_layers,
            "error_rate": rate,
            "low": low,
            "high": high,
        }
    )


def rule_curve(
    runs: Sequence[Traces],
    score: str,
    points: int = 200,
    bootstrap: Bootstrap | None = None,
) -> pd.DataFrame:
    """Error rate against mean depth of a score's thresholds, over seeds.

    Each run's curve is drawn through its own thresholds, by straight lines,
    and read off at the same mean depths; then curves are averaged. The
    interval holds the depth fixed: in each resample thresholds are those that
    reach this depth there.

    Arguments
    ---------
    runs : sequence of Traces
        Models of one kind on the same utterances in the same order.
    score : str
        A score of theirs.
    points : int
        Thresholds per run, and depths to read off.
    bootstrap : Bootstrap, optional
        The resamples; 1000 of 95 % unless given.

    Returns
    -------
    pandas.DataFrame
        ``mean_exit_layer``, ``error_rate``, ``low``, ``high``.

    Example
    -------
    >>> scores = {"entropy": [[0.1, 0], [0.9, 0]]}
    >>> errors = [[0, 0], [4, 0]]
    >>> traces = Traces(["a", "b"], [2, 4], errors, [4, 4], scores=scores)
    >>> rule_curve([traces], "entropy", points=3)["error_rate"].tolist()
    [50.0, 0.0, 0.0]
    """
    bootstrap = _resamples(runs[0], bootstrap)
    curves, resampled = zip(
        *(_curves(traces, score, points, bootstrap) for traces in runs)
    )
    depth = np.linspace(
        max(layers[0] for layers, _ in curves),
        min(layers[-1] for layers, _ in curves),
        points,
    )
    rate = np.mean([np.interp(depth, *curve) for curve in curves], axis=0)
    samples = np.mean(
        [
            [np.interp(depth, *curve) for curve in zip(*resamples)]
            for resamples in resampled
        ],
        axis=0,
    )
    low, high = bootstrap.bounds(samples)
    return pd.DataFrame(
        {
            "mean_exit_layer": depth,
            "error_rate": rate,
            "low": low,
            "high": high,
        }
    )


def area_under_curve(
    mean_depth: np.ndarray,
    error_rate: np.ndarray,
    lowest: float,
    highest: float,
) -> np.ndarray:
    """Mean error rate over a range of depths.

    Neighbouring points are joined by straight lines, which is what choosing
    one or the other at random gives. The curve is taken as it is, not its
    lower envelope, so that a bad threshold counts against a score.

    Arguments
    ---------
    mean_depth : np.ndarray
        Mean exit layers of T points in any order, of shape (..., T).
    error_rate : np.ndarray
        Their error rates, of the same shape.
    lowest : float
        Where the range begins.
    highest : float
        Where it ends.

    Returns
    -------
    np.ndarray
        One value per curve, of shape (...).

    Raises
    ------
    ValueError
        If the range is empty, or a curve does not cover it.

    Example
    -------
    >>> float(area_under_curve([2, 4, 6], [20, 10, 10], 2, 6))
    12.5
    """
    depth = np.asarray(mean_depth, dtype=float)
    covered = depth.min(axis=-1).max(), depth.max(axis=-1).min()
    if not covered[0] <= lowest < highest <= covered[1]:
        raise ValueError(
            f"no area from a mean depth of {lowest:g} to {highest:g} under a "
            f"curve from {covered[0]:g} to {covered[1]:g}: name a range within."
        )
    return _area(depth, np.asarray(error_rate, dtype=float), lowest, highest)


def compare_scores(
    traces: Traces,
    one: str,
    other: str,
    points: int = 200,
    bootstrap: Bootstrap | None = None,
) -> dict[str, float | str]:
    """Which of two scores chooses better, over the depths that both reach.

    Arguments
    ---------
    traces : Traces
        A set of utterances.
    one : str
        A score of theirs.
    other : str
        Another.
    points : int
        Thresholds per score.
    bootstrap : Bootstrap, optional
        The resamples; 1000 of 95 % unless given.

    Returns
    -------
    dict
        ``one``, ``other`` (names), ``lowest``, ``highest`` (mean depths),
        ``area_one``, ``area_other`` (:func:`area_under_curve`),
        ``difference`` (negative where the one makes fewer errors), ``low`` and
        ``high`` (paired interval of the difference).

    Raises
    ------
    ValueError
        If the curves share no range of depths.

    Example
    -------
    >>> scores = {"entropy": [[0.1, 0], [0.9, 0]]}
    >>> scores["margin"] = [[0.1, 1], [0.9, 1]]
    >>> errors = [[0, 0], [4, 0]]
    >>> traces = Traces(["a", "b"], [2, 4], errors, [4, 4], scores=scores)
    >>> found = compare_scores(traces, "entropy", "margin")
    >>> found["area_one"], found["area_other"], found["difference"]
    (12.5, 37.5, -25.0)
    """
    bootstrap = _resamples(traces, bootstrap)
    curves, resampled = zip(
        *(_curves(traces, score, points, bootstrap) for score in (one, other))
    )
    lowest = max(depth.min() for depth, _ in curves)
    highest = min(depth.max() for depth, _ in curves)
    areas = [area_under_curve(*curve, lowest, highest) for curve in curves]
    # Where a score is not known of everybody at the first exit, the curve of a
    # resample may begin a little deeper: then the range begins there.
    samples = [_area(*curve, lowest, highest) for curve in resampled]
    low, high = bootstrap.bounds(samples[0] - samples[1])
    return {
        "one": one,
        "other": other,
        "lowest": float(lowest),
        "highest": float(highest),
        "area_one": float(areas[0]),
        "area_other": float(areas[1]),
        "difference": float(areas[0] - areas[1]),
        "low": float(low),
        "high": float(high),
    }


def against_random(
    traces: Traces,
    score: str,
    thresholds,
    bootstrap: Bootstrap | None = None,
) -> pd.DataFrame:
    """What a score gains over leaving at random at the same mean depth.

    Arguments
    ---------
    traces : Traces
        A set of utterances.
    score : str
        A score of theirs.
    thresholds : sequence of float
        Of that score.
    bootstrap : Bootstrap, optional
        The resamples; 1000 of 95 % unless given.

    Returns
    -------
    pandas.DataFrame
        A row per threshold: ``threshold``, ``mean_exit_layer``, ``error_rate``
        with ``low`` and ``high``, ``random_error_rate`` (expected) and
        ``gain``, the difference of the two, with ``gain_low`` and
        ``gain_high``. The score is better than chance where ``gain_low`` is
        above 0. Random leaves at the mean depth of each resample.

    Example
    -------
    >>> scores = {"entropy": [[0.1, 0], [0.9, 0]] * 20}
    >>> ids, errors = range(40), [[0, 0], [4, 0]] * 20
    >>> traces = Traces(ids, [2, 4], errors, [4] * 40, scores=scores)
    >>> row = against_random(traces, "entropy", [0.5]).loc[0]
    >>> row["error_rate"].item(), row["random_error_rate"].round(3).item()
    (0.0, 25.0)
    >>> bool(row["gain_low"] > 0)
    True
    """
    bootstrap = _resamples(traces, bootstrap)
    layers, errors = _at_thresholds(traces, score, thresholds)

    def random_error_rate(depth, exit_rates):
        """What leaving at random makes of the rates of the exits."""
        chances = random_exit_probabilities(traces.exit_layers, depth)
        return (chances @ exit_rates[..., None])[..., 0]

    depth = layers.mean(axis=0)
    rate = _error_rate(errors, traces.ref_len)
    random = random_error_rate(
        depth, _error_rate(traces.errors, traces.ref_len)
    )
    rates = bootstrap.error_rates(errors, traces.ref_len)
    randoms = random_error_rate(
        bootstrap.weights @ layers / len(traces),
        bootstrap.error_rates(traces.errors, traces.ref_len),
    )
    low, high = bootstrap.bounds(rates)
    gain_low, gain_high = bootstrap.bounds(randoms - rates)
    return pd.DataFrame(
        {
            "threshold": np.atleast_1d(thresholds),
            "mean_exit_layer": depth,
            "error_rate": rate,
            "low": low,
            "high": high,
            "random_error_rate": random,
            "gain": random - rate,
            "gain_low": gain_low,
            "gain_high": gain_high,
        }
    )


def savings(
    traces: Traces,
    score: str,
    loss: float = 1.0,
    points: int = 200,
    bootstrap: Bootstrap | None = None,
) -> dict[str, float]:
    """The threshold that runs the fewest layers without losing too much.

    It is chosen on these utterances, and the intervals hold for it as chosen:
    for what a user will meet, choose on a development set and replay the
    threshold on another.

    Arguments
    ---------
    traces : Traces
        A set of utterances. Where ``layers_run`` is not known, all layers up
        to the exit count.
    score : str
        A score of theirs.
    loss : float
        How many points of error rate, in percent, it may cost, compared with
        the last exit.
    points : int
        How many thresholds are tried, see
        :func:`speechbrain_ee.analysis.replay.score_thresholds`.
    bootstrap : Bootstrap, optional
        The resamples; 1000 of 95 % unless given.

    Returns
    -------
    dict
        ``threshold`` (of several that do the same, the strictest),
        ``mean_layers_run``, ``saved`` (layers, in percent of those up to the
        last exit) with ``saved_low`` and ``saved_high``, ``error_rate`` with
        ``error_rate_low`` and ``error_rate_high``.

    Raises
    ------
    ValueError
        If no threshold is good enough, which takes a negative loss.

    Example
    -------
    >>> scores = {"entropy": [[0.1, 0], [0.9, 0]]}
    >>> errors = [[0, 0], [4, 0]]
    >>> traces = Traces(["a", "b"], [2, 4], errors, [4, 4], scores=scores)
    >>> found = savings(traces, "entropy")
    >>> found["threshold"], found["mean_layers_run"], found["saved"]
    (0.1, 3.0, 25.0)
    """
    bootstrap = _resamples(traces, bootstrap)
    thresholds = score_thresholds(traces, score, points)
    taken = exits_at(traces, score, thresholds)
    errors = np.take_along_axis(traces.errors, taken, axis=1)
    layers = traces.layers_run
    if layers is None:
        layers = np.tile(traces.exit_layers.astype(float), (len(traces), 1))
    run = np.take_along_axis(layers, taken, axis=1)

    rates = _error_rate(errors, traces.ref_len)
    limit = _error_rate(traces.errors[:, -1], traces.ref_len) + loss
    allowed = np.flatnonzero(rates <= limit)
    if not len(allowed):
        raise ValueError(
            f"{traces.source}: no threshold of {score} reaches an error rate "
            f"of {limit:.2f} %, the last exit's with a loss of {loss:g}; the "
            f"best is {rates.min():.2f} %. Allow a larger loss."
        )
    fewest = run.mean(axis=0)[allowed]
    best = allowed[np.flatnonzero(fewest == fewest.min())[-1]]
    rate = bootstrap.error_rate_interval(errors[:, best], traces.ref_len)
    # All that is saved is counted against all that could be run.
    saved = bootstrap.error_rate_interval(
        layers[:, -1] - run[:, best], layers[:, -1]
    )
    return {
        "threshold": float(thresholds[best]),
        "mean_layers_run": float(fewest.min()),
        "saved": float(saved.value),
        "saved_low": float(saved.low),
        "saved_high": float(saved.high),
        "error_rate": float(rate.value),
        "error_rate_low": float(rate.low),
        "error_rate_high": float(rate.high),
    }


def rank_correlation(
    traces: Traces, score: str, bootstrap: Bootstrap | None = None
) -> pd.DataFrame:
    """How well a score tells good transcripts from bad ones, at each exit.

    Spearman's correlation between an utterance's confidence and its error
    rate, turned so that 1 is a perfect score. A value that is never confident
    ranks below all others. Utterances without a reference token are left out.

    Arguments
    ---------
    traces : Traces
        A set of utterances.
    score : str
        A score of theirs.
    bootstrap : Bootstrap, optional
        The resamples, ranked anew each; 1000 of 95 % unless given.

    Returns
    -------
    pandas.DataFrame
        ``exit_layer``, ``correlation``, ``low``, ``high``; NaN where all
        utterances have the same confidence or error rate. Resamples of which
        that is true do not count.

    Example
    -------
    >>> scores = {"entropy": [[0.1, 0.3], [0.5, 0.3], [0.9, 0.3]]}
    >>> errors = [[0, 0], [1, 0], [2, 1]]
    >>> traces = Traces(list("abc"), [2, 4], errors, [4, 4, 4], scores=scores)
    >>> rank_correlation(traces, "entropy")["correlation"].round(3).tolist()
    [1.0, nan]
    """
    bootstrap = _resamples(traces, bootstrap)
    rows = np.flatnonzero(traces.ref_len)
    confidence = np.nan_to_num(traces.confidence(score), nan=-np.inf)[rows]
    quality = -traces.errors[rows] / traces.ref_len[rows, None]
    # The set as it is goes first. In parts, for the sake of memory.
    weights = np.vstack([np.ones(len(rows)), bootstrap.weights[:, rows]])
    parts = np.array_split(weights, max(1, weights.size // 2_000_000))
    table = []
    for exit_layer, x, y in zip(traces.exit_layers, confidence.T, quality.T):
        found = np.concatenate([_spearman(x, y, part) for part in parts])
        correlation, samples = found[0], found[1:]
        low = high = np.nan
        if np.isfinite(correlation):
            low, high = bootstrap.bounds(samples[np.isfinite(samples)])
        table.append((exit_layer, correlation, low, high))
    return pd.DataFrame(
        table, columns=["exit_layer", "correlation", "low", "high"]
    )


def _resamples(traces, bootstrap):
    if bootstrap is None:
        return Bootstrap(len(traces))
    if bootstrap.weights.shape[1] != len(traces):
        raise ValueError(
            f"{traces.source}: {len(traces)} utterances, but the bootstrap "
            f"draws from {bootstrap.weights.shape[1]}: make it of "
            "len(traces)."
        )
    return bootstrap


def _error_rate(errors, ref_len):
    return 100 * np.sum(errors, axis=0) / np.sum(ref_len)


def _at_thresholds(traces, score, thresholds):
    """Exit layers and errors of each utterance, both of shape (N, T)."""
    taken = exits_at(traces, score, thresholds)
    layers = traces.exit_layers.astype(float)[taken]
    return layers, np.take_along_axis(traces.errors, taken, axis=1)


def _curves(traces, score, points, bootstrap):
    """Depths and error rates, of shape (T,), and of resamples, (B, T)."""
    thresholds = score_thresholds(traces, score, points)
    layers, errors = _at_thresholds(traces, score, thresholds)
    resampled = (
        bootstrap.weights @ layers / len(traces),
        bootstrap.error_rates(errors, traces.ref_len),
    )
    rates = _error_rate(errors, traces.ref_len)
    return (layers.mean(axis=0), rates), resampled


def _area(depth, rate, lowest, highest):
    """Mean over as much of the range as lies below the curve, (..., T)."""
    order = np.argsort(depth, axis=-1, kind="stable")
    depth = np.take_along_axis(depth, order, axis=-1)
    rate = np.take_along_axis(rate, order, axis=-1)
    start, end = (
        np.clip(x, lowest, highest) for x in (depth[..., :-1], depth[..., 1:])
    )
    width = end - start
    length = np.diff(depth, axis=-1)
    # A line's mean over a stretch is its value in the middle of it.
    along = ((start + end) / 2 - depth[..., :-1]) / np.where(length, length, 1)
    middle = rate[..., :-1] + along * np.diff(rate, axis=-1)
    return (width * middle).sum(axis=-1) / width.sum(axis=-1)


def _spearman(x, y, weights):
    """Of N pairs, each repeated so often as a row of (B, N) says."""
    middle = (weights.sum(axis=1, keepdims=True) + 1) / 2
    x, y = _ranks(x, weights) - middle, _ranks(y, weights) - middle
    xx, xy, yy = (
        np.einsum("bn,bn,bn->b", weights, *pair)
        for pair in [(x, x), (x, y), (y, y)]
    )
    with np.errstate(invalid="ignore"):  # 0 / 0 where all are equal
        return xy / np.sqrt(xx * yy)


def _ranks(values, weights):
    """Ranks from 1 on of N values, repeated as above; ties share their mean.

    scipy's rankdata would need the repeated values and a sort of each row.
    """
    _, group = np.unique(values, return_inverse=True)
    order = np.argsort(group, kind="stable")
    starts = np.searchsorted(group[order], np.arange(group.max() + 1))
    sizes = np.add.reduceat(weights[:, order], starts, axis=1)
    ranks = sizes.cumsum(axis=1) - (sizes - 1) / 2
    return ranks[:, group]
