"""Tests of the synthetic corpora in the layouts of MiniSUPERB's data."""

import numpy as np
import pytest
import soundfile

from speechbrain_ee.corpora.librilight import make_librilight
from speechbrain_ee.corpora.librimix import make_librimix
from speechbrain_ee.corpora.noise import active_level
from speechbrain_ee.corpora.voicebank import SNRS, make_voicebank
from speechbrain_ee.corpora.voxceleb import make_voxceleb

KINDS = ("clean", "other")
MAKERS = {
    "librilight": lambda folder, **more: make_librilight(
        folder, 1, dev=2, test=1, **more
    ),
    "librimix": lambda folder, **more: make_librimix(
        folder, {"train-100": 2, "dev": 1}, **more
    ),
    "voicebank": lambda folder, **more: make_voicebank(
        folder, 2, speakers=3, **more
    ),
    "voxceleb": lambda folder, **more: make_voxceleb(folder, 3, **more),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A corpus of each kind."""
    folder = tmp_path_factory.mktemp("corpora")
    return {name: make(folder / name) for name, make in MAKERS.items()}


def waves(folder):
    return {
        path.relative_to(folder).as_posix(): soundfile.read(path)[0]
        for path in sorted(folder.rglob("*.*"))
        if path.suffix in (".wav", ".flac")
    }


def test_librilight_has_all_its_parts(made):
    folder = made["librilight"]
    found = {
        path.relative_to(folder).parents[2].as_posix()
        for path in folder.rglob("*.flac")
    }
    tuning = "librispeech_finetuning"
    assert found == {
        *(f"{tuning}/1h/{k}/{kind}" for k in range(6) for kind in KINDS),
        *(f"{tuning}/9h/{kind}" for kind in KINDS),
        *("dev-clean", "test-clean"),
    }
    # SPEAKER/CHAPTER/SPEAKER-CHAPTER-NNNN.flac, with transcripts.
    names = [path.stem for path in folder.rglob("*.flac")]
    assert len(names) == len(set(names)) == 14 + 2 + 1
    for path in folder.rglob("*.flac"):
        speaker, chapter, _ = path.stem.split("-")
        assert path.parts[-3:-1] == (speaker, chapter)
        text = path.with_name(f"{speaker}-{chapter}.trans.txt").read_text()
        assert f"{path.stem} " in text


def test_every_speaker_of_voxceleb_is_in_every_split(made):
    folder = made["voxceleb"]
    lines = (folder / "iden_split.txt").read_text().splitlines()
    rows = [line.split() for line in lines]
    counts = {}
    for split, path in rows:
        speaker, video, name = path.split("/")
        assert len(video) == 11 and len(name) == len("00001.wav")
        part = "test" if speaker == "id10270" else "dev"
        assert (folder / part / "wav" / path).is_file()
        counts.setdefault(speaker, []).append(split)
    assert counts == dict.fromkeys(
        ("id10001", "id10002", "id10270"), [*"111", "2", "3"]
    )


def test_noisy_speech_is_clean_speech_at_the_ratios_of_the_corpus(made):
    found = waves(made["voicebank"])
    assert len(found) == 2 * 2 * (3 + 2)
    for path, clean in found.items():
        if not path.startswith("clean"):
            continue
        noise = found[path.replace("clean", "noisy")] - clean
        snr = 20 * np.log10(active_level(clean) / noise.std())
        part = path.split("_", 1)[1].split("_wav")[0]
        assert min(abs(snr - wanted) for wanted in SNRS[part]) < 0.1


def test_a_mixture_is_the_sum_of_its_sources(made):
    found = waves(made["librimix"] / "wav16k" / "min")
    mixtures = [path for path in found if "mix_clean" in path]
    assert len(mixtures) == 3 and len(found) == 9
    for path in mixtures:
        sources = [found[path.replace("mix_clean", s)] for s in ("s1", "s2")]
        assert np.abs(sum(sources) - found[path]).max() < 2 / 2**15
        assert all(active_level(source) > 0.01 for source in sources)


@pytest.mark.parametrize("name", MAKERS)
def test_a_corpus_is_made_once(name, made):
    before = waves(made[name])
    with pytest.raises(FileExistsError, match="already there"):
        MAKERS[name](made[name])
    after = waves(made[name])
    assert after.keys() == before.keys()


@pytest.mark.parametrize("name", ["voicebank", "voxceleb", "librimix"])
def test_the_seed_decides(name, made, tmp_path):
    first = waves(made[name])
    again = waves(MAKERS[name](tmp_path / "again"))
    assert again.keys() == first.keys()
    assert all(np.array_equal(again[key], first[key]) for key in first)
    other = waves(MAKERS[name](tmp_path / "other", seed=1))
    assert any(
        not np.array_equal(x, y) for x, y in zip(other.values(), first.values())
    )


def test_there_must_be_enough_voices(tmp_path):
    with pytest.raises(ValueError, match="99 speakers: there are only 52"):
        make_voxceleb(tmp_path, 99)
    with pytest.raises(ValueError, match="speakers: 2 is not among 3 to 28"):
        make_voicebank(tmp_path, 1, speakers=2)
