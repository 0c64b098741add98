"""Curves: what each exit selector costs and how well it does.

Authors
 * SpeechBrain-EE contributors 2026
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real

import torch

from speechbrain_ee.exits import ExitSelector
from speechbrain_ee.runtime import Departures


def curve_row(
    label: str,
    selector: ExitSelector,
    batches: Sequence[Departures],
    error_rate: float,
) -> dict[str, float | str | None]:
    """One row of ``curve_<set>.csv``, measured by the loop over a set.

    Arguments
    ---------
    label : str
        Name of the selector in the run.
    selector : ExitSelector
        Who decided.
    batches : sequence of Departures
        How the utterances of each batch left.
    error_rate : float
        In percent.

    Returns
    -------
    dict
        ``mean_exit_layer`` and ``mean_layers_run`` over utterances,
        ``frame_weighted_exit_layer``, ``macs`` per utterance, ``seconds`` and
        ``front_end_seconds`` for the whole set; ``threshold`` where there is
        just one.

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
    ...     front_end_seconds=0.05,
    ... )
    >>> row = curve_row("fast", Threshold("entropy", 0.1), [left], 7.5)
    >>> row["mean_exit_layer"], row["frame_weighted_exit_layer"], row["macs"]
    (3.0, 3.5, 3.0)
    """
    exits = torch.cat([one.exit_layer for one in batches]).double()
    layers = torch.cat([one.layers_run for one in batches]).double()
    frames = torch.cat([one.frames for one in batches]).double()
    threshold = selector.threshold
    return {
        "selector": label,
        "threshold": threshold if isinstance(threshold, Real) else None,
        "mean_exit_layer": exits.mean().item(),
        "frame_weighted_exit_layer": (exits @ frames / frames.sum()).item(),
        "mean_layers_run": layers.mean().item(),
        "error_rate": error_rate,
        "macs": torch.cat([one.macs for one in batches]).mean().item(),
        "seconds": sum(one.seconds.sum().item() for one in batches),
        "front_end_seconds": sum(one.front_end_seconds for one in batches),
    }
