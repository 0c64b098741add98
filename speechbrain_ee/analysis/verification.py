"""Speaker verification: trials, and how often they are decided wrongly.

Authors
 * SpeechBrain-EE contributors 2026
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from speechbrain_ee.analysis.statistics import Interval


class Trial(NamedTuple):
    """Two utterances, and whether one speaker says both.

    Arguments
    ---------
    same : bool
        Whether they are of one speaker.
    enrol : str
        One utterance.
    test : str
        The other.

    Example
    -------
    >>> Trial(True, "anna-1", "anna-2").same
    True
    """

    same: bool
    enrol: str
    test: str


def read_trials(path: str | Path) -> list[Trial]:
    r"""Read a list of trials in the format of VoxCeleb.

    Arguments
    ---------
    path : str or Path
        Text with lines such as ``1 id10270/a/00001.wav id10270/b/00002.wav``:
        1 for one speaker, 0 for two, and the utterances.

    Returns
    -------
    list of Trial

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If a line is something else, or there are not both kinds of trials.

    Example
    -------
    >>> path = getfixture("tmp_path") / "trials.txt"
    >>> _ = path.write_text("1 a b\n0 a c\n")
    >>> read_trials(path)[1]
    Trial(same=False, enrol='a', test='c')
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no list of trials {path}: it has lines "
            "'1 UTTERANCE UTTERANCE' for one speaker and 0 for two."
        )
    trials = []
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        fields = line.split()
        if not fields:
            continue
        if len(fields) != 3 or fields[0] not in ("0", "1"):
            raise ValueError(
                f"{path}, line {number}: {line!r} is no trial; write 1 (one "
                "speaker) or 0 (two) and two utterances, without spaces in "
                "their names."
            )
        trials.append(Trial(fields[0] == "1", *fields[1:]))
    if len({trial.same for trial in trials}) < 2:
        raise ValueError(
            f"{path}: {len(trials)} trials, but not of both kinds: a rate of "
            "equal errors needs trials of one speaker and of two."
        )
    return trials


def draw_trials(
    names: Sequence[str], speakers: Sequence[str], count: int, seed: int = 0
) -> list[Trial]:
    """Draw trials among utterances, half of them of one speaker.

    Arguments
    ---------
    names : sequence of str
        The utterances.
    speakers : sequence of str
        Who says each.
    count : int
        How many trials; fewer if there are not so many pairs of a kind.
    seed : int
        Of the draw.

    Returns
    -------
    list of Trial
        No pair twice.

    Raises
    ------
    ValueError
        If there are no two utterances of one speaker, or of two.

    Example
    -------
    >>> trials = draw_trials(list("abcd"), [1, 1, 2, 2], 4)
    >>> sum(trial.same for trial in trials)
    2
    """
    rng = np.random.default_rng(seed)
    speaker = np.unique(np.asarray(speakers), return_inverse=True)[1]
    total, drawn = len(names), {True: set(), False: set()}
    pairs = total * (total - 1) // 2
    sizes = np.bincount(speaker)
    available = {True: int((sizes * (sizes - 1) // 2).sum())}
    available[False] = pairs - available[True]
    if not all(available.values()):
        raise ValueError(
            f"{total} utterances of {len(sizes)} speakers give no trials of "
            "both kinds: two utterances of a speaker and two speakers are "
            "needed."
        )
    members = [np.flatnonzero(speaker == k) for k in range(len(sizes))]
    # Drawn in proportion to their pairs, so that every pair is as likely.
    weights = sizes * (sizes - 1) / (2 * available[True])
    wanted = {same: min(n, count // 2) for same, n in available.items()}
    while len(drawn[True]) < wanted[True]:
        own = members[rng.choice(len(sizes), p=weights)]
        drawn[True].add(tuple(sorted(rng.choice(own, 2, replace=False))))
    while len(drawn[False]) < wanted[False]:
        one, other = sorted(rng.integers(total, size=2))
        if speaker[one] != speaker[other]:
            drawn[False].add((one, other))
    return [
        Trial(same, names[one], names[other])
        for same, found in drawn.items()
        for one, other in sorted(found)
    ]


def equal_error_rate(
    scores: np.ndarray, same: np.ndarray, weights: np.ndarray | None = None
) -> float:
    """Where as many of one speaker are refused as of two are accepted.

    As ``speechbrain.utils.metric_stats.EER`` has it: the mean of the two rates
    at the lowest threshold at which they differ least. That one compares all
    scores with all thresholds; this one sorts, so that a list of the size of
    VoxCeleb's can be resampled.

    Arguments
    ---------
    scores : np.ndarray
        High for one speaker, of shape (trials,).
    same : np.ndarray
        bool of the same shape.
    weights : np.ndarray, optional
        How often each trial counts, of the same shape.

    Returns
    -------
    float
        In percent.

    Example
    -------
    >>> scores = np.array([0.9, 0.6, 0.7, 0.1])
    >>> equal_error_rate(scores, np.array([True, True, False, False]))
    50.0
    """
    miss, accept = _operating_points(scores, same, weights)
    best = np.abs(accept - miss).argmin()
    return float(100 * (miss[best] + accept[best]) / 2)


def minimum_cost(
    scores: np.ndarray,
    same: np.ndarray,
    weights: np.ndarray | None = None,
    p_target: float = 0.01,
) -> float:
    """The minimum of the detection cost, errors of both kinds costing 1.

    Divided by the cost of deciding without listening, as in evaluations of
    NIST: ``speechbrain.utils.metric_stats.minDCF`` gives the cost itself, which
    is ``p_target`` times this.

    Arguments
    ---------
    scores : np.ndarray
        High for one speaker, of shape (trials,).
    same : np.ndarray
        bool of the same shape.
    weights : np.ndarray, optional
        How often each trial counts, of the same shape.
    p_target : float
        How likely one speaker is beforehand, below 0.5.

    Returns
    -------
    float
        0 to 1.

    Example
    -------
    >>> scores = np.array([0.9, 0.6, 0.7, 0.1])
    >>> minimum_cost(scores, np.array([True, True, False, False]))
    0.5
    """
    miss, accept = _operating_points(scores, same, weights)
    cost = miss * p_target + accept * (1 - p_target)
    return float(cost.min() / p_target)


def trial_interval(
    figure: Callable[..., float],
    scores: np.ndarray,
    same: np.ndarray,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Bootstrap interval of a figure, over trials.

    Trials are drawn as if they were independent. They are not, as they share
    speakers and utterances: the true interval is wider.

    Arguments
    ---------
    figure : callable
        ``equal_error_rate`` or ``minimum_cost``.
    scores : np.ndarray
        Of shape (trials,).
    same : np.ndarray
        bool of the same shape.
    resamples : int
        How many.
    level : float
        Share of the resamples within the interval.
    seed : int
        Of the draw.

    Returns
    -------
    Interval

    Example
    -------
    >>> scores = np.arange(100.0)
    >>> found = trial_interval(equal_error_rate, scores, scores > 49)
    >>> found.value, float(found.low), float(found.high)
    (0.0, 0.0, 0.0)
    """
    rng = np.random.default_rng(seed)
    order = np.argsort(scores, kind="stable")
    scores, same = scores[order], np.asarray(same)[order]
    share = np.full(len(scores), 1 / len(scores))
    found = []
    while len(found) < resamples:
        weights = rng.multinomial(len(scores), share)
        # Without both kinds there is no figure.
        if weights[same].any() and weights[~same].any():
            found.append(figure(scores, same, weights))
    tail = (1 - level) / 2
    low, high = np.quantile(found, [tail, 1 - tail])
    return Interval(figure(scores, same), low, high)


def _operating_points(scores, same, weights):
    """Rates of both errors, of each threshold from the lowest score up.

    A score is accepted above the threshold, as in SpeechBrain; between two
    neighbouring scores nothing changes.
    """
    scores, same = np.asarray(scores, float), np.asarray(same, bool)
    weights = np.ones(len(scores)) if weights is None else weights
    order = np.argsort(scores, kind="stable")
    scores, same, weights = scores[order], same[order], weights[order]
    counted = weights > 0
    scores, same, weights = scores[counted], same[counted], weights[counted]
    last = np.append(scores[1:] != scores[:-1], True)  # of equal scores
    refused = np.cumsum(np.where(same, weights, 0))[last]
    kept_out = np.cumsum(np.where(same, 0, weights))[last]
    return refused / refused[-1], 1 - kept_out / kept_out[-1]
