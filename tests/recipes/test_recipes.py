"""Every YAML of every recipe runs end to end on a small corpus.

The rows of ``tests/recipes/*.csv`` have the columns of SpeechBrain's own.
"""

import csv
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from hyperpyyaml import load_hyperpyyaml

from speechbrain_ee.corpora.librispeech import make_librispeech

ROOT = Path(__file__).parents[2]
SPLITS = {"train": 12, "dev": 4, "test": 5}
ROWS = [
    row
    for path in sorted(Path(__file__).parent.glob("*.csv"))
    for row in csv.DictReader(path.open(encoding="utf-8"))
]


@pytest.fixture(scope="session")
def corpora(tmp_path_factory):
    """A folder with a small corpus of every dataset, in its real layout."""
    folder = tmp_path_factory.mktemp("corpora")
    make_librispeech(folder / "LibriSpeech", SPLITS)
    return folder


def overrides(row):
    """The flags of a row as a dictionary."""
    pairs = (flag[2:].split("=", 1) for flag in flags(row))
    return dict(pairs)


def flags(row):
    return shlex.split(row["test_debug_flags"])


def name(row):
    return Path(row["Hparam_file"]).stem


def run(row, corpora, output_folder, *more, launcher=(sys.executable,)):
    """The recipe in a process of its own, from the root of the project."""
    command = [
        *(*launcher, row["Script_file"], row["Hparam_file"]),
        *(flag.replace("tests/tmp", str(corpora)) for flag in flags(row)),
        f"--output_folder={output_folder}",
        *("--device=cpu", "--noprogressbar", *more),
    ]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS, ids=name)
def test_the_recipe_runs_from_end_to_end(row, corpora, tmp_path):
    done = run(row, corpora, tmp_path, "--debug")
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    listed = re.search(r"file_exists=\[(.*?)\]", row["test_debug_checks"])[1]
    missing = [f for f in listed.split(",") if not (tmp_path / f).is_file()]
    assert missing == []

    log = (tmp_path / "train_log.txt").read_text()
    for layer in (2, 4, 6, 8, 10, 12):
        assert f"valid WER_exit{layer}: " in log

    traces = pd.read_csv(tmp_path / "traces_test.csv")
    assert traces["exit_layer"].unique().tolist() == [2, 4, 6, 8, 10, 12]
    assert (traces["exit_layer"] == traces["layers_run"]).all()
    assert len(traces) == 6 * SPLITS["test"]
    assert traces[["entropy", "max_probability"]].notna().all(axis=None)
    rising = traces.groupby("id")[["macs", "seconds"]]
    assert rising.apply(lambda t: (t.diff()[1:] > 0).all(axis=None)).all()

    curve = pd.read_csv(tmp_path / "curve_test.csv")
    assert curve["selector"][0] == "full depth" and len(curve) >= 4
    assert curve["mean_exit_layer"][0] == 12
    last = traces[traces["exit_layer"] == 12]
    rate = 100 * last["errors"].sum() / last["ref_len"].sum()
    assert curve["error_rate"][0] == pytest.approx(rate)
    report = (tmp_path / "wer_test_exit12.txt").read_text()
    assert report.startswith(f"%WER {rate:.2f}")


@pytest.mark.slow
def test_two_processes_train_together(corpora, tmp_path):
    small = next(row for row in ROWS if name(row) == "conformer_ctc_ee_small")
    torchrun = (sys.executable, "-m", "torch.distributed.run")
    done = run(
        *(small, corpora, tmp_path, "--debug", "--distributed_backend=gloo"),
        launcher=(*torchrun, "--standalone", "--nproc_per_node=2"),
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    assert len(pd.read_csv(tmp_path / "curve_test.csv")) == 4


@pytest.mark.parametrize(
    ("hparam_file", "millions"),
    [
        ("LibriSpeech/hparams/conformer_ctc_ee.yaml", 31.47),  # paper: 31.0
        ("LibriSpeech/hparams/conformer_ctc_ee_small.yaml", 2.06),
    ],
)
def test_the_model_has_the_size_it_should(hparam_file, millions, tmp_path):
    settings = {"data_folder": "", "output_folder": str(tmp_path)}
    with open(ROOT / "recipes" / hparam_file, encoding="utf-8") as file:
        hparams = load_hyperpyyaml(file, settings)
    modules = torch.nn.ModuleDict(hparams["modules"])
    count = sum(p.numel() for p in modules.parameters())
    assert count / 1e6 == pytest.approx(millions, abs=0.01)


@pytest.mark.parametrize("row", ROWS, ids=name)
def test_the_modules_that_run_are_those_that_are_saved(row, tmp_path):
    settings = {**overrides(row), "output_folder": str(tmp_path)}
    settings = {
        key: value.strip("[]").split(",") if "[" in value else value
        for key, value in settings.items()
    }
    for key in ("output_neurons", "num_workers"):
        if key in settings:
            settings[key] = int(settings[key])
    with open(ROOT / row["Hparam_file"], encoding="utf-8") as file:
        hparams = load_hyperpyyaml(file, settings)
    saved = hparams["checkpointer"].recoverables
    for key in ("encoder", "exits"):
        assert saved[key] is hparams["modules"][key] is hparams[key]
    assert hparams["encoder"].transformer is hparams["Transformer"]
    assert hparams["encoder"].normalize is hparams["modules"]["normalize"]


def test_every_yaml_is_listed():
    listed = {row["Hparam_file"] for row in ROWS}
    found = (ROOT / "recipes").glob("*/hparams/**/*.yaml")
    assert {str(path.relative_to(ROOT)) for path in found} == listed


@pytest.mark.parametrize("row", ROWS, ids=name)
def test_every_file_of_a_row_exists(row):
    for column in ("Script_file", "Data_prep_file", "Readme_file"):
        assert (ROOT / row[column]).is_file()
