"""Tests of the synthetic corpus in the layout of ML-SUPERB."""

import numpy as np
import pytest
import soundfile

from speechbrain_ee.corpora.mlsuperb import DATASETS, make_mlsuperb

SIZES = {"train": 2, "dev": 1, "test": 1}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_mlsuperb(tmp_path_factory.mktemp("mlsuperb"), SIZES)


def names(folder, part):
    lines = (folder / f"transcript_{part}.txt").read_text("utf-8").splitlines()
    return [line.split(maxsplit=2)[0] for line in lines]


def test_every_line_has_its_audio_and_the_sets_are_apart(corpus):
    folders = {
        f"{dataset}/{language}"
        for dataset, (_, languages) in DATASETS.items()
        for language in languages
    }
    found = {p.parent.relative_to(corpus) for p in corpus.glob("*/*/wav")}
    assert {p.as_posix() for p in found} == folders
    for folder in map(corpus.joinpath, folders):
        ten, hour, dev, test = (
            names(folder, part)
            for part in ("10min_train", "1h_train", "10min_dev", "10min_test")
        )
        assert (len(ten), len(hour), len(dev), len(test)) == (2, 4, 1, 1)
        assert set(ten) < set(hour)
        listed = [*hour, *dev, *test]
        assert len(set(listed)) == 6
        files = sorted((folder / "wav").iterdir())
        assert [file.stem for file in files] == sorted(listed)
        for file in files:
            assert file.stem.split("_")[-2] == folder.name
            wave, rate = soundfile.read(file)
            assert rate == 16000 and wave.ndim == 1
            assert 0.3 < len(wave) / rate < 8 and 0.01 < wave.std()
            assert 0.1 < np.abs(wave).max() < 1


def test_one_language_stands_in_several_datasets(corpus):
    assert len(list(corpus.glob("*/eng"))) == 3


def test_the_few_shot_language_has_the_utterances_of_the_benchmark(corpus):
    danish = corpus / "fleurs" / "dan"
    assert names(danish, "10min_train") == [
        "fleurs_dan_000058",
        "fleurs_dan_000071",
    ]


def test_the_seed_decides_what_is_said(corpus, tmp_path):
    same, other = (
        make_mlsuperb(tmp_path / str(seed), SIZES, ["nchlt"], seed)
        for seed in (0, 1)
    )
    for name in ("transcript_1h_train.txt", "wav/nchlt_eng_000000.wav"):
        first, second, third = (
            (folder / "nchlt" / "eng" / name).read_bytes()
            for folder in (corpus, same, other)
        )
        assert first == second != third


def test_what_cannot_be_made_is_refused(corpus):
    with pytest.raises(FileExistsError, match="mls is already there: delete"):
        make_mlsuperb(corpus, SIZES)
    with pytest.raises(ValueError, match="dataset 'LAD': choose among mls"):
        make_mlsuperb(corpus, SIZES, ["LAD"])
    with pytest.raises(ValueError, match="needs an utterance or more"):
        make_mlsuperb(corpus / "new", {"train": 0, "dev": 1, "test": 1})
