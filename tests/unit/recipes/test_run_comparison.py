"""Tests of the script that trains what is compared on spoken commands."""

import argparse
import re

import pytest

from tests.unit.recipes.scripts import ROOT, load_script

SCRIPT = load_script("recipes/LibriSpeech/run_comparison.py")
DATA = {"data_folder": "data", "hubert": "hubert"}


@pytest.mark.parametrize("name", SCRIPT["RUNS"])
def test_what_a_run_sets_is_in_its_yaml(name):
    hparams_file, overrides = SCRIPT["RUNS"][name]
    text = (ROOT / "recipes" / "LibriSpeech" / hparams_file).read_text()
    for override in overrides:
        key = re.match(r"--(\w+)=", override)[1]
        assert re.search(rf"^{key}:", text, re.MULTILINE), key


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Where results are and where they are kept, and what would be run."""
    asked = []

    def run(command, **_):
        asked.append([str(word) for word in command])
        return argparse.Namespace(returncode=0)

    for name in ("RESULTS", "KEPT"):
        space = SCRIPT["train"].__globals__
        monkeypatch.setitem(space, name, tmp_path / name)
    monkeypatch.setattr("subprocess.run", run)
    return tmp_path, asked


def test_what_is_done_is_kept_and_not_trained_again(folders):
    folder, asked = folders
    run = folder / "RESULTS" / "single_2_layers_seed1234"
    run.mkdir(parents=True)
    (run / "report.md").touch()
    (run / "traces_test.csv").write_text("id\n")
    options = argparse.Namespace(**DATA, noise_folder="noise")
    assert SCRIPT["train"]("single_2_layers_seed1234", options)
    assert not asked
    kept = folder / "KEPT" / "single_2_layers_seed1234"
    assert sorted(file.name for file in kept.iterdir()) == [
        "report.md",
        "traces_test.csv",
    ]


@pytest.mark.parametrize("noise", [None, "noise"])
def test_who_looks_at_the_input_is_also_put_in_noise(folders, noise):
    _, asked = folders
    options = argparse.Namespace(**DATA, noise_folder=noise)
    name = "hubert_gate_input_conditioned_seed1234"
    assert SCRIPT["train"](name, options)
    assert all("--source=hubert" in command for command in asked)
    told = ["--noise_folder=noise" in command for command in asked]
    assert told == ([False, True] if noise else [False])
    if noise:
        assert "--test_only" in asked[1]
