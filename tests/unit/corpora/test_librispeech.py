"""Tests of the synthetic corpus."""

import random

import pytest
from speechbrain.dataio import audio_io

from speechbrain_ee.corpora.librispeech import (
    make_librispeech,
    random_sentence,
)

SPLITS = {"train": 7, "dev": 2}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_librispeech(
        tmp_path_factory.mktemp("corpus"), SPLITS, speakers_per_split=3
    )


def test_layout(corpus):
    for split, utterances in SPLITS.items():
        audio = {file.stem: file for file in corpus.glob(f"{split}/*/*/*.flac")}
        assert len(audio) == utterances
        for name, file in audio.items():
            speaker, chapter, number = name.split("-")
            assert file.parent == corpus / split / speaker / chapter
            assert len(number) == 4
        transcripts = [
            line.split(" ", 1)
            for file in corpus.glob(f"{split}/*/*/*.trans.txt")
            for line in file.read_text().splitlines()
        ]
        assert sorted(name for name, _ in transcripts) == sorted(audio)
        for _, words in transcripts:
            assert words.replace("'", "").replace(" ", "").isalpha()
            assert words == words.upper()


def test_speakers_are_disjoint(corpus):
    train, dev = (
        {folder.name for folder in (corpus / split).iterdir()}
        for split in SPLITS
    )
    assert (len(train), len(dev)) == (3, 2)
    assert not train & dev


def test_audio(corpus):
    for file in corpus.glob("*/*/*/*.flac"):
        info = audio_io.info(str(file))
        assert (info.sample_rate, info.channels) == (16000, 1)
        assert info.subtype == "PCM_16"
        assert 0.5 < info.duration < 8
        wave, _ = audio_io.load(str(file))
        # Short pauses around speech that is neither silent nor clipped.
        assert 0.01 < wave.std() and 0.1 < wave.abs().max() < 1
        spoken = (wave.squeeze().abs() > 0.01).nonzero()
        assert 0.1 < spoken[0] / 16000 < 0.4
        assert 0.1 < (wave.numel() - spoken[-1]) / 16000 < 0.4


def test_the_seed_decides_every_byte(corpus, tmp_path):
    def content(folder):
        return {
            file.relative_to(folder): file.read_bytes()
            for file in folder.rglob("*.*")
        }

    same, other = (
        make_librispeech(tmp_path / str(seed), SPLITS, seed, 3)
        for seed in (0, 1)
    )
    assert content(same) == content(corpus)
    assert content(other) != content(corpus)


def test_given_sentences(tmp_path):
    upper, lower = (
        make_librispeech(tmp_path / words, {"x": 2}, sentences=[words])
        for words in ("DON'T TURN IT OFF", "don't turn it off")
    )
    for file in upper.rglob("*.trans.txt"):
        assert file.read_text().endswith("-0000 DON'T TURN IT OFF\n")
    # Capitals are words to speak, not letters to spell.
    for file in upper.rglob("*.flac"):
        assert (
            file.read_bytes() == (lower / file.relative_to(upper)).read_bytes()
        )


def test_an_existing_split_is_left_alone(corpus):
    with pytest.raises(FileExistsError, match="train"):
        make_librispeech(corpus, SPLITS)


def test_sentences_vary():
    rng = random.Random(0)
    sentences = [random_sentence(rng) for _ in range(100)]
    assert len(set(sentences)) > 90
    assert len({word for line in sentences for word in line.split()}) > 40
