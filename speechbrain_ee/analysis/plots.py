"""Pictures: error rate against depth, where utterances leave, and layers.

Authors
 * SpeechBrain-EE contributors 2026
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's colours, which the colour-blind can tell apart. They are taken
# over and over, so that no curve is left out.
COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#8F7A00",
)
GREY = "#8A8A8A"
AXES = {
    "mean_exit_layer": "mean exit layer",
    "mean_layers_run": "mean number of layers that ran",
    "macs": "GMACs per utterance",
    "seconds": "seconds for the set",
}
_SCALES = {"macs": 1e-9}
_CONTROLS = ("fixed", "random", "oracle", "patience")
_COMPARED = ("mean_layers_run", "macs", "seconds")
_MARKERS = "ovDP^X<>"


def draw_curves(
    curve: pd.DataFrame,
    exits: pd.DataFrame | None = None,
    loops: pd.DataFrame | None = None,
    title: str = "",
) -> Figure:
    """Error rate against mean exit layer, for every selector of a run.

    Arguments
    ---------
    curve : pandas.DataFrame
        As ``curve_<set>.csv``.
    exits : pandas.DataFrame, optional
        Error rate of each exit with its interval: the columns exit_layer,
        error_rate, low, high.
    loops : pandas.DataFrame, optional
        As ``loop_<set>.csv``: drawn as crosses, what the loop measured.
    title : str
        Above the picture.

    Returns
    -------
    matplotlib.figure.Figure

    Example
    -------
    >>> columns = ["selector", "threshold", "mean_exit_layer", "error_rate"]
    >>> rows = [("entropy", 0.1, 2.0, 20.0), ("entropy", 0.01, 6.0, 9.0)]
    >>> figure = draw_curves(pd.DataFrame(rows, columns=columns))
    >>> figure.axes[0].get_xlabel()
    'mean exit layer'
    """
    figure = Figure(figsize=(7, 4.6), layout="constrained")
    axes = figure.add_subplot()
    _draw_scores(axes, curve)
    if exits is not None:
        axes.errorbar(
            exits["exit_layer"],
            exits["error_rate"],
            yerr=[
                exits["error_rate"] - exits["low"],
                exits["high"] - exits["error_rate"],
            ],
            fmt="o",
            color="black",
            capsize=3,
            markersize=5,
            linewidth=1,
            label="one exit for all (95% interval)",
        )
    if loops is not None:
        axes.plot(
            loops["mean_exit_layer"],
            loops["error_rate"],
            "x",
            color="black",
            markersize=7,
            label="measured by the loop",
        )
    rates = curve["error_rate"] if exits is None else exits["high"]
    _finish(axes, "mean_exit_layer", rates, title)
    axes.legend(frameon=False, fontsize=8)
    return figure


def draw_scores(tables: Mapping[str, pd.DataFrame], title: str = "") -> Figure:
    """Each score in a panel of its own, with its interval and chance.

    Arguments
    ---------
    tables : mapping
        Score to a table with a row per threshold: the columns mean_exit_layer,
        error_rate, low, high, random_error_rate.
    title : str
        Above the picture.

    Returns
    -------
    matplotlib.figure.Figure

    Example
    -------
    >>> columns = ["mean_exit_layer", "error_rate", "low", "high"]
    >>> rows = [(2.0, 20.0, 18.0, 22.0, 20.0), (6.0, 9.0, 8.0, 10.0, 9.0)]
    >>> table = pd.DataFrame(rows, columns=[*columns, "random_error_rate"])
    >>> figure = draw_scores({"entropy": table, "margin": table})
    >>> [axes.get_title() for axes in figure.axes]
    ['entropy', 'margin']
    """
    columns = min(4, len(tables))
    rows = -(-len(tables) // columns)
    figure = Figure(figsize=(3.2 * columns, 2.8 * rows), layout="constrained")
    panels = figure.subplots(
        rows, columns, sharex=True, sharey=True, squeeze=False
    ).flatten()
    highest = pd.concat([table["high"] for table in tables.values()])
    for place, (colour, (name, table)) in enumerate(
        zip(cycle(COLOURS), tables.items())
    ):
        axes = panels[place]
        depth = table["mean_exit_layer"]
        axes.fill_between(
            depth, table["low"], table["high"], color=colour, alpha=0.2, lw=0
        )
        axes.plot(depth, table["error_rate"], color=colour)
        axes.plot(depth, table["random_error_rate"], ":", color=GREY)
        _finish(axes, "mean_exit_layer", highest, name.replace("_", " "))
        lowest = place >= len(tables) - columns
        axes.tick_params(labelbottom=lowest)
        axes.set_xlabel(AXES["mean_exit_layer"] if lowest else "")
        axes.set_ylabel("" if place % columns else axes.get_ylabel())
    for axes in panels[len(tables) :]:
        axes.remove()
    figure.suptitle(title)
    return figure


def draw_runs(
    curves: Mapping[str, pd.DataFrame],
    points: pd.DataFrame,
    score: str,
    title: str = "",
    gates: Mapping[str, Mapping[str, pd.DataFrame]] | None = None,
) -> Figure:
    """Several runs on one picture: against layers that ran, MACs and seconds.

    Arguments
    ---------
    curves : mapping
        Name of a run with early exits to its curve.
    points : pandas.DataFrame
        Models with a single exit: the columns run, mean_layers_run, macs,
        seconds, error_rate, low, high.
    score : str
        Whose thresholds are drawn; the oracle bounds and the random selector
        floors it.
    title : str
        Above the picture.
    gates : mapping, optional
        Name of a run to its gates, each with its curve, as from ``gate_curve``.

    Returns
    -------
    matplotlib.figure.Figure

    Example
    -------
    >>> columns = ["selector", "mean_layers_run", "macs", "seconds"]
    >>> columns += ["error_rate"]
    >>> rows = [("entropy", 2.0, 1e9, 1.0, 20.0), ("entropy", 6.0, 3e9, 3.0, 9)]
    >>> curve = pd.DataFrame(rows, columns=columns)
    >>> points = pd.DataFrame(columns=[*columns, "run", "low", "high"])
    >>> len(draw_runs({"mine": curve}, points, "entropy").axes)
    3
    """
    figure = Figure(figsize=(13, 4.8), layout="constrained")
    panels = figure.subplots(1, len(_COMPARED), sharey=True)
    gates = gates or {}
    drawn = [*curves.values()]
    drawn += [curve for run in gates.values() for curve in run.values()]
    rates = [curve["error_rate"] for curve in drawn]
    rates = pd.concat([*rates, points["error_rate"].astype(float)])
    runs = dict.fromkeys([*curves, *gates, *points["run"]])
    colours = dict(zip(runs, cycle(COLOURS)))
    for axes, column in zip(panels, _COMPARED, strict=True):
        scale = _SCALES.get(column, 1)
        for name, curve in curves.items():
            for selector, style in (
                (score, {"linewidth": 2, "label": f"{name}: {score}"}),
                ("random", {"linestyle": ":", "label": f"{name}: random"}),
                ("oracle", {"marker": "*", "label": f"{name}: oracle"}),
            ):
                part = curve[curve["selector"] == selector]
                axes.plot(
                    part[column] * scale,
                    part["error_rate"],
                    color=colours[name],
                    **style,
                )
        for _, point in points.iterrows():
            rate = point["error_rate"]
            axes.errorbar(
                [point[column] * scale],
                [rate],
                yerr=[[rate - point["low"]], [point["high"] - rate]],
                fmt="s",
                color=colours[point["run"]],
                capsize=3,
                label=point["run"],
            )
        for name, own in gates.items():
            for marker, (gate, curve) in zip(cycle(_MARKERS), own.items()):
                axes.plot(
                    curve[column] * scale,
                    curve["error_rate"],
                    color=colours[name],
                    linestyle="--",
                    marker=marker,
                    label=f"{name}: {gate}",
                )
        _finish(axes, column, rates, "")
    for axes in panels[1:]:
        axes.set_ylabel("")
    figure.suptitle(title)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=4,
        frameon=False,
        fontsize=8,
    )
    return figure


def draw_rules(
    curves: pd.DataFrame, exits: pd.DataFrame, title: str = ""
) -> Figure:
    """Exit rules against each other, in a panel for each model.

    Wright et al. (arXiv 2309.09546) draw this as their Figure 3, with the
    axes exchanged.

    Arguments
    ---------
    curves : pandas.DataFrame
        Thresholds on scores: the columns model, score, mean_exit_layer,
        error_rate, low, high.
    exits : pandas.DataFrame
        What it gives if all leave at one exit: the columns model, exits
        ("early", or "single" for models with no other exit), exit_layer,
        error_rate, low, high, and published (NaN where there is none).
    title : str
        Above the picture.

    Returns
    -------
    matplotlib.figure.Figure

    Example
    -------
    >>> rates = {"error_rate": [20.0, 9.0], "low": [18, 8], "high": [22, 10]}
    >>> rates["model"] = ["Conformer-CTC"] * 2
    >>> curves = pd.DataFrame({**rates, "score": "entropy"})
    >>> curves["mean_exit_layer"] = [2.0, 4.0]
    >>> exits = pd.DataFrame({**rates, "exits": "early", "exit_layer": [2, 4]})
    >>> figure = draw_rules(curves, exits.assign(published=[21.0, np.nan]))
    >>> [axes.get_title() for axes in figure.axes]
    ['Conformer-CTC']
    """
    models = list(dict.fromkeys(curves["model"]))
    scores = dict(zip(dict.fromkeys(curves["score"]), cycle(COLOURS)))
    figure = Figure(
        figsize=(max(7, 4.6 * len(models)), 5), layout="constrained"
    )
    panels = figure.subplots(1, len(models), sharey=True, squeeze=False)[0]
    marks = exits[exits["model"].isin(models)]
    highest = pd.concat([marks["high"], marks["published"]])
    for axes, model in zip(panels, models, strict=True):
        for (score, colour), style in zip(scores.items(), ("-", "--", "-.")):
            part = curves[
                (curves["model"] == model) & (curves["score"] == score)
            ]
            depth = part["mean_exit_layer"]
            axes.fill_between(
                *(depth, part["low"], part["high"]),
                color=colour,
                alpha=0.15,
                lw=0,
            )
            axes.plot(
                *(depth, part["error_rate"], style),
                color=colour,
                linewidth=1.8,
                label=score.replace("_", " "),
            )
        ours = marks[marks["model"] == model]
        for kind, shape, colour, shift, label in (
            ("early", "o", "black", 0, "one exit for all"),
            ("single", "s", GREY, 0.12, "models with a single exit"),
        ):
            part = ours[ours["exits"] == kind]
            if part["error_rate"].notna().any():
                axes.errorbar(
                    part["exit_layer"] + shift,
                    part["error_rate"],
                    yerr=[
                        part["error_rate"] - part["low"],
                        part["high"] - part["error_rate"],
                    ],
                    fmt=shape,
                    color=colour,
                    capsize=3,
                    markersize=5,
                    linewidth=1,
                    label=label,
                )
            if part["published"].notna().any():
                axes.plot(
                    *(part["exit_layer"] + shift, part["published"], shape),
                    color=colour,
                    markerfacecolor="none",
                    label=f"{label}, published",
                )
        _finish(axes, "mean_exit_layer", highest, model)
    for axes in panels[1:]:
        axes.set_ylabel("")
    figure.suptitle(title)
    # What only some panels show is named too; marks behind lines.
    named = {}
    for axes in panels:
        handles, labels = axes.get_legend_handles_labels()
        named = dict(zip(labels, handles)) | named
    rules = [score.replace("_", " ") for score in scores]
    labels = [*rules, *sorted(set(named) - set(rules))]
    figure.legend(
        [named[label] for label in labels],
        labels,
        loc="outside lower center",
        ncols=min(4, 3 * len(models)),
        frameon=False,
        fontsize=8,
    )
    return figure


def draw_exits(
    shares: Mapping[str, Sequence[float]],
    exit_layers: Sequence[int],
    title: str = "",
) -> Figure:
    """Where utterances leave, as bars side by side.

    Arguments
    ---------
    shares : mapping
        Name of a selector, or of a group of utterances, to the share of
        utterances that leave at each exit.
    exit_layers : sequence of int
        The exits.
    title : str
        Above the picture.

    Returns
    -------
    matplotlib.figure.Figure

    Example
    -------
    >>> figure = draw_exits({"entropy": [0.75, 0.25]}, [2, 4])
    >>> [float(bar.get_height()) for bar in figure.axes[0].patches]
    [75.0, 25.0]
    """
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axes = figure.add_subplot()
    width = 0.8 / max(len(shares), 1)
    for row, (colour, (name, share)) in enumerate(
        zip(cycle(COLOURS), shares.items())
    ):
        places = np.arange(len(exit_layers)) + (row + 0.5) * width - 0.4
        heights = 100 * np.asarray(share)
        axes.bar(places, heights, 0.92 * width, color=colour, label=name)
    axes.set_xticks(range(len(exit_layers)), exit_layers)
    axes.set_xlabel("exit layer")
    axes.set_ylabel("utterances (%)")
    axes.set_title(title)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    return figure


def draw_contributions(
    table: pd.DataFrame, metric: str = "loss", title: str = ""
) -> Figure:
    """What each layer brings, as bars.

    Arguments
    ---------
    table : pandas.DataFrame
        As ``layers.csv``: the columns layer and contribution; where layers were
        ablated, ``without`` too.
    metric : str
        What was evaluated without each layer.
    title : str
        Above the picture.

    Returns
    -------
    matplotlib.figure.Figure

    Example
    -------
    >>> table = pd.DataFrame({"layer": [0, 1], "contribution": [0.2, 0.8]})
    >>> draw_contributions(table).axes[0].get_ylabel()
    'learnt weight'
    """
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axes = figure.add_subplot()
    axes.bar(table["layer"], table["contribution"], color=COLOURS[0])
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.set_xticks(table["layer"])
    axes.set_xlabel("layer (0 = front-end output)")
    axes.set_ylabel(
        f"{metric} without the layer − with all"
        if "without" in table
        else "learnt weight"
    )
    axes.set_title(title)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def draw_entropy_by_layer(
    tables: Mapping[str, pd.DataFrame],
    lines: Mapping[str, tuple[float, float, float]],
    title: str = "",
) -> Figure:
    """Mean entropy of branches against the layer, with straight lines.

    Arguments
    ---------
    tables : mapping
        Name of a set to what its branches say: the columns layer, mean_entropy
        and sd_entropy.
    lines : mapping
        Name of a set to slope, intercept and R² of a line through the means.
    title : str
        Above the picture.

    Returns
    -------
    matplotlib.figure.Figure

    Example
    -------
    >>> table = pd.DataFrame({"layer": [1, 2], "mean_entropy": [3.0, 2.0]})
    >>> tables = {"dev": table.assign(sd_entropy=0.5)}
    >>> figure = draw_entropy_by_layer(tables, {"dev": (-1.0, 4.0, 1.0)})
    >>> figure.axes[0].get_legend().get_texts()[0].get_text()
    'dev: 4.00 − 1.000 per layer, R² = 1.000'
    """
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for colour, (name, table) in zip(cycle(COLOURS), tables.items()):
        slope, intercept, r2 = lines[name]
        layers = table["layer"]
        axes.errorbar(
            *(layers, table["mean_entropy"]),
            yerr=table["sd_entropy"],
            fmt="o",
            color=colour,
            capsize=3,
            markersize=5,
            linewidth=1,
        )
        sign = "+" if slope > 0 else "\N{MINUS SIGN}"
        axes.plot(
            *(layers, intercept + slope * layers),
            color=colour,
            linewidth=1.4,
            label=f"{name}: {intercept:.2f} {sign} {abs(slope):.3f} per layer, "
            f"R² = {r2:.3f}",
        )
        axes.set_xticks(layers)
    axes.set_xlabel("layer")
    axes.set_ylabel("mean entropy (nats), ± sd over utterances")
    axes.set_ylim(bottom=0)
    axes.set_title(title)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    return figure


def draw_noise(table: pd.DataFrame, title: str = "") -> Figure:
    """Mean exit and error rate against the signal-to-noise ratio.

    Arguments
    ---------
    table : pandas.DataFrame
        A row per rule and condition, as ``noise.csv``: the columns rule, kind
        ("rule" or "fixed"), condition (in the order of the picture),
        exit_layer and error_rate with their ends (``…_low``, ``…_high``) and,
        where there is one, fixed_here.
    title : str
        Above the picture.

    Returns
    -------
    matplotlib.figure.Figure

    Example
    -------
    >>> rows = {"rule": ["mine", "mine"], "kind": "rule"}
    >>> rows |= {"condition": ["clean", "0"], "fixed_here": [11.0, 31.0]}
    >>> for name, values in ("exit_layer", [3, 5]), ("error_rate", [10, 30]):
    ...     rows |= {
    ...         name: values,
    ...         f"{name}_low": values,
    ...         f"{name}_high": values,
    ...     }
    >>> figure = draw_noise(pd.DataFrame(rows))
    >>> [axes.get_ylabel() for axes in figure.axes]
    ['mean exit layer', 'error rate (%)']
    """
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    panels = figure.subplots(1, 2)
    conditions = list(dict.fromkeys(table["condition"]))
    figures = {"exit_layer": "mean exit layer", "error_rate": "error rate (%)"}
    fixed = table[table["kind"] == "fixed"]
    rules = table[table["kind"] == "rule"]
    for axes, (column, label) in zip(panels, figures.items(), strict=True):
        for name, part in fixed.groupby("rule", sort=False):
            places = [conditions.index(x) for x in part["condition"]]
            axes.plot(places, part[column], color=GREY, linewidth=0.8)
            at = (places[-1], part[column].iloc[-1])
            axes.annotate(
                *(name, at, (4, 0)),
                textcoords="offset points",
                color=GREY,
                fontsize=7,
                va="center",
            )
        for colour, (name, part) in zip(
            cycle(COLOURS), rules.groupby("rule", sort=False)
        ):
            places = [conditions.index(x) for x in part["condition"]]
            ends = [
                part[column] - part[f"{column}_low"],
                part[f"{column}_high"] - part[column],
            ]
            axes.errorbar(
                *(places, part[column], ends),
                color=colour,
                marker="o",
                markersize=5,
                capsize=3,
                label=name,
            )
            if column == "error_rate" and "fixed_here" in part:
                axes.plot(places, part["fixed_here"], ":", color=colour)
        told = [x if x.isalpha() else f"{x} dB" for x in conditions]
        axes.set_xticks(range(len(conditions)), told)
        axes.set_xlabel("signal-to-noise ratio")
        axes.set_ylabel(label)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    if len(rules):
        panels[0].legend(frameon=False, fontsize=8)
    figure.suptitle(title)
    return figure


def draw_kept(
    panels: Mapping[str, pd.DataFrame], rows: str, title: str = ""
) -> Figure:
    """Which layers are kept, in a panel for each gate.

    Arguments
    ---------
    panels : mapping
        Name of a panel to shares from 0 to 1: a column for each layer, a row
        for each target, or group of utterances.
    rows : str
        What the rows are called.
    title : str
        Above the picture.

    Returns
    -------
    matplotlib.figure.Figure

    Example
    -------
    >>> shares = pd.DataFrame([[1.0, 0.0]], index=[1], columns=[1, 2])
    >>> figure = draw_kept({"first_n": shares}, "target")
    >>> figure.axes[0].get_title(), figure.axes[0].get_ylabel()
    ('first_n', 'target')
    """
    wide = min(3, len(panels))
    high = -(-len(panels) // wide)
    tallest = max(map(len, panels.values()))
    size = (4.2 * wide + 1, (0.3 * tallest + 1.1) * high)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(high, wide, squeeze=False).ravel()
    for axes, (name, shares) in zip(grid, panels.items()):
        picture = axes.imshow(
            shares, aspect="auto", cmap="cividis", vmin=0, vmax=1
        )
        axes.set_xticks(range(shares.shape[1]), shares.columns)
        told = [f"{x:g}" if isinstance(x, float) else x for x in shares.index]
        axes.set_yticks(range(len(shares)), told)
        axes.set_title(name, fontsize=9)
        axes.set_xlabel("layer")
        axes.set_ylabel(rows)
    for axes in grid[len(panels) :]:
        axes.remove()
    figure.colorbar(picture, ax=figure.axes, label="share that keeps it")
    figure.suptitle(title)
    return figure


def _draw_scores(axes: Axes, curve: pd.DataFrame) -> None:
    names = [s for s in curve["selector"].unique() if s not in _CONTROLS]
    for colour, name in zip(cycle(COLOURS), names):
        part = curve[curve["selector"] == name]
        axes.plot(
            part["mean_exit_layer"],
            part["error_rate"],
            color=colour,
            linewidth=1.8,
            label=name.replace("_", " "),
        )
    for name, style in (
        ("random", {"linestyle": ":", "color": GREY, "label": "random"}),
        ("patience", {"marker": "D", "linestyle": "", "color": GREY}),
        ("oracle", {"marker": "*", "linestyle": "", "color": "#B8860B"}),
    ):
        part = curve[curve["selector"] == name]
        if len(part):
            axes.plot(
                part["mean_exit_layer"],
                part["error_rate"],
                **{"label": name, "markersize": 6, **style},
            )


def _finish(axes: Axes, column: str, rates: pd.Series, title: str) -> None:
    axes.set_xlabel(AXES[column])
    axes.set_ylabel("word error rate (%)")
    axes.set_ylim(0, 1.08 * rates.max())
    axes.set_title(title)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
