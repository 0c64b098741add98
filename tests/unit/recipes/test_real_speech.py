"""Tests of the small tasks that are made of real speech."""

import argparse

import numpy as np
import pandas as pd
import pytest
import soundfile

from tests.unit.recipes.scripts import load_script

SCRIPT = load_script("recipes/SUPERB/real_speech.py")


def tables_in(folder):
    return {
        split: pd.read_csv(folder / f"{split}.csv")
        for split in SCRIPT["SPLITS"]
    }


@pytest.fixture
def options(tmp_path):
    """Ten orders of each of two speakers and one of a third; four digits."""
    for split, speakers in (
        ("train", {"1": 10, "2": 10, "3": 1}),
        ("dev", {"1": 2}),
        ("test", {}),
    ):
        for speaker, count in speakers.items():
            folder = tmp_path / f"commands_{split}" / speaker / split
            folder.mkdir(parents=True)
            lines = []
            for i in range(count):
                name = f"{speaker}-{split}-{i:04d}"
                soundfile.write(folder / f"{name}.flac", np.zeros(1600), 16000)
                text = ("A LATTE", "A DARK ROAST COFFEE", "THE BILL")[i % 3]
                lines.append(f"{name} {text}\n")
            (folder / f"{speaker}-{split}.trans.txt").write_text("".join(lines))
    for split in SCRIPT["SPLITS"]:
        rows = ["id\tfile\tspeaker\tduration\ttext"]
        rows += [f"{i}_x_0\taudio/{i}.flac\tx{i}\t0.5\tD{i}" for i in (0, 1)]
        (tmp_path / f"{split}.tsv").write_text("\n".join(rows) + "\n")
    return argparse.Namespace(english=tmp_path, digits=tmp_path)


def test_speakers_are_shared_out_without_overlap(options, tmp_path):
    SCRIPT["make_speakers"](tmp_path / "speakers", options)
    tables = tables_in(tmp_path / "speakers")
    assert [len(table) for table in tables.values()] == [13, 4, 5]
    everything = pd.concat(tables.values())
    assert everything["ID"].is_unique
    assert all(set(table["label"]) == {1, 2} for table in tables.values())


def test_drinks_are_those_of_the_text(options, tmp_path):
    SCRIPT["make_drinks"](tmp_path / "drinks", options)
    tables = tables_in(tmp_path / "drinks")
    told = tables["train"]["label"].value_counts().to_dict()
    assert told == {"LATTE": 9, "COFFEE": 6}  # the bill is none
    assert tables["dev"]["label"].tolist() == ["LATTE", "COFFEE"]


def test_digits_and_who_says_them(options, tmp_path):
    SCRIPT["make_digits"](tmp_path / "digits", options)
    SCRIPT["make_digit_speakers"](tmp_path / "speakers", options)
    for name, labels in (("digits", ["D0", "D1"]), ("speakers", ["x0", "x1"])):
        table = tables_in(tmp_path / name)["test"]
        assert table["label"].tolist() == labels
        assert table["wav"].str.startswith(str(tmp_path / "audio")).all()


def test_data_is_made_once_and_wholly(options, tmp_path):
    made = []

    def make(folder, options):
        SCRIPT["make_drinks"](folder, options)
        made.append(folder)
        if len(made) == 1:
            raise OSError("no space")

    for expected in (1, 2, 2):
        try:
            SCRIPT["make_data"]({"drinks": make}, tmp_path, options)
        except OSError:
            assert not (tmp_path / "data" / "drinks").exists()
        assert len(made) == expected
    assert len(tables_in(tmp_path / "data" / "drinks")["train"]) == 15
