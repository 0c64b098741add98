"""Thresholds chosen on a development set.

Authors
 * SpeechBrain-EE contributors 2026
"""

from __future__ import annotations

from collections.abc import Sequence

from speechbrain_ee.analysis.statistics import savings
from speechbrain_ee.analysis.traces import Traces
from speechbrain_ee.exits import get_score


def calibrated_thresholds(
    traces: Traces,
    traced: Sequence,
    scores: Sequence[str] = (),
    loss: float = 1.0,
) -> dict[str, dict]:
    """For each score, the threshold that runs the fewest layers.

    Arguments
    ---------
    traces : Traces
        Of the development set.
    traced : sequence
        The scores that were traced, as ``get_score`` takes them: a threshold
        holds for a score with just these options.
    scores : sequence of str
        Names of the scores that are wanted; those that were not traced are
        passed over.
    loss : float
        How many points of error rate, in percent, it may cost there, compared
        with the last exit.

    Returns
    -------
    dict
        ``<score>_dev+<loss>`` to what ``get_selector`` takes.

    Example
    -------
    >>> import pandas as pd
    >>> columns = ["id", "exit_layer", "errors", "ref_len", "entropy"]
    >>> rows = [("a", 2, 0, 5, 0.1), ("a", 4, 0, 5, 0.1)]
    >>> rows += [("b", 2, 3, 5, 0.9), ("b", 4, 0, 5, 0.2)]
    >>> traces = Traces.from_frame(pd.DataFrame(rows, columns=columns))
    >>> chosen = calibrated_thresholds(traces, ["entropy"], ["entropy"])
    >>> 0.1 <= chosen["entropy_dev+1"]["threshold"] < 0.9
    True
    """
    chosen = {}
    for score in map(get_score, traced):
        if score.name not in scores:
            continue
        definition = score.name
        if score.options:
            definition = {"score": score.name, **score.options}
        chosen[f"{score.name}_dev+{loss:g}"] = {
            "selector": "threshold",
            "score": definition,
            "threshold": savings(traces, score.name, loss)["threshold"],
        }
    return chosen
