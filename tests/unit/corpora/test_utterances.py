"""Tests of the synthetic corpus of commands."""

import csv

import pytest
import soundfile

from speechbrain_ee.analysis.verification import read_trials
from speechbrain_ee.corpora.utterances import COLUMNS, make_utterances

TAKES = {"train": 2, "valid": 1}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("utterances")
    return make_utterances(folder, TAKES, 2, 1, languages=["en", "de"])


def rows(corpus, split):
    with open(corpus / f"{split}.csv", encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def test_every_command_is_said_so_often_by_each_speaker(corpus):
    sizes = {"train": 4 * 6 * 2, "valid": 4 * 6, "unseen": 2 * 6}
    for split, size in sizes.items():
        table = rows(corpus, split)
        assert len(table) == len({row["ID"] for row in table}) == size
        said = {(r["speaker"], r["action"], r["object"]) for r in table}
        assert len(said) == size / TAKES.get(split, 1)
        for row in table:
            assert tuple(row) == COLUMNS
            assert row["speaker"].startswith(row["language"])
            path = row["wav"].replace("$data_root", str(corpus))
            info = soundfile.info(path)
            assert info.samplerate == 16000 and 0.5 < info.duration < 3


def test_unseen_speakers_are_in_no_other_split(corpus):
    speakers = {
        split: {row["speaker"] for row in rows(corpus, split)}
        for split in ("train", "valid", "unseen")
    }
    assert speakers["train"] == speakers["valid"]
    assert not speakers["train"] & speakers["unseen"]


@pytest.mark.parametrize("split", ["valid", "unseen"])
def test_trials_are_true(corpus, split):
    speakers = {
        row["wav"].removeprefix("$data_root/wav/"): row["speaker"]
        for row in rows(corpus, split)
    }
    trials = read_trials(corpus / f"trials_{split}.txt")
    for trial in trials:
        assert trial.same == (speakers[trial.enrol] == speakers[trial.test])


def test_the_seed_decides_what_is_heard(tmp_path):
    first, second, other = (
        make_utterances(folder, {"train": 1}, 1, 0, ["de"], seed)
        for folder, seed in zip(map(tmp_path.joinpath, "abc"), (0, 0, 1))
    )
    path = "wav/de0/train/00000.wav"
    assert (first / path).read_bytes() == (second / path).read_bytes()
    assert (first / path).read_bytes() != (other / path).read_bytes()


def test_what_cannot_be_made_is_told(corpus, tmp_path):
    with pytest.raises(FileExistsError, match="train.csv is already there"):
        make_utterances(corpus, TAKES)
    with pytest.raises(ValueError, match="no commands in 'xx': .*en, de, fr"):
        make_utterances(tmp_path, languages=["xx"])
    with pytest.raises(ValueError, match="99 speakers .* only 13 voices"):
        make_utterances(tmp_path, unseen_per_language=97)
