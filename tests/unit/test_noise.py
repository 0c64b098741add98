"""Test sets in noise: the same noise for an utterance, as loud as was said."""

import re

import numpy as np
import pytest
import soundfile
import torch
from speechbrain.dataio.batch import PaddedBatch
from speechbrain.dataio.dataio import read_audio
from speechbrain.dataio.dataset import DynamicItemDataset
from torch.utils.data import DataLoader

from speechbrain_ee.analysis.verification import Trial
from speechbrain_ee.corpora.noise import active_level
from speechbrain_ee.encoders import FilterbankEncoder
from speechbrain_ee.experiment import (
    make_datasets,
    make_label_datasets,
    make_utterance_datasets,
)
from speechbrain_ee.feature_cache import FeatureCache
from speechbrain_ee.noise import NoiseFolder, noisy_sets, noisy_trials
from speechbrain_ee.tokenizer import train_tokenizer

SNRS = [None, 20, 0, -5]
# Utterances by their samples; the longest is longer than some of the noise.
LENGTHS = {"a": 16000, "b": 24000, "c": 8000, "d": 40000}


@pytest.fixture
def musan(tmp_path):
    """Noise in the layout of MUSAN; each sample tells its file and place."""
    folder = tmp_path / "musan"
    rng = np.random.default_rng(0)
    for kind, seconds in {"noise": (2, 3, 5), "music": (4,)}.items():
        place = folder / kind / "free-sound"
        place.mkdir(parents=True)
        for number, length in enumerate(seconds):
            wave = 0.1 * rng.standard_normal(length * 16000)
            path = place / f"{kind}-free-sound-{number:04}.wav"
            soundfile.write(path, wave, 16000, subtype="FLOAT")
    (folder / "README").write_text("of MUSAN")
    return folder


@pytest.fixture
def data(tmp_path):
    """Speech with pauses, and its CSV."""
    rng = np.random.default_rng(1)
    lines = ["ID,duration,wav,wrd,unit,label"]
    for name, samples in LENGTHS.items():
        wave = 0.05 * rng.standard_normal(samples)
        wave[: samples // 2] = 0
        soundfile.write(tmp_path / f"{name}.wav", wave, 16000, subtype="FLOAT")
        lines.append(
            f"{name},{samples / 16000},$data_root/{name}.wav,YES NO,"
            f"character,{'x' if name < 'c' else 'y'}"
        )
    (tmp_path / "data.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


@pytest.fixture
def tests(data):
    file = data / "data.csv"
    *_, tests = make_utterance_datasets(
        data, ["label"], data, file, file, {"test": file}
    )
    return tests


def rms(wave):
    return float(wave.double().square().mean().sqrt())


def waves(dataset):
    return {item["id"]: item["sig"] for item in dataset}


def test_sets_have_names_ids_and_a_column_of_their_own(tests, musan):
    sets = noisy_sets(tests, NoiseFolder(musan), SNRS)
    assert list(sets) == [
        *("test_clean", "test_snr20", "test_snr0", "test_snr-5")
    ]
    by_length = ["c", "a", "b", "d"]
    assert list(waves(sets["test_clean"])) == by_length
    assert list(waves(sets["test_snr0"])) == [f"{x}_snr0" for x in by_length]
    for name, snr in zip(sets, ["clean", "20", "0", "-5"]):
        assert set(sets[name][0]) == {"id", "sig", "labels"}
        with sets[name].output_keys_as(["snr", "label"]):
            items = list(sets[name])
        assert {x["snr"] for x in items} == {snr}
        assert [x["label"] for x in items] == list("yxxy")
    # What was given is as it was.
    assert list(waves(tests["test"])) == by_length
    assert "snr" not in tests["test"].data["a"]


@pytest.mark.parametrize("level", ["active", "plain"])
def test_the_ratio_is_what_was_asked_for(tests, musan, level):
    sets = noisy_sets(tests, NoiseFolder(musan, level=level), SNRS)
    clean = waves(sets.pop("test_clean"))
    assert all(
        torch.equal(clean[k], v) for k, v in waves(tests["test"]).items()
    )
    noises = {}
    for (name, dataset), snr in zip(sets.items(), SNRS[1:]):
        for utterance, speech in clean.items():
            suffix = name.removeprefix("test")
            mixed = waves(dataset)[utterance + suffix]
            assert mixed.dtype == speech.dtype
            added = mixed.double() - speech.double()
            whole = speech.double()
            loud = {"active": active_level(whole.numpy()), "plain": rms(whole)}
            found = 20 * np.log10(loud[level] / rms(added))
            assert found == pytest.approx(snr, abs=0.01)
            noises.setdefault(utterance, []).append(added / rms(added))
    # The same noise stands at every ratio, and another with each utterance.
    for first, *others in noises.values():
        for other in others:
            assert (first - other).abs().max() < 1e-3
    same = min(map(len, (noises["a"][0], noises["b"][0])))
    one, other = (noises[k][0][:same] for k in "ab")
    assert abs(float(one @ other)) / same < 0.1


def test_noise_depends_on_seed_and_id_alone(tests, musan):
    dataset = noisy_sets(tests, NoiseFolder(musan), [0])["test_snr0"]
    expected = waves(dataset)
    shuffled = noisy_sets(
        {"other": tests["test"].filtered_sorted(sort_key="id", reverse=True)},
        NoiseFolder(musan),
        [10, 0],
    )["other_snr0"]
    assert list(shuffled.data_ids) == [f"{k}_snr0" for k in "dcba"]
    for name, wave in waves(shuffled).items():
        assert torch.equal(wave, expected[name])
    for batch in DataLoader(dataset, 3, collate_fn=PaddedBatch, num_workers=1):
        for name, wave in zip(batch.id, batch.sig.data):
            length = len(expected[name])
            assert torch.equal(wave[:length], expected[name])
    moved = musan.rename(musan.parent / "elsewhere")
    again = noisy_sets(tests, NoiseFolder(moved), [0])["test_snr0"]
    assert torch.equal(again[0]["sig"], dataset_first(expected))
    reseeded = noisy_sets(tests, NoiseFolder(moved, seed=1), [0])["test_snr0"]
    assert not torch.equal(reseeded[0]["sig"], again[0]["sig"])


def dataset_first(by_name):
    return next(iter(by_name.values()))


def test_draws_stay_the_same_for_ever(tmp_path):
    """What was published with a seed must be found again."""
    for k in range(10):
        wave = np.arange(3000, dtype=np.int16) + 3000 * k + 1
        soundfile.write(tmp_path / f"{k}.wav", wave, 16000)
    noise = NoiseFolder(tmp_path, min_seconds=0.1)
    first = [round(noise.piece(k, 1000)[0] * 2**15) for k in "abc"]
    assert first == [21228, 10939, 7790]


def test_pieces_lie_within_long_files_and_short_ones_are_repeated(tmp_path):
    ramp = np.arange(20000, dtype=np.int16) + 1
    soundfile.write(tmp_path / "ramp.wav", ramp, 16000)
    noise = NoiseFolder(tmp_path)

    def places(name, samples):
        return (noise.piece(name, samples) * 2**15).round().astype(int)

    starts = set()
    for k in range(50):
        piece = places(f"utterance {k}", 16000)
        assert (np.diff(piece) == 1).all() and len(piece) == 16000
        starts.add(piece[0])
    assert len(starts) > 40 and 1 <= min(starts) and max(starts) <= 4001
    assert places("whole", 20000).tolist() == ramp.tolist()

    piece = places("long", 50000)
    steps, counts = np.unique(np.diff(piece), return_counts=True)
    assert steps.tolist() == [-19999, 1] and counts[0] in (2, 3)
    assert np.array_equal(piece[:20000], piece[20000:40000])
    assert len({places(f"long {k}", 50000)[0] for k in range(20)}) > 15


def test_other_rates_and_channels_are_brought_to_one(tmp_path):
    time = np.arange(3 * 44100) / 44100
    tone = 0.2 * np.sin(2 * np.pi * 1000 * time)
    stereo = np.stack([tone, np.zeros_like(tone)], axis=1)
    soundfile.write(tmp_path / "a.flac", stereo, 44100)
    piece = NoiseFolder(tmp_path).piece("x", 16000)
    assert len(piece) == 16000
    spectrum = np.abs(np.fft.rfft(piece))
    assert spectrum.argmax() == 1000
    inside = piece[1000:-1000]
    assert np.sqrt((inside**2).mean()) == pytest.approx(
        0.1 / np.sqrt(2), rel=0.01
    )
    assert len(NoiseFolder(tmp_path).piece("x", 160001)) == 160001


def test_categories_are_folders(musan):
    assert len(NoiseFolder(musan)) == 4
    noise = NoiseFolder(musan, categories=["music"])
    assert [x.name for x in noise.files] == [
        "music/free-sound/music-free-sound-0000.wav"
    ]
    both = NoiseFolder([musan / "music", musan / "noise"])
    assert len(both) == 4 and both.files[0].name.startswith(str(musan))
    (file,) = (musan / "music").rglob("*.wav")
    assert len(NoiseFolder(file)) == len(NoiseFolder([file])) == 1
    with pytest.raises(
        FileNotFoundError, match="no folder rain; it has music, noise"
    ):
        NoiseFolder(musan, categories=["music", "rain"])


def test_files_that_cannot_be_used_are_counted_and_named(musan, caplog):
    place = musan / "noise"
    soundfile.write(place / "short.wav", np.ones(8000), 16000)
    soundfile.write(place / "silent.flac", np.zeros(32000), 16000)
    soundfile.write(place / "hardly.wav", np.full(32000, 2 / 2**15), 16000)
    (place / "text.wav").write_text("no audio")
    (place / "._hidden.wav").write_text("of macOS")
    late = np.concatenate([np.zeros(48000), np.full(16000, 0.5)])
    soundfile.write(place / "late.wav", late, 16000)
    noise = NoiseFolder(musan)
    assert len(noise) == 5
    assert {k.removeprefix("noise/"): v for k, v in noise.left_out.items()} == {
        "hardly.wav": "silent",
        "short.wav": "0.50 s long",
        "silent.flac": "silent",
        "text.wav": noise.left_out["noise/text.wav"],
    }
    assert "4 of 9 files of noise" in caplog.text
    assert "noise/short.wav (0.50 s long)" in caplog.text
    assert len(NoiseFolder(musan, min_seconds=0.5)) == 6
    # Only what is heard of a file is added.
    only = NoiseFolder(place / "late.wav")
    for k in range(8):
        assert np.abs(only.piece(f"utterance {k}", 16000)).max() == 0.5


def test_noise_that_is_silent_nearly_everywhere_is_told(tmp_path):
    wave = np.zeros(16000 * 600, dtype=np.int16)
    wave[-16000:] = 9999
    soundfile.write(tmp_path / "a.wav", wave, 16000)
    with pytest.raises(ValueError, match="x: 20 pieces of noise were silent"):
        NoiseFolder(tmp_path).piece("x", 160)


def test_without_noise_there_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder or file .*nowhere"):
        NoiseFolder(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"no audio file \(.wav, .*\) in"):
        NoiseFolder(tmp_path)
    with pytest.raises(ValueError, match="list of folders and files is empty"):
        NoiseFolder([])
    soundfile.write(tmp_path / "a.wav", np.zeros(32000), 16000)
    with pytest.raises(ValueError, match=r"1 of 1 files .*a.wav \(silent\)"):
        NoiseFolder(tmp_path)
    with pytest.raises(ValueError, match="level: 'peak' is none of active"):
        NoiseFolder(tmp_path, level="peak")


@pytest.mark.parametrize(
    ("snrs", "fault"),
    [
        ([], "there is none"),
        ([20, "ten"], "'ten' is no number of dB"),
        ([float("nan")], "nan is no number of dB"),
        ([float("inf")], "inf is no number of dB"),
        ([True], "True is no number of dB"),
        ([5, None, 5.0], "5.0 stands there twice|5 stands there twice"),
        (5, "5 is no list"),
        ("20", "'20' is no list"),
    ],
)
def test_wrong_ratios_are_refused(tests, musan, snrs, fault):
    with pytest.raises(ValueError, match=f"snrs: ({fault})"):
        noisy_sets(tests, NoiseFolder(musan), snrs)


def test_silent_speech_is_told_before_anything_runs(data, tests, musan):
    soundfile.write(data / "b.wav", np.zeros(24000), 16000)
    soundfile.write(data / "c.wav", np.full(300, 0.5), 16000)
    noise = NoiseFolder(musan)
    with pytest.raises(ValueError, match="test: 2 utterances are silent.*c, b"):
        noisy_sets(tests, noise, [None, 5])
    assert list(noisy_sets(tests, noise, [None])) == ["test_clean"]
    with pytest.raises(ValueError, match="x: silence has no signal-to-noise"):
        noise.mix(torch.zeros(16000), 5, "x")


def test_loud_noise_is_not_clipped(musan):
    mixed = NoiseFolder(musan).mix(torch.full((16000,), 0.9), 0, "x")
    assert mixed.abs().max() > 2


def test_what_is_in_noise_already_is_refused(tests, musan):
    noise = NoiseFolder(musan)
    once = noisy_sets(tests, noise, [None, 5])
    with pytest.raises(ValueError, match="test_snr5 is in noise .* says 5"):
        noisy_sets({"test_snr5": once["test_snr5"]}, noise, [0])
    again = noisy_sets({"test": once["test_clean"]}, noise, [5])
    assert torch.equal(
        again["test_snr5"][0]["sig"], once["test_snr5"][0]["sig"]
    )
    bare = DynamicItemDataset({"a": {"wav": "a.wav"}})
    with pytest.raises(ValueError, match="bare has no item sig"):
        noisy_sets({"bare": bare}, noise, [5])


def test_every_kind_of_dataset_can_be_in_noise(data, musan):
    file = data / "data.csv"
    sets = (file, file, {"test": file})
    tokenizer = train_tokenizer(data, 8, file, "wrd", "char")
    kinds = {
        "tokens": make_datasets(tokenizer, data, *sets)[-1],
        "labels": make_utterance_datasets(data, ["label"], data, *sets)[-1],
        "unit": make_label_datasets(data / "l.txt", data, *sets)[-1],
    }
    noise = NoiseFolder(musan)
    for key, tests in kinds.items():
        item = noisy_sets(tests, noise, [5])["test_snr5"][0]
        plain = tests["test"][0]
        assert item.keys() == plain.keys() and key in item
        assert item["id"] == "c_snr5"
        assert not torch.equal(item["sig"], plain["sig"])


def test_pieces_of_recordings_are_in_noise_as_they_are_cut(data, musan):
    rows = {"x": {"wav": str(data / "d.wav"), "start": 30000, "stop": 38000}}

    def read(wav, start, stop):
        return read_audio({"file": wav, "start": start, "stop": stop})

    takes = ["wav", "start", "stop"]
    item = {"func": read, "takes": takes, "provides": "sig"}
    dataset = DynamicItemDataset(rows, [item], ["id", "sig"])
    noise = NoiseFolder(musan)
    (mixed,) = noisy_sets({"test": dataset}, noise, [5])["test_snr5"]
    expected = noise.mix(dataset[0]["sig"], 5, "x")
    assert torch.equal(mixed["sig"], expected)


def test_a_cache_keeps_clean_and_noisy_states_apart(tests, musan, tmp_path):
    upstream = FilterbankEncoder()
    noise = NoiseFolder(musan)
    sets = {**tests, **noisy_sets(tests, noise, [None, 20, 0])}
    cache = FeatureCache(tmp_path / "cache", upstream)
    for name, dataset in sets.items():
        cache.fill(name, dataset, progressbar=False)
    for name, dataset in sets.items():
        for utterance, wave in waves(dataset).items():
            (state,), _ = cache.read([utterance])
            (expected,), _ = upstream(wave[None])
            assert torch.equal(state, expected), (name, utterance)
    # Nor are those of one noise taken for those of another.
    for other in (
        NoiseFolder(musan, seed=1),
        NoiseFolder(musan, level="plain"),
        NoiseFolder(musan, categories=["noise"]),
    ):
        assert other.fingerprint != noise.fingerprint
        dataset = noisy_sets(tests, other, [0])["test_snr0"]
        again = FeatureCache(tmp_path / "cache", upstream)
        told = r"was computed from .*: wav .*c_snr0 was .*noise \w+ at 0 dB"
        with pytest.raises(ValueError, match=told):
            again.fill("test_snr0", dataset, progressbar=False)
    same = noisy_sets(tests, NoiseFolder(musan), [0])["test_snr0"]
    FeatureCache(tmp_path / "cache", upstream).fill("test_snr0", same)
    # A cache that was there before noise was thought of stays as good.
    index = (tmp_path / "cache" / "test" / "index.json").read_text()
    assert not re.search("noise [0-9a-f]+ at", index)


def test_trials_are_those_of_the_same_utterances():
    trials = {"test": [Trial(True, "a", "b"), Trial(False, "a", "c")]}
    found = noisy_trials({**trials, "dev": []}, ["test"], [None, 2.5])
    assert found == {
        "test_clean": trials["test"],
        "test_snr2.5": [
            Trial(True, "a_snr2.5", "b_snr2.5"),
            Trial(False, "a_snr2.5", "c_snr2.5"),
        ],
    }
