"""Small tasks of real speech, for the scripts that compare strategies.

They are made of a folder in LibriSpeech's layout with the splits train, dev,
test (read English) and commands_train, commands_dev, commands_test (spoken
orders of coffee); of a folder for each further language with train.tsv,
dev.tsv and test.tsv (columns id and file); of a folder of isolated digits
with such tables (columns id, file, speaker and text); and of clips named as in
ESC-10, with noise.tsv (columns file and category).

Authors
 * SpeechBrain-EE contributors 2026
"""

import argparse
import csv
import random
import shutil
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import soundfile
from esc_prepare import COLUMNS
from scipy.signal import resample_poly

from speechbrain_ee.corpora.noise import soften

HERE = Path(__file__).resolve().parent
SAMPLE_RATE = 16000
SECONDS = 4  # of an utterance whose language is asked
SPLITS = ("train", "dev", "test")
FOLDS = (1, 2, 3, 4)  # of the clips that there are
DRINKS = ("AMERICANO", "CAPPUCCINO", "ESPRESSO", "LATTE", "MOCHA", "COFFEE")


def read_librispeech(folder):
    """Utterances of a split: a list of (file, speaker, text)."""
    found = []
    for transcripts in sorted(folder.glob("*/*/*.trans.txt")):
        for line in transcripts.read_text(encoding="utf-8").splitlines():
            name, text = line.split(maxsplit=1)
            file = transcripts.parent / f"{name}.flac"
            found.append((file, transcripts.parts[-3], text))
    return found


def read_table(path):
    """Rows of a tab-separated table, as dictionaries."""
    with open(path, encoding="utf-8") as lines:
        return list(csv.DictReader(lines, delimiter="\t"))


def write_table(path, rows):
    """Rows of (ID, file, label) as recipes/SUPERB takes them."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("ID", "wav", "label"), *rows])


def make_mlsuperb_commands(folder, options):
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
            files += [
                (row["id"], table.parent / row["file"], table.parent.name)
                for row in read_table(table)
            ]
        rows = []
        for name, file, language in files:
            wave, _ = soundfile.read(file, frames=SECONDS * SAMPLE_RATE)
            narrow = soften(resample_poly(resample_poly(wave, 1, 2), 2, 1))
            path = folder / "audio" / f"{name}.flac"
            soundfile.write(path, narrow, SAMPLE_RATE)
            rows.append((name, path, language))
        write_table(folder / f"{split}.csv", rows)


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
        write_table(folder / f"{split}.csv", rows)


def make_drinks(folder, options):
    """Which drink is ordered: the intents of the commands."""
    folder.mkdir(parents=True)
    for split in SPLITS:
        rows = []
        for file, _, text in read_librispeech(
            options.english / f"commands_{split}"
        ):
            words = set(text.split())
            drink = next((one for one in DRINKS if one in words), None)
            if drink is not None:
                rows.append((file.stem, file, drink))
        write_table(folder / f"{split}.csv", rows)


def make_digits(folder, options, label="text"):
    """Which digit is said."""
    folder.mkdir(parents=True)
    for split in SPLITS:
        rows = [
            (row["id"], options.digits / row["file"], row[label])
            for row in read_table(options.digits / f"{split}.tsv")
        ]
        write_table(folder / f"{split}.csv", rows)


def make_digit_speakers(folder, options):
    """Who says it."""
    make_digits(folder, options, label="speaker")


def make_sounds(folder, options):
    """Clips of ESC-10 in the layout of ESC-50, a fold for its first number."""
    (folder / "audio").mkdir(parents=True)
    (folder / "meta").mkdir()
    clips = read_table(options.noise / "noise.tsv")
    categories = sorted({clip["category"] for clip in clips})
    rows = []
    for clip in clips:
        file = options.noise / clip["file"]
        target = categories.index(clip["category"])
        fold, source, take = file.stem.split("-")
        name = f"{file.stem}-{target}.wav"
        wave, rate = soundfile.read(file)
        soundfile.write(folder / "audio" / name, wave, rate)
        rows.append((name, fold, target, clip["category"], True, source, take))
    path = folder / "meta" / "esc50.csv"
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *rows])


def read_options(doc, folders, tasks, seeds):
    """Read the command line of a script that trains a grid.

    Arguments
    ---------
    doc : str
        The script's docstring, whose first line is told.
    folders : sequence of str
        What must be given, as absolute paths.
    tasks : sequence of str
        To choose among.
    seeds : sequence of int
        To choose among.

    Returns
    -------
    argparse.Namespace
        With ``jobs``, ``tasks``, ``seeds`` and the folders.
    """
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    for name in folders:
        parser.add_argument(
            f"--{name}", type=lambda x: Path(x).resolve(), required=True
        )
    parser.add_argument("--jobs", type=int, default=1, help="runs at once")
    parser.add_argument("--tasks", nargs="+", choices=tasks, default=[*tasks])
    parser.add_argument(
        "--seeds", nargs="+", type=int, choices=seeds, default=seeds
    )
    return parser.parse_args()


def train_all(train, runs, jobs, cache_of):
    """Train, and first one run for each cache that the others then read.

    Arguments
    ---------
    train : callable
        Takes a run, gives whether it is done.
    runs : sequence
        What is to be trained.
    jobs : int
        How many at once.
    cache_of : callable
        Takes a run, gives what stands for its cache.

    Returns
    -------
    list
        Those that are done.
    """
    first = list({cache_of(run): run for run in reversed(runs)}.values())
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(train, first))
        done = list(pool.map(train, runs))
    return [run for run, one in zip(runs, done, strict=True) if one]


def make_data(makers, results, options):
    """Make the data of each task, unless it is there.

    Arguments
    ---------
    makers : mapping
        Task to a function of this module.
    results : Path
        The data of a task goes into ``data/<task>``.
    options : argparse.Namespace
        With the folders that the makers want.
    """
    for task, make in makers.items():
        folder = results / "data" / task
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
