"""Several runs on one picture.

Authors
 * SpeechBrain-EE contributors 2026
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from speechbrain_ee.analysis.gates import gate_curve, read_gates
from speechbrain_ee.analysis.plots import draw_runs
from speechbrain_ee.analysis.replay import fixed_exits, outcome, sweep
from speechbrain_ee.analysis.report import (
    Part,
    Section,
    between,
    gate_rows,
    save_picture,
    traced_sets,
    write_html,
)
from speechbrain_ee.analysis.statistics import Bootstrap, exit_table
from speechbrain_ee.analysis.traces import Traces, read_traces
from speechbrain_ee.files import replacing


def compare_runs(
    runs: Sequence[str | Path],
    folder: str | Path,
    set_name: str | None = None,
    score: str = "entropy",
) -> Path:
    """Draw runs against depth, MACs and seconds, and table their exits.

    Runs with several exits are curves, those with one are points. Of a run
    whose gates were evaluated on the set (``gates_<set>.csv``), these are drawn
    and its exits are not.

    Arguments
    ---------
    runs : sequence of str or Path
        Folders of runs.
    folder : str or Path
        Where ``comparison.html``, ``comparison.png`` and ``comparison.csv`` go.
    set_name : str, optional
        The set; the first test set of the first run by default.
    score : str
        Whose thresholds are drawn.

    Returns
    -------
    Path
        The HTML file.

    Raises
    ------
    ValueError
        If a run lacks the set or the score, two runs have the same name, or
        the utterances of the runs differ.
    """
    folder = Path(folder)
    set_name = set_name or traced_sets(runs[0])[0]
    names = run_names(runs)
    traces = {
        name: _read(run, set_name, score)
        for name, run in zip(names, runs, strict=True)
    }
    check_same_utterances(traces)
    curves = {
        name: sweep(one, [score])
        for name, one in traces.items()
        if len(one.exit_layers) > 1
    }
    table = pd.concat(
        [_exits_of(name, one) for name, one in traces.items()],
        ignore_index=True,
    )
    gates = _gates(runs, names, set_name, traces)
    points = table[~table["run"].isin([*curves, *gates])]
    drawn = {name: curves[name] for name in curves if name not in gates}
    figure = draw_runs(drawn, points, score, set_name, gates)
    folder.mkdir(parents=True, exist_ok=True)
    utterances = len(traces[names[0]])
    section = Section(
        title=set_name,
        summary=f"{len(traces)} runs on the same {utterances} utterances.",
    )
    caption = (
        f"Lines: thresholds on {score}, replayed; dotted: leaving at random; "
        "stars: the oracle; squares: models with a single exit."
    )
    if gates:
        caption += " Dashed: layers chosen by a gate, and the last exit."
    section.parts.append(save_picture(folder, "comparison", figure, caption))
    section.parts.append(Part("Every exit of every run", table=_tell(table)))
    if gates:
        section.parts.append(
            Part(
                "Layers chosen by gates",
                "WER of the last exit; how many different masks there were.",
                gate_rows(
                    pd.concat(
                        curve.assign(selector=f"{name}: {gate}")
                        for name, own in gates.items()
                        for gate, curve in own.items()
                    )
                ),
            )
        )
    pairs = _pairs(traces)
    if len(pairs):
        section.parts.append(
            Part(
                "Early exits against models of the same depth",
                "WER of an exit minus that of the model with as many layers; "
                "below 0 the early exit is better. Paired bootstrap.",
                pairs,
            )
        )
    if len(curves) > 1:
        section.parts.append(
            Part(
                f"Exit by exit against {next(iter(curves))}",
                "WER minus that of the same exit of that run; below 0 the run "
                "named in the row is better. Paired bootstrap.",
                _against_first(traces),
            )
        )
    with replacing(folder / "comparison.csv") as file:
        table.to_csv(file, index=False, float_format="%.7g")
    write_html(
        folder / "comparison.html",
        "Runs compared",
        ", ".join(names),
        [section],
    )
    return folder / "comparison.html"


def run_names(runs: Sequence[str | Path]) -> list[str]:
    """The last parts of each path that tell runs apart.

    Arguments
    ---------
    runs : sequence of str or Path
        Folders of runs.

    Returns
    -------
    list of str
        In their order.

    Raises
    ------
    ValueError
        If a folder is named twice.

    Example
    -------
    >>> run_names(["results/small/1234", "results/large/1234"])
    ['small/1234', 'large/1234']
    """
    runs = [Path(run).resolve() for run in runs]
    for parts in (1, 2, 3):
        names = ["/".join(run.parts[-parts:]) for run in runs]
        if len(set(names)) == len(runs):
            return names
    raise ValueError(
        f"The same run twice: {', '.join(map(str, runs))}. Name each once."
    )


def _gates(runs, names, set_name, traces) -> dict[str, dict]:
    """Curves of the gates of all runs that have some, by run and gate."""
    curves = {}
    for run, name in zip(runs, names, strict=True):
        table = read_gates(run, set_name)
        if table is None:
            continue
        if set(table["id"]) != set(traces[name].ids):
            raise ValueError(
                f"{run}: gates_{set_name}.csv and traces_{set_name}.csv are of "
                "other utterances: evaluate the run again."
            )
        curves[name] = {
            gate: curve.sort_values("mean_layers_run")
            for gate, curve in gate_curve(table).groupby("selector", sort=False)
        }
    return curves


def _read(run, set_name, score) -> Traces:
    path = Path(run) / f"traces_{set_name}.csv"
    if not path.is_file():
        raise ValueError(
            f"{run} has no {path.name}; it has traces of "
            f"{', '.join(traced_sets(run))}: choose one with --set."
        )
    traces = read_traces(path)
    if score not in traces.scores and len(traces.exit_layers) > 1:
        raise ValueError(
            f"{path} has no score {score!r}; it has "
            f"{', '.join(traces.scores) or 'none'}: choose one with --score."
        )
    return traces


def check_same_utterances(traces: Mapping[str, Traces]) -> None:
    """Refuse to compare runs that were not evaluated on the same utterances.

    Arguments
    ---------
    traces : Mapping
        Name of a run to its traces.

    Raises
    ------
    ValueError
        If utterances, or the lengths of their references, differ.

    Example
    -------
    >>> one = Traces(["a", "b"], [2], [[1], [0]], [4, 5])
    >>> other = Traces(["b", "a"], [2, 4], [[1, 1], [0, 0]], [5, 4])
    >>> check_same_utterances({"one": one, "other": other})
    """
    (first, one), *others = traces.items()
    ref_len = dict(zip(one.ids, one.ref_len, strict=True))
    for name, other in others:
        if set(other.ids) != set(one.ids):
            raise ValueError(
                f"{first} and {name} were not evaluated on the same "
                f"utterances ({len(one)} and {len(other)}): their error rates "
                "cannot be compared."
            )
        if ref_len != dict(zip(other.ids, other.ref_len, strict=True)):
            raise ValueError(
                f"{first} and {name} count the same utterances against "
                "references of other lengths: evaluate both with the same "
                "transcripts."
            )


def _exits_of(name: str, traces: Traces) -> pd.DataFrame:
    costs = outcome(traces, fixed_exits(traces))
    rates = exit_table(traces)[["exit_layer", "low", "high"]]
    return pd.concat([rates, costs], axis=1).assign(run=name)


def _tell(table: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "run": table["run"],
            "exit": table["exit_layer"].astype(str),
            "WER": [
                between(row.error_rate, row.low, row.high)
                for row in table.itertuples(index=False)
            ],
            "GMACs": [f"{x / 1e9:.3f}" for x in table["macs"]],
            "seconds": [f"{x:.2f}" for x in table["seconds"]],
        }
    )


def _pairs(traces: dict[str, Traces]) -> pd.DataFrame:
    """Early exits beside models that end where they do."""
    rows = []
    for name, one in _with_exits(traces).items():
        bootstrap = Bootstrap(len(one))
        for other_name, other in traces.items():
            layer = other.exit_layers[0]
            if len(other.exit_layers) > 1 or layer not in one.exit_layers:
                continue
            early, single = _errors_at(layer, one, other)
            words = one.ref_len.sum()
            rows.append(
                {
                    "early exits": f"{name}, exit {layer}",
                    "single exit": other_name,
                    "WER": f"{100 * early.sum() / words:.1f}",
                    "WER of the single": f"{100 * single.sum() / words:.1f}",
                    "difference": between(
                        *bootstrap.difference_interval(
                            early, single, one.ref_len
                        )
                    ),
                }
            )
    return pd.DataFrame(rows)


def _against_first(traces: dict[str, Traces]) -> pd.DataFrame:
    """Each exit of runs with several, minus the same one of the first."""
    (_, first), *others = _with_exits(traces).items()
    bootstrap = Bootstrap(len(first))
    rows = []
    for name, one in others:
        shared = [k for k in first.exit_layers if k in one.exit_layers]
        row = {"run": name}
        for layer in shared:
            before, now = _errors_at(layer, first, one)
            row[f"exit {layer}"] = between(
                *bootstrap.difference_interval(now, before, first.ref_len)
            )
        if shared:
            rows.append(row)
    return pd.DataFrame(rows).fillna("")


def _with_exits(traces: dict[str, Traces]) -> dict[str, Traces]:
    return {k: one for k, one in traces.items() if len(one.exit_layers) > 1}


def _errors_at(layer: int, one: Traces, other: Traces) -> tuple:
    """Errors of two runs at a layer, in the order of the first's utterances."""
    order = {utterance: row for row, utterance in enumerate(other.ids)}
    rows = [order[i] for i in one.ids]
    return (
        one.errors[:, np.searchsorted(one.exit_layers, layer)],
        other.errors[rows, np.searchsorted(other.exit_layers, layer)],
    )
