"""The report of a run: what each exit, score and selector is worth.

Authors
 * SpeechBrain-EE contributors 2026
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from io import BytesIO
from itertools import groupby
from pathlib import Path

import jinja2
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from speechbrain_ee.analysis.gates import gate_curve, read_gates
from speechbrain_ee.analysis.plots import draw_curves, draw_exits, draw_scores
from speechbrain_ee.analysis.replay import exits_at, score_thresholds, sweep
from speechbrain_ee.analysis.statistics import (
    Bootstrap,
    against_random,
    compare_scores,
    exit_table,
    rank_correlation,
    savings,
)
from speechbrain_ee.analysis.traces import read_traces
from speechbrain_ee.files import replacing

_UTTERANCES_SHOWN = 5
_MOST_GROUPS = 12


@dataclass
class Part:
    """A table or a picture of a report, with words around it.

    Arguments
    ---------
    heading : str
        Above it.
    text : str
        Between heading and table.
    table : pandas.DataFrame, optional
        Ready to print.
    svg : str, optional
        A picture as a data URI.
    picture : str, optional
        File name of the same picture.
    caption : str
        What is to be seen.
    notes : list of str
        Below it.
    """

    heading: str = ""
    text: str = ""
    table: pd.DataFrame | None = None
    svg: str | None = None
    picture: str | None = None
    caption: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def headings(self) -> list[list[tuple[str, int]]]:
        """Rows of the table's head: texts and how many columns each spans.

        Example
        -------
        >>> table = pd.DataFrame(
        ...     columns=pd.MultiIndex.from_tuples(
        ...         [("", "exit"), ("mine", "single"), ("mine", "early")]
        ...     )
        ... )
        >>> Part(table=table).headings
        [[('', 1), ('mine', 2)], [('exit', 1), ('single', 1), ('early', 1)]]
        """
        names = _heading_parts(self.table)
        rows = []
        for depth in range(1, len(names[0]) + 1):
            # The lowest row names each column, those above it their groups.
            lowest = depth == len(names[0])
            spans = [
                list(span)
                for _, span in groupby(
                    range(len(names)),
                    lambda x, k=depth, each=lowest: x if each else names[x][:k],
                )
            ]
            rows.append([(names[x[0]][depth - 1], len(x)) for x in spans])
        return rows


@dataclass
class Section:
    """What a report says of one set.

    Arguments
    ---------
    title : str
        Name of the set.
    summary : str
        One sentence.
    parts : list of Part
        In their order.
    knob : dict, optional
        Score to points (threshold, depth, error rate, layers saved).
    utterances : list of dict, optional
        Transcripts at every exit.
    leave_rule : str
        The rule that shades those.
    """

    title: str
    summary: str = ""
    parts: list[Part] = field(default_factory=list)
    knob: dict | None = None
    utterances: list[dict] = field(default_factory=list)
    leave_rule: str = ""


def write_report(run: str | Path) -> Path:
    """Write ``report.html``, ``report.md`` and the pictures of a run.

    Arguments
    ---------
    run : str or Path
        Folder of the run, with ``traces_<set>.csv`` of one set at least, and
        ``loop_<set>.csv`` where the loop was run.

    Returns
    -------
    Path
        The HTML file. It needs no other file.

    Raises
    ------
    FileNotFoundError
        If there are no traces.
    """
    run = Path(run)
    sets = traced_sets(run)
    sections = [_describe_set(run, name) for name in sets]
    title = f"Early exits: {run.resolve().parent.name}, {run.resolve().name}"
    subtitle = f"Sets: {', '.join(sets)}."
    write_html(run / "report.html", title, subtitle, sections)
    write_markdown(run / "report.md", title, sections)
    return run / "report.html"


def traced_sets(run: str | Path) -> list[str]:
    """The sets of which a run has traces, those for testing first.

    Arguments
    ---------
    run : str or Path
        Folder of the run.

    Returns
    -------
    list of str
        Names of sets.

    Raises
    ------
    FileNotFoundError
        If there are none.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> for name in ("dev-clean", "test-clean"):
    ...     (folder / f"traces_{name}.csv").touch()
    >>> traced_sets(folder)
    ['test-clean', 'dev-clean']
    """
    names = sorted(
        path.stem.removeprefix("traces_")
        for path in Path(run).glob("traces_*.csv")
    )
    if not names:
        raise FileNotFoundError(
            f"{run} holds no traces_<set>.csv: give the output_folder of a run "
            "that has been evaluated."
        )
    return sorted(names, key=lambda name: "test" not in name)


def read_loop(run: str | Path, name: str) -> pd.DataFrame | None:
    """What the loop measured on a set.

    Arguments
    ---------
    run : str or Path
        Folder of the run.
    name : str
        Of the set.

    Returns
    -------
    pandas.DataFrame or None
        ``loop_<name>.csv``, if there is one.
    """
    path = Path(run) / f"loop_{name}.csv"
    return pd.read_csv(path) if path.is_file() else None


def _describe_set(run: Path, name: str) -> Section:
    traces = read_traces(run / f"traces_{name}.csv")
    loop = read_loop(run, name)
    curve = sweep(traces)
    exits = exit_table(traces)
    section = Section(title=name)
    rules = _threshold_rules(traces, loop)
    taken = {
        rule: exits_at(traces, score, [threshold])[:, 0]
        for rule, (score, threshold) in rules.items()
    }
    section.summary = _summarise(traces, exits, rules, taken)
    section.knob = _knob(traces, curve)

    figure = draw_curves(curve, exits, loop, title=name)
    caption = (
        f"{len(traces)} utterances; every point of a line is one threshold, "
        "replayed from the traces."
    )
    section.parts.append(save_picture(run, f"curve_{name}", figure, caption))
    section.parts.append(
        Part("Every exit, if all leave there", table=_exit_rows(traces, exits))
    )
    if loop is not None:
        section.parts.append(
            Part(
                "The loop that really stops",
                table=_loop_rows(loop, traces.exit_layers[-1]),
                caption=(
                    "Measured; seconds of the whole set. The process has held "
                    f"{loop['peak_memory_mb'].max():.0f} MB at most."
                ),
            )
        )
    gated = read_gates(run, name)
    if gated is not None:
        section.parts.append(
            Part(
                "Layers chosen by gates",
                "Measured; WER of the last exit, and how many different masks "
                "there were.",
                gate_rows(gate_curve(gated)),
            )
        )
    if taken:
        shares = {
            rule: np.bincount(t, minlength=len(traces.exit_layers)) / len(t)
            for rule, t in taken.items()
        }
        figure = draw_exits(shares, traces.exit_layers, name)
        caption = "Where utterances leave."
    else:
        only = np.eye(len(traces.exit_layers))[-1]
        figure = draw_exits({"full depth": only}, traces.exit_layers, name)
        caption = "No threshold was run: all leave at the last exit."
    section.parts.append(save_picture(run, f"exits_{name}", figure, caption))
    if rules:
        rule = next(iter(rules))
        section.parts.extend(_group_rows(traces, taken[rule], rule))
        section.utterances = _utterances(traces, taken[rule])
        section.leave_rule = rule
    if traces.scores and len(traces.exit_layers) > 1:
        bootstrap = Bootstrap(len(traces))
        tables = {
            score: against_random(
                *(traces, score, score_thresholds(traces, score)), bootstrap
            )
            for score in traces.scores
        }
        figure = draw_scores(tables, name)
        caption = (
            "Each score with its 95% interval over utterances; dotted: leaving "
            "at random at the same mean depth."
        )
        section.parts.append(
            save_picture(run, f"scores_{name}", figure, caption)
        )
        section.parts.append(
            Part(
                "Which score is worth what",
                "Layers saved (%) at the threshold that costs at most one "
                "point of WER on this very set: how much there is to gain. "
                "What thresholds from dev gain stands above.",
                _score_rows(traces, rules),
            )
        )
        section.parts.append(
            Part(
                "Rank correlation of confidence and error rate",
                "Spearman's, at each exit; 1 would be a perfect score.",
                _correlation_rows(traces),
            )
        )
    return section


def _threshold_rules(traces, loop) -> dict[str, tuple[str, float]]:
    """The threshold selectors that the loop ran, calibrated ones first."""
    if loop is None:
        return {}
    rows = loop[loop["threshold"].notna() & loop["score"].isin(traces.scores)]
    order = sorted(
        rows.itertuples(index=False), key=lambda r: "_dev+" not in r.selector
    )
    return {row.selector: (row.score, row.threshold) for row in order}


def _summarise(traces, exits, rules, taken) -> str:
    last = exits.iloc[-1]
    full = (
        f"The last exit, after layer {last['exit_layer']:.0f}, has a WER of "
        f"{between(last['error_rate'], last['low'], last['high'])}."
    )
    if not rules:
        return full
    rule, (score, threshold) = next(iter(rules.items()))
    layers = traces.exit_layers[taken[rule]].mean()
    errors = np.take_along_axis(traces.errors, taken[rule][:, None], axis=1)
    rate = 100 * errors.sum() / traces.ref_len.sum()
    saved = 100 * (1 - layers / traces.exit_layers[-1])
    sign = "≥" if traces.directions[score] else "≤"
    return (
        f"{full} With {score.replace('_', ' ')} {sign} {threshold:.3g} "
        f"({rule}), {layers:.1f} layers run on average, {saved:.0f}% fewer, "
        f"for a WER of {rate:.1f}."
    )


def _knob(traces, curve) -> dict | None:
    if not traces.scores or len(traces.exit_layers) == 1:
        return None
    knob = {}
    for score in traces.scores:
        rows = curve[curve["selector"] == score]
        rows = rows[np.isfinite(rows["threshold"])]
        saved = 100 * (1 - rows["mean_exit_layer"] / traces.exit_layers[-1])
        points = zip(
            *(rows["threshold"], rows["mean_exit_layer"]),
            *(rows["error_rate"], saved),
            strict=True,
        )
        if len(rows):
            knob[score] = [[float(f"{x:.5g}") for x in p] for p in points]
    return knob or None


def _exit_rows(traces, exits) -> pd.DataFrame:
    table = pd.DataFrame({"exit": exits["exit_layer"].astype(str)})
    table["WER"] = [
        between(*row)
        for row in exits[["error_rate", "low", "high"]].itertuples(index=False)
    ]
    if traces.macs is not None:
        table["GMACs per utterance"] = [
            f"{x:.3f}" for x in traces.macs.mean(axis=0) / 1e9
        ]
    seconds = traces.seconds_with()
    if seconds is not None:
        table["seconds"] = [f"{x:.2f}" for x in seconds.sum(axis=0)]
    return table


def gate_rows(curves: pd.DataFrame, metric: str = "WER") -> pd.DataFrame:
    """A table of what gates did, to read.

    Arguments
    ---------
    curves : pandas.DataFrame
        From ``gate_curve``.
    metric : str
        What the error rate is called.

    Returns
    -------
    pandas.DataFrame
        A row for each target.
    """
    return pd.DataFrame(
        [
            {
                "gate": row.selector,
                "target": f"{row.threshold:g}",
                "layers": f"{row.mean_layers_run:.2f}",
                metric: between(row.error_rate, row.low, row.high),
                "masks": row.masks,
                "GMACs": f"{row.macs / 1e9:.3f}",
                "seconds": f"{row.seconds:.2f}",
            }
            for row in curves.itertuples(index=False)
        ]
    )


def _loop_rows(loop, last_exit) -> pd.DataFrame:
    saved = 100 * (1 - loop["mean_layers_run"] / last_exit)
    return pd.DataFrame(
        {
            "selector": loop["selector"],
            "threshold": [_plain(x, ".3g") for x in loop["threshold"]],
            "mean exit": [f"{x:.2f}" for x in loop["mean_exit_layer"]],
            "by frames": [
                f"{x:.2f}" for x in loop["frame_weighted_exit_layer"]
            ],
            "WER": [
                between(*row)
                for row in loop[["error_rate", "low", "high"]].itertuples(
                    index=False
                )
            ],
            "layers saved": [f"{x:.0f}%" for x in saved],
            "GMACs": [f"{x / 1e9:.3f}" for x in loop["macs"]],
            "seconds": [f"{x:.2f}" for x in loop["seconds"]],
            "replayed": [_plain(x, ".2f") for x in loop["replayed_seconds"]],
            "real-time factor": [f"{x:.4f}" for x in loop["real_time_factor"]],
        }
    )


def _group_rows(traces, taken, rule) -> list[Part]:
    """How deep each group goes, for groupings of a few groups."""
    parts = []
    layers = traces.exit_layers[taken]
    errors = np.take_along_axis(traces.errors, taken[:, None], axis=1)[:, 0]
    for name, groups in traces.groups.items():
        values = sorted(set(groups), key=_number_first)
        if not 2 <= len(values) <= _MOST_GROUPS:
            continue
        rows = []
        for value in values:
            members = groups == value
            words = traces.ref_len[members].sum()
            bootstrap = Bootstrap(int(members.sum()))
            depth = bootstrap.mean_interval(layers[members])
            rows.append(
                {
                    name: value,
                    "utterances": int(members.sum()),
                    "mean exit": between(*depth, ".2f"),
                    "WER": _rate(errors[members].sum(), words),
                    "WER of the last exit": _rate(
                        traces.errors[members, -1].sum(), words
                    ),
                }
            )
        parts.append(
            Part(f"By {name}", f"Under {rule}.", table=pd.DataFrame(rows))
        )
    return parts


def _score_rows(traces, rules) -> pd.DataFrame:
    bootstrap = Bootstrap(len(traces))
    scores = list(traces.scores)
    base = "entropy" if "entropy" in scores else scores[0]
    thresholds = {}
    for rule, (score, threshold) in rules.items():
        thresholds.setdefault(score, (rule, threshold))
    rows = []
    for score in scores:
        row = {"score": score}
        # A score that is known at the last exit alone decides nothing.
        if np.isfinite(traces.scores[score][:, :-1]).any():
            found = compare_scores(traces, score, base, bootstrap=bootstrap)
            row["mean WER over depths"] = (
                f"{found['area_one']:.2f} "
                f"({found['lowest']:.1f} to {found['highest']:.1f})"
            )
            difference = (found[k] for k in ("difference", "low", "high"))
            row[f"minus that of {base}"] = between(*difference, ".2f")
            found = savings(traces, score, loss=1.0, bootstrap=bootstrap)
            row["layers saved for 1 point"] = between(
                *(found[k] for k in ("saved", "saved_low", "saved_high")), ".0f"
            )
        if score in thresholds:
            rule, threshold = thresholds[score]
            found = against_random(traces, score, [threshold], bootstrap).loc[0]
            row["WER below random"] = between(
                found["gain"], found["gain_low"], found["gain_high"]
            )
            row["under"] = rule
        if score in traces.score_seconds:
            spent = 1e3 * traces.score_seconds[score].mean()
            row["ms per exit"] = f"{spent:.2f}"
        rows.append(row)
    return pd.DataFrame(rows).fillna("")


def _correlation_rows(traces) -> pd.DataFrame:
    bootstrap = Bootstrap(len(traces))
    rows = []
    for score in traces.scores:
        table = rank_correlation(traces, score, bootstrap)
        cells = {
            f"exit {row.exit_layer}": between(
                row.correlation, row.low, row.high, ".2f"
            )
            for row in table.itertuples(index=False)
        }
        rows.append({"score": score, **cells})
    return pd.DataFrame(rows)


def _utterances(traces, taken) -> list[dict]:
    """Some utterances whose transcripts change with depth, of every exit."""
    if traces.hyp is None or traces.ref is None:
        return []
    changes = (traces.hyp[:, 1:] != traces.hyp[:, :-1]).sum(axis=1)
    order = np.lexsort((-changes, taken))
    order = order[changes[order] > 0]
    picked = (
        order[
            np.unique(
                np.linspace(0, len(order) - 1, _UTTERANCES_SHOWN).astype(int)
            )
        ]
        if len(order)
        else []
    )
    return [
        {
            "id": traces.ids[i],
            "ref": traces.ref[i],
            "rows": [
                {
                    "exit_layer": layer,
                    "pieces": _compare_words(traces.ref[i], hyp),
                    "leave": column == taken[i],
                }
                for column, (layer, hyp) in enumerate(
                    zip(traces.exit_layers, traces.hyp[i], strict=True)
                )
            ],
        }
        for i in picked
    ]


def _compare_words(reference: str, hypothesis: str) -> list[tuple[str, str]]:
    """Runs of words: same, wrong (said by the model) or missing."""
    said, wanted = hypothesis.split(), reference.split()
    pieces = []
    matcher = SequenceMatcher(a=wanted, b=said, autojunk=False)
    for kind, a, b, c, d in matcher.get_opcodes():
        if kind == "equal":
            pieces.append(("same", " ".join(said[c:d])))
            continue
        if d > c:
            pieces.append(("wrong", " ".join(said[c:d])))
        if b - a > d - c:
            pieces.append(("missing", " ".join(wanted[a + d - c : b])))
    return pieces


def save_picture(
    folder: Path, name: str, figure: Figure, caption: str = ""
) -> Part:
    """Save a picture as PNG, and hold it for a report.

    Arguments
    ---------
    folder : Path
        Where ``<name>.png`` goes.
    name : str
        Of the file.
    figure : matplotlib.figure.Figure
        The picture.
    caption : str
        What is to be seen.

    Returns
    -------
    Part
        With the picture as SVG within.
    """
    with replacing(folder / f"{name}.png") as file:
        figure.savefig(file, dpi=150, format="png")
    buffer = BytesIO()
    figure.savefig(buffer, format="svg")
    code = base64.b64encode(buffer.getvalue()).decode()
    return Part(
        svg=f"data:image/svg+xml;base64,{code}",
        picture=f"{name}.png",
        caption=caption,
    )


def write_html(
    path: Path,
    title: str,
    subtitle: str,
    sections: Sequence[Section],
    of_rules: bool = True,
) -> None:
    """Write one HTML file that needs no other.

    Arguments
    ---------
    path : Path
        Where to.
    title : str
        Of the page.
    subtitle : str
        Below it.
    sections : sequence of Section
        What it says.
    of_rules : bool
        Whether it speaks of costs, controls and calibrated thresholds, which
        are then explained at its end.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("speechbrain_ee.analysis", "."),
        autoescape=True,
        trim_blocks=True,
    )
    template = environment.get_template("report.html.jinja")
    text = template.render(
        title=title, subtitle=subtitle, sections=sections, of_rules=of_rules
    )
    with replacing(path) as file:
        file.write_text(text, encoding="utf-8")


def write_markdown(path: Path, title: str, sections: Sequence[Section]) -> None:
    """Write the same for those who read it as text, or in a repository.

    Arguments
    ---------
    path : Path
        Where to, beside the pictures.
    title : str
        Of the page.
    sections : sequence of Section
        What it says.
    """
    lines = [f"# {title}", ""]
    for section in sections:
        lines += [f"## {section.title}", "", section.summary, ""]
        for part in section.parts:
            if part.heading:
                lines += [f"### {part.heading}", ""]
            if part.text:
                lines += [part.text, ""]
            if part.picture:
                lines += [f"![{part.caption}]({part.picture})", ""]
            if part.table is not None:
                lines += [*_markdown_rows(part.table), ""]
            if part.notes:
                lines += [*(f"- {note}" for note in part.notes), ""]
    with replacing(path) as file:
        file.write_text("\n".join(lines), encoding="utf-8")


def _markdown_rows(table: pd.DataFrame) -> list[str]:
    names = [", ".join(filter(None, x)) for x in _heading_parts(table)]
    rows = [names, ["---"] * len(names), *table.itertuples(index=False)]
    return [f"| {' | '.join(map(str, row))} |" for row in rows]


def _heading_parts(table: pd.DataFrame) -> list[tuple[str, ...]]:
    """What the columns are called, from the group down to the column."""
    return [x if isinstance(x, tuple) else (x,) for x in table.columns]


def between(value: float, low: float, high: float, spec: str = ".1f") -> str:
    """A figure with its interval.

    Arguments
    ---------
    value : float
        The figure.
    low : float
        Lower end.
    high : float
        Upper end.
    spec : str
        How numbers are written.

    Returns
    -------
    str
        Empty for NaN.

    Example
    -------
    >>> between(10.51, 8, 13)
    '10.5 [8.0, 13.0]'
    """
    if np.isnan(value):
        return ""
    return f"{value:{spec}} [{low:{spec}}, {high:{spec}}]"


def _plain(value, spec: str) -> str:
    return "" if pd.isna(value) else f"{value:{spec}}"


def _rate(errors, words) -> str:
    return f"{100 * errors / words:.1f}" if words else ""


def _number_first(value):
    try:
        return (0, float(value), "")
    except ValueError:
        return (1, 0.0, value)
