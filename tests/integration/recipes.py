"""Runs of the recipes in processes of their own."""

import csv
import multiprocessing
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[2]
# Imported once, in a process of which each run is a fork: imports would take
# longer than the runs.
IMPORTED = (
    *("pandas", "matplotlib.pyplot", "scipy.stats", "sklearn.cluster"),
    *("torch", "torchaudio", "sentencepiece", "transformers", "speechbrain"),
    *("speechbrain_ee.brains", "speechbrain_ee.experiment"),
    "speechbrain_ee.encoders.huggingface",
)
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(IMPORTED)
SPLITS = {"train": 12, "dev": 4, "test": 5}
ROWS = [
    row
    for path in sorted((ROOT / "tests" / "recipes").glob("*.csv"))
    for row in csv.DictReader(path.open(encoding="utf-8"))
]
# Those of task models behind a frozen upstream.
DOWNSTREAMS = [row for row in ROWS if row["Task"].startswith("Downstream-")]
# Those of recognisers, which are evaluated exit by exit.
RECOGNISERS = [
    row
    for row in ROWS
    if Path(row["Script_file"]).name == "train.py" and row not in DOWNSTREAMS
]
PRETRAININGS = [row for row in ROWS if row["Task"] == "SSL-Pretraining"]
LM = "tests/tmp/lm"
# As SpeechBrain's own runner has it.
DEBUG = ("--debug", "--debug_persistently")


def flags(row):
    """The settings with which a row is tested."""
    return shlex.split(row["test_debug_flags"])


def name(row):
    """The name of a row's YAML."""
    return Path(row["Hparam_file"]).stem


def trains(row):
    """Whether a row is trained until it must have learned something."""
    return "performance_check" in row["test_debug_checks"]


def is_taught(row):
    """Whether a row learns or starts from a finished run."""
    keys = ("--teacher=", "--init_from=")
    return any(flag.startswith(keys) for flag in flags(row))


def run(row, corpora, output_folder, *more, launcher=None):
    """The recipe of a row, from the root of the project."""
    given = [*flags(row), f"--output_folder={output_folder}", *more]
    given = {flag.split("=")[0]: flag for flag in given}  # the last one counts
    command = [
        *(row["Script_file"], row["Hparam_file"]),
        *(one.replace("tests/tmp", str(corpora)) for one in given.values()),
        *("--device=cpu", "--noprogressbar"),
    ]
    if launcher is None:
        return run_in_fork(command)
    return subprocess.run(
        [*launcher, *command], cwd=ROOT, capture_output=True, text=True
    )


def run_in_fork(command):
    """A script and its arguments, as ``subprocess.run`` would have them."""
    with TemporaryDirectory() as folder:
        printed = Path(folder) / "printed"
        process = FORKS.Process(target=_become, args=(command, printed))
        process.start()
        process.join()
        text = printed.read_text(encoding="utf-8", errors="replace")
    return subprocess.CompletedProcess(command, process.exitcode, text, "")


def _become(command, printed):
    """Run a script in this process."""
    with open(printed, "wb") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    os.chdir(ROOT)
    sys.argv = command
    sys.path.insert(0, str(Path(command[0]).resolve().parent))
    runpy.run_path(command[0], run_name="__main__")


def missing_files(row, folder):
    """What a row's run should have written, and has not."""
    listed = re.search(r"file_exists=\[(.*?)\]", row["test_debug_checks"])[1]
    return [file for file in listed.split(",") if not (folder / file).is_file()]


def check(done):
    """Raise unless a process has ended well."""
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
