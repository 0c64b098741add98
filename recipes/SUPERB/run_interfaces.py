#!/usr/bin/env python3
"""Interfaces on recognition, languages and speakers: train all of the section
"Interfaces on real speech" of docs/results.md.

Wants a HuBERT as pretrain_hubert.py writes it, speech as real_speech.py takes
it, and noise as audio files. Runs that are done, or whose errors are kept in
docs/results/interfaces, are skipped, so the command can be stopped and given
again. To run:

> python run_interfaces.py --hubert FOLDER --english FOLDER \
      --languages FOLDER --noise FOLDER --jobs 2

Authors
 * SpeechBrain-EE contributors 2026
"""

import sys
from functools import partial
from itertools import product

import pandas as pd
from real_speech import (
    HERE,
    make_data,
    make_languages,
    make_mlsuperb_commands,
    make_speakers,
    read_options,
    train_all,
)
from run_recipe import run_recipe

from speechbrain_ee.analysis.statistics import Bootstrap

RESULTS = HERE / "results" / "interfaces"
KEPT = HERE.parents[1] / "docs" / "results" / "interfaces"
ERRORS = KEPT / "errors.csv"
ROWS = ["set", "id", "ref_len"]
SEEDS = (1234, 1235, 1236)
FOLDERS = ("hubert", "english", "languages", "noise")
BASELINE = "weighted_sum"
# A weighted sum with a task model that is larger by as many parameters as the
# hierarchical convolution has with 13 states of width 128.
MATCHED = "weighted_sum_matched"
INTERFACES = (
    *(BASELINE, "hierarchical_conv", MATCHED, "concat", "last_layer"),
    *("grouped_weighted_sum", "attention", "pca", "cls_pooling"),
)
RECOGNITION = (
    *("--d_model=64", "--nhead=4", "--lr=0.001", "--number_of_epochs=30"),
    *("--iterations_per_epoch=36", "--grad_accumulation_factor=1"),
)
CLASSES = (
    *("--lr=0.002", "--number_of_epochs=25", "--iterations_per_epoch=12"),
    *("--batch_size=16", "--max_seconds=null"),
    *("--train_csv={data}/train.csv", "--valid_csv={data}/dev.csv"),
    "--test_csvs=[{data}/test.csv]",
)
# Script, YAML, overrides; the size of the task model, and that of MATCHED.
TASKS = {
    "commands": (
        "../ML-SUPERB/train.py",
        "../ML-SUPERB/hparams/monolingual_asr.yaml",
        ("--data_folder={data}", "--language=commands/eng", *RECOGNITION),
        ("--d_ffn=256", "--d_ffn=733"),
    ),
    "languages": (
        "train.py",
        "hparams/classification.yaml",
        ("--noise_folder={noise}", "--test_snrs=[null, 5]", *CLASSES),
        ("--proj_size=256", "--proj_size=1181"),
    ),
    "speakers": (
        "train.py",
        "hparams/classification.yaml",
        CLASSES,
        ("--proj_size=256", "--proj_size=1011"),
    ),
}
MAKERS = {
    "commands": make_mlsuperb_commands,
    "languages": make_languages,
    "speakers": make_speakers,
}
RUNS = [
    (task, upstream, interface, seed)
    for task, seed in product(TASKS, SEEDS)
    for upstream, interface in (
        *(("hubert", interface) for interface in INTERFACES),
        ("fbank", BASELINE),  # one state: there is nothing to combine
    )
]


def folder_of(task, upstream, interface, seed):
    """Where a run writes."""
    return RESULTS / "runs" / f"{task}_{upstream}_{interface}_seed{seed}"


def train(run, options):
    """Train and evaluate a task model, unless that is done.

    Arguments
    ---------
    run : tuple
        One of RUNS.
    options : argparse.Namespace
        With the folders ``hubert`` and ``noise``.

    Returns
    -------
    bool
        Whether it is done.
    """
    task, upstream, interface, seed = run
    script, hparams_file, overrides, sizes = TASKS[task]
    data = RESULTS / "data" / task
    source = f"{{source: {options.hubert}}}"
    block = BASELINE if interface == MATCHED else interface
    return run_recipe(
        HERE,
        folder_of(*run),
        *(script, hparams_file),
        *(one.format(data=data, noise=options.noise) for one in overrides),
        f"--upstream={source if upstream == 'hubert' else upstream}",
        *(f"--interface={block}", sizes[interface == MATCHED]),
        f"--feature_cache={RESULTS / 'cache' / f'{task}_{upstream}'}",
        f"--seed={seed}",
    )


def read_kept():
    """Errors of utterances that are kept from earlier runs, as read_errors."""
    if not ERRORS.is_file():
        return pd.DataFrame()
    return pd.read_csv(ERRORS, index_col=ROWS, dtype={"id": str})


def read_errors():
    """Errors of each utterance (row) by each run that is done (column)."""
    columns = {}
    for run in RUNS:
        for path in folder_of(*run).glob("traces_test*.csv"):
            traces = pd.read_csv(path, dtype={"id": str})
            name = path.stem.removeprefix("traces_")
            traces["set"] = f"{run[0]} {name}"
            columns.setdefault(column_of(run), []).append(
                traces.set_index(ROWS)["errors"]
            )
    table = pd.DataFrame({run: pd.concat(x) for run, x in columns.items()})
    return table.combine_first(read_kept())


def column_of(run):
    """The name of a run's errors."""
    return "/".join(map(str, run[1:]))


def is_kept(run, kept):
    """Whether the errors of a run are known from earlier."""
    if column_of(run) not in kept:
        return False
    sets = kept[column_of(run)].dropna().index.get_level_values("set")
    return sets.str.startswith(f"{run[0]} ").any()


def summarise(table):
    """Error rates over seeds, and their differences to the weighted sum.

    Arguments
    ---------
    table : pandas.DataFrame
        From ``read_errors``.

    Returns
    -------
    pandas.DataFrame
        A row per set, upstream and interface. Intervals are of the bootstrap
        over utterances, whose errors are the mean over seeds; ``seeds_sd`` is
        the standard deviation of the error rate over seeds. A difference is
        that of the seeds that both have.
    """
    rows = []
    for name, part in table.groupby(level="set"):
        part = part.dropna(axis=1)
        lengths = part.index.get_level_values("ref_len").to_numpy(float)
        bootstrap = Bootstrap(len(part))
        models = dict.fromkeys(x.rsplit("/", 1)[0] for x in part)
        mean = {
            model: part[[x for x in part if x.startswith(f"{model}/")]]
            for model in models
        }
        base = f"hubert/{BASELINE}"
        for model, errors in mean.items():
            rates = 100 * errors.sum() / lengths.sum()
            each = errors.mean(axis=1).to_numpy()
            rate = bootstrap.error_rate_interval(each, lengths)
            row = {"set": name, "model": model, "seeds": len(rates)}
            row |= {"error_rate": rate.value, "low": rate.low}
            row |= {"high": rate.high, "seeds_sd": rates.std()}
            pairs = {
                run: other
                for run in errors
                if (other := f"{base}/{run.rsplit('/', 1)[1]}") in part
            }
            if pairs and model != base:
                difference = bootstrap.difference_interval(
                    part[list(pairs)].mean(axis=1).to_numpy(),
                    part[list(pairs.values())].mean(axis=1).to_numpy(),
                    lengths,
                )
                row["difference"] = difference.value
                row["difference_low"] = difference.low
                row["difference_high"] = difference.high
            rows.append(row)
    return pd.DataFrame(rows)


def main():
    """Read the command line, make the data, train, and sum up."""
    options = read_options(__doc__, FOLDERS, TASKS, SEEDS)
    make_data(MAKERS, RESULTS, options)
    runs = [
        run
        for run in RUNS
        if run[0] in options.tasks and run[-1] in options.seeds
    ]
    kept = read_kept()
    runs = [run for run in runs if not is_kept(run, kept)]
    done = train_all(
        *(partial(train, options=options), runs, options.jobs),
        cache_of=lambda run: run[:2],
    )
    errors = read_errors()
    KEPT.mkdir(parents=True, exist_ok=True)
    errors.to_csv(ERRORS, float_format="%g")
    summary = summarise(errors)
    summary.to_csv(KEPT / "summary.csv", index=False, float_format="%.4g")
    print(summary.to_string(index=False, float_format="%.1f"))
    return len(done) < len(runs)


if __name__ == "__main__":
    sys.exit(main())
