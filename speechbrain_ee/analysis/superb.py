"""Upstreams and interfaces over the tasks of SUPERB and ML-SUPERB.

What Shih and Harwath published (*Interface Design for Self-Supervised Speech
Models*, arXiv 2406.12209, main table) stands in ``shih2024.csv``.

Authors
 * SpeechBrain-EE contributors 2026
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from speechbrain_ee.analysis.comparison import run_names
from speechbrain_ee.analysis.report import (
    Part,
    Section,
    between,
    write_html,
    write_markdown,
)
from speechbrain_ee.analysis.runs import DownstreamRun, describe_downstream
from speechbrain_ee.files import replacing

_NONE = "–"


@dataclass(frozen=True)
class Column:
    """A figure of the table.

    Arguments
    ---------
    name : str
        What it is called.
    task : str
        Of the runs that have it; those with the same are one task of the
        SUPERB score.
    metrics : tuple of str
        Its names in the results.
    groups : tuple of str
        Of the utterances, in the results; the first that is there is taken.
    higher_is_better : bool
        False for error rates.
    published : str
        The column of ``shih2024.csv``; empty if the paper has none.
    """

    name: str
    task: str
    metrics: tuple[str, ...]
    groups: tuple[str, ...] = ("all",)
    higher_is_better: bool = False
    published: str = ""


_LID = "LID accuracy"
_NORMAL, _FEW_SHOT = ("normal, pooled",), ("few-shot, pooled",)
ML_SUPERB = (
    Column(
        *("mono", "monolingual", ("CER", "PER"), ("normal", "few-shot")),
        published="mlsuperb_mono_1h_error",
    ),
    Column(
        *("multi normal", "multilingual", ("CER",), _NORMAL),
        published="mlsuperb_multi_1h_error",
    ),
    Column("multi few-shot", "multilingual", ("CER",), _FEW_SHOT),
    Column(
        *("LID", "lid", (_LID,), _NORMAL, True),
        published="mlsuperb_lid_1h_accuracy",
    ),
    Column("ASR+LID accuracy", "asr_lid", (_LID,), _NORMAL, True),
    Column("ASR+LID normal", "asr_lid", ("CER",), _NORMAL),
    Column("ASR+LID few-shot", "asr_lid", ("CER",), _FEW_SHOT),
)
SUPERB = (
    Column(
        *("ER", "ER", ("accuracy",)),
        higher_is_better=True,
        published="er_accuracy",
    ),
    Column(
        *("IC", "IC", ("accuracy",)),
        higher_is_better=True,
        published="ic_accuracy",
    ),
    Column("SV", "verification", ("EER",), published="sv_eer"),
    Column("PR", "phones", ("PER",), published="pr_per"),
)
# Those of the monolingual track.
SETTINGS = "eng1 eng2 eng3 fra1 fra2 deu1 deu2 rus swa swe jpn cmn xty".split()

_PAPER = (
    "Paper: Shih and Harwath, arXiv 2406.12209, main table; no intervals and "
    "no seeds were published, and it does not tell which languages the "
    "multilingual error rate is of."
)
_OURS = (
    "Percent. mono: CER, of Japanese and Mandarin PER; mean over the settings "
    "of a language, then over languages. The other tracks: over all "
    "utterances, as the benchmark's scripts count; LID is that of normal "
    "languages. Brackets: 95% bootstrap interval over utterances, where a "
    "figure is of one run; else the number of runs that it is the mean of."
)
_SCORE = (
    "SUPERB score: 1000 times the mean over tasks of the mean over a task's "
    "figures of (figure − FBANK) / (best − FBANK), best being the best of the "
    "models in this table (ML-SUPERB challenge, arXiv 2310.05513)."
)


def published_figures() -> pd.DataFrame:
    """The main table of Shih and Harwath (arXiv 2406.12209).

    Returns
    -------
    pandas.DataFrame
        ``upstream``, ``interface`` and, in percent, errors of monolingual and
        multilingual recognition and language accuracy of ML-SUPERB with 1 hour,
        accuracy of emotions and intents, equal error rate of speakers, and
        phone error rate.

    Example
    -------
    >>> table = published_figures().set_index(["upstream", "interface"])
    >>> float(table.loc[("HuBERT-Base", "HConv"), "pr_per"])
    3.07
    """
    return pd.read_csv(Path(__file__).with_name("shih2024.csv"))


def superb_scores(
    figures: pd.DataFrame,
    tasks: Mapping[str, str],
    higher_is_better: Sequence[str],
    baseline: str,
) -> pd.Series:
    """Where models stand between a baseline and the best, over tasks.

    Arguments
    ---------
    figures : pandas.DataFrame
        A row per model, a column per figure.
    tasks : mapping
        The task of each column. Columns of a task are averaged first.
    higher_is_better : sequence of str
        Columns that are no error rates.
    baseline : str
        The row of filterbank features.

    Returns
    -------
    pandas.Series
        1000 for a model that is best in all; NaN where a figure is missing.

    Raises
    ------
    ValueError
        If the baseline, or any other model, lacks a figure, or none is better
        than the baseline.

    Example
    -------
    >>> rows = {"FBANK": [60, 10], "A": [30, 80], "B": [20, 45]}
    >>> figures = pd.DataFrame.from_dict(
    ...     rows, orient="index", columns=["CER", "accuracy"]
    ... )
    >>> tasks = {"CER": "asr", "accuracy": "lid"}
    >>> superb_scores(figures, tasks, ["accuracy"], "FBANK").tolist()
    [0.0, 875.0, 750.0]
    """
    figures = figures[list(tasks)].astype(float)
    for column in higher_is_better:
        figures[column] = -figures[column]
    if baseline not in figures.index:
        raise ValueError(
            "the SUPERB score is measured from filterbank features: add runs "
            "with --upstream fbank."
        )
    floor = figures.loc[baseline]
    best = figures.drop(index=baseline).min()
    for what, row in (("FBANK", floor), ("any other model", best)):
        lacking = row.index[row.isna()]
        if len(lacking):
            raise ValueError(
                f"the SUPERB score needs {', '.join(lacking)} of {what}: add "
                "these runs."
            )
    beaten = floor.index[best >= floor]
    if len(beaten):
        raise ValueError(
            f"no model is better than FBANK in {', '.join(beaten)}, so that "
            "there is no SUPERB score."
        )
    scaled = (figures - floor) / (best - floor)
    by_task = {
        task: scaled[[c for c in tasks if tasks[c] == task]].mean(
            axis=1, skipna=False
        )
        for task in dict.fromkeys(tasks.values())
    }
    return 1000 * pd.DataFrame(by_task).mean(axis=1, skipna=False)


def make_superb_table(
    runs: Sequence[str | Path],
    folder: str | Path,
    tasks: Mapping[str, str] | None = None,
    set_name: str = "test",
) -> Path:
    """Table upstreams and interfaces over tasks, beside the paper's.

    Runs that differ in their seed only are averaged.

    Arguments
    ---------
    runs : sequence of str or Path
        Folders of runs.
    folder : str or Path
        Where ``superb.html``, ``superb.md`` and ``superb.csv`` go.
    tasks : mapping, optional
        Name of a run to its task, such as ER or IC, where it is one of
        classification.
    set_name : str
        The set whose ``results_<set>.csv`` are read; of runs that lack it, the
        only one they have.

    Returns
    -------
    Path
        The HTML file.

    Raises
    ------
    FileNotFoundError
        If a folder holds no results.
    ValueError
        If a folder does not tell its task, upstream or interface.
    """
    folder = Path(folder)
    found = _read(runs, tasks or {}, set_name)
    table = _average(found)
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / "superb.csv") as file:
        table.to_csv(file, index=False, float_format="%.7g")
    sections = []
    for duration in ("10min", "1h"):
        rows = table[table["duration"] == duration]
        if len(rows):
            sections.append(_section(rows, ML_SUPERB, duration))
    rows = table[table["duration"] == ""]
    if len(rows):
        sections.append(_section(rows, SUPERB))
    title = "Upstreams and interfaces"
    write_markdown(folder / "superb.md", title, sections)
    page = folder / "superb.html"
    subtitle = f"{len(runs)} runs."
    write_html(page, title, subtitle, sections, of_rules=False)
    return page


def _read(runs, tasks, set_name) -> pd.DataFrame:
    """A row per run and column."""
    names = run_names(runs)
    unknown = sorted(set(tasks) - set(names))
    if unknown:
        raise ValueError(
            f"no run {', '.join(unknown)}; there are {', '.join(names)}."
        )
    rows = []
    for name, path in zip(names, map(Path, runs), strict=True):
        run = describe_downstream(path)
        task = tasks.get(name, run.task)
        columns = [x for x in (*ML_SUPERB, *SUPERB) if x.task == task]
        if not columns:
            raise ValueError(
                f"{path}: its task is {task!r}, of which there is no column. "
                f"Name it: --task {name}=IC or --task {name}=ER."
            )
        results = _results(path, set_name)
        for column in columns:
            rows += _figures(results, column, run)
    return pd.DataFrame(rows)


def _results(folder, set_name) -> pd.DataFrame:
    path = folder / f"results_{set_name}.csv"
    if not path.is_file():
        found = sorted(folder.glob("results_*.csv"))
        if len(found) != 1:
            names = ", ".join(x.name for x in found) or "no results at all"
            raise FileNotFoundError(
                f"{folder} has no {path.name}, but {names}: choose a set with "
                "--set, or evaluate the run with --test_only."
            )
        (path,) = found
    return pd.read_csv(path)


def _figures(results, column: Column, run: DownstreamRun) -> list[dict]:
    rows = results[results["metric"].isin(column.metrics)]
    for group in column.groups:
        one = rows[rows["group"] == group]
        if len(one):
            figure = one.iloc[0][["value", "low", "high"]].to_dict()
            return [
                {
                    "upstream": run.upstream,
                    "interface": run.interface,
                    "figure": column.name,
                    "duration": run.duration,
                    "setting": run.setting,
                    "seed": run.seed,
                    **figure,
                }
            ]
    return []


def _average(found: pd.DataFrame) -> pd.DataFrame:
    """A row per model and figure, over seeds, settings and languages."""
    published = published_figures().set_index(["upstream", "interface"])
    columns = {x.name: x for x in (*ML_SUPERB, *SUPERB)}
    keys = ["upstream", "interface", "duration", "figure"]
    rows = []
    for (upstream, interface, duration, figure), group in found.groupby(
        keys, sort=False
    ):
        settings = group.groupby("setting")["value"].mean()
        # eng1, eng2 and eng3 are of one language.
        values = settings.groupby(settings.index.str.rstrip("123")).mean()
        single = len(group) == 1
        source = columns[figure].published
        known = (upstream, interface) in published.index
        asked = duration in ("", "1h") and source and known
        rows.append(
            {
                "upstream": upstream,
                "interface": interface,
                "duration": duration,
                "figure": figure,
                "value": values.mean(),
                "low": group["low"].iloc[0] if single else np.nan,
                "high": group["high"].iloc[0] if single else np.nan,
                "runs": len(group),
                "settings": " ".join(sorted(settings.index)),
                "published": published.loc[(upstream, interface), source]
                if asked
                else np.nan,
            }
        )
    return pd.DataFrame(rows)


def _section(rows, columns: Sequence[Column], duration: str = "") -> Section:
    there = [x for x in columns if x.name in set(rows["figure"])]
    models = rows[["upstream", "interface"]].drop_duplicates()
    indexed = rows.set_index(["upstream", "interface", "figure"])
    cells = {
        ("", "upstream"): models["upstream"].tolist(),
        ("", "interface"): models["interface"].tolist(),
    }
    notes = [_PAPER, _OURS] if rows["published"].notna().any() else [_OURS]
    for column in there:
        own = [
            indexed.loc[(*model, column.name)]
            if (*model, column.name) in indexed.index
            else None
            for model in models.itertuples(index=False)
        ]
        head = f"{column.name} {'↑' if column.higher_is_better else '↓'}"
        if any(x is not None and not np.isnan(x["published"]) for x in own):
            cells[head, "paper"] = [
                _NONE
                if x is None or np.isnan(x["published"])
                else f"{x['published']:g}"
                for x in own
            ]
        cells[head, "ours"] = [_NONE if x is None else _tell(x) for x in own]
    for one in rows[rows["figure"] == "mono"].itertuples(index=False):
        if set(one.settings.split()) != set(SETTINGS):
            notes.append(
                f"mono of {one.upstream}, {one.interface}: of {one.settings} "
                f"only, and not of all {len(SETTINGS)} settings."
            )
    if duration:
        try:
            scores = _scores(rows, there)
        except ValueError as error:
            notes.append(f"No SUPERB score: {error}")
        else:
            cells["SUPERB score ↑", "ours"] = [
                _NONE if np.isnan(x) else f"{x:.1f}"
                for x in scores[models.agg(" ".join, axis=1)]
            ]
            tasks = dict.fromkeys(x.task for x in there)
            notes += [_SCORE, f"Its tasks here: {', '.join(tasks)}."]
    title = f"ML-SUPERB, {duration}" if duration else "SUPERB"
    return Section(
        title,
        f"{len(models)} models.",
        [Part(table=pd.DataFrame(cells), notes=notes)],
    )


def _scores(rows, columns) -> pd.Series:
    """Scores by upstream and interface, as one name."""
    figures = rows.pivot(
        index=["upstream", "interface"], columns="figure", values="value"
    )
    figures.index = [" ".join(model) for model in figures.index]
    trained = rows.loc[rows["figure"] == "mono", "settings"].unique()
    if len(trained) > 1:
        raise ValueError(
            "mono is of other settings for one model than for another: "
            f"{' / '.join(trained)}."
        )
    floors = [name for name in figures.index if name.startswith("FBANK ")]
    if len(floors) > 1:
        raise ValueError(
            "there are several models with filterbank features: "
            f"{', '.join(floors)}. Compare with one."
        )
    return superb_scores(
        figures,
        {column.name: column.task for column in columns},
        [column.name for column in columns if column.higher_is_better],
        floors[0] if floors else "FBANK",
    )


def _tell(row) -> str:
    if row["runs"] > 1:
        return f"{row['value']:.1f} ({row['runs']:.0f} runs)"
    return between(row["value"], row["low"], row["high"])
