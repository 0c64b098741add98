#!/usr/bin/env python3
"""Interfaces on recognition, languages and speakers: train all of the section
"Interfaces on real speech" of docs/results.md.

Wants a HuBERT as pretrain_hubert.py writes it; a folder in LibriSpeech's layout
with the splits train, dev, test (read English) and commands_train,
commands_dev, commands_test; a folder for each further language with train.tsv,
dev.tsv and test.tsv (columns id and file); and noise as audio files. Runs that
are done, or whose errors are kept in docs/results/interfaces, are skipped, so
the command can be stopped and given again. To run:

> python run_interfaces.py --hubert FOLDER --english FOLDER \
      --languages FOLDER --noise FOLDER --jobs 2

Authors
 * SpeechBrain-EE contributors 2026
"""

import argparse
import csv
import os
import random
import shutil
import subprocess
import sys
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import product
from pathlib import Path

import pandas as pd
import soundfile
from scipy.signal import resample_poly

from speechbrain_ee.analysis.statistics import Bootstrap
from speechbrain_ee.corpora.noise import soften

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "interfaces"
KEPT = HERE.parents[1] / "docs" / "results" / "interfaces"
ERRORS = KEPT / "errors.csv"
ROWS = ["set", "id", "ref_len"]
SEEDS = (1234, 1235, 1236)
SAMPLE_RATE = 16000
SECONDS = 4  # of an utterance whose language is asked
SPLITS = ("train", "dev", "test")
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
RUNS = [
    (task, upstream, interface, seed)
    for task, seed in product(TASKS, SEEDS)
    for upstream, interface in (
        *(("hubert", interface) for interface in INTERFACES),
        ("fbank", BASELINE),  # one state: there is nothing to combine
    )
]


def read_librispeech(folder):
    """Utterances of a split: a list of (file, speaker, text)."""
    found = []
    for transcripts in sorted(folder.glob("*/*/*.trans.txt")):
        for line in transcripts.read_text(encoding="utf-8").splitlines():
            name, text = line.split(maxsplit=1)
            file = transcripts.parent / f"{name}.flac"
            found.append((file, transcripts.parts[-3], text))
    return found


def make_commands(folder, options):
    """The commands in ML-SUPERB's layout."""
    target = folder / "commands" / "eng"
    (target / "wav").mkdir(parents=True)
    names = zip(("1h_train", "10min_dev", "10min_test"), SPLITS, strict=True)
    for name, split in names:
        lines = []
        for file, _, text in read_librispeech(
            options.english / f"commands_{split}"
        ):
            wave, rate = soundfile.read(file)
            soundfile.write(target / "wav" / f"{file.stem}.wav", wave, rate)
            lines.append(f"{file.stem} {file.stem} {text}\n")
        path = target / f"transcript_{name}.txt"
        path.write_text("".join(lines), encoding="utf-8")


def make_languages(folder, options):
    """Languages: the first seconds of utterances, and nothing above 4 kHz."""
    (folder / "audio").mkdir(parents=True)
    for split in SPLITS:
        files = [
            (file.stem, file, "en")
            for file, *_ in read_librispeech(options.english / split)
        ]
        for table in sorted(options.languages.glob(f"*/{split}.tsv")):
            with open(table, encoding="utf-8") as lines:
                files += [
                    (row["id"], table.parent / row["file"], table.parent.name)
                    for row in csv.DictReader(lines, delimiter="\t")
                ]
        rows = []
        for name, file, language in files:
            wave, _ = soundfile.read(file, frames=SECONDS * SAMPLE_RATE)
            narrow = soften(resample_poly(resample_poly(wave, 1, 2), 2, 1))
            path = folder / "audio" / f"{name}.flac"
            soundfile.write(path, narrow, SAMPLE_RATE)
            rows.append((name, path, language))
        write_csv(folder / f"{split}.csv", rows)


def make_speakers(folder, options):
    """Utterances of each speaker of the commands, shared out anew."""
    folder.mkdir(parents=True)
    of_speaker = defaultdict(list)
    for split in SPLITS:
        for file, speaker, _ in read_librispeech(
            options.english / f"commands_{split}"
        ):
            of_speaker[speaker].append(file)
    tables = {split: [] for split in SPLITS}
    for speaker, files in sorted(of_speaker.items()):
        if len(files) < 5:
            continue
        random.Random(speaker).shuffle(files)
        ends = (len(files) * 6 // 10, len(files) * 8 // 10, len(files))
        for split, start, end in zip(SPLITS, (0, *ends), ends, strict=False):
            for file in files[start:end]:
                tables[split].append((file.stem, file, speaker))
    for split, rows in tables.items():
        write_csv(folder / f"{split}.csv", rows)


def write_csv(path, rows):
    """A table as recipes/SUPERB takes it."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("ID", "wav", "label"), *rows])


def make_data(options):
    """Make the data of each task, unless it is there."""
    makers = (make_commands, make_languages, make_speakers)
    for task, make in zip(TASKS, makers, strict=True):
        folder = RESULTS / "data" / task
        if folder.exists():
            continue
        started = folder.with_name(f"{task}.started")
        shutil.rmtree(started, ignore_errors=True)
        make(started, options)
        for table in started.glob("*.csv"):
            text = table.read_text(encoding="utf-8")
            text = text.replace(str(started), str(folder))
            table.write_text(text, encoding="utf-8")
        started.rename(folder)


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
    output = folder_of(*run)
    if (output / "report.md").is_file():
        return True
    output.mkdir(parents=True, exist_ok=True)
    data = RESULTS / "data" / task
    source = f"{{source: {options.hubert}}}"
    block = BASELINE if interface == MATCHED else interface
    with open(output / "console.txt", "a", encoding="utf-8") as console:
        done = subprocess.run(
            [
                *(sys.executable, script, hparams_file),
                *(
                    one.format(data=data, noise=options.noise)
                    for one in overrides
                ),
                f"--upstream={source if upstream == 'hubert' else upstream}",
                *(f"--interface={block}", sizes[interface == MATCHED]),
                f"--feature_cache={RESULTS / 'cache' / f'{task}_{upstream}'}",
                *(f"--seed={seed}", f"--output_folder={output}"),
                *("--num_workers=0", "--noprogressbar"),
            ],
            cwd=HERE,
            # More threads than processes slow each other down.
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=console,
            stderr=subprocess.STDOUT,
        )
    if done.returncode:
        print(f"{output.name}: failed, see {output / 'console.txt'}")
    else:
        print(f"{output.name}: done", flush=True)
    return done.returncode == 0


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
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("hubert", "english", "languages", "noise"):
        parser.add_argument(
            f"--{name}", type=lambda x: Path(x).resolve(), required=True
        )
    parser.add_argument("--jobs", type=int, default=1, help="runs at once")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=[*TASKS])
    parser.add_argument(
        "--seeds", nargs="+", type=int, choices=SEEDS, default=SEEDS
    )
    options = parser.parse_args()
    make_data(options)
    runs = [
        run
        for run in RUNS
        if run[0] in options.tasks and run[-1] in options.seeds
    ]
    kept = read_kept()
    runs = [run for run in runs if not is_kept(run, kept)]
    # The first of each task and upstream fills the cache of the others.
    first = list({run[:2]: run for run in reversed(runs)}.values())
    with ThreadPoolExecutor(options.jobs) as pool:
        done = list(pool.map(partial(train, options=options), first))
        done += pool.map(partial(train, options=options), runs)
    errors = read_errors()
    KEPT.mkdir(parents=True, exist_ok=True)
    errors.to_csv(ERRORS, float_format="%g")
    summary = summarise(errors)
    summary.to_csv(KEPT / "summary.csv", index=False, float_format="%.4g")
    print(summary.to_string(index=False, float_format="%.1f"))
    return not all(done)


if __name__ == "__main__":
    sys.exit(main())
