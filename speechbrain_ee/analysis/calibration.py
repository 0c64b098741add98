"""Thresholds chosen on a development set.

Authors
 * SpeechBrain-EE contributors 2026
"""

from __future__ import annotations

from collections.abc import Sequence

from speechbrain_ee.analysis.statistics import savings
from speechbrain_ee.analysis.traces import Traces


def calibrated_thresholds(
    traces: Traces, scores: Sequence[str], loss: float = 1.0
) -> dict[str, dict[str, str | float]]:
    """For each score, the threshold that runs the fewest layers.

    Arguments
    ---------
    traces : Traces
        Of the development set.
    scores : sequence of str
        Names of traced scores.
    loss : float
        How many points of error rate, in percent, it may cost there, compared
        with the last exit.

    Returns
    -------
    dict
        ``<score>_dev+<loss>`` to what ``get_selector`` takes.

    Raises
    ------
    ValueError
        If a score was not traced.

    Example
    -------
    >>> import pandas as pd
    >>> columns = ["id", "exit_layer", "errors", "ref_len", "entropy"]
    >>> rows = [("a", 2, 0, 5, 0.1), ("a", 4, 0, 5, 0.1)]
    >>> rows += [("b", 2, 3, 5, 0.9), ("b", 4, 0, 5, 0.2)]
    >>> traces = Traces.from_frame(pd.DataFrame(rows, columns=columns))
    >>> chosen = calibrated_thresholds(traces, ["entropy"])
    >>> 0.1 <= chosen["entropy_dev+1"]["threshold"] < 0.9
    True
    """
    unknown = sorted(set(scores) - set(traces.scores))
    if unknown:
        raise ValueError(
            f"calibrate: {', '.join(unknown)} is not among the traced scores "
            f"({', '.join(traces.scores)}): add it to scores."
        )
    return {
        f"{score}_dev+{loss:g}": {
            "selector": "threshold",
            "score": score,
            "threshold": savings(traces, score, loss)["threshold"],
        }
        for score in scores
    }
