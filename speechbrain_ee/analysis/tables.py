"""Tables 2 and 3 and Figure 3 of Wright et al., rebuilt from runs.

Wright et al., *Training early-exit architectures for automatic speech
recognition: fine-tuning pre-trained models or training from scratch*
(arXiv 2309.09546). What they published stands in ``wright2024.csv``.

Authors
 * SpeechBrain-EE contributors 2026
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from speechbrain_ee.analysis.comparison import (
    check_same_utterances,
    run_names,
)
from speechbrain_ee.analysis.plots import draw_rules
from speechbrain_ee.analysis.report import (
    Part,
    Section,
    between,
    save_picture,
    traced_sets,
    write_html,
    write_markdown,
)
from speechbrain_ee.analysis.runs import Run, describe_run
from speechbrain_ee.analysis.statistics import (
    Bootstrap,
    compare_scores,
    exit_table,
    rule_curve,
)
from speechbrain_ee.analysis.traces import Traces, read_traces
from speechbrain_ee.files import replacing

# The recipes' names of the test sets that the paper has.
STANDARD_SETS = {
    "test-clean": ("LibriSpeech", "test-clean"),
    "test-other": ("LibriSpeech", "test-other"),
    "tedlium-test": ("TED-LIUM", "test"),
    "voxpopuli-en-test": ("VoxPopuli", "test"),
}
# Another corpus may have a set of the same name: these are told by their size.
_UTTERANCES = {
    ("LibriSpeech", "test-clean"): 2620,
    ("LibriSpeech", "test-other"): 2939,
}
# The share of them that must be there. Limits of duration cost a few.
_ENOUGH = 0.99
_RULES = ("entropy", "sentence_confidence", "hypothesis_posterior")
_KINDS = {"single": "single exit", "early": "early exits"}
_MARKS = "ᵃᵇᶜᵈᵉᶠᵍʰ"
_NONE = "–"

_REPAIRED = (
    "Scored after every word that is not in a lexicon of 89,114 words had been "
    "replaced by the word of the lexicon nearest to it, as the released code "
    "does it. That removes errors, most of them at shallow exits. Ours are "
    "scored as they are."
)
_FEATURES = (
    "Features: the paper says MFCC, its code takes 80 power mel bands without "
    "a logarithm. Ours: see Runs."
)
_SEARCHED = (
    "Decoded by attention, with a Transformer language model. Ours: by what "
    "the run was evaluated with."
)
_TIED = "The released model has one head for all exits, decoded greedily."
_PUBLIC_MODEL = (
    "By the released results this is the public model wav2vec2-base-960h; the "
    "authors' own model with a single exit stands there at 3.7 on test-clean "
    "and 9.9 on test-other."
)
_NORMALISED = (
    "The paper does not tell how it normalised the texts of this corpus, nor "
    "how many utterances it scored."
)
# What must be known of a cell: model, exits, exit layer (None: of all).
_NOTES = {
    "LibriSpeech": {
        ("Conformer-CTC", None, None): (_REPAIRED, _FEATURES),
        ("Conformer-AED", None, None): (_SEARCHED,),
        ("Wav2Vec2-CTC", "early", None): (_TIED,),
        ("Wav2Vec2-CTC", "single", 12): (_PUBLIC_MODEL,),
    },
    "TED-LIUM": {("Conformer-CTC", None, None): (_NORMALISED, _FEATURES)},
    "VoxPopuli": {("Conformer-CTC", None, None): (_NORMALISED, _FEATURES)},
}
_PAPER = (
    "Paper: Wright et al., arXiv 2309.09546, {source}; no intervals and no "
    "seeds were published."
)
_OURS = (
    "Brackets: 95% bootstrap interval over utterances. Of several seeds the "
    "mean, and behind it the range."
)
_DECODER = (
    "Rules are compared on the same transcripts, those of the traces. The "
    "authors' released traces of Wav2Vec2 hold greedy transcripts beside "
    "entropies, but beam-search transcripts, which have fewer errors, beside "
    "confidences: a comparison of those two also compares the decoders."
)
_LISTS = (
    "The paper takes lists of the 300 best for sentence confidence; ours are "
    "as long as the run's key scores says."
)


@dataclass
class _Group:
    """Runs of one model that differ by their seed only, on one set."""

    model: str
    exits: str
    runs: dict[str, Run]
    traces: list[Traces]

    @property
    def mean(self) -> Traces:
        """The traces with the mean errors over seeds, and nothing else."""
        one = self.traces[0]
        errors = np.mean([each.errors for each in self.traces], axis=0)
        return Traces(
            one.ids, one.exit_layers, errors, one.ref_len, source=one.source
        )

    def add(self, name: str, run: Run, traces: Traces) -> None:
        """Take a run in, unless it cannot be averaged with the others."""
        for other_name, other in self.runs.items():
            differs = sorted(
                key
                for key in run.settings.keys() | other.settings.keys()
                if run.settings.get(key) != other.settings.get(key)
            )
            if not np.array_equal(
                traces.exit_layers, self.traces[0].exit_layers
            ):
                differs.append("exit layers")
            what = None
            if differs:
                what = f"differ in {', '.join(differs)}"
            elif run.seed == other.seed:
                what = f"have the same seed ({run.seed or 'unknown'})"
            if what:
                raise ValueError(
                    f"{other_name} and {name} are both {self.model}, "
                    f"{_KINDS[self.exits]}, but {what}, so that they are no "
                    "seeds to average. Leave one out, or name it: "
                    f"--model {name}=NAME."
                )
        self.runs[name] = run
        self.traces.append(traces)


def published_rates() -> pd.DataFrame:
    """The error rates of Wright et al. (arXiv 2309.09546), Tables 2 and 3.

    Returns
    -------
    pandas.DataFrame
        ``source`` (which table), ``corpus``, ``set``, ``model``, ``exits``
        ("single" or "early"), ``exit_layer`` (of models with a single exit all
        layers that they have), ``error_rate`` in percent.

    Example
    -------
    >>> table = published_rates().set_index(["set", "model", "exits"])
    >>> rows = table.loc[("test-clean", "Wav2Vec2-CTC", "early")]
    >>> rows["error_rate"].tolist()
    [33.7, 17.4, 9.6, 5.8, 4.5, 4.3]
    """
    return pd.read_csv(Path(__file__).with_name("wright2024.csv"))


def make_tables(
    runs: Sequence[str | Path],
    folder: str | Path,
    models: Sequence[str] = (),
    sets: Mapping[str, str] | None = None,
) -> Path:
    """Table the exits of runs, beside the paper's where the set is the same.

    A run is one of a single exit if its traces have one exit. Runs of the same
    model, exits and settings are averaged over their seeds.

    Arguments
    ---------
    runs : sequence of str or Path
        Folders of runs.
    folder : str or Path
        Where ``tables.html``, ``tables.md``, ``tables.csv`` and, of runs with
        early exits, ``rules.csv`` and ``rules_<set>.png`` go.
    models : sequence of str
        ``NAME``: what runs are called that do not tell their model;
        ``RUN=NAME``: what the run in the folder of this name is called.
    sets : Mapping, optional
        Names of sets to those of STANDARD_SETS, where they differ.

    Returns
    -------
    Path
        The HTML file. It needs no other.

    Raises
    ------
    FileNotFoundError
        If a folder holds no traces.
    ValueError
        If the model of a run is not told, two runs are of the same model and
        seed, seeds of one model differ in their settings, or runs in one set
        were evaluated on other utterances.
    """
    folder, standard = Path(folder), _standard_sets(sets or {})
    described = _describe(runs, models)
    by_set: dict[str, list[str]] = {}
    for name, run in described.items():
        for set_name in _tested(run.folder):
            by_set.setdefault(set_name, []).append(name)
    order = list(standard)
    set_names = sorted(
        by_set, key=lambda x: (order.index(x) if x in order else len(order), x)
    )

    folder.mkdir(parents=True, exist_ok=True)
    tables, curves, sections, exits = [], [], [], {}
    for set_name in set_names:
        groups = _group({x: described[x] for x in by_set[set_name]}, set_name)
        for group in groups:
            exits |= dict.fromkeys(group.runs, group.traces[0].exit_layers)
        section, table, curve = _describe_set(
            folder, set_name, groups, standard.get(set_name)
        )
        missing = [x for x in described if x not in by_set[set_name]]
        if missing:
            section.parts[0].notes.append(
                f"Without traces_{set_name}.csv: {', '.join(missing)}."
            )
        sections.append(section)
        tables.append(table)
        curves.append(curve)
    told = "What their folders tell. Seeds of one model are averaged above."
    sections.append(Section("Runs", told, [_run_rows(described, exits)]))

    _write_csv(folder / "tables.csv", tables)
    if any(len(curve) for curve in curves):
        _write_csv(folder / "rules.csv", curves)
    title = "Error rates of every exit"
    write_markdown(folder / "tables.md", title, sections)
    page = folder / "tables.html"
    subtitle = f"{len(described)} runs; sets: {', '.join(set_names)}."
    write_html(page, title, subtitle, sections, of_rules=False)
    return page


def _standard_sets(sets: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    unknown = sorted(set(sets.values()) - set(STANDARD_SETS))
    if unknown:
        raise ValueError(
            f"no standard set {', '.join(unknown)}; there are "
            f"{', '.join(STANDARD_SETS)}."
        )
    named = {name: STANDARD_SETS[known] for name, known in sets.items()}
    return STANDARD_SETS | named


def _describe(runs, models) -> dict[str, Run]:
    """Runs by the shortest names that tell them apart."""
    names = run_names(runs)
    given = [model.rpartition("=") for model in models]
    others = [model for run, _, model in given if not run]
    if len(others) > 1:
        raise ValueError(
            f"{' and '.join(others)}: name one model for the runs that do not "
            "tell theirs, and further ones as RUN=NAME."
        )
    of_run = {run: model for run, _, model in given if run}
    unknown = sorted(set(of_run) - set(names))
    if unknown:
        raise ValueError(
            f"no run {', '.join(unknown)} to name; there are "
            f"{', '.join(names)}."
        )
    described = {}
    for name, folder in zip(names, map(Path, runs), strict=True):
        traced_sets(folder)  # whether it is a run at all
        try:
            described[name] = describe_run(folder, of_run.get(name))
        except ValueError as error:
            if name in of_run:  # it is not the name that was missing
                raise
            if not others:
                raise ValueError(
                    f"{folder}: its model is unknown: {error}. Name it: "
                    f"--model {name}=Conformer-CTC, or --model Conformer-CTC "
                    "for all such runs."
                ) from error
            described[name] = describe_run(folder, others[0])
    return described


def _tested(folder: Path) -> list[str]:
    """The test sets; all sets where none is called so."""
    names = traced_sets(folder)
    return [name for name in names if "test" in name] or names


def _group(runs: Mapping[str, Run], set_name: str) -> list[_Group]:
    """Runs that differ by their seed only, in the order given."""
    traces = {
        name: read_traces(run.folder / f"traces_{set_name}.csv")
        for name, run in runs.items()
    }
    check_same_utterances(traces)
    ids = next(iter(traces.values())).ids
    found: dict[tuple, _Group] = {}
    for name, run in runs.items():
        rows = {
            utterance: row for row, utterance in enumerate(traces[name].ids)
        }
        one = traces[name].subset([rows[x] for x in ids])
        single = len(one.exit_layers) == 1
        # A model with a single exit is another model at every depth.
        key = run.model, one.exit_layers[0] if single else None
        group = found.setdefault(
            key, _Group(run.model, "single" if single else "early", {}, [])
        )
        group.add(name, run, one)
    return list(found.values())


def _describe_set(folder, set_name, groups, standard):
    """The section of a set, its table and its curves."""
    ids = groups[0].traces[0].ids
    parts = [Part()]
    corpus, published = "", pd.DataFrame(columns=published_rates().columns)
    wanted = _UTTERANCES.get(standard, len(ids))
    if standard is not None and _ENOUGH * wanted <= len(ids) <= wanted:
        corpus, published = standard[0], published_rates()
        published = published[
            (published["corpus"] == corpus) & (published["set"] == standard[1])
        ]
        if len(ids) < wanted:
            parts[0].notes.append(
                f"{len(ids)} of the set's {wanted} utterances."
            )
    elif standard is not None:
        parts[0].notes.append(
            f"These are {len(ids)} utterances, those of {standard[0]}'s "
            f"{standard[1]} are {wanted}: published figures are left out."
        )
    bootstrap = Bootstrap(len(ids))
    table = _merge(groups, published, bootstrap)
    table = table.assign(corpus=corpus, set=set_name, utterances=len(ids))

    marks = _Marks(corpus)
    parts[0].table = _print(table, marks)
    sources = ", ".join(published["source"].unique())
    parts[0].notes = [
        *([_PAPER.format(source=sources)] if sources else []),
        _OURS,
        *marks.notes,
        *parts[0].notes,
    ]
    curves = _rule_curves(groups, bootstrap)
    curves.insert(0, "set", set_name)
    for group in groups:
        if group.exits == "early" and not _rules_of(group):
            parts[0].notes.append(
                f"{group.model}: no rule is drawn, since its runs have not all "
                f"traced one of {', '.join(_RULES)}."
            )
    title = f"{corpus} {standard[1]}" if corpus else set_name
    if len(curves):
        parts += _draw_rules(folder, title, groups, curves, table, bootstrap)
    return Section(title, _summarise(groups, bootstrap), parts), table, curves


def _merge(groups, published, bootstrap) -> pd.DataFrame:
    """A row per model, kind and exit: what was published, and ours."""
    keys = ["model", "exits", "exit_layer"]
    ours = []
    for group in groups:
        rows = exit_table(group.mean, bootstrap)
        rates = [
            100 * one.errors.sum(axis=0) / one.ref_len.sum()
            for one in group.traces
        ]
        rows["lowest"] = np.min(rates, axis=0)
        rows["highest"] = np.max(rates, axis=0)
        ours.append(
            rows.assign(
                model=group.model, exits=group.exits, seeds=len(group.traces)
            )
        )
    paper = published.rename(columns={"error_rate": "published"})
    paper = paper[[*keys, "published", "source"]]
    # The paper's order first, then ours as given.
    models = [*paper["model"], *(group.model for group in groups)]
    models = {model: row for row, model in enumerate(dict.fromkeys(models))}
    table = paper.merge(pd.concat(ours), how="outer", on=keys)
    order = table.assign(
        model=table["model"].map(models), exits=table["exits"] == "early"
    )
    table = table.loc[order.sort_values(keys).index]
    table["published"] = table["published"].astype(float)
    front = ["corpus", "set", *keys, "published", "source", "error_rate"]
    front += ["low", "high", "seeds", "lowest", "highest", "utterances"]
    return table.reindex(columns=front)


class _Marks:
    """Notes of a table, each with its mark."""

    def __init__(self, corpus: str):
        self.known = _NOTES.get(corpus, {})
        self.marks: dict[str, str] = {}

    def of(self, *place) -> str:
        """The marks of a column, or of a cell: model, kind, exit layer."""
        texts = self.known.get(place, ())
        for text in texts:
            self.marks.setdefault(text, _MARKS[len(self.marks)])
        return "".join(self.marks[text] for text in texts)

    @property
    def notes(self) -> list[str]:
        """The notes used so far."""
        return [f"{mark} {text}" for text, mark in self.marks.items()]


def _print(table: pd.DataFrame, marks: _Marks) -> pd.DataFrame:
    """A row per exit, columns as in the paper."""
    layers = sorted(table["exit_layer"].unique())
    columns = {("", "", "exit"): list(map(str, layers))}
    paired = table["published"].notna().any()
    for model in table["model"].unique():
        mark = marks.of(model, None, None)
        for kind, title in _KINDS.items():
            rows = table[(table["model"] == model) & (table["exits"] == kind)]
            rows = rows.set_index("exit_layer").reindex(layers)
            if rows["published"].notna().any():
                name = f"paper{mark}{marks.of(model, kind, None)}"
                columns[model, title, name] = [
                    _NONE
                    if np.isnan(rate)
                    else f"{rate:.1f}{marks.of(model, kind, layer)}"
                    for layer, rate in rows["published"].items()
                ]
            if rows["error_rate"].notna().any():
                columns[model, title, "ours"] = [
                    _tell_rate(row) for row in rows.itertuples(index=False)
                ]
    if not paired:
        columns = {
            ("", "exit") if not name[0] else name[:2]: cells
            for name, cells in columns.items()
        }
    return pd.DataFrame(columns)


def _tell_rate(row) -> str:
    if np.isnan(row.error_rate):
        return _NONE
    # An interval stands in one line, or below its figure in narrow columns.
    told = between(row.error_rate, row.low, row.high).replace(
        ", ", ",\N{NO-BREAK SPACE}"
    )
    if row.seeds > 1:
        told += f" ({row.lowest:.1f}\N{EN DASH}{row.highest:.1f})"
    return told


def _summarise(groups, bootstrap) -> str:
    """The last exit, and where early exits differ from single-exit models."""
    told = [f"{len(groups[0].mean)} utterances."]
    for group in groups:
        if group.exits == "single":
            continue
        one = group.mean
        rate = exit_table(one, bootstrap).iloc[-1]
        rate = between(rate["error_rate"], rate["low"], rate["high"])
        text = f"{group.model} with early exits: {rate} at its last exit"
        found: dict[str, list[str]] = {}
        for other in groups:
            layer = other.traces[0].exit_layers[-1]
            if (other.model, other.exits) != (group.model, "single"):
                continue
            if layer not in one.exit_layers:
                continue
            place = np.searchsorted(one.exit_layers, layer)
            _, low, high = bootstrap.difference_interval(
                one.errors[:, place], other.mean.errors[:, 0], one.ref_len
            )
            verdict = "no better and no worse"
            if low > 0 or high < 0:
                verdict = "worse" if low > 0 else "better"
            found.setdefault(verdict, []).append(str(layer))
        if found:
            verdicts = (
                f"{verdict} at {' and '.join(layers)}"
                for verdict, layers in found.items()
            )
            text += (
                f"; leaving earlier is {', '.join(verdicts)} layers than a "
                "model of that depth (paired 95% interval)"
            )
        told.append(f"{text}.")
    return " ".join(told)


def _rule_curves(groups, bootstrap) -> pd.DataFrame:
    """The curves of those rules that all seeds of a model have traced."""
    parts = [pd.DataFrame(columns=["model", "score"])]
    for group in groups:
        if group.exits == "single":
            continue
        for score in _rules_of(group):
            curve = rule_curve(group.traces, score, bootstrap=bootstrap)
            curve.insert(0, "model", group.model)
            curve.insert(1, "score", score)
            parts.append(curve)
    return pd.concat(parts[1:] or parts, ignore_index=True)


def _rules_of(group) -> list[str]:
    return [
        score
        for score in _RULES
        # A score that is never known before the last exit decides nothing.
        if all(
            score in one.scores and np.isfinite(one.scores[score][:, :-1]).any()
            for one in group.traces
        )
    ]


def _draw_rules(folder, title, groups, curves, table, bootstrap) -> list[Part]:
    """Figure 3, and its areas as a table."""
    set_name = curves["set"].iloc[0]
    lists = curves["score"].eq("sentence_confidence").any()
    caption = (
        "WER against mean exit layer while one threshold for all exits moves, "
        "with 95% bootstrap bands at equal depth. Circles: all leave at that "
        "exit; squares: models with a single exit, drawn a little to the right."
    )
    if table["published"].notna().any():
        caption += " Hollow: the paper's."
    figure = draw_rules(curves, table, title)
    picture = save_picture(folder, f"rules_{set_name}", figure, caption)
    picture.heading = "Which rule leaves earlier at equal WER"
    areas = Part(
        text="Mean WER over the mean depths that both rules reach, and that "
        "minus entropy's with its paired interval: below 0 the rule is better "
        "than entropy.",
        table=_areas(groups, bootstrap),
        notes=[_DECODER, *([_LISTS] if lists else [])],
    )
    return [picture, areas]


def _areas(groups, bootstrap) -> pd.DataFrame:
    rows = []
    for group in groups:
        scores = [] if group.exits == "single" else _rules_of(group)
        for run, traces in zip(group.runs.values(), group.traces):
            for score in scores:
                base = "entropy" if "entropy" in scores else score
                found = compare_scores(traces, score, base, bootstrap=bootstrap)
                difference = (found[x] for x in ("difference", "low", "high"))
                rows.append(
                    {
                        "model": group.model,
                        "seed": run.seed or _NONE,
                        "rule": score.replace("_", " "),
                        "mean WER": f"{found['area_one']:.2f}",
                        "minus entropy's": _NONE
                        if score == base
                        else between(*difference, ".2f"),
                    }
                )
    return pd.DataFrame(rows)


def _run_rows(described: Mapping[str, Run], exits) -> Part:
    """What is known of each run; columns of which nothing is are left out."""
    rows = []
    for name, run in described.items():
        known = run.settings
        size = [known[x] for x in ("num_layers", "d_model") if x in known]
        tokens = [
            known[x] for x in ("output_neurons", "token_type") if x in known
        ]
        rows.append(
            {
                "run": name,
                "model": run.model,
                "exits": ", ".join(map(str, exits[name])),
                "seed": run.seed,
                "size": known.get("source", " × ".join(size)),
                "features": known.get("features", ""),
                "tokens": " ".join(tokens),
                "one head for all": known.get("tied", ""),
                "trained on": known.get("train_splits", ""),
            }
        )
    table = pd.DataFrame(rows)
    table = table.loc[:, (table != "").any()].replace("", _NONE)
    return Part(table=table)


def _write_csv(path, parts) -> None:
    table = pd.concat([part for part in parts if len(part)])
    with replacing(path) as file:
        table.to_csv(file, index=False, float_format="%.7g")
