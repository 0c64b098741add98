"""Tests of the synthetic corpus."""

import csv
import json
import logging
from collections import Counter

import numpy as np
import pytest
import soundfile
from speechbrain.dataio import audio_io

from speechbrain_ee.corpora import librispeech
from speechbrain_ee.corpora.librispeech import (
    CROWD,
    DEMO_SPEAKERS,
    DEMO_SPLITS,
    NOISES,
    VOICES,
    make_demo_corpus,
    make_librispeech,
)
from speechbrain_ee.corpora.noise import active_level

SPLITS = {"train": 7, "dev": 2}
SNRS = (None, 20, 5, -2.5)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_librispeech(
        tmp_path_factory.mktemp("corpus"), SPLITS, speakers_per_split=3
    )


@pytest.fixture(scope="module")
def noisy(tmp_path_factory):
    """The same speech in noise."""
    return make_librispeech(
        tmp_path_factory.mktemp("noisy"),
        SPLITS,
        speakers_per_split=3,
        snrs=SNRS,
    )


def rows(corpus):
    with open(corpus / "UTTERANCES.tsv", newline="") as stream:
        return list(csv.DictReader(stream, delimiter="\t"))


def content(folder):
    return {
        file.relative_to(folder): file.read_bytes()
        for file in folder.rglob("*.*")
    }


def transcripts(corpus, split="*"):
    return dict(
        line.split(" ", 1)
        for file in corpus.glob(f"{split}/*/*/*.trans.txt")
        for line in file.read_text().splitlines()
    )


def test_layout(corpus):
    for split, utterances in SPLITS.items():
        audio = {file.stem: file for file in corpus.glob(f"{split}/*/*/*.flac")}
        assert len(audio) == utterances
        for name, file in audio.items():
            speaker, chapter, number = name.split("-")
            assert file.parent == corpus / split / speaker / chapter
            assert len(number) == 4
        said = transcripts(corpus, split)
        assert sorted(said) == sorted(audio)
        for words in said.values():
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
    same, other = (
        make_librispeech(tmp_path / str(seed), SPLITS, seed, 3)
        for seed in (0, 1)
    )
    assert content(same) == content(corpus)
    assert content(other) != content(corpus)


@pytest.mark.slow
def test_the_number_of_processes_decides_nothing(noisy, tmp_path):
    made = make_librispeech(
        tmp_path / "made", SPLITS, speakers_per_split=3, snrs=SNRS, jobs=2
    )
    assert content(made) == content(noisy)


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
    before = content(corpus)
    with pytest.raises(FileExistsError, match="train is already there: delete"):
        make_librispeech(corpus, SPLITS)
    with pytest.raises(FileExistsError, match="UTTERANCES.tsv is already"):
        make_librispeech(corpus, {"another": 1})
    assert content(corpus) == before


def test_the_table_lists_every_utterance(corpus, noisy):
    for folder in (corpus, noisy):
        table = rows(folder)
        assert {row["id"] for row in table} == set(transcripts(folder))
        for split, utterances in SPLITS.items():
            own = [row for row in table if row["split"] == split]
            assert len(own) == utterances
            assert {r["id"] for r in own} == set(transcripts(folder, split))
    assert all(row["snr"] == row["noise"] == "" for row in rows(corpus))
    for row in rows(noisy):
        assert row["voice"] in VOICES
        assert row["snr"] in ("", "20", "5", "-2.5")
        assert row["noise"] in (NOISES if row["snr"] else ("",))


def test_a_speaker_has_one_voice(corpus):
    pairs = {(row["id"].split("-")[0], row["voice"]) for row in rows(corpus)}
    speakers, voices = zip(*pairs)
    assert len(set(speakers)) == len(set(voices)) == len(pairs) == 5


def test_the_noise_is_as_loud_as_the_table_says(corpus, noisy):
    assert transcripts(noisy) == transcripts(corpus)
    table = {row["id"]: row for row in rows(noisy)}
    assert len({row["snr"] for row in table.values()}) == len(SNRS)
    for file in noisy.glob("*/*/*/*.flac"):
        mixed, _ = soundfile.read(file)
        clean, _ = soundfile.read(corpus / file.relative_to(noisy))
        assert np.abs(mixed).max() <= 0.951
        snr = table[file.stem]["snr"]
        if not snr:
            assert np.array_equal(mixed, clean)
            continue
        # The sum may have been made softer.
        gain = (mixed @ clean) / (clean @ clean)
        noise = mixed - gain * clean
        ratio = active_level(gain * clean) / np.sqrt((noise**2).mean())
        assert 20 * np.log10(ratio) == pytest.approx(float(snr), abs=0.5)


def test_a_speaker_gets_every_ratio_in_turn(tmp_path, monkeypatch):
    monkeypatch.setattr(librispeech, "NOISES", ("white",))
    made = make_librispeech(
        tmp_path, {"x": 12}, speakers_per_split=3, snrs=(None, 10, 0)
    )
    counts = Counter((r["id"].split("-")[0], r["snr"]) for r in rows(made))
    assert set(counts.values()) == {1, 2}  # of four utterances
    assert len(counts) == 9


def plan(splits=None, speakers=4, snrs=(None, 0), seed=0):
    return librispeech._plan(splits or SPLITS, seed, speakers, snrs)


def test_splits_of_the_demo_have_no_voice_and_no_sentence_in_common():
    chapters = plan(DEMO_SPLITS, DEMO_SPEAKERS)
    by_split = {
        split: [c for c in chapters if c.split == split]
        for split in DEMO_SPLITS
    }
    for split, own in by_split.items():
        assert len(own) == DEMO_SPEAKERS[split]
        assert sum(len(c.transcripts) for c in own) == DEMO_SPLITS[split]
    voices = [chapter.speaker.voice for chapter in chapters]
    assert len(set(voices)) == len(voices)
    said = [words for chapter in chapters for words in chapter.transcripts]
    assert len(set(said)) == len(said)
    assert not set(CROWD) & set(voices)  # nor do those who babble


def test_too_few_voices_are_said_to_be(caplog):
    with caplog.at_level(logging.WARNING):
        plan({"a": 200}, len(VOICES), snrs=(None,))
        assert not caplog.records
        plan({"a": 200, "b": 1}, len(VOICES), snrs=(None,))
    assert f"{len(VOICES) + 1} speakers share {len(VOICES)}" in caplog.text


def test_speakers_of_each_split():
    chapters = plan({"a": 9, "b": 3}, {"a": 2, "b": 5})
    assert [chapter.split for chapter in chapters] == [*"aabbb"]
    assert [len(c.transcripts) for c in chapters] == [5, 4, 1, 1, 1]
    with pytest.raises(ValueError, match="speakers_per_split has no .* 'b'"):
        plan({"a": 9, "b": 3}, {"a": 2})


def test_no_ratio_is_an_error():
    with pytest.raises(ValueError, match="snrs is empty"):
        plan(snrs=())


def test_a_finished_demo_corpus_is_left_alone(tmp_path):
    folder = tmp_path / "deep" / "demo"

    def make(seed=0, snrs=(None, 0)):
        return make_demo_corpus(folder, seed, SPLITS, 2, snrs, jobs=1)

    assert make() == folder
    settings = json.loads((folder / "corpus.json").read_text())
    assert settings["splits"] == SPLITS and settings["snrs"] == [None, 0]
    assert len(rows(folder)) == sum(SPLITS.values())
    assert [file.name for file in folder.parent.iterdir()] == ["demo"]

    marked = folder / "train" / "mark"
    marked.touch()
    assert make() == folder and marked.exists()
    for settings, name in [({"seed": 1}, "seed"), ({"snrs": (0,)}, "snrs")]:
        with pytest.raises(FileExistsError, match=f"differs in {name}.*delete"):
            make(**settings)
    assert marked.exists()


def test_a_corpus_of_another_version_is_not_taken(tmp_path, monkeypatch):
    make_demo_corpus(tmp_path / "demo", 0, {"x": 1}, 1, jobs=1)
    monkeypatch.setattr(librispeech, "VOICES", VOICES[::-1])
    with pytest.raises(FileExistsError, match="differs in checksum"):
        make_demo_corpus(tmp_path / "demo", 0, {"x": 1}, 1, jobs=1)


def test_a_folder_with_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(FileExistsError, match="no finished corpus .* delete"):
        make_demo_corpus(tmp_path, jobs=1)
    with pytest.raises(FileExistsError, match="no finished corpus"):
        make_demo_corpus(tmp_path / "thesis.tex", jobs=1)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_run_cut_short_leaves_nothing(tmp_path, monkeypatch):
    record = librispeech._record

    def cut_short(folder, chapter):
        record(folder, chapter)
        if chapter.split == "dev":
            raise KeyboardInterrupt

    folder = tmp_path / "demo"
    folder.mkdir()  # an empty folder may be there
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(librispeech, "_record", cut_short)
        make_demo_corpus(folder, 0, SPLITS, 2, (None,), jobs=1)
    assert not any(folder.iterdir())
    assert list(tmp_path.iterdir()) == [folder]
    make_demo_corpus(folder, 0, SPLITS, 2, (None,), jobs=1)
    assert len(rows(folder)) == sum(SPLITS.values())
