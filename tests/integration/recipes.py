"""Runs of the recipes in processes of their own."""

import csv
import re
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
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
    """Whether a row learns from a finished run."""
    return any(flag.startswith("--teacher=") for flag in flags(row))


def run(row, corpora, output_folder, *more, launcher=(sys.executable,)):
    """The recipe of a row, from the root of the project."""
    given = [*flags(row), f"--output_folder={output_folder}", *more]
    given = {flag.split("=")[0]: flag for flag in given}  # the last one counts
    command = [
        *(*launcher, row["Script_file"], row["Hparam_file"]),
        *(one.replace("tests/tmp", str(corpora)) for one in given.values()),
        *("--device=cpu", "--noprogressbar"),
    ]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def missing_files(row, folder):
    """What a row's run should have written, and has not."""
    listed = re.search(r"file_exists=\[(.*?)\]", row["test_debug_checks"])[1]
    return [file for file in listed.split(",") if not (folder / file).is_file()]


def check(done):
    """Raise unless a process has ended well."""
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
