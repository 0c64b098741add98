"""Tests of the data preparation of ESC-50."""

import csv
import runpy
from pathlib import Path

import pytest
import soundfile

from speechbrain_ee.corpora.esc import make_esc

RECIPE = Path(__file__).parents[3] / "recipes" / "SUPERB"
prepare_esc = runpy.run_path(RECIPE / "esc_prepare.py")["prepare_esc"]


def read(path):
    with open(path, newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture
def data(tmp_path):
    return make_esc(tmp_path / "data", clips=1, folds=4, seconds=0.1)


def change(data, number, **values):
    path = data / "meta" / "esc50.csv"
    rows = read(path)
    rows[number].update(values)
    with open(path, "w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.mark.parametrize(
    ("fold", "folds"),
    [
        (1, {"test": {"1"}, "valid": {"2"}, "train": {"3", "4"}}),
        (4, {"test": {"4"}, "valid": {"1"}, "train": {"2", "3"}}),
    ],
)
def test_each_fold_is_tested_in_its_turn(fold, folds, data, tmp_path):
    files = prepare_esc(data, tmp_path / "save", fold)
    assert files == prepare_esc(data, tmp_path / "save", fold, skip_prep=True)
    named = {Path(x).stem: x for x in (files["train_csv"], files["valid_csv"])}
    named["test"] = files["test_csvs"][0]
    for name, path in named.items():
        rows = read(path)
        assert {row["fold"] for row in rows} == folds[name]
        assert {row["label"] for row in rows} == {
            *("rain", "clock_tick", "siren", "engine")
        }
        for row in rows:
            info = soundfile.info(row["wav"])
            assert (info.samplerate, info.frames) == (16000, 1600)


def test_audio_of_16_khz_is_read_where_it_is(tmp_path):
    data = make_esc(tmp_path / "data", folds=3, seconds=0.1, sample_rate=16000)
    files = prepare_esc(str(data), tmp_path / "save", 1, esc10=True)
    rows = read(files["train_csv"])
    assert {row["label"] for row in rows} == {"rain", "clock_tick"}
    for row in rows:
        assert row["wav"] == f"$data_root/audio/{row['ID']}.wav"
    assert not (tmp_path / "save" / "audio").exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"fold": "x"}, "column filename: .*fold, src_file"),
        ({"category": "siren"}, "line 6, column category: target 10 .*above"),
        ({"esc10": "yes"}, "line 6, column esc10: 'yes'"),
        (
            {"fold": "x", "filename": "x-100004-A-10.wav"},
            "line 6, column fold: 'x' is no whole number",
        ),
        ({"target": "3"}, "line 6, column filename"),
        ({"filename": "1-100000-A-10.wav"}, "line 6, column filename"),
    ],
)
def test_a_table_that_contradicts_itself_is_refused(
    values, message, data, tmp_path
):
    change(data, 4, **values)
    with pytest.raises(ValueError, match=message):
        prepare_esc(data, tmp_path / "save", 1)


def test_pieces_of_a_recording_stay_in_one_fold(data, tmp_path):
    name = "2-100000-A-10.wav"
    change(data, 4, filename=name, src_file="100000")
    with pytest.raises(ValueError, match="src_file: pieces of 100000"):
        prepare_esc(data, tmp_path / "save", 1)


def test_what_is_missing_is_named(data, tmp_path):
    with pytest.raises(ValueError, match="fold: 5 is none of 1, 2, 3, 4"):
        prepare_esc(data, tmp_path / "save", 5)
    (data / "audio" / "1-100000-A-10.wav").unlink()
    with pytest.raises(FileNotFoundError, match="1 files are missing"):
        prepare_esc(data, tmp_path / "save", 1)
    table = data / "meta" / "esc50.csv"
    table.write_text(table.read_text().replace("take", "piece", 1))
    with pytest.raises(ValueError, match="no column 'take'"):
        prepare_esc(data, tmp_path / "save", 1)
    table.unlink()
    with pytest.raises(FileNotFoundError, match="set data_folder"):
        prepare_esc(data, tmp_path / "save", 1)


def test_two_folds_are_too_few(tmp_path):
    data = make_esc(tmp_path / "data", clips=1, folds=2, seconds=0.1)
    with pytest.raises(ValueError, match="column fold: 2 folds are too few"):
        prepare_esc(data, tmp_path / "save", 1)
