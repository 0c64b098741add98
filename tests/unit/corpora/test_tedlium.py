"""Tests of the synthetic corpus in the layout of TED-LIUM."""

import numpy as np
import pytest
import soundfile

from speechbrain_ee.corpora.tedlium import make_tedlium

SPLITS = {"train": 7, "dev": 3, "test": 1}
SENTENCE = "THE FARMER'S DAUGHTER'S GOAT ISN'T HERE"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_tedlium(tmp_path_factory.mktemp("corpus"), SPLITS)


def lines(file):
    """Fields of the lines of an STM file that are no comments."""
    content = file.read_text().splitlines()
    return [x.split(maxsplit=6) for x in content if not x.startswith(";;")]


def spoken(file):
    return [line for line in lines(file) if line[2] != "inter_segment_gap"]


def content(folder):
    return {
        file.relative_to(folder): file.read_bytes()
        for file in folder.rglob("*.*")
    }


def test_every_talk_has_a_recording_and_its_segments(corpus):
    for folder, segments in [
        ("data", 7),
        ("legacy/dev", 3),
        ("legacy/test", 1),
    ]:
        sphs = sorted((corpus / folder / "sph").iterdir())
        stms = sorted((corpus / folder / "stm").iterdir())
        assert len(sphs) == min(segments, 2)
        assert [f.stem for f in sphs] == [f.stem for f in stms]
        assert sum(len(spoken(stm)) for stm in stms) == segments
        for stm in stms:
            assert stm.read_text().startswith(";;")
            assert {line[0] for line in lines(stm)} == {stm.stem}
            assert {line[2] for line in spoken(stm)} == {stm.stem}


def test_the_training_set_of_releases_before_has_links(corpus):
    for kind in ("sph", "stm"):
        links = sorted((corpus / "legacy" / "train" / kind).iterdir())
        files = sorted((corpus / "data" / kind).iterdir())
        assert all(link.is_symlink() for link in links)
        assert [link.resolve() for link in links] == files


def test_recordings_are_sphere_with_speech_in_the_segments(corpus):
    for file in corpus.glob("legacy/dev/sph/*.sph"):
        assert file.read_bytes().startswith(b"NIST_1A\n   1024\n")
        wave, rate = soundfile.read(file)
        info = soundfile.info(file)
        assert (rate, info.channels, info.subtype) == (16000, 1, "PCM_16")
        assert np.abs(wave).max() < 1
        end = 0.0
        for line in lines(file.parents[1] / "stm" / f"{file.stem}.stm"):
            start, stop = float(line[3]), float(line[4])
            assert end <= start < stop <= len(wave) / rate
            end = stop
            piece = wave[round(start * rate) : round(stop * rate)]
            if line[6] == "ignore_time_segment_in_scoring":
                assert 0 < np.abs(piece).max() < 0.06
            else:
                assert 0.1 < np.abs(piece).max()
        assert end == pytest.approx(len(wave) / rate)


def test_transcripts_are_written_as_in_the_release(tmp_path):
    made = make_tedlium(
        tmp_path, {"test": 4}, talks_per_split=1, sentences=[SENTENCE]
    )
    (stm,) = made.glob("legacy/test/stm/*.stm")
    first, *others = (line[6] for line in spoken(stm))
    assert set(others) == {"the farmer 's daughter 's goat isn 't here"}
    assert first.count("<unk>") == 1
    voices = {line[5] for line in spoken(stm)}
    assert voices in ({"<o,f0,male>"}, {"<o,f0,female>"})


def test_the_seed_decides_every_byte(corpus, tmp_path):
    same = make_tedlium(tmp_path / "same", SPLITS)
    other = make_tedlium(tmp_path / "other", SPLITS, seed=1)
    assert content(same) == content(corpus)
    assert content(other) != content(corpus)


def test_what_is_there_is_left_alone(corpus):
    before = content(corpus)
    with pytest.raises(FileExistsError, match="legacy/dev is already there"):
        make_tedlium(corpus, {"dev": 1})
    assert content(corpus) == before


def test_an_unknown_split_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no split 'dev-clean': .* train, dev"):
        make_tedlium(tmp_path, {"dev-clean": 1})
    assert not any(tmp_path.iterdir())
