"""What the loop did with an exit selector, measured over a set.

Authors
 * SpeechBrain-EE contributors 2026
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Sequence
from numbers import Real

import numpy as np
import torch

from speechbrain_ee.analysis.replay import outcome
from speechbrain_ee.analysis.statistics import Bootstrap
from speechbrain_ee.analysis.traces import Traces
from speechbrain_ee.exits import ExitSelector, Threshold
from speechbrain_ee.runtime import Departures


def loop_row(
    label: str,
    selector: ExitSelector,
    batches: Sequence[Departures],
    errors: Sequence[float],
    ref_len: Sequence[float],
    ids: Sequence[str] = (),
    traces: Traces | None = None,
    audio_seconds: float = float("nan"),
) -> dict[str, float | str | None]:
    """One row of ``loop_<set>.csv``.

    Arguments
    ---------
    label : str
        Name of the selector in the run.
    selector : ExitSelector
        Who decided.
    batches : sequence of Departures
        How the utterances of each batch left.
    errors : sequence of float
        Of each utterance, in the order of the batches.
    ref_len : sequence of float
        What they are counted against.
    ids : sequence of str
        Names of the utterances.
    traces : Traces, optional
        Of the same set, to compare the seconds with those replayed from them.
    audio_seconds : float
        Duration of the set.

    Returns
    -------
    dict
        ``selector``; ``threshold`` where there is just one, and ``score`` if
        that alone decides;
        ``mean_exit_layer`` and ``mean_layers_run`` over utterances,
        ``frame_weighted_exit_layer``; ``error_rate`` in percent with its
        interval ``low`` to ``high``; ``macs`` per utterance; for the whole set
        ``seconds`` (layers, heads, scores, transcripts), ``replayed_seconds``
        (the same exits, from the traces) and ``front_end_seconds``;
        ``real_time_factor`` of all, and ``peak_memory_mb`` of the process until
        then.

    Example
    -------
    >>> from speechbrain_ee.exits import Threshold
    >>> left = Departures(
    ...     hypotheses=[(1,), (2,)],
    ...     exit_layer=torch.tensor([2, 4]),
    ...     layers_run=torch.tensor([2, 4]),
    ...     frames=torch.tensor([10, 30]),
    ...     macs=torch.tensor([1.0, 5.0]),
    ...     seconds=torch.tensor([0.1, 0.3]),
    ...     front_end_seconds=0.1,
    ... )
    >>> fast = Threshold("entropy", 0.1)
    >>> row = loop_row("fast", fast, [left], [1, 0], [4, 4], audio_seconds=10)
    >>> row["mean_exit_layer"], row["frame_weighted_exit_layer"], row["macs"]
    (3.0, 3.5, 3.0)
    >>> row["score"], row["error_rate"]
    ('entropy', 12.5)
    >>> round(row["real_time_factor"], 3)
    0.05
    """
    exits = torch.cat([one.exit_layer for one in batches])
    layers = torch.cat([one.layers_run for one in batches]).double()
    frames = torch.cat([one.frames for one in batches]).double()
    seconds = sum(one.seconds.sum().item() for one in batches)
    front_end = sum(one.front_end_seconds for one in batches)
    threshold = selector.threshold
    scores = [score.name for score in selector.scores]
    # Another rule may read a score too, but leaves elsewhere.
    ruled = isinstance(selector, Threshold) and isinstance(threshold, Real)
    errors, ref_len = np.asarray(errors), np.asarray(ref_len)
    if len(ids):  # in the order of traces, so that intervals agree with theirs
        order = np.argsort(np.asarray(ids))
        errors, ref_len = errors[order], ref_len[order]
    rate = Bootstrap(len(errors)).error_rate_interval(errors, ref_len)
    return {
        "selector": label,
        "score": selector.score.name if ruled else None,
        "threshold": threshold if isinstance(threshold, Real) else None,
        "mean_exit_layer": exits.double().mean().item(),
        "frame_weighted_exit_layer": (
            exits.double() @ frames / frames.sum()
        ).item(),
        "mean_layers_run": layers.mean().item(),
        "error_rate": float(rate.value),
        "low": float(rate.low),
        "high": float(rate.high),
        "macs": torch.cat([one.macs for one in batches]).mean().item(),
        "seconds": seconds,
        "replayed_seconds": _replayed_seconds(scores, ids, exits, traces),
        "front_end_seconds": front_end,
        "real_time_factor": (seconds + front_end) / audio_seconds,
        "peak_memory_mb": peak_memory(),
    }


def peak_memory() -> float:
    """The most memory that this process has held so far.

    Returns
    -------
    float
        In MB: of the GPU if one is in use, else of the process.

    Example
    -------
    >>> peak_memory() > 1
    True
    """
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() / 1e6
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, else KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def _replayed_seconds(scores, ids, exits, traces) -> float | None:
    if traces is None or set(scores) - set(traces.score_seconds):
        return None
    taken = np.searchsorted(traces.exit_layers, exits.numpy())
    order = {name: row for row, name in enumerate(traces.ids)}
    column = np.empty((len(ids), 1), dtype=int)
    column[[order[name] for name in ids], 0] = taken
    score = scores[0] if scores else None
    return float(outcome(traces, column, score)["seconds"][0])
