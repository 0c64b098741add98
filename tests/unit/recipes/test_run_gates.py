"""Tests of the script that measures layer dropping behind a HuBERT."""

import argparse
import csv

import numpy as np
import pandas as pd
import pytest
import soundfile

from tests.unit.recipes.scripts import load_script

SCRIPT = load_script("recipes/SUPERB/run_gates.py")
IDS = [f"{i:02d}" for i in range(30)]  # read back, they would be numbers


def errors_of(model, gate, target, wrong, masks=("110",)):
    return pd.DataFrame(
        {
            **{"task": "sounds", "model": model, "gate": gate},
            **{"target_layers": target, "seed": 1234, "id": IDS},
            **{"errors": wrong, "ref_len": 1, "layers_run": target},
            "layers": np.resize(masks, len(IDS)),
        }
    )


@pytest.fixture
def errors():
    """A gate that is always right at 2 layers, and an exit half wrong."""
    half = np.arange(30) % 2
    return pd.concat(
        [
            errors_of("fixed_exit_2", "fixed_exit", 2, half, ("",)),
            errors_of("random_0.5", "random_n", 2, 0, ("110", "011")),
            errors_of("random_0.5", "random_n", 3, 1),
        ]
    )


def test_gates_stand_beside_exits_of_the_same_depth(errors):
    table = SCRIPT["summarise"](errors).set_index(["gate", "target_layers"])
    gate = table.loc[("random_n", 2)]
    assert gate["error_rate"] == 0 and gate["masks"] == 2
    assert gate["difference"] == -50 and gate["difference_high"] < -25
    assert np.isnan(table.loc[("random_n", 3), "difference"])
    assert np.isnan(table.loc[("fixed_exit", 2), "difference"])


def test_every_gate_is_drawn(errors):
    (axis,) = SCRIPT["draw"](SCRIPT["summarise"](errors)).axes
    labels = [line.get_label() for line in axis.lines]
    assert labels == ["random_0.5: random_n", "fixed exit"]


def test_what_is_kept_is_not_trained_again(errors, tmp_path, monkeypatch):
    space = SCRIPT["main"].__globals__
    asked = []

    def train_all(train, runs, *_, **__):
        asked.append(runs)
        return []

    for name, value in {
        "KEPT": tmp_path / "kept",
        "RESULTS": tmp_path / "results",
        "MODELS": {"random_0.5": (), "ldasr": ()},
        "train_all": train_all,
        "read_options": lambda *_: argparse.Namespace(
            tasks=["sounds"], seeds=[1234], jobs=1
        ),
        "make_data": lambda *_: None,
    }.items():
        monkeypatch.setitem(space, name, value)
    (tmp_path / "kept").mkdir()
    file = tmp_path / "kept" / "errors.csv.gz"
    errors.to_csv(file, index=False)
    assert SCRIPT["main"]()  # something is missing
    folds = SCRIPT["FOLDS"]
    assert asked == [[("sounds", fold, "ldasr", 1234) for fold in folds]]
    kept = pd.read_csv(file, dtype={"id": str}, keep_default_na=False)
    assert kept["id"].tolist() == IDS * 3


def test_clips_are_put_into_folds_by_their_names(tmp_path):
    lines = ["id\tfile\tcategory"]
    for kind, name in (("rain", "1-17-A"), ("dog", "2-3-B")):
        (tmp_path / kind).mkdir()
        wave = np.full(160, 0.25)
        soundfile.write(tmp_path / kind / f"{name}.flac", wave, 16000)
        lines.append(f"{kind}_{name}\t{kind}/{name}.flac\t{kind}")
    (tmp_path / "noise.tsv").write_text("\n".join(lines) + "\n")
    folder = tmp_path / "esc"
    SCRIPT["make_sounds"](folder, argparse.Namespace(noise=tmp_path))
    with open(folder / "meta" / "esc50.csv") as file:
        rows = list(csv.DictReader(file))
    found = [(row["filename"], row["fold"], row["category"]) for row in rows]
    assert found == [
        ("1-17-A-1.wav", "1", "rain"),
        ("2-3-B-0.wav", "2", "dog"),
    ]
    wave, rate = soundfile.read(folder / "audio" / "1-17-A-1.wav")
    assert rate == 16000 and (wave == 0.25).all()
