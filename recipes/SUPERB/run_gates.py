#!/usr/bin/env python3
"""Layer dropping behind a HuBERT that is fine-tuned, on sounds and speakers:
train what docs/results.md tells of it.

Wants a HuBERT as pretrain_hubert.py writes it, speech as real_speech.py takes
it, and the clips of ESC-10. A model whose layers are dropped in training, or
not, is asked for several numbers of layers, and beside it stand models that are
trained up to a fixed exit. Runs that are done, or whose errors are kept in
docs/results/gates, are skipped, so the command can be stopped and given again.
To run:

> python run_gates.py --hubert FOLDER --english FOLDER --noise FOLDER --jobs 2

Authors
 * SpeechBrain-EE contributors 2026
"""

import sys
from functools import partial
from itertools import cycle

import matplotlib.pyplot as plt
import pandas as pd
from real_speech import (
    FOLDS,
    HERE,
    make_data,
    make_sounds,
    make_speakers,
    read_options,
    train_all,
)
from run_recipe import run_recipe

from speechbrain_ee.analysis.gates import read_gates
from speechbrain_ee.analysis.plots import COLOURS
from speechbrain_ee.analysis.statistics import Bootstrap

RESULTS = HERE / "results" / "gates"
KEPT = HERE.parents[1] / "docs" / "results" / "gates"
SEEDS = (1234, 1235, 1236)
FOLDERS = ("hubert", "english", "noise")
TARGETS = (2, 4, 6, 8, 10, 12)
COMMON = (
    *("--interface=last_layer", "--lr=0.002", "--lr_upstream=0.0005"),
    *("--number_of_epochs=10", "--iterations_per_epoch=15"),
    *("--batch_size=16", "--max_seconds=2"),
)
# Function that makes the data, parts of which each is tested in turn, overrides
TASKS = {
    "sounds": (make_sounds, FOLDS, ("--data_folder={data}", "--fold={part}")),
    "speakers": (
        make_speakers,
        ("all",),
        (
            *("--train_csv={data}/train.csv", "--valid_csv={data}/dev.csv"),
            "--test_csvs=[{data}/test.csv]",
        ),
    ),
}
DROPPING = "--eval_gates=dropping"
MODELS = {
    "all": ("--gate=all", DROPPING),
    **{
        gate: (f"--gate={gate}", DROPPING)
        for gate in ("random_0.2", "random_0.5", "ldasr")
    },
    "input_conditioned": ("--gate=input_conditioned",),
    **{
        f"fixed_exit_{k}": (f"--exits={{selector: fixed, layer: {k}}}",)
        for k in TARGETS
    },
}
ROWS = ["task", "model", "gate", "target_layers"]
COLUMNS = [*ROWS, "seed", "id", "errors", "ref_len", "layers_run", "layers"]


def folder_of(run):
    """Where a run (task, part, model, seed) writes."""
    return RESULTS.joinpath("runs", *map(str, run))


def train(run, options):
    """Train and evaluate a model, unless that is done.

    Arguments
    ---------
    run : tuple
        Task, part, name of the model, seed.
    options : argparse.Namespace
        With the folder ``hubert``.

    Returns
    -------
    bool
        Whether it is done.
    """
    task, part, model, seed = run
    data = RESULTS / "data" / task
    return run_recipe(
        HERE,
        folder_of(run),
        *("train.py", "hparams/classification.yaml"),
        *(one.format(data=data, part=part) for one in TASKS[task][2]),
        f"--upstream={{source: {options.hubert}, freeze: False}}",
        *(*COMMON, *MODELS[model], f"--seed={seed}"),
    )


def read_errors(run):
    """Errors of each utterance under each gate and target of a run.

    Arguments
    ---------
    run : tuple
        One that is done.

    Returns
    -------
    pandas.DataFrame
        With COLUMNS.
    """
    task, _, model, seed = run
    table = read_gates(folder_of(run), "test")
    if table is None:
        table = pd.read_csv(
            folder_of(run) / "traces_test.csv", dtype={"id": str}
        )
        table = table.assign(
            gate="fixed_exit", target_layers=table["layers_run"], layers=""
        )
    return table.assign(task=task, model=model, seed=seed)[COLUMNS]


def summarise(errors):
    """Error rates of each gate and target.

    Arguments
    ---------
    errors : pandas.DataFrame
        With COLUMNS, of all runs.

    Returns
    -------
    pandas.DataFrame
        A row for each of ROWS: ``mean_layers_run``, ``masks`` (how many there
        are), ``seeds``, and ``error_rate`` with its interval over utterances,
        whose errors are the mean over seeds; and ``difference`` to the model
        with a fixed exit behind as many layers, where there is one.
    """
    rows, exits = [], {}
    for kind, part in errors.groupby(ROWS, sort=False):
        row = dict(zip(ROWS, kind))
        each = part.groupby("id")[["errors", "ref_len"]].mean()
        bootstrap = Bootstrap(len(each))
        wrong, lengths = each["errors"].to_numpy(), each["ref_len"].to_numpy()
        rate = bootstrap.error_rate_interval(wrong, lengths)
        row |= {
            "mean_layers_run": part["layers_run"].mean(),
            "masks": part["layers"].nunique(),
            "seeds": part["seed"].nunique(),
            "error_rate": float(rate.value),
            "low": float(rate.low),
            "high": float(rate.high),
        }
        rows.append((row, wrong, lengths, bootstrap))
        if row["gate"] == "fixed_exit":
            exits[row["task"], row["target_layers"]] = wrong
    for row, wrong, lengths, bootstrap in rows:
        other = exits.get((row["task"], row["target_layers"]))
        if other is None or row["gate"] == "fixed_exit":
            continue
        found = bootstrap.difference_interval(wrong, other, lengths)
        row["difference"] = float(found.value)
        row["difference_low"] = float(found.low)
        row["difference_high"] = float(found.high)
    return pd.DataFrame([row for row, *_ in rows])


def draw(summary):
    """Error rate against layers that ran, a panel for each task.

    Arguments
    ---------
    summary : pandas.DataFrame
        From ``summarise``.

    Returns
    -------
    matplotlib.figure.Figure
    """
    tasks = summary["task"].unique()
    dropping = summary[summary["gate"] != "fixed_exit"]
    colours = dict(zip(dropping["model"].unique(), cycle(COLOURS)))
    markers = dict(zip(dropping["gate"].unique(), cycle("ovDP^X")))
    figure, axes = plt.subplots(
        *(1, len(tasks)),
        figsize=(5 * len(tasks) + 4, 5),
        squeeze=False,
        layout="constrained",
    )
    for axis, task in zip(axes[0], tasks, strict=True):
        own = dropping[dropping["task"] == task]
        exits = summary[summary["task"] == task].drop(own.index)
        for (model, gate), part in own.groupby(["model", "gate"], sort=False):
            axis.plot(
                *(part["mean_layers_run"], part["error_rate"]),
                color=colours[model],
                marker=markers[gate],
                label=model if model == gate else f"{model}: {gate}",
            )
        axis.plot(
            *(exits["mean_layers_run"], exits["error_rate"], "o-"),
            color="black",
            linewidth=3,
            label="fixed exit",
        )
        axis.set_title(task)
        axis.set_xlabel("layers that ran")
        axis.set_ylabel("error rate (%)")
    figure.legend(
        *axes[0, -1].get_legend_handles_labels(),
        loc="outside right center",
        fontsize="small",
        frameon=False,
    )
    return figure


def main():
    """Read the command line, make the data, train, and sum up."""
    options = read_options(__doc__, FOLDERS, TASKS, SEEDS)
    make_data({x: TASKS[x][0] for x in options.tasks}, RESULTS, options)
    file = KEPT / "errors.csv.gz"
    text = {"id": str, "layers": str}
    kept = pd.DataFrame(columns=COLUMNS)
    if file.is_file():
        kept = pd.read_csv(file, dtype=text, keep_default_na=False)
    known = set(kept[["task", "model", "seed"]].itertuples(index=False))
    runs = [
        (task, part, model, seed)
        for seed in options.seeds
        for task in options.tasks
        for part in TASKS[task][1]
        for model in MODELS
        if (task, model, seed) not in known
    ]
    done = train_all(
        *(partial(train, options=options), runs, options.jobs),
        cache_of=lambda run: None,  # the upstream changes
    )
    # Of a task of several parts, all are wanted.
    missing = {(run[0], *run[2:]) for run in set(runs) - set(done)}
    new = [
        read_errors(run) for run in done if (run[0], *run[2:]) not in missing
    ]
    errors = pd.concat([one for one in (kept, *new) if len(one)])
    summary = summarise(errors)
    KEPT.mkdir(parents=True, exist_ok=True)
    errors.to_csv(file, index=False, compression={"method": "gzip", "mtime": 0})
    summary.to_csv(KEPT / "summary.csv", index=False, float_format="%.4g")
    draw(summary).savefig(KEPT / "gates.png", dpi=100)
    print(summary.to_string(index=False, float_format="%.1f"))
    return bool(missing)


if __name__ == "__main__":
    sys.exit(main())
