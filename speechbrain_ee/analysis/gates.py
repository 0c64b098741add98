"""What gates did on a set: error rate against layers that ran.

Authors
 * SpeechBrain-EE contributors 2026
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from speechbrain_ee.analysis.statistics import Bootstrap


def gate_curve(table: pd.DataFrame) -> pd.DataFrame:
    """The curve of every gate of a ``gates_<set>.csv``.

    Arguments
    ---------
    table : pandas.DataFrame
        A row for each utterance, gate and target, with the columns id, gate,
        target_layers, exit_layer, layers_run, errors, ref_len, macs, seconds.

    Returns
    -------
    pandas.DataFrame
        Rows as in ``curve_<set>.csv``, with the gate as ``selector`` and its
        target as ``threshold``; and ``masks``, how many different ones there
        are, ``low`` and ``high``, the interval of the error rate.

    Example
    -------
    >>> columns = ["id", "gate", "target_layers", "layers_run", "layers"]
    >>> columns += ["errors", "ref_len", "exit_layer", "macs", "seconds"]
    >>> rows = [("a", "first_n", 2, 2, "110", 1, 4, 3, 1e9, 0.25)]
    >>> rows += [("b", "first_n", 2, 2, "110", 0, 4, 3, 2e9, 0.5)]
    >>> curve = gate_curve(pd.DataFrame(rows, columns=columns))
    >>> curve[["selector", "mean_layers_run", "error_rate"]]
      selector  mean_layers_run  error_rate
    0  first_n              2.0        12.5
    """
    rows = []
    kinds = ["gate", "target_layers"]
    for (gate, target), part in table.groupby(kinds, sort=False):
        part = part.sort_values("id")  # so that intervals agree
        rate = Bootstrap(len(part)).error_rate_interval(
            part["errors"].to_numpy(), part["ref_len"].to_numpy()
        )
        rows.append(
            {
                "selector": gate,
                "threshold": target,
                "mean_exit_layer": part["exit_layer"].mean(),
                "mean_layers_run": part["layers_run"].mean(),
                "error_rate": float(rate.value),
                "low": float(rate.low),
                "high": float(rate.high),
                "macs": part["macs"].mean(),
                "seconds": part["seconds"].sum(),
                "masks": part["layers"].nunique(),
            }
        )
    return pd.DataFrame(rows)


def read_gates(run: str | Path, name: str) -> pd.DataFrame | None:
    """What gates did on a set.

    Arguments
    ---------
    run : str or Path
        Folder of a run.
    name : str
        Of the set.

    Returns
    -------
    pandas.DataFrame or None
        ``gates_<name>.csv``, if there is one.
    """
    path = Path(run) / f"gates_{name}.csv"
    if not path.is_file():
        return None
    texts = dict.fromkeys(("id", "layers", "hyp", "ref"), str)
    return pd.read_csv(path, dtype=texts, keep_default_na=False)
