"""Exits in noise: how deep utterances go and how many errors they make, by SNR.

A rule that chooses exits is set beside the fixed exit of equal mean cost. Where
its mean exit lies between two exits, that is a random mixture of the two.

Authors
 * SpeechBrain-EE contributors 2026
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd

from speechbrain_ee.analysis.comparison import run_names
from speechbrain_ee.analysis.conditions import (
    CLEAN,
    condition_of,
    in_noise,
    loudness_of_speech,
)
from speechbrain_ee.analysis.plots import draw_noise
from speechbrain_ee.analysis.replay import exits_at, score_thresholds
from speechbrain_ee.analysis.report import (
    Part,
    Section,
    between,
    save_picture,
    traced_sets,
    write_html,
    write_markdown,
)
from speechbrain_ee.analysis.statistics import Bootstrap, rank_correlation
from speechbrain_ee.analysis.traces import HIGHER_IS_CONFIDENT, Traces
from speechbrain_ee.chance import neighbour_exit_probabilities
from speechbrain_ee.files import replacing

ALL = "all"

_NOTES = (
    "Error rates in percent, in brackets 95% bootstrap intervals over "
    "utterances: one that stands in several conditions is drawn in all of "
    "them, and whatever is compared is compared on the same draws. Of several "
    "seeds, the mean of an utterance counts.",
    "Fixed: all leave at one exit; between two exits, a random share of them "
    "at the next. 'Same depth here' costs as many layers as the rule does in "
    "this condition, which tells whether it picks the right utterances; 'same "
    "depth in all' costs as many as the rule does over all conditions, which "
    "tells whether it is right to go deeper in noise. Differences are the rule "
    "minus the fixed exit: below 0 the rule makes fewer errors.",
    "A threshold that was not given (`--rule`) is the one whose mean exit on "
    "these utterances is nearest to `--layers`, or else to that of the first "
    "run that chooses exits, or to the middle exit; errors have no part in it.",
)


def make_noise_report(
    runs: Sequence[str | Path],
    folder: str | Path,
    set_name: str | None = None,
    scores: Sequence[str] = (),
    rules: Mapping[str, float] | None = None,
    layers: float | None = None,
) -> Path:
    """Report how deep utterances go in noise, and what that is worth.

    Runs are told apart by their traces. Where an utterance has one row, a run
    whose utterances all leave at one layer is a fixed exit, any other a rule
    that has chosen. A run with several exits per utterance has every fixed
    exit. Thresholds on scores are replayed over the fixed exits. Runs whose
    folders are numbers (``results/<name>/<seed>``) are seeds: averaged.

    Arguments
    ---------
    runs : sequence of str or Path
        Folders of runs of one task that were evaluated at several
        signal-to-noise ratios: their traces have a column ``snr``, or are of
        sets named as ``speechbrain_ee.noise.noisy_sets`` does.
    folder : str or Path
        Where ``noise.html``, ``noise.md``, ``noise.png``, ``noise.csv`` and
        ``noise_correlation.csv`` go.
    set_name : str, optional
        The set, without its condition; the first test set by default.
    scores : sequence of str
        Those to replay and to correlate with errors. By default those of
        ``rules``; else entropy, or the first score that there is. Of rules that
        have chosen, by default all that their traces hold.
    rules : mapping, optional
        Thresholds of scores. That of others is the one whose mean exit over all
        conditions comes nearest to ``layers``.
    layers : float, optional
        That mean exit; by default that of the first run that has chosen, else
        halfway between the first exit and the last.

    Returns
    -------
    Path
        The HTML file.

    Raises
    ------
    FileNotFoundError
        If a folder holds no traces.
    ValueError
        If traces do not tell their condition, runs differ in conditions,
        utterances or references, or there is no fixed exit to compare with.
    """
    folder = Path(folder)
    found = _read_runs(runs, set_name)
    places = _Places(found)
    stacks = _stack(found, places)
    exit_layers = stacks[0].exit_layers
    chosen = _chosen_rules(found)
    if layers is None:
        layers = (exit_layers[0] + exit_layers[-1]) / 2
        if chosen:
            layers = _mean_depth(chosen[0], places)
    replayed = _replayed_rules(stacks, scores, rules or {}, layers)
    fixed = places.put_mean([(x.rows, x.errors) for x in stacks])
    table = _fixed_rows(exit_layers, fixed, places)
    for rule in (*chosen, *replayed):
        table += _rule_rows(rule, exit_layers, fixed, places)
    table = pd.DataFrame(table)
    names = scores or list(rules or {}) or _first_score(stacks[0])
    correlation = pd.DataFrame(
        [
            row
            for one in (*stacks, *(x for x in found if x.chooses))
            for row in _correlations(one, names, bool(scores), places)
        ]
    )

    folder.mkdir(parents=True, exist_ok=True)
    for name, frame in (("noise", table), ("noise_correlation", correlation)):
        with replacing(folder / f"{name}.csv") as file:
            frame.to_csv(file, index=False, float_format="%.7g")
    title = found[0].set_name
    section = _section(title, table, correlation, places)
    figure = draw_noise(table[table["condition"] != ALL], title)
    caption = (
        "Mean exit layer and error rate by signal-to-noise ratio, with their "
        "95% intervals. Grey: fixed exits; dotted: the fixed exit as deep as "
        "the rule is in this condition."
    )
    section.parts.insert(0, save_picture(folder, "noise", figure, caption))
    page = folder / "noise.html"
    heading = "Exits in noise"
    write_markdown(folder / "noise.md", heading, [section])
    subtitle = ", ".join(dict.fromkeys(x.name for x in found))
    write_html(page, heading, subtitle, [section], of_rules=False)
    return page


@dataclass
class _Run:
    """What a run says of a set, by condition, at E exits."""

    name: str
    path: Path
    set_name: str
    traces: dict[str, Traces]
    # Of runs that have a row per utterance: where each has left.
    layers: dict[str, np.ndarray] | None = None
    # Places of the utterances among all.
    rows: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def depth(self) -> int | None:
        """The exit that all leave at, if there is one."""
        if self.layers is None:
            return None
        found = np.unique(np.concatenate(list(self.layers.values())))
        return int(found[0]) if len(found) == 1 else None

    @property
    def chooses(self) -> bool:
        """Whether utterances have left at exits of their own."""
        return self.layers is not None and self.depth is None

    @property
    def seed(self) -> str:
        """The number that the folder is called by; empty if it is none."""
        name = self.path.resolve().name
        return name if name.isdigit() else ""

    @property
    def exit_layers(self) -> list[int]:
        """The exits."""
        return next(iter(self.traces.values())).exit_layers.tolist()

    @property
    def errors(self) -> dict[str, np.ndarray]:
        """Of shape (N, E) in each condition."""
        return {k: x.errors for k, x in self.traces.items()}


@dataclass
class _Rule:
    """Mean exit layers and errors of all utterances, of some seeds.

    Each is a list of (rows, values), a pair per seed, by condition.
    """

    name: str
    layers: list
    errors: list


class _Places:
    """U utterances, each of which stands in some of the conditions.

    Values become arrays of shape (U, …), zero where an utterance does not stand
    in a condition, so that all conditions share the same resamples.
    """

    def __init__(self, runs: Sequence[_Run]):
        first = runs[0]
        self.conditions = sorted(
            first.traces, key=loudness_of_speech, reverse=True
        )
        names = {k: _without(x.ids, k) for k, x in first.traces.items()}
        known = dict.fromkeys(x for one in names.values() for x in one)
        number = {name: row for row, name in enumerate(known)}
        self.bootstrap = Bootstrap(len(number))
        for run in runs:
            if set(run.traces) != set(self.conditions):
                raise ValueError(
                    f"{run.path} has the conditions {', '.join(run.traces)}, "
                    f"and {first.path} {', '.join(first.traces)}: evaluate all "
                    "runs at the same signal-to-noise ratios."
                )
            for condition, one in run.traces.items():
                own = _without(one.ids, condition)
                if set(own) != set(names[condition]):
                    raise ValueError(
                        f"{run.path} and {first.path} were not evaluated on "
                        f"the same utterances ({condition})."
                    )
                run.rows[condition] = np.array([number[x] for x in own])
        ones = {k: np.ones(len(x)) for k, x in first.traces.items()}
        #: How often an utterance stands in a condition, of shape (U,).
        self.count = self.put(first.rows, ones)
        #: What its errors are counted against.
        self.ref_len = self.put(first.rows, _ref_len(first))
        for run in runs:
            own = self.put(run.rows, _ref_len(run))
            wrong = [k for k in own if (own[k] != self.ref_len[k]).any()]
            if wrong:
                raise ValueError(
                    f"{run.path} and {first.path} count the same utterances "
                    f"against references of other lengths ({wrong[0]})."
                )

    def put(self, rows, values) -> dict[str, np.ndarray]:
        """Values by condition, in their places; and the sum of conditions."""
        placed = {}
        size = self.bootstrap.weights.shape[1]
        for condition in self.conditions:
            one = np.asarray(values[condition], dtype=float)
            placed[condition] = np.zeros((size, *one.shape[1:]))
            placed[condition][rows[condition]] = one
        placed[ALL] = np.sum(list(placed.values()), axis=0)
        return placed

    def put_mean(self, seeds) -> dict[str, np.ndarray]:
        """The same of some seeds, averaged."""
        placed = [self.put(*one) for one in seeds]
        return {k: np.mean([x[k] for x in placed], axis=0) for k in placed[0]}

    def ratio(self, values, weights) -> tuple[np.ndarray, np.ndarray]:
        """Sum by sum of weights, of the set and of each resample."""
        samples = self.bootstrap.error_rates(values, weights) / 100
        return values.sum(axis=0) / weights.sum(), samples

    def resamples(self, rows) -> Bootstrap:
        """The same draws for utterances in these places."""
        bootstrap = copy.copy(self.bootstrap)
        bootstrap.weights = self.bootstrap.weights[:, rows]
        return bootstrap


def _read_runs(runs, set_name) -> list[_Run]:
    """The runs on one set."""
    names = run_names(runs)
    found = []
    for name, path in zip(names, map(Path, runs), strict=True):
        sets = _read_sets(path, set_name)
        if not sets:
            which = f"the set {set_name}" if set_name else "any set"
            raise ValueError(
                f"{path}: no traces of {which} tell a signal-to-noise ratio. "
                "Evaluate the run with noise_folder, which gives traces with a "
                f"column snr; there are {', '.join(traced_sets(path))}."
            )
        set_name = set_name or next(iter(sets))
        if set_name not in sets:
            raise ValueError(
                f"{path} has no set {set_name} in noise; it has "
                f"{', '.join(sets)}: choose one with --set."
            )
        frames = sets[set_name]
        single = all(frame["id"].is_unique for frame in frames.values())
        traces = {
            condition: _traces(frame, f"{path} ({condition})", single)
            for condition, frame in frames.items()
        }
        run = _Run(name, path, set_name, traces)
        if single:
            run.layers = {
                k: frame["exit_layer"].astype(float).to_numpy()
                for k, frame in frames.items()
            }
        found.append(run)
    return found


def _read_sets(path, wanted) -> dict[str, dict[str, pd.DataFrame]]:
    """Traces by set and condition."""
    sets = {}
    for name in traced_sets(path):
        base, condition = condition_of(name)
        if wanted not in (None, base, name):
            continue
        frame = pd.read_csv(
            path / f"traces_{name}.csv",
            dtype=str,
            keep_default_na=False,
            encoding="utf-8",
        )
        if "snr" not in frame and condition is None:
            continue
        needed = {"id", "exit_layer", "errors", "ref_len"}
        if not needed <= set(frame):
            raise ValueError(
                f"{path}: traces_{name}.csv lacks "
                f"{', '.join(sorted(needed - set(frame)))}."
            )
        if "snr" in frame:
            levels = frame["snr"].replace("", CLEAN)
            for level, part in frame.groupby(levels, sort=False):
                place = sets.setdefault(base, {})
                place[_plain(level, path, name)] = part
        else:
            sets.setdefault(base, {})[condition] = frame
    return sets


def _plain(level, path, name) -> str:
    """A signal-to-noise ratio as sets are named by it."""
    if level == CLEAN:
        return level
    try:
        return f"{float(level):g}"
    except ValueError as error:
        raise ValueError(
            f"{path}: snr in traces_{name}.csv is {level!r}; it must be a "
            f"number of dB, or {CLEAN}."
        ) from error


def _traces(frame, source, single) -> Traces:
    """As arrays; scores are told by what their names hold."""
    frame = frame.assign(exit_layer="0") if single else frame
    directions = {}
    for column in frame:
        known = [x for x in HIGHER_IS_CONFIDENT if x in column]
        if known and not column.endswith("_seconds"):
            directions[column] = HIGHER_IS_CONFIDENT[max(known, key=len)]
    return Traces.from_frame(frame, source, directions)


def _without(ids, condition) -> list[str]:
    """Utterances by the names that they have in clean speech."""
    if condition == CLEAN:
        return list(ids)
    return [x.removesuffix(in_noise("", float(condition))) for x in ids]


def _ref_len(run) -> dict[str, np.ndarray]:
    return {k: x.ref_len for k, x in run.traces.items()}


def _stack(runs, places) -> list[_Run]:
    """Every fixed exit: a run with several, or runs of one each, by seed."""
    several = [run for run in runs if run.layers is None]
    single = [run for run in runs if run.depth is not None]
    if several and single:
        raise ValueError(
            f"{several[0].path} has several exits, {single[0].path} one: fixed "
            "exits are those of one model, or of a run each."
        )
    if len({run.path.resolve().parent for run in several}) > 1:
        raise ValueError(
            f"{several[0].path} and {several[1].path} both have several exits: "
            "make a report of each model."
        )
    by_seed = {}
    for run in single:
        stack = by_seed.setdefault(run.seed, {})
        if run.depth in stack:
            raise ValueError(
                f"{stack[run.depth].path} and {run.path} both leave at layer "
                f"{run.depth}. Name one of them, or call the folders of seeds "
                "by their numbers."
            )
        stack[run.depth] = run
    stacks = several + [
        _one_stack(dict(sorted(stack.items()))) for stack in by_seed.values()
    ]
    if not stacks:
        raise ValueError(
            "No run has a fixed exit to compare with: add runs whose "
            "utterances all leave at one layer, such as that of full depth."
        )
    for stack in stacks[1:]:
        if stack.exit_layers != stacks[0].exit_layers:
            raise ValueError(
                f"{stacks[0].name} has the exits {stacks[0].exit_layers}, and "
                f"{stack.name} {stack.exit_layers}: give the same of each seed."
            )
    return stacks


def _one_stack(runs: Mapping[int, _Run]) -> _Run:
    """Runs of a fixed exit each, as one with all of them."""
    first = next(iter(runs.values()))
    traces = {}
    for condition in first.traces:
        parts = []
        for run in runs.values():
            # In the order of the first run's utterances.
            order = np.argsort(run.rows[condition])
            back = np.argsort(np.argsort(first.rows[condition]))
            parts.append(run.traces[condition].subset(order[back]))
        shared = set.intersection(*(set(x.scores) for x in parts))
        traces[condition] = Traces(
            parts[0].ids,
            list(runs),
            np.hstack([x.errors for x in parts]),
            parts[0].ref_len,
            scores={
                score: np.hstack([x.scores[score] for x in parts])
                for score in parts[0].scores
                if score in shared
            },
            directions=parts[0].directions,
            source="fixed exits",
        )
    name = " ".join(filter(None, ["fixed exits", first.seed]))
    return replace(first, name=name, traces=traces, layers=None)


def _chosen_rules(runs) -> list[_Rule]:
    """Rules that ran, seeds together."""
    groups = {}
    for run in (x for x in runs if x.chooses):
        key = run.path.resolve()
        groups.setdefault(key.parent if run.seed else key, []).append(run)
    rules = []
    for path, seeds in groups.items():
        name = seeds[0].name
        if len(seeds) > 1:
            name = f"{path.name} ({len(seeds)} seeds)"
        rules.append(
            _Rule(
                name,
                [(x.rows, x.layers) for x in seeds],
                [
                    (x.rows, {k: e[:, 0] for k, e in x.errors.items()})
                    for x in seeds
                ],
            )
        )
    return rules


def _mean_depth(rule, places) -> float:
    layers = places.put_mean(rule.layers)
    return float(layers[ALL].sum() / places.count[ALL].sum())


def _first_score(stack) -> list[str]:
    """Entropy, if it is there."""
    scores = list(next(iter(stack.traces.values())).scores)
    return ["entropy"] if "entropy" in scores else scores[:1]


def _replayed_rules(stacks, scores, rules, depth) -> list[_Rule]:
    """Thresholds on scores of the fixed exits."""
    if len(stacks[0].exit_layers) == 1:
        return []
    names = dict.fromkeys([*rules, *scores]) or _first_score(stacks[0])
    found = []
    for score in names:
        threshold = rules.get(score)
        if threshold is None:
            threshold = _threshold_at(stacks, score, depth)
        layers, errors = [], []
        for stack in stacks:
            taken = {
                k: exits_at(x, score, threshold)
                for k, x in stack.traces.items()
            }
            own = {
                k: x.exit_layers[taken[k][:, 0]]
                for k, x in stack.traces.items()
            }
            layers.append((stack.rows, own))
            own = {
                k: np.take_along_axis(x.errors, taken[k], axis=1)[:, 0]
                for k, x in stack.traces.items()
            }
            errors.append((stack.rows, own))
        one = next(iter(stacks[0].traces.values()))
        sign = "≥" if one.directions[score] else "≤"
        name = f"{score.replace('_', ' ')} {sign} {threshold:.3g}"
        found.append(_Rule(name, layers, errors))
    return found


def _threshold_at(stacks, score, depth) -> float:
    """The threshold whose mean exit over all conditions is nearest."""
    pooled = [_join(list(stack.traces.values())) for stack in stacks]
    thresholds = score_thresholds(_join(pooled), score)
    means = np.mean(
        [
            x.exit_layers[exits_at(x, score, thresholds)].mean(axis=0)
            for x in pooled
        ],
        axis=0,
    )
    return float(thresholds[np.abs(means - depth).argmin()])


def _join(traces: Sequence[Traces]) -> Traces:
    """One set of several, with the scores that all have."""
    first = traces[0]
    shared = set.intersection(*(set(x.scores) for x in traces))
    return Traces(
        np.concatenate([x.ids for x in traces]),
        first.exit_layers,
        np.concatenate([x.errors for x in traces]),
        np.concatenate([x.ref_len for x in traces]),
        scores={
            score: np.concatenate([x.scores[score] for x in traces])
            for score in first.scores
            if score in shared
        },
        directions=first.directions,
        source=first.source,
    )


def _fixed_rows(exit_layers, errors, places) -> list[dict]:
    """The error rate of each fixed exit in each condition."""
    rows = []
    for condition in (*places.conditions, ALL):
        rate, samples = places.ratio(
            errors[condition], places.ref_len[condition]
        )
        low, high = places.bootstrap.bounds(100 * samples)
        for k, layer in enumerate(exit_layers):
            rows.append(
                {
                    "rule": f"exit {layer}",
                    "kind": "fixed",
                    "condition": condition,
                    "utterances": int(places.count[condition].sum()),
                    **_interval("exit_layer", layer, layer, layer),
                    **_interval("error_rate", 100 * rate[k], low[k], high[k]),
                }
            )
    return rows


def _rule_rows(rule, exit_layers, fixed, places) -> list[dict]:
    """A rule beside fixed exits of equal mean cost, in each condition."""
    layers = places.put_mean(rule.layers)
    errors = places.put_mean(rule.errors)
    bounds = places.bootstrap.bounds
    depths = {k: places.ratio(layers[k], places.count[k]) for k in layers}
    rows = []
    for condition in (*places.conditions, ALL):
        depth, depth_samples = depths[condition]
        ref_len = places.ref_len[condition]
        rate, samples = places.ratio(errors[condition], ref_len)
        row = {
            "rule": rule.name,
            "kind": "rule",
            "condition": condition,
            "utterances": int(places.count[condition].sum()),
            **_interval("exit_layer", depth, *bounds(depth_samples)),
        }
        if CLEAN in depths and condition not in (CLEAN, ALL):
            clean, clean_samples = depths[CLEAN]
            deeper = bounds(depth_samples - clean_samples)
            row |= _interval("deeper", depth - clean, *deeper)
        row |= _interval("error_rate", 100 * rate, *bounds(100 * samples))
        rates, rate_samples = places.ratio(fixed[condition], ref_len)
        for name, (mean, mean_samples) in (
            ("here", depths[condition]),
            ("overall", depths[ALL]),
        ):
            if not exit_layers[0] <= mean <= exit_layers[-1]:
                continue
            within = mean_samples.clip(exit_layers[0], exit_layers[-1])
            shares = neighbour_exit_probabilities(exit_layers, mean)
            expected = shares @ rates
            shares = neighbour_exit_probabilities(exit_layers, within)
            resampled = (shares * rate_samples).sum(axis=1)
            row[f"fixed_{name}"] = 100 * expected
            row |= _interval(
                f"minus_fixed_{name}",
                *(
                    100 * (rate - expected),
                    *bounds(100 * (samples - resampled)),
                ),
            )
        rows.append(row)
    return rows


def _interval(name, value, low, high) -> dict[str, float]:
    return {name: value, f"{name}_low": low, f"{name}_high": high}


def _correlations(run, names, only, places) -> list[dict]:
    """Rank correlation of scores with errors, in each condition and in all."""
    one = next(iter(run.traces.values()))
    scores = [x for x in one.scores if x in names or (run.chooses and not only)]
    rows = [run.rows[k] for k in places.conditions]
    sets = {
        **{k: (run.traces[k], run.rows[k]) for k in places.conditions},
        ALL: (
            _join([run.traces[k] for k in places.conditions]),
            np.concatenate(rows),
        ),
    }
    found = []
    for score in scores:
        for condition, (traces, where) in sets.items():
            table = rank_correlation(traces, score, places.resamples(where))
            for row in table.itertuples(index=False):
                found.append(
                    {
                        "run": run.name,
                        "score": score,
                        "exit_layer": "taken"
                        if run.chooses
                        else str(row.exit_layer),
                        "condition": condition,
                        **_interval(
                            *("correlation", row.correlation),
                            *(row.low, row.high),
                        ),
                    }
                )
    return found


def _section(title, table, correlation, places) -> Section:
    """What the report says."""
    rules = table[table["kind"] == "rule"]
    fixed = table[table["kind"] == "fixed"]
    exits = [x.removeprefix("exit ") for x in dict.fromkeys(fixed["rule"])]
    noisy = [_tell_condition(x) for x in places.conditions]
    section = Section(
        title,
        f"{int(places.count[ALL].sum())} utterances in {len(noisy)} conditions "
        f"({', '.join(noisy)}); fixed exits {', '.join(exits)}.",
    )
    for name, rows in rules.groupby("rule", sort=False):
        part = Part(name, table=_tell_rule(rows))
        if (part.table["fixed, same depth here"] == "").any():
            part.notes.append(
                "Where the rule is deeper or shallower than every fixed exit, "
                "none costs as much: add runs."
            )
        section.parts.append(part)
    section.parts.append(
        Part(
            "Every fixed exit",
            "Error rate if all leave there.",
            _across(fixed.assign(exit=fixed["rule"]), ["exit"], "error_rate"),
            notes=list(_NOTES),
        )
    )
    if len(correlation):
        section.parts.append(
            Part(
                "Rank correlation of confidence and error rate",
                "Spearman's; 1 would be a perfect score. In 'all', it also "
                "counts whether the score tells noisy speech from clean.",
                _across(
                    correlation.rename(columns={"exit_layer": "exit"}),
                    ["run", "score", "exit"],
                    *("correlation", ".2f"),
                ),
            )
        )
    return section


def _tell_rule(rows) -> pd.DataFrame:
    """A table of a rule, to be read."""

    def told(row, name, spec):
        """A figure with its interval, where there is one."""
        ends = (
            row.get(f"{name}{end}", np.nan) for end in ("", "_low", "_high")
        )
        return between(*ends, spec)

    return pd.DataFrame(
        {
            "condition": _tell_condition(row["condition"]),
            "mean exit": told(row, "exit_layer", ".2f"),
            "deeper than clean": told(row, "deeper", ".2f"),
            "error rate": told(row, "error_rate", ".1f"),
            "fixed, same depth here": _alone(row.get("fixed_here")),
            "difference here": told(row, "minus_fixed_here", ".1f"),
            "fixed, same depth in all": _alone(row.get("fixed_overall")),
            "difference in all": told(row, "minus_fixed_overall", ".1f"),
        }
        for row in rows.to_dict("records")
    )


def _alone(value) -> str:
    return "" if value is None or np.isnan(value) else f"{value:.1f}"


def _across(rows, keys, figure, spec=".1f") -> pd.DataFrame:
    """A row per key, a column per condition."""
    told = {}
    for row in rows.to_dict("records"):
        cells = told.setdefault(tuple(row[k] for k in keys), {})
        ends = (row[f"{figure}{end}"] for end in ("", "_low", "_high"))
        cells[_tell_condition(row["condition"])] = between(*ends, spec)
    return pd.DataFrame(
        [dict(zip(keys, key)) | cells for key, cells in told.items()]
    )


def _tell_condition(condition: str) -> str:
    return condition if condition in (CLEAN, ALL) else f"{condition} dB"
