"""Results: the figures of a run on its test sets, and a page to read them.

Authors
 * SpeechBrain-EE contributors 2026
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from speechbrain_ee.analysis.gates import gate_curve, read_gates
from speechbrain_ee.analysis.plots import draw_exits
from speechbrain_ee.analysis.report import (
    Part,
    Section,
    gate_rows,
    save_picture,
    write_markdown,
)
from speechbrain_ee.analysis.statistics import Bootstrap
from speechbrain_ee.files import replacing

COLUMNS = ("metric", "group", "value", "low", "high", "utterances")
MEAN_EXIT = "mean exit layer"
LEFT_AT = "left at layer (%)"


def exit_results(exit_layers: Sequence[int]) -> pd.DataFrame:
    """Where utterances left an encoder, as results.

    Arguments
    ---------
    exit_layers : sequence of int
        Of each utterance.

    Returns
    -------
    pandas.DataFrame
        With ``COLUMNS``: the mean exit layer, and for each exit that was taken
        (its ``group``) the share of utterances that did.

    Example
    -------
    >>> table = exit_results([4, 4, 6, 4])
    >>> table[["metric", "group", "value"]].values.tolist()
    [['mean exit layer', 'all', 4.5], ['left at layer (%)', '4', 75.0], \
['left at layer (%)', '6', 25.0]]
    """
    taken = np.asarray(exit_layers)
    bootstrap = Bootstrap(len(taken))
    figures = {(MEAN_EXIT, "all"): taken}
    for layer in np.unique(taken).tolist():
        figures[LEFT_AT, str(layer)] = 100.0 * (taken == layer)
    return pd.DataFrame(
        {
            "metric": metric,
            "group": group,
            **bootstrap.mean_interval(values)._asdict(),
            "utterances": len(taken),
        }
        for (metric, group), values in figures.items()
    )


def write_results(folder: str | Path, name: str, table: pd.DataFrame) -> Path:
    """Write ``results_<name>.csv``.

    Arguments
    ---------
    folder : str or Path
        Of the run.
    name : str
        Of the set.
    table : pandas.DataFrame
        With ``COLUMNS``, and what else the task tells.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    ValueError
        If one of the columns is missing.

    Example
    -------
    >>> row = dict(metric="PER", group="all", value=5.4, low=5, high=6)
    >>> table = pd.DataFrame([row | {"utterances": 100}])
    >>> write_results(getfixture("tmp_path"), "test", table).name
    'results_test.csv'
    """
    missing = [column for column in COLUMNS if column not in table]
    if missing:
        raise ValueError(f"Results of {name} lack {', '.join(missing)}.")
    path = Path(folder) / f"results_{name}.csv"
    with replacing(path) as file:
        table.to_csv(file, index=False, encoding="utf-8")
    return path


def write_results_report(folder: str | Path, valid: str) -> Path:
    """Write ``report.md`` from what stands in the folder of a run.

    Arguments
    ---------
    folder : str or Path
        With ``results_<set>.csv``, and ``layers.png`` of ``layers.csv``.
    valid : str
        The set that the layers were judged on.

    Returns
    -------
    Path
        The file.

    Example
    -------
    >>> row = dict(metric="PER", group="all", value=5.4, low=5, high=6)
    >>> folder = getfixture("tmp_path")
    >>> _ = write_results(
    ...     folder, "test", pd.DataFrame([row | {"utterances": 100}])
    ... )
    >>> print(write_results_report(folder, "dev").read_text().splitlines()[8])
    | test | PER | all | 5.40 | 5.00 – 6.00 | 100 |
    """
    folder = Path(folder)
    tables = {
        path.stem.removeprefix("results_"): pd.read_csv(path)
        for path in sorted(folder.glob("results_*.csv"))
    }
    rows = [
        {
            "set": name,
            "metric": row.metric,
            "group": row.group,
            "value": f"{row.value:.2f}",
            "95 % interval": f"{row.low:.2f} – {row.high:.2f}",
            "utterances": row.utterances,
        }
        for name, table in tables.items()
        for row in table.itertuples()
    ]
    figures = Section(
        "Figures",
        "Intervals are percentiles of the bootstrap over utterances (trials, "
        "where these are judged). The same figures are in `results_<set>.csv`; "
        "what was said of each utterance is in `traces_<set>.csv`.",
        [Part(table=pd.DataFrame(rows))],
    )
    layers = Section(
        "Layers",
        "What each state of the upstream contributes, 0 being that before the "
        "first layer (`layers.csv`): its learnt weight or, where the interface "
        f"has none, the change on {valid} when it is taken away.",
        [Part(picture="layers.png", caption="Contribution of each layer")],
    )
    sections = [figures, layers]
    pictures = [
        _picture_exits(folder, name, table[table["metric"] == LEFT_AT])
        for name, table in tables.items()
        if MEAN_EXIT in set(table["metric"])
    ]
    if pictures:
        text = "Where utterances left the upstream: `exit_layer` of traces."
        sections.insert(1, Section("Exits", text, pictures))
    gated = [
        Part(
            name,
            table=gate_rows(gate_curve(found), "error rate (%)"),
        )
        for name in tables
        if (found := read_gates(folder, name)) is not None
    ]
    if gated:
        text = (
            "Measured at each target (`gates_<set>.csv`), with how many "
            "different masks there were."
        )
        sections.insert(1, Section("Layers chosen by gates", text, gated))
    path = folder / "report.md"
    write_markdown(path, "Results", sections)
    return path


def _picture_exits(folder: Path, name: str, shares: pd.DataFrame) -> Part:
    """The shares of the exits as ``exits_<name>.png``."""
    figure = draw_exits({name: shares["value"] / 100}, list(shares["group"]))
    return save_picture(folder, f"exits_{name}", figure, f"Exits of {name}")
