"""Tests of the synthetic corpus in the layout of VoxPopuli."""

import numpy as np
import pytest
import soundfile

from speechbrain_ee.corpora.voxpopuli import COLUMNS, make_voxpopuli

SPLITS = {"train": 5, "dev": 2}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("voxpopuli")
    return make_voxpopuli(folder, SPLITS, speakers_per_split=2)


def rows(corpus, language, split):
    file = corpus / "transcribed_data" / language / f"asr_{split}.tsv"
    header, *lines = file.read_text(encoding="utf-8").splitlines()
    assert header.split("\t") == list(COLUMNS)
    return [dict(zip(COLUMNS, line.split("\t"), strict=True)) for line in lines]


def speech(corpus):
    return {
        file.relative_to(corpus): soundfile.read(file)[0]
        for file in corpus.rglob("*.ogg")
    }


@pytest.mark.parametrize("language", ["en", "de"])
def test_every_row_has_its_audio_in_the_folder_of_its_year(corpus, language):
    folder = corpus / "transcribed_data" / language
    expected = set()
    for split, utterances in SPLITS.items():
        own = rows(corpus, language, split)
        assert len(own) == utterances + 1
        for row in own:
            assert row["split"] == split and row["accent"] == "None"
            assert f"-{language}_" in row["id"]
            expected.add(folder / row["id"][:4] / f"{row['id']}.ogg")
    assert expected == set(folder.rglob("*.ogg"))
    assert len({file.parent for file in expected}) == 4  # one per speaker
    for file in expected:
        info = soundfile.info(file)
        assert (info.format, info.subtype) == ("OGG", "VORBIS")
        assert (info.samplerate, info.channels) == (16000, 1)
        wave, _ = soundfile.read(file)
        assert 0.5 < info.duration < 8
        assert 0.01 < wave.std() and 0.1 < np.abs(wave).max() < 1


@pytest.mark.parametrize("language", ["en", "de"])
def test_tables_have_what_makes_real_ones_hard_to_read(corpus, language):
    for split in SPLITS:
        first, *middle, last = rows(corpus, language, split)
        assert first["is_gold_transcript"] == "False"
        assert first["raw_text"].count('"') == 1
        assert last["normalized_text"] == "" and last["raw_text"]
        assert {r["is_gold_transcript"] for r in (*middle, last)} == {"True"}
        for row in (first, *middle):
            letters = row["normalized_text"].replace(" ", "")
            assert letters.isalpha() and letters.islower()


def test_speakers_and_ids_are_in_one_split_only(corpus):
    for language in ("en", "de"):
        train, dev = (rows(corpus, language, split) for split in SPLITS)
        for column, count in (("speaker_id", 2), ("id", 6)):
            values = {row[column] for row in train}
            assert len(values) == count
            assert not values & {row[column] for row in dev}


def test_the_seed_decides_what_is_said_and_how(corpus, tmp_path):
    same, other = (
        make_voxpopuli(tmp_path / str(seed), SPLITS, ["en"], seed, 2)
        for seed in (0, 1)
    )
    first, second = speech(corpus), speech(same)
    assert rows(same, "en", "train") == rows(corpus, "en", "train")
    assert all(np.array_equal(first[name], second[name]) for name in second)
    assert rows(other, "en", "train") != rows(corpus, "en", "train")


def test_an_existing_language_is_left_alone(corpus):
    before = set(corpus.rglob("*"))
    with pytest.raises(FileExistsError, match="en is already there: delete"):
        make_voxpopuli(corpus, SPLITS, ["en"])
    with pytest.raises(ValueError, match="in 'fr': choose .* among en, de"):
        make_voxpopuli(corpus, SPLITS, ["fr"])
    with pytest.raises(ValueError, match="needs an utterance or more: .*dev"):
        make_voxpopuli(corpus / "new", {"dev": 0})
    assert set(corpus.rglob("*")) == before
