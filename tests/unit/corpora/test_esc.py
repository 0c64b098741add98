"""Tests of the synthetic corpus in the layout of ESC-50."""

import csv

import numpy as np
import pytest
import soundfile

from speechbrain_ee.corpora.esc import CATEGORIES, COLUMNS, make_esc


def test_the_layout_is_that_of_esc_50(tmp_path):
    folder = make_esc(tmp_path, clips=2, folds=3, seconds=0.5)
    with open(folder / "meta" / "esc50.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert tuple(rows[0]) == COLUMNS
    assert len(rows) == 3 * 2 * len(CATEGORIES)
    for row in rows:
        told = (row[k] for k in ("fold", "src_file", "take", "target"))
        assert row["filename"] == "-".join(told) + ".wav"
        assert CATEGORIES[row["category"]][0] == int(row["target"])
        info = soundfile.info(folder / "audio" / row["filename"])
        assert info.samplerate == 44100 and info.duration == 0.5
    waves = [soundfile.read(path)[0] for path in folder.glob("audio/*")]
    assert all(0.01 < np.abs(wave).max() < 1 for wave in waves)
    assert len({wave.tobytes() for wave in waves}) == len(rows)


def test_it_is_the_same_again_and_is_not_overwritten(tmp_path):
    one, other = (make_esc(tmp_path / x, clips=1) for x in "ab")
    for path in one.glob("*/*"):
        again = other / path.relative_to(one)
        assert path.read_bytes() == again.read_bytes()
    with pytest.raises(FileExistsError, match="choose another folder"):
        make_esc(one)
