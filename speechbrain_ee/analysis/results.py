"""Results: the figures of a run on its test sets, and a page to read them.

Authors
 * SpeechBrain-EE contributors 2026
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from speechbrain_ee.analysis.report import Part, Section, write_markdown
from speechbrain_ee.files import replacing

COLUMNS = ("metric", "group", "value", "low", "high", "utterances")


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
    rows = [
        {
            "set": path.stem.removeprefix("results_"),
            "metric": row.metric,
            "group": row.group,
            "value": f"{row.value:.2f}",
            "95 % interval": f"{row.low:.2f} – {row.high:.2f}",
            "utterances": row.utterances,
        }
        for path in sorted(folder.glob("results_*.csv"))
        for row in pd.read_csv(path).itertuples()
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
    path = folder / "report.md"
    write_markdown(path, "Results", [figures, layers])
    return path
