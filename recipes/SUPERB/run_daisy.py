#!/usr/bin/env python3
"""DAISY on real speech, clean and in noise: train all of the section "DAISY on
tasks" of docs/results.md.

Wants a HuBERT as pretrain_hubert.py writes it, its branches as
../MiniSUPERB/train_branches.py does, speech as real_speech.py takes it, and
noise as audio files. Each task is learnt on clean speech with a fixed exit
behind each layer, and with exits by the entropy of the branches at several
scales of the threshold; beside them stand exits by entropy in evaluation alone,
and a random choice as deep. Runs that are done, or whose traces are kept in
docs/results/daisy, are skipped, so the command can be stopped and given again.
To run:

> python run_daisy.py --hubert FOLDER --branches FOLDER --english FOLDER \
      --digits FOLDER --languages FOLDER --noise FOLDER --jobs 2

Authors
 * SpeechBrain-EE contributors 2026
"""

import copy
import sys
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from real_speech import (
    HERE,
    make_data,
    make_digit_speakers,
    make_digits,
    make_drinks,
    make_languages,
    make_mlsuperb_commands,
    make_speakers,
    read_options,
    train_all,
)
from run_recipe import run_recipe

from speechbrain_ee.analysis.noise import make_noise_report
from speechbrain_ee.analysis.statistics import Bootstrap, rank_correlation
from speechbrain_ee.analysis.traces import Traces

RESULTS = HERE / "results" / "daisy"
KEPT = HERE.parents[1] / "docs" / "results" / "daisy"
SEEDS = (1234, 1235, 1236)
FOLDERS = ("hubert", "branches", "english", "digits", "languages", "noise")
LAYERS = 12
# Thresholds, as shares of the mean entropy over layers.
SCALES = (0.7, 0.85, 1.0, 1.15, 1.3)
SNRS = (None, 20, 10, 5, 0)  # dB; None: clean

RECOGNITION = (
    *("--data_folder={data}", "--language=commands/eng", "--d_model=64"),
    *("--nhead=4", "--d_ffn=256", "--lr=0.001", "--number_of_epochs=15"),
    *("--iterations_per_epoch=72", "--grad_accumulation_factor=1"),
    "--interface=normalized_weighted_sum",
)
CLASSES = (
    *("--interface=normalized_weighted_sum", "--lr=0.002"),
    *("--number_of_epochs=10", "--iterations_per_epoch=30"),
    *("--batch_size=16", "--max_seconds=null"),
    *("--train_csv={data}/train.csv", "--valid_csv={data}/dev.csv"),
    "--test_csvs=[{data}/test.csv]",
)
ASR = (
    *("../ML-SUPERB/train.py", "../ML-SUPERB/hparams/monolingual_asr.yaml"),
    RECOGNITION,
)
UTTERANCES = ("train.py", "hparams/classification.yaml", CLASSES)
EVERY = tuple(range(1, LAYERS + 1))
FEW = (3, 6, 9, LAYERS)
# Function that makes the data; script, YAML, overrides; fixed exits; scales.
TASKS = {
    "recognition": (make_mlsuperb_commands, ASR, EVERY, SCALES),
    "speakers": (make_speakers, UTTERANCES, EVERY, SCALES),
    "digit_speakers": (make_digit_speakers, UTTERANCES, EVERY, SCALES),
    "languages": (make_languages, UTTERANCES, FEW, (1.0,)),
    "digits": (make_digits, UTTERANCES, FEW, (1.0,)),
    "drinks": (make_drinks, UTTERANCES, FEW, (1.0,)),
}
# Why does DAISY gain or lose? It learns at all depths; and it chooses.
WHY = {
    "late_1.0": "{scale: 1.0, of: all, in_training: False}",
    "random_6.7": "{selector: random, mean_exit_layer: 6.7}",
}
# Speakers of digits are known without fail as long as the noise is the softer.
LOUD = {"digit_speakers": (None, 0, -5, -10)}


def exits_of(task):
    """The exits of a task: name of the run to what ``exits`` is told."""
    *_, layers, scales = TASKS[task]
    exits = {f"fixed_{k}": f"{{selector: fixed, layer: {k}}}" for k in layers}
    exits |= {f"daisy_{s}": f"{{scale: {s}, of: all}}" for s in scales}
    return exits | (WHY if scales == SCALES else {})


def folder_of(run):
    """Where a run (task, name of its exits, seed) writes."""
    return RESULTS.joinpath("runs", *map(str, run))


def keep(task, runs):
    """Keep what runs say of each utterance, and what branches say.

    Arguments
    ---------
    task : str
        One of TASKS.
    runs : sequence of tuple
        Those of the task that are done.
    """
    tables = {"traces": [], "branch_scores": []}
    for run in runs:
        # Branches say the same in every run.
        first = run[1:] == (f"fixed_{TASKS[task][2][0]}", SEEDS[0])
        for kind in tables if first else ["traces"]:
            for path in sorted(folder_of(run).glob(f"{kind}_*.csv")):
                table = pd.read_csv(path, dtype={"id": str, "snr": str})
                table = table.drop(columns=["hyp", "ref"], errors="ignore")
                name = path.stem.removeprefix(f"{kind}_")
                table.insert(0, "set", name)
                table.insert(0, "run", "/".join(map(str, run[1:])))
                tables[kind].append(table)
    folder = KEPT / task
    folder.mkdir(parents=True, exist_ok=True)
    for kind, parts in tables.items():
        if not parts:
            continue
        pd.concat(parts).to_csv(
            folder / f"{kind}.csv.gz",
            index=False,
            float_format="%.5g",
            compression={"method": "gzip", "mtime": 0},
        )


def restore(task):
    """Put back what is kept of a task; returns the runs."""
    found = set()
    for kind in ("traces", "branch_scores"):
        path = KEPT / task / f"{kind}.csv.gz"
        if not path.is_file():
            continue
        table = pd.read_csv(path, dtype={"id": str, "snr": str})
        for (run, name), part in table.groupby(["run", "set"], sort=False):
            exits, seed = run.split("/")
            found.add((task, exits, int(seed)))
            folder = folder_of((task, exits, seed))
            folder.mkdir(parents=True, exist_ok=True)
            part = part.drop(columns=["run", "set"])
            part.dropna(axis=1, how="all").to_csv(
                folder / f"{kind}_{name}.csv", index=False
            )
    return found


def train(run, options):
    """Train and evaluate a task model, unless that is done.

    Arguments
    ---------
    run : tuple
        Task, name of its exits, seed.
    options : argparse.Namespace
        With the folders ``hubert``, ``branches`` and ``noise``.

    Returns
    -------
    bool
        Whether it is done.
    """
    task, name, seed = run
    _, (script, hparams_file, overrides), *_ = TASKS[task]
    data = RESULTS / "data" / task
    snrs = ["null" if x is None else x for x in LOUD.get(task, SNRS)]
    return run_recipe(
        HERE,
        folder_of(run),
        *(script, hparams_file),
        *(one.format(data=data) for one in overrides),
        f"--upstream={{source: {options.hubert}}}",
        *(f"--branches={options.branches}", f"--exits={exits_of(task)[name]}"),
        f"--noise_folder={options.noise}",
        f"--test_snrs=[{', '.join(map(str, snrs))}]",
        f"--feature_cache={RESULTS / 'cache' / task}",
        f"--seed={seed}",
    )


def correlate(task, seeds):
    """Does the entropy of a branch tell the errors of a task?

    Arguments
    ---------
    task : str
        One of TASKS, all runs of which with fixed exits are done.
    seeds : sequence of int
        Errors are the mean over these.

    Returns
    -------
    pandas.DataFrame
        Spearman's ``correlation`` of sureness and error rate with its interval,
        for each ``condition`` and all of them, by ``exit_layer``: the branch
        there against the task model that reads up to there; and the mean over
        all branches against the task model behind the last layer.
    """
    layers, parts = TASKS[task][2], {}
    first = folder_of((task, f"fixed_{layers[0]}", seeds[0]))
    for path in sorted(first.glob("traces_*.csv")):
        name = path.stem.removeprefix("traces_")
        errors = [
            np.mean(
                [
                    _column(task, f"fixed_{k}", s, path.name, "errors")
                    for s in seeds
                ],
                axis=0,
            )
            for k in layers
        ]
        lengths = _column(
            task, f"fixed_{layers[0]}", seeds[0], path.name, "ref_len"
        )
        scores = pd.read_csv(
            first / f"branch_scores_{name}.csv", dtype={"id": str}
        )
        entropy = scores.pivot(
            index="id", columns="exit_layer", values="entropy"
        )
        condition = name.rpartition("_")[2].removeprefix("snr")
        parts[condition] = (np.stack(errors, 1), lengths, entropy)
    bootstrap = Bootstrap(len(lengths))
    tables = []
    for condition in (*parts, "all"):
        chosen = list(parts.values()) if condition == "all" else []
        chosen = chosen or [parts[condition]]
        draws = copy.copy(bootstrap)  # an utterance is drawn in all conditions
        draws.weights = np.tile(bootstrap.weights, (1, len(chosen)))
        errors, lengths, entropy = (
            np.concatenate(x) for x in zip(*chosen, strict=True)
        )
        known = parts[next(iter(parts))][2].columns
        columns = [known.get_loc(k) for k in layers]
        each = entropy[:, columns]
        last = entropy.mean(axis=1, keepdims=True)
        for told, which, values in (
            (layers, slice(None), each),
            (["mean of all"], slice(-1, None), last),
        ):
            traces = Traces(
                np.arange(len(errors)).astype(str),
                np.arange(values.shape[1]),
                errors[:, which],
                lengths,
                scores={"entropy": values},
            )
            table = rank_correlation(traces, "entropy", draws)
            table["exit_layer"] = told
            tables.append(table.assign(task=task, condition=condition))
    return pd.concat(tables)[
        ["task", "condition", "exit_layer", "correlation", "low", "high"]
    ]


def _column(task, exits, seed, file, column):
    """What a run says of each utterance, in order of IDs."""
    table = pd.read_csv(
        folder_of((task, exits, seed)) / file, dtype={"id": str}
    )
    return table.sort_values("id")[column].to_numpy(float)


def compare(task, seeds):
    """Is it the choice of DAISY, or that it is trained for many depths?

    Arguments
    ---------
    task : str
        One of TASKS, all runs of which are done.
    seeds : sequence of int
        Errors are the mean over these.

    Returns
    -------
    pandas.DataFrame
        ``difference`` of the error rate of DAISY (scale 1.0) to that of each of
        WHY, with its interval over utterances, by ``condition``.
    """
    rows = []
    for other in [x for x in WHY if x in exits_of(task)]:
        first = folder_of((task, other, seeds[0]))
        for path in sorted(first.glob("traces_*.csv")):
            errors = {
                name: np.mean(
                    [
                        _column(task, name, s, path.name, "errors")
                        for s in seeds
                    ],
                    axis=0,
                )
                for name in ("daisy_1.0", other)
            }
            lengths = _column(task, other, seeds[0], path.name, "ref_len")
            found = Bootstrap(len(lengths)).difference_interval(
                *errors.values(), lengths
            )
            rows.append(
                {
                    "task": task,
                    "minus": other,
                    "condition": path.stem.rpartition("_")[2],
                    "difference": found.value,
                    "low": found.low,
                    "high": found.high,
                }
            )
    return pd.DataFrame(rows)


def draw(tables):
    """Error rate against mean exit layer: of each task clean, and in noise.

    Arguments
    ---------
    tables : mapping
        Task to its ``noise.csv``.

    Returns
    -------
    matplotlib.figure.Figure
    """
    figure, axes = plt.subplots(
        *(2, len(tables)),
        figsize=(4 * len(tables), 7),
        squeeze=False,
        layout="constrained",
    )
    for column, (task, table) in zip(axes.T, tables.items(), strict=True):
        levels = [x for x in table["condition"].unique() if x != "all"]
        for axis, condition in zip(column, (levels[0], levels[-1])):
            part = table[table["condition"] == condition]
            fixed = part[part["kind"] == "fixed"]
            axis.fill_between(
                fixed["exit_layer"],
                fixed["error_rate_low"],
                fixed["error_rate_high"],
                color="0.9",
            )
            axis.plot(
                fixed["exit_layer"],
                fixed["error_rate"],
                *("o-",),
                color="0.5",
                label="fixed exit",
            )
            daisy = part[part["rule"].str.startswith("daisy")]
            daisy = daisy.sort_values("exit_layer")
            axis.errorbar(
                daisy["exit_layer"],
                daisy["error_rate"],
                yerr=[
                    daisy["error_rate"] - daisy["error_rate_low"],
                    daisy["error_rate_high"] - daisy["error_rate"],
                ],
                fmt="s-",
                capsize=3,
                label="DAISY",
            )
            where = condition if condition == "clean" else f"{condition} dB"
            axis.set_title(f"{task.replace('_', ' ')}, {where}")
            axis.set_xlabel("mean exit layer")
            axis.set_ylabel("error rate (%)")
            axis.set_xlim(0.5, LAYERS + 0.5)
    axes[0, 0].legend()
    return figure


def main():
    """Read the command line, make the data, train, and sum up."""
    options = read_options(__doc__, FOLDERS, TASKS, SEEDS)
    make_data({x: TASKS[x][0] for x in options.tasks}, RESULTS, options)
    runs = [
        (task, name, seed)
        for task in options.tasks
        for seed in options.seeds
        for name in exits_of(task)
    ]
    known = set().union(*(restore(task) for task in options.tasks))
    wanted = [run for run in runs if run not in known]
    known.update(
        train_all(
            *(partial(train, options=options), wanted, options.jobs),
            cache_of=lambda run: run[0],
        )
    )
    failed = 0
    for task in options.tasks:
        of_task, folder = [run for run in runs if run[0] == task], KEPT / task
        keep(task, sorted(run for run in known if run[0] == task))
        if not known.issuperset(of_task):
            failed = 1
            continue
        page = make_noise_report([folder_of(run) for run in of_task], folder)
        page.unlink()  # Markdown and picture are kept
        told = {"branch_correlation": correlate(task, options.seeds)}
        if TASKS[task][3] == SCALES:
            told["why"] = compare(task, options.seeds)
        for name, table in told.items():
            path = folder / f"{name}.csv"
            table.to_csv(path, index=False, float_format="%.4g")
    tables = {
        task: pd.read_csv(KEPT / task / "noise.csv")
        for task, (*_, scales) in TASKS.items()
        if scales == SCALES and (KEPT / task / "noise.csv").is_file()
    }
    if tables:
        draw(tables).savefig(KEPT / "daisy.png", dpi=100)
    return failed


if __name__ == "__main__":
    sys.exit(main())
