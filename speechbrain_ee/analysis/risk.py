"""Risk of leaving early, and tests that keep it within a budget.

Learn then Test (Angelopoulos et al., arXiv:2110.01052): whether a setting is
safe is tested on utterances that had no part in proposing it, so that the risk
of the setting that is taken stays within the budget but for a chosen
probability. It holds for utterances drawn independently and as those of the
test were. Other noise is not covered; few speakers, or a development set that
has chosen the checkpoint too, weaken it.

Authors
 * SpeechBrain-EE contributors 2026
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
from scipy.optimize import isotonic_regression
from scipy.special import bdtr, rel_entr

from speechbrain_ee.analysis.replay import score_thresholds
from speechbrain_ee.analysis.traces import Traces

# Settings that are tested at a time: later ones are often not reached.
_AT_A_TIME = 32


def excess_loss(traces: Traces) -> np.ndarray:
    """What each utterance loses by leaving at each exit.

    clip((errors at the exit - errors at the last exit) / ref_len, 0, 1); its
    mean over utterances is the risk. Utterances count alike, long or short, and
    what one gains by leaving early makes up for no other's loss, so the risk is
    not a difference of corpus error rates.

    Arguments
    ---------
    traces : Traces
        N utterances at E exits.

    Returns
    -------
    np.ndarray
        From 0 to 1, of shape (N, E).

    Example
    -------
    >>> traces = Traces(["a", "b"], [2, 4], [[3, 1], [0, 1]], [4, 5])
    >>> excess_loss(traces)
    array([[0.5, 0. ],
           [0. , 0. ]])
    """
    more = traces.errors - traces.errors[:, -1:]
    # An utterance without words loses all by a word too many.
    return np.clip(more / np.maximum(traces.ref_len, 1)[:, None], 0, 1)


def hoeffding_bentkus(losses: np.ndarray, alpha: float) -> np.ndarray:
    """P-values of the hypotheses that a mean loss is above alpha.

    The smaller of Hoeffding's and Bentkus' bound (arXiv:2110.01052, section
    3.1): min(exp(-n kl(r, alpha)), e P(Bin(n, alpha) <= ceil(n r))) with the
    mean r, up to alpha. It knows of the losses no more than their mean.

    Arguments
    ---------
    losses : np.ndarray
        From 0 to 1, of shape (n, T): n independent utterances in T settings.
    alpha : float
        Between 0 and 1.

    Returns
    -------
    np.ndarray
        Of shape (T,).

    Example
    -------
    >>> losses = np.zeros((100, 1))
    >>> hoeffding_bentkus(losses, 0.05).round(5)  # 0.95 ** 100
    array([0.00592])
    """
    total = losses.sum(axis=0)
    n = len(losses)
    mean = np.minimum(total / n, alpha)
    kl = rel_entr(mean, alpha) + rel_entr(1 - mean, 1 - alpha)
    bentkus = math.e * bdtr(np.ceil(total), n, alpha)
    return np.minimum(np.exp(-n * kl), bentkus).clip(max=1)


def betting(losses: np.ndarray, alpha: float, delta: float = 0.1) -> np.ndarray:
    """P-values of the hypotheses that a mean loss is above alpha, by betting.

    Capital that bets on losses below alpha (Waudby-Smith and Ramdas,
    arXiv:2010.09686; as an upper bound of a risk: Bates et al.,
    arXiv:2101.02703, section 3.1.3): K_t = prod (1 - v_i (L_i - alpha)). Where
    the mean loss is above alpha, it grows at no step on average, so that the
    chance that it ever reaches 1 / p is at most p (Ville); the p-value is
    1 / max K_t. The bet v_i = min(1, sqrt(2 ln(1 / delta) / (n s²))) may depend
    on what came before: s² is the variance so far, with one observation of the
    largest variance that losses of mean alpha can have, alpha (1 - alpha), in
    front. Most losses are 0 or small, so that s² is far below that bound, which
    :func:`hoeffding_bentkus` reckons with.

    Arguments
    ---------
    losses : np.ndarray
        From 0 to 1, of shape (n, T): n independent utterances, in an order that
        has nothing to do with their losses, in T settings.
    alpha : float
        Between 0 and 1.
    delta : float
        The level at which the bets are to be good; p-values hold at any.

    Returns
    -------
    np.ndarray
        Of shape (T,).

    Example
    -------
    >>> losses = np.tile([[0.0], [0.04]], (100, 1))
    >>> bool(betting(losses, 0.05) < 0.02)
    True
    >>> bool(hoeffding_bentkus(losses, 0.05) > 0.05)
    True
    """
    n = len(losses)
    count = np.arange(1, n + 1)[:, None]
    mean = (alpha + losses.cumsum(axis=0)) / (count + 1)
    spread = alpha * (1 - alpha) + np.square(losses - mean).cumsum(axis=0)
    variance = np.empty_like(mean)
    variance[0] = alpha * (1 - alpha)
    variance[1:] = (spread / (count + 1))[:-1]
    bets = np.sqrt(2 * math.log(1 / delta) / (n * variance)).clip(max=1)
    capital = np.log1p(bets * (alpha - losses)).cumsum(axis=0)
    return np.exp(-capital.max(axis=0).clip(min=0))


def utterances_needed(
    alpha: float, delta: float, p_value: Callable | None = None
) -> int:
    """How many utterances a test takes that could reject at all.

    Arguments
    ---------
    alpha : float
        Budget of the risk.
    delta : float
        Level of the test.
    p_value : Callable, optional
        As for :func:`learn_then_test`.

    Returns
    -------
    int
        The least n for which n losses of 0 have a p-value of at most delta.

    Example
    -------
    >>> utterances_needed(0.05, 0.1, hoeffding_bentkus)  # 0.95 ** 45 < 0.1
    45
    """
    p_value = p_value or partial(betting, delta=delta)

    def enough(n):
        """Whether n losses of 0 are rejected."""
        return p_value(np.zeros((n, 1)), alpha)[0] <= delta

    high = 1
    while not enough(high):
        high *= 2
    low = high // 2  # not enough, or 0
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def learn_then_test(
    losses: np.ndarray,
    alpha: float,
    delta: float = 0.1,
    p_value: Callable | None = None,
) -> int | None:
    """The fastest of a row of settings whose risk is known to be low enough.

    Settings are tested in their order, and the first that is not rejected ends
    it (fixed-sequence testing): among all that were rejected there is one with
    a risk above alpha with a probability of at most delta, without a correction
    for their number. For that, the settings and their order must not come from
    these losses, nor from scores of the same utterances.

    Arguments
    ---------
    losses : np.ndarray
        From 0 to 1, of shape (n, T): n utterances, independent and alike, in T
        settings, from safe to fast.
    alpha : float
        Budget of the risk.
    delta : float
        With which probability it may be exceeded.
    p_value : Callable, optional
        Takes losses and alpha, returns p-values of shape (T,), for n losses of
        0 falling as n grows; :func:`betting` for this delta by default.

    Returns
    -------
    int or None
        The last setting that was rejected; None if the first was not.

    Example
    -------
    >>> losses = np.zeros((400, 3))
    >>> losses[::2, 1:] = 0.02, 0.5
    >>> learn_then_test(losses, alpha=0.02)
    1
    """
    p_value = p_value or partial(betting, delta=delta)
    for start in range(0, losses.shape[1], _AT_A_TIME):
        p_values = p_value(losses[:, start : start + _AT_A_TIME], alpha)
        kept = np.flatnonzero(~(p_values <= delta))
        if len(kept):
            return start + int(kept[0]) - 1 if start + kept[0] else None
    return losses.shape[1] - 1


def one_threshold(traces: Traces, score: str, points: int = 200) -> np.ndarray:
    """Settings from safe to fast with the same threshold at all exits.

    Arguments
    ---------
    traces : Traces
        Their scores say where thresholds make a difference; errors play no
        part.
    score : str
        A score of theirs.
    points : int
        How many at most, besides the two infinite ones.

    Returns
    -------
    np.ndarray
        Of shape (T, E): from a first row at which nobody leaves early to a last
        one at which all leave at the first exit.

    Example
    -------
    >>> scores = {"entropy": [[0.9, 0.1], [0.2, 0.3]]}
    >>> errors = [[2, 1], [0, 0]]
    >>> traces = Traces(["a", "b"], [2, 4], errors, [6, 4], scores=scores)
    >>> one_threshold(traces, "entropy")[:, 0]
    array([-inf,  0.2,  0.9,  inf])
    """
    row = score_thresholds(traces, score, points)[::-1, None]
    return np.tile(row, len(traces.exit_layers))


def threshold_by_exit(
    traces: Traces, score: str, points: int = 200
) -> np.ndarray:
    """Settings from safe to fast with a threshold of its own at each exit.

    They have one price in common: at each exit those leave whose expected
    :func:`excess_loss` is within the price. What a score tells of that loss is
    learned at each exit by isotonic regression, as the loss does not fall when
    confidence does. The prices are those at which a threshold changes.

    Arguments
    ---------
    traces : Traces
        To learn from.
    score : str
        A score of theirs.
    points : int
        How many prices at most.

    Returns
    -------
    np.ndarray
        Of shape (T, E), first and last row as those of :func:`one_threshold`.

    Example
    -------
    >>> scores = {"entropy": [[0.9, 0.5, 0], [0.2, 0.3, 0]]}
    >>> errors = [[2, 0, 0], [1, 0, 0]]
    >>> traces = Traces(["a", "b"], [2, 4, 6], errors, [4, 4], scores=scores)
    >>> threshold_by_exit(traces, "entropy")
    array([[-inf, -inf, -inf],
           [-inf,  0.5, -inf],
           [ 0.2,  0.5, -inf],
           [ 0.9,  0.5, -inf],
           [ inf,  inf,  inf]])
    """
    confidence = traces.confidence(score)
    exits = []
    for values, losses in zip(confidence[:, :-1].T, excess_loss(traces).T):
        known = np.isfinite(values)
        levels, group = np.unique(-values[known], return_inverse=True)
        if not len(levels):
            exits.append((levels, levels))
            continue
        count = np.bincount(group)
        means = np.bincount(group, losses[known]) / count
        # Straight lines between the middles of its steps: more settings.
        steps, step = np.unique(
            isotonic_regression(means, weights=count).x, return_inverse=True
        )
        places = np.arange(len(levels))
        middles = np.bincount(step, places) / np.bincount(step)
        exits.append((-levels, np.interp(places, middles, steps)))
    prices = np.unique(np.concatenate([[0.0], *(fit for _, fit in exits)]))
    if len(prices) > points:
        steps = np.linspace(0, 1, points)
        prices = np.unique(np.quantile(prices, steps, method="nearest"))
    rows = np.full((len(prices) + 2, confidence.shape[1]), np.inf)
    for column, (levels, fit) in zip(rows.T, exits):
        within = np.searchsorted(fit, prices, side="right")
        column[1:-1] = np.concatenate([[np.inf], levels])[within]
    rows[-1] = -np.inf
    return rows if traces.directions[score] else -rows
