"""What gates choose: which layers are kept, and whether the input matters.

Authors
 * SpeechBrain-EE contributors 2026
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import entropy

from speechbrain_ee.analysis.comparison import run_names
from speechbrain_ee.analysis.conditions import (
    condition_of,
    loudness_of_speech,
)
from speechbrain_ee.analysis.gates import read_gates
from speechbrain_ee.analysis.plots import draw_kept
from speechbrain_ee.analysis.report import (
    Part,
    Section,
    save_picture,
    write_html,
    write_markdown,
)
from speechbrain_ee.files import replacing

# Columns of gates_<set>.csv that are no groups of utterances.
_OWN = (
    *("id", "utterance", "gate", "target_layers", "exit_layer", "layers_run"),
    *("layers", "hyp", "ref", "errors", "ref_len", "frames", "macs"),
    "seconds",
)
# What keeps the same layers for everybody, whatever the input.
_ALIKE = ("all", "fixed", "first_n", "greedy")
_KINDS = ["gate", "target_layers"]
_MOST_DRAWN = 12  # groups
_PERMUTATIONS = 999


def read_choices(run: str | Path, name: str | None = None) -> pd.DataFrame:
    """What the gates of a run did on a set, in all conditions of noise.

    Arguments
    ---------
    run : str or Path
        Folder of the run.
    name : str, optional
        Of the set, without its noise (default: the first, test sets first).

    Returns
    -------
    pandas.DataFrame
        As ``gates_<set>.csv``, of clean and noisy sets together, with
        ``utterance``, which is the same in all conditions, and ``length``, the
        quarter of utterances that it belongs to by its frames.

    Raises
    ------
    FileNotFoundError
        If the run has no such files.
    ValueError
        If a column is missing.
    """
    stems = [
        path.stem.removeprefix("gates_")
        for path in sorted(Path(run).glob("gates_*.csv"))
    ]
    bases = sorted({condition_of(stem)[0] for stem in stems})
    bases.sort(key=lambda base: "test" not in base)
    if not bases:
        raise FileNotFoundError(
            f"{run} holds no gates_<set>.csv: give the output_folder of a run "
            "that has been evaluated with a gate (gate, eval_gates)."
        )
    name = name or bases[0]
    if name not in bases:
        raise FileNotFoundError(
            f"{run} holds no gates_{name}.csv; it has those of "
            f"{', '.join(bases)}: choose one with --set."
        )
    tables = []
    for stem in stems:
        base, condition = condition_of(stem)
        if base != name:
            continue
        table = read_gates(run, stem)
        missing = {"layers", "frames", *_KINDS} - set(table)
        if missing:
            raise ValueError(
                f"{run}/gates_{stem}.csv: the column {min(missing)} is "
                "missing. Evaluate the run again (--test_only)."
            )
        end = f"_snr{condition}"
        table["utterance"] = table["id"].str.removesuffix(end)
        if condition is not None:
            table["snr"] = condition
        tables.append(table)
    table = pd.concat(tables, ignore_index=True)
    table["length"] = _quarters(table)
    return table


def _quarters(table: pd.DataFrame) -> pd.Series:
    """Ranges of frames that hold a quarter of the utterances each."""
    frames = table.groupby("utterance")["frames"].max()
    quarters = pd.qcut(frames, 4, duplicates="drop", labels=False)
    spans = frames.groupby(quarters).agg(["min", "max"])
    told = (f"{low} – {high}" for low, high in spans.itertuples(index=False))
    named = quarters.map(dict(zip(spans.index, told)))
    return table["utterance"].map(named)


def grouping_columns(table: pd.DataFrame) -> list[str]:
    """The columns that put utterances into two groups or more.

    Arguments
    ---------
    table : pandas.DataFrame
        From ``read_choices``.

    Returns
    -------
    list of str
        ``snr`` and ``length`` first.
    """
    given = [
        column
        for column in table
        if column not in _OWN and table[column].nunique() > 1
    ]
    first = [column for column in ("snr", "length") if column in given]
    return [*first, *(column for column in given if column not in first)]


def kept_layers(
    table: pd.DataFrame, columns: Sequence[str] = ()
) -> pd.DataFrame:
    """How often each layer is kept.

    Arguments
    ---------
    table : pandas.DataFrame
        From ``read_choices``.
    columns : sequence of str
        By whose groups it is told too.

    Returns
    -------
    pandas.DataFrame
        ``gate``, ``target_layers``, ``by`` ("all", or a column), ``group``,
        ``utterances``, ``layer`` and ``share``, from 0 to 1.

    Example
    -------
    >>> rows = [("a", "110", "5"), ("b", "011", "20")]
    >>> table = pd.DataFrame(rows, columns=["utterance", "layers", "snr"])
    >>> table = table.assign(gate="input_conditioned", target_layers=2)
    >>> kept_layers(table, ["snr"])["share"].tolist()
    [0.5, 1.0, 0.5, 1.0, 1.0, 0.0, 0.0, 1.0, 1.0]
    """
    masks = np.array([[x == "1" for x in row] for row in table["layers"]])
    numbered = pd.DataFrame(masks, index=table.index)
    numbered.columns = range(1, masks.shape[1] + 1)
    parts = []
    for column in ("all", *columns):
        group = "all" if column == "all" else table[column].astype(str)
        kinds = table[_KINDS].assign(by=column, group=group)
        shares = numbered.groupby([kinds[k] for k in kinds], sort=False)
        counts = shares.size().rename("utterances")
        long = shares.mean().rename_axis(columns="layer").stack()
        long = long.rename("share").reset_index()
        parts.append(long.merge(counts.reset_index(), on=list(kinds)))
    told = pd.concat(parts, ignore_index=True)
    order = [*_KINDS, "by", "group", "utterances", "layer", "share"]
    return told[order]


def count_masks(table: pd.DataFrame) -> pd.DataFrame:
    """How many different masks there are.

    Arguments
    ---------
    table : pandas.DataFrame
        From ``read_choices``.

    Returns
    -------
    pandas.DataFrame
        ``gate``, ``target_layers``, ``utterances``, ``masks``,
        ``masks_share`` (of the utterances), ``commonest`` and
        ``commonest_share``.

    Example
    -------
    >>> table = pd.DataFrame({"layers": ["110", "110", "011"]})
    >>> table = table.assign(gate="random_n", target_layers=2)
    >>> count_masks(table)[["masks", "commonest", "commonest_share"]]
       masks commonest  commonest_share
    0      2       110         0.666667
    """
    rows = []
    for kind, part in table.groupby(_KINDS, sort=False):
        counts = part["layers"].value_counts()
        rows.append(
            {
                **dict(zip(_KINDS, kind)),
                "utterances": len(part),
                "masks": len(counts),
                "masks_share": len(counts) / len(part),
                "commonest": counts.index[0],
                "commonest_share": counts.iloc[0] / len(part),
            }
        )
    return pd.DataFrame(rows)


def one_for_all(masks: pd.DataFrame) -> list[str]:
    """What is to be said of gates that could choose, and do not.

    Arguments
    ---------
    masks : pandas.DataFrame
        From ``count_masks``.

    Returns
    -------
    list of str
        A warning for each gate and target with one mask for all.

    Example
    -------
    >>> table = pd.DataFrame({"layers": ["110", "110"], "target_layers": 2})
    >>> one_for_all(count_masks(table.assign(gate="input_conditioned")))
    ['input_conditioned, target 2: one mask, 110, serves all 2 utterances, \
whatever they are.']
    """
    return [
        f"{row.gate}, target {row.target_layers:g}: one mask, "
        f"{row.commonest}, serves all {row.utterances} utterances, whatever "
        "they are."
        for row in masks.itertuples()
        if row.masks == 1
        and row.utterances > 1
        and row.gate not in _ALIKE
        and 0 < row.commonest.count("1") < len(row.commonest)
    ]


def dependence(
    table: pd.DataFrame,
    columns: Sequence[str],
    permutations: int = _PERMUTATIONS,
    seed: int = 0,
) -> pd.DataFrame:
    """Mutual information of masks and groups, against chance.

    The estimate is the plug-in one, which is never 0 by chance: masks that do
    not depend on the groups have ``chance_bits`` on average, which is found by
    permuting. A group that an utterance always belongs to, such as its
    length, is permuted among utterances, and one that changes, such as the
    signal-to-noise ratio, within each of them: the same utterance in several
    conditions is no independent sample.

    Arguments
    ---------
    table : pandas.DataFrame
        From ``read_choices``.
    columns : sequence of str
        Of the groups.
    permutations : int
        How many.
    seed : int
        Of the permutations.

    Returns
    -------
    pandas.DataFrame
        ``gate``, ``target_layers``, ``by``, ``groups``, ``utterances``,
        ``bits``, ``chance_bits``, ``most_bits`` (the smaller of the two
        entropies) and ``p_value``.

    Example
    -------
    >>> table = pd.DataFrame({"utterance": list("abcdefgh")})
    >>> table["layers"] = table["snr"] = ["01"] * 4 + ["10"] * 4
    >>> table = table.assign(gate="input_conditioned", target_layers=1)
    >>> found = dependence(table, ["snr"]).loc[0]
    >>> float(found["bits"]), bool(found["p_value"] < 0.1)
    (1.0, True)
    """
    rows = []
    for kind, part in table.groupby(_KINDS, sort=False):
        masks = pd.factorize(part["layers"])[0]
        utterances = pd.factorize(part["utterance"])[0]
        for column in columns:
            groups = pd.factorize(part[column].astype(str))[0]
            rng = np.random.default_rng(seed)
            apart = _bits(masks) + _bits(groups)
            size = groups.max() + 1
            bits = apart - _bits(masks * size + groups)
            chance = np.array(
                [
                    apart - _bits(masks * size + drawn)
                    for drawn in _permuted(
                        groups, utterances, permutations, rng
                    )
                ]
            )
            above = np.count_nonzero(chance >= bits - 1e-9)
            rows.append(
                {
                    **dict(zip(_KINDS, kind)),
                    "by": column,
                    "groups": int(size),
                    "utterances": len(part),
                    "bits": max(bits, 0.0),
                    "chance_bits": max(chance.mean(), 0.0),
                    "most_bits": min(_bits(masks), _bits(groups)),
                    "p_value": (1 + above) / (1 + permutations),
                }
            )
    return pd.DataFrame(rows)


def _bits(codes: np.ndarray) -> float:
    """The entropy of whole numbers."""
    return float(entropy(np.bincount(codes), base=2))


def _permuted(groups, utterances, permutations, rng):
    """Groups as they might be if they did not matter."""
    pairs = np.unique(np.stack([utterances, groups], axis=1), axis=0)
    among = len(pairs) == utterances.max() + 1  # one group for each utterance
    inside = np.lexsort((groups, utterances))
    for _ in range(permutations):
        if among:
            yield rng.permutation(pairs[:, 1])[utterances]
        else:
            drawn = np.empty_like(groups)
            noise = rng.random(len(groups))
            drawn[np.lexsort((noise, utterances))] = groups[inside]
            yield drawn


def make_gates_report(
    runs: Sequence[str | Path],
    folder: str | Path,
    set_name: str | None = None,
) -> Path:
    """Report which layers the gates of runs keep, and for whom.

    Writes ``gates.html`` and ``gates.md``, ``layers.csv`` (``kept_layers``),
    ``masks.csv`` (``count_masks``), ``dependence.csv`` (``dependence``) and
    the pictures.

    Arguments
    ---------
    runs : sequence of str or Path
        Folders of runs.
    folder : str or Path
        Where the files go.
    set_name : str, optional
        As for ``read_choices``.

    Returns
    -------
    Path
        The HTML file.
    """
    names = run_names(runs)
    choices = {
        name: read_choices(run, set_name)
        for name, run in zip(names, runs, strict=True)
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tables = {"layers": [], "masks": [], "dependence": []}
    sections = []
    for place, (name, table) in enumerate(choices.items(), start=1):
        columns = grouping_columns(table)
        found = {
            "layers": kept_layers(table, columns),
            "masks": count_masks(table),
            "dependence": dependence(table, columns),
        }
        for key, one in found.items():
            one.insert(0, "run", name)
            tables[key].append(one)
        sections.append(_describe(folder, f"run{place}", name, **found))
    for key, parts in tables.items():
        with replacing(folder / f"{key}.csv") as file:
            pd.concat(parts).to_csv(file, index=False, float_format="%.6g")
    title = "Layers that gates keep"
    write_markdown(folder / "gates.md", title, sections)
    path = folder / "gates.html"
    write_html(path, title, ", ".join(names), sections, of_rules=False)
    return path


def _describe(folder, slug, name, layers, masks, dependence) -> Section:
    """What one run has chosen."""
    warnings = one_for_all(masks)
    summary = f"{len(masks)} choices of gate and target."
    section = Section(title=name, summary=summary)
    whole = layers[layers["by"] == "all"]
    panels = {
        gate: part.pivot(index="target_layers", columns="layer", values="share")
        for gate, part in whole.groupby("gate", sort=False)
    }
    figure = draw_kept(panels, "target")
    section.parts.append(
        save_picture(
            *(folder, f"{slug}_layers", figure),
            "How many of the utterances keep each layer, for each target.",
        )
    )
    section.parts.append(
        Part(
            "Different masks",
            table=masks.drop(columns="run").round(3),
            notes=[f"Warning: {warning}" for warning in warnings],
        )
    )
    if len(dependence):
        section.parts.append(
            Part(
                "Does the choice depend on the input?",
                "Mutual information of mask and group in bits (plug-in), what "
                "chance gives on average, and how often it gives as much (p, "
                "not corrected for their number). Utterances of several noise "
                "levels are permuted as one.",
                dependence.drop(columns="run").round(4),
            )
        )
    choosing = masks[masks["masks"] > 1]
    kinds = set(choosing[_KINDS].itertuples(index=False, name=None))
    for column, part in layers[layers["by"] != "all"].groupby("by", sort=False):
        panels = {
            f"{gate}, {target:g}": _by_group(rows)
            for (gate, target), rows in part.groupby(_KINDS, sort=False)
            if (gate, target) in kinds and rows["group"].nunique() > 1
        }
        few = part["group"].nunique() <= _MOST_DRAWN
        if panels and few:
            figure = draw_kept(panels, column)
            caption = f"The same by {column}, of gates with several masks."
            section.parts.append(
                save_picture(folder, f"{slug}_by_{column}", figure, caption)
            )
    return section


def _by_group(rows: pd.DataFrame) -> pd.DataFrame:
    """Groups by layers: numbers in their order, then names."""
    shares = rows.pivot(index="group", columns="layer", values="share")
    return shares.loc[sorted(shares.index, key=_order)]


def _order(group: str):
    try:
        return (loudness_of_speech(group.split()[0]), group)
    except ValueError:
        return (float("inf"), group)
