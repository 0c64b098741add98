"""Replay: what exit selectors would have done, told from traces alone.

Authors
 * SpeechBrain-EE contributors 2026
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from speechbrain_ee.analysis.traces import Traces
from speechbrain_ee.chance import random_exit_probabilities

_CURVE = [
    "selector",
    "threshold",
    "mean_exit_layer",
    "mean_layers_run",
    "error_rate",
    "macs",
    "seconds",
]
# Mean depths at which the random control is drawn.
_RANDOM_POINTS = 21


def exits_at(traces: Traces, score: str, thresholds) -> np.ndarray:
    """Which exits a threshold selector takes, as the loop decides it.

    Arguments
    ---------
    traces : Traces
        N utterances at E exits.
    score : str
        A score of theirs.
    thresholds : float, sequence of float or np.ndarray
        T last values that still count as confident, the same at all exits; or
        one per exit, of shape (T, E), as :func:`threshold_per_exit` gives them.

    Returns
    -------
    np.ndarray
        Indices into ``traces.exit_layers``, of shape (N, T): the first exit
        whose score reaches the threshold, the last exit otherwise.

    Raises
    ------
    ValueError
        For thresholds of another shape.

    Example
    -------
    >>> scores = {"entropy": [[0.9, 0.3, 0.1], [0.2, 0.3, 0.1]]}
    >>> errors = [[3, 1, 1], [0, 0, 1]]
    >>> traces = Traces(["a", "b"], [2, 4, 6], errors, [5, 5], scores=scores)
    >>> exits_at(traces, "entropy", [0.1, 0.2, 0.3])
    array([[2, 2, 1],
           [2, 0, 0]])
    >>> exits_at(traces, "entropy", [[0.1, 0.3, 0.1]])
    array([[1],
           [1]])
    """
    confidence = traces.confidence(score)
    wanted = np.atleast_1d(np.asarray(thresholds, dtype=float))
    wanted = wanted if traces.directions[score] else -wanted
    if wanted.ndim == 1:
        wanted = np.tile(wanted[:, None], confidence.shape[1])
    if wanted.shape[1:] != confidence.shape[1:]:
        raise ValueError(
            f"{traces.source}: thresholds of shape {wanted.shape} for "
            f"{confidence.shape[1]} exits: give one per exit in each row."
        )
    # The loop compares in single precision: there, a score can be just 0.1.
    with np.errstate(over="ignore"):
        confidence, wanted = (
            x.astype(np.float32).T for x in (confidence, wanted)
        )
    taken = np.zeros((len(traces), wanted.shape[1]), dtype=int)
    running = np.ones(taken.shape, dtype=bool)
    for column, at_exit in zip(confidence[:-1], wanted[:-1], strict=True):
        running &= ~(column[:, None] >= at_exit)
        taken += running
    return taken


def threshold_per_exit(traces: Traces, score: str, threshold) -> np.ndarray:
    """The thresholds of a selector, as a row for :func:`exits_at`.

    Arguments
    ---------
    traces : Traces
        A set of utterances at E exits.
    score : str
        A score of theirs.
    threshold : float, sequence of float or mapping from int to float
        As ``Threshold`` takes it: for all exits, per exit, or by exit layer.

    Returns
    -------
    np.ndarray
        Of shape (E,); infinity that nobody reaches at exits that a mapping
        passes over.

    Raises
    ------
    ValueError
        If the traces do not have these exits.

    Example
    -------
    >>> scores = {"entropy": [[0.9, 0.3, 0.1]]}
    >>> traces = Traces(["a"], [2, 4, 6], [[3, 1, 1]], [5], scores=scores)
    >>> threshold_per_exit(traces, "entropy", {4: 0.3})
    array([-inf,  0.3, -inf])
    """
    layers = traces.exit_layers.tolist()
    row = np.full(len(layers), np.inf if traces.directions[score] else -np.inf)
    if isinstance(threshold, Mapping):
        wrong = sorted(set(threshold) - set(layers))
        if wrong:
            raise ValueError(
                f"{traces.source}: no exit after layer "
                f"{', '.join(map(str, wrong))}; exits are {layers}."
            )
        for layer, value in threshold.items():
            row[layers.index(layer)] = value
    else:
        if np.size(threshold) not in (1, len(layers)):
            raise ValueError(
                f"{traces.source}: {np.size(threshold)} thresholds for "
                f"{len(layers)} exits ({layers})."
            )
        row[:] = threshold
    return row


def fixed_exits(traces: Traces) -> np.ndarray:
    """Everybody leaves at the same exit: all of them, one after another.

    Arguments
    ---------
    traces : Traces
        N utterances at E exits.

    Returns
    -------
    np.ndarray
        Indices of exits of shape (N, E), column k holding k.

    Example
    -------
    >>> fixed_exits(Traces(["a"], [2, 4], [[1, 0]], [3]))
    array([[0, 1]])
    """
    return np.tile(np.arange(len(traces.exit_layers)), (len(traces), 1))


def oracle_exits(traces: Traces) -> np.ndarray:
    """Each utterance leaves at the first exit with its fewest errors.

    Arguments
    ---------
    traces : Traces
        N utterances.

    Returns
    -------
    np.ndarray
        Indices of exits of shape (N,).

    Example
    -------
    >>> oracle_exits(Traces(["a"], [2, 4, 6], [[3, 1, 1]], [5]))
    array([1])
    """
    return traces.errors.argmin(axis=1)


def patience_exits(traces: Traces, patience: int) -> np.ndarray:
    """Each utterance leaves once successive exits give the same transcript.

    As the selector ``Patience`` does, but by text: label sequences that spell
    the same text agree. Empty transcripts never do.

    Arguments
    ---------
    traces : Traces
        N utterances, with transcripts.
    patience : int
        How many successive exits must agree, at least 2.

    Returns
    -------
    np.ndarray
        Indices of exits of shape (N,).

    Raises
    ------
    ValueError
        Without transcripts, or with a patience below 2.

    Example
    -------
    >>> hyp = [["NO", "YES", "YES"], ["", "", "NO"]]
    >>> errors = [[1, 0, 0], [1, 1, 0]]
    >>> traces = Traces(["a", "b"], [2, 4, 6], errors, [1, 1], hyp=hyp)
    >>> patience_exits(traces, 2)
    array([2, 2])
    """
    if traces.hyp is None:
        raise ValueError(
            f"{traces.source}: patience needs transcripts: add a column hyp."
        )
    if patience < 2:
        raise ValueError(f"patience must be at least 2, not {patience}")
    hyp = traces.hyp
    same = (hyp[:, 1:] == hyp[:, :-1]) & (hyp[:, 1:] != "")
    taken = np.full(len(traces), hyp.shape[1] - 1)
    agreed = np.zeros(len(traces), dtype=int)  # pairs in a row until here
    for exit_index, pair in enumerate(same.T, start=1):
        agreed = (agreed + 1) * pair
        leaves = agreed >= patience - 1
        taken[leaves] = np.minimum(taken[leaves], exit_index)
    return taken


def outcome(
    traces: Traces, taken: np.ndarray, score: str | None = None
) -> pd.DataFrame:
    """What it costs, and how well it does, to leave at given exits.

    Arguments
    ---------
    traces : Traces
        N utterances.
    taken : np.ndarray
        Indices of exits of shape (N, T), or (N,) for T = 1.
    score : str, optional
        The score that decided. Its seconds count at each exit at which it was
        asked: every one up to the exit taken, but not at the last exit of the
        model, where all leave unasked.

    Returns
    -------
    pandas.DataFrame
        T rows: ``mean_exit_layer`` and ``mean_layers_run`` over utterances,
        ``frame_weighted_exit_layer``, ``error_rate`` in percent, ``macs`` per
        utterance, ``seconds`` of the whole set. NaN where the traces do not
        tell.

    Example
    -------
    >>> traces = Traces(["a", "b"], [2, 4], [[2, 1], [0, 0]], [6, 4])
    >>> outcome(traces, [[0, 1], [0, 0]])[["mean_exit_layer", "error_rate"]]
       mean_exit_layer  error_rate
    0              2.0        20.0
    1              3.0        10.0
    """
    taken = np.asarray(taken).reshape(len(traces), -1)
    unknown = np.full(taken.shape[1], np.nan)

    def at_exits(values):
        """The values at the exits taken."""
        return np.take_along_axis(values, taken, axis=1)

    def mean(values):
        """Their mean over utterances."""
        return unknown if values is None else at_exits(values).mean(axis=0)

    layers = traces.exit_layers[taken]
    weighted = unknown
    if traces.frames is not None:
        frames = traces.frames[:, 0]
        weighted = frames @ layers / frames.sum()
    return pd.DataFrame(
        {
            "mean_exit_layer": layers.mean(axis=0),
            "frame_weighted_exit_layer": weighted,
            "mean_layers_run": mean(traces.layers_run),
            "error_rate": 100
            * at_exits(traces.errors).sum(axis=0)
            / traces.ref_len.sum(),
            "macs": mean(traces.macs),
            "seconds": len(traces) * mean(traces.seconds_with(score)),
        }
    )


def score_thresholds(
    traces: Traces, score: str, points: int = 200
) -> np.ndarray:
    """Thresholds that lead through all that a score can do.

    Arguments
    ---------
    traces : Traces
        Where the values come from.
    score : str
        A score of theirs.
    points : int
        How many values to take at most.

    Returns
    -------
    np.ndarray
        From lenient to strict: infinity that everybody reaches, values of the
        score at evenly spaced quantiles (all of them if there are no more than
        ``points``; those of the last exit decide nothing and are left out),
        infinity that nobody reaches.

    Example
    -------
    >>> scores = {"entropy": [[0.9, 0.1], [0.2, 0.3]]}
    >>> errors = [[2, 1], [0, 0]]
    >>> traces = Traces(["a", "b"], [2, 4], errors, [6, 4], scores=scores)
    >>> score_thresholds(traces, "entropy")
    array([ inf,  0.9,  0.2, -inf])
    """
    values = traces.confidence(score)[:, :-1]
    values = values[np.isfinite(values)]
    distinct = np.unique(values)
    if len(distinct) > points:
        # Observed values: single precision holds them exactly.
        steps = np.linspace(0, 1, points)
        distinct = np.unique(np.quantile(values, steps, method="nearest"))
    ladder = np.concatenate([[-np.inf], distinct, [np.inf]])
    return ladder if traces.directions[score] else -ladder


def sweep(
    traces: Traces, scores: Sequence[str] | None = None, points: int = 200
) -> pd.DataFrame:
    """The curve of every selector that traces can tell of.

    Arguments
    ---------
    traces : Traces
        A set of utterances.
    scores : sequence of str, optional
        Which scores; all of them unless given.
    points : int
        Thresholds per score, besides the two infinite ones.

    Returns
    -------
    pandas.DataFrame
        Columns ``selector``, ``threshold``, ``mean_exit_layer``,
        ``mean_layers_run``, ``error_rate``, ``macs``, ``seconds``; see
        :func:`outcome`. Rows, in their order: each score by its name, from
        lenient to strict; ``fixed`` (threshold = the exit layer); ``random``
        (threshold = the mean exit layer; what is expected, not a draw);
        ``oracle`` (threshold empty); ``patience`` (threshold = the patience)
        where there are transcripts.

    Example
    -------
    >>> traces = Traces(["a", "b"], [2, 4], [[2, 1], [0, 0]], [6, 4])
    >>> curve = sweep(traces).set_index("selector")
    >>> float(curve.loc["oracle", "error_rate"])
    10.0
    >>> curve.index.value_counts().to_dict()
    {'random': 21, 'fixed': 2, 'oracle': 1}
    """
    parts = []
    for score in traces.scores if scores is None else scores:
        thresholds = score_thresholds(traces, score, points)
        taken = exits_at(traces, score, thresholds)
        rows = outcome(traces, taken, score)
        parts.append(rows.assign(selector=score, threshold=thresholds))

    layers = traces.exit_layers
    fixed = outcome(traces, fixed_exits(traces))
    parts.append(fixed.assign(selector="fixed", threshold=layers))

    means = np.unique(np.linspace(layers[0], layers[-1], _RANDOM_POINTS))
    # All columns are means over utterances, so their expectation is a mixture.
    expected = random_exit_probabilities(layers, means) @ fixed.to_numpy()
    rows = pd.DataFrame(expected, columns=fixed.columns)
    parts.append(rows.assign(selector="random", threshold=means))

    rows = outcome(traces, oracle_exits(traces))
    parts.append(rows.assign(selector="oracle", threshold=np.nan))

    if traces.hyp is not None and len(layers) > 1:
        patiences = range(2, len(layers) + 1)
        taken = [patience_exits(traces, patience) for patience in patiences]
        rows = outcome(traces, np.stack(taken, axis=1))
        parts.append(rows.assign(selector="patience", threshold=patiences))
    return pd.concat(parts, ignore_index=True)[_CURVE]
