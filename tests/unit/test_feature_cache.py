"""What a cache gives is what the upstream computes, or nothing."""

import errno
import os
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from speechbrain.dataio.dataio import read_audio
from speechbrain.dataio.dataset import DynamicItemDataset

from speechbrain_ee import feature_cache
from speechbrain_ee.encoders import FilterbankEncoder
from speechbrain_ee.encoders.huggingface import HuggingFaceEncoder
from speechbrain_ee.feature_cache import FeatureCache
from tests.unit.encoders.backbones import SMALL

LENGTHS = {"a": 8000, "b": 16037, "c": 9000, "d": 5000}
READ = [{"func": read_audio, "takes": "wav", "provides": "sig"}]


def hubert():
    torch.manual_seed(0)
    return HuggingFaceEncoder("hubert", False, freeze=True, config=SMALL)


@pytest.fixture(params=["hubert", "fbank"])
def upstream(request):
    return hubert() if request.param == "hubert" else FilterbankEncoder()


@pytest.fixture
def dataset(tmp_path):
    return speech(tmp_path)


def speech(folder, seed=1, lengths=LENGTHS):
    generator = np.random.default_rng(seed)
    rows = {}
    for name, samples in lengths.items():
        path = folder / f"{name}.wav"
        soundfile.write(path, 0.1 * generator.standard_normal(samples), 16000)
        rows[name] = {"wav": str(path), "duration": samples / 16000}
    return DynamicItemDataset(rows, READ)


def computed(upstream, dataset, name):
    with torch.no_grad():
        return upstream(read_audio(dataset.data[name]["wav"])[None])


@pytest.mark.parametrize("batch_size", [1, 3])
def test_what_is_read_is_what_was_computed(
    upstream, dataset, tmp_path, batch_size
):
    cache = FeatureCache(tmp_path / "cache", upstream)
    cache.fill("train", dataset, batch_size, progressbar=False)
    ids = ["b", "d", "a"]
    states, frames = cache.read(ids)
    assert len(states) == upstream.num_layers + 1
    for row, name in enumerate(ids):
        expected, (count,) = computed(upstream, dataset, name)
        assert frames[row] == count
        for ours, theirs in zip(states, expected):
            assert ours[row, count:].eq(0).all()
            real = ours[row, :count]
            if batch_size == 1:
                assert torch.equal(real, theirs[0])
            else:
                assert (real - theirs[0]).abs().max() <= 1e-5


def test_float16_is_half_the_size_and_within_its_tolerance(
    upstream, dataset, tmp_path
):
    sizes = {}
    for dtype in ("float32", "float16"):
        cache = FeatureCache(tmp_path / dtype, upstream, dtype)
        cache.fill("train", dataset, progressbar=False)
        sizes[dtype] = (tmp_path / dtype / "train/features.bin").stat().st_size
    assert sizes["float32"] == 2 * sizes["float16"]
    states, _ = cache.read(["b"])
    for ours, theirs in zip(states, computed(upstream, dataset, "b")[0]):
        assert ours.dtype == torch.float32
        assert not torch.equal(ours, theirs)
        assert ((ours - theirs).abs() <= 2**-11 * theirs.abs() + 2**-25).all()


def test_a_value_too_large_for_float16_is_refused(dataset, tmp_path):
    upstream = hubert()
    upstream.layers[-1].final_layer_norm.weight.data.fill_(1e5)
    cache = FeatureCache(tmp_path / "cache", upstream, "float16")
    with pytest.raises(ValueError, match="a: a state of .* Take float32"):
        cache.fill("train", dataset, progressbar=False)


def test_pieces_of_recordings_have_states_of_their_own(tmp_path):
    whole = speech(tmp_path, lengths={"x": 32000})
    path = whole.data["x"]["wav"]

    def piece(wav, start, stop):
        return read_audio({"file": wav, "start": start, "stop": stop})

    takes = ["wav", "start", "stop"]
    rows = {
        "x1": {"wav": path, "start": 100, "stop": 9000},
        "x2": {"wav": path, "start": 9000, "stop": 31000},
    }
    pieces = DynamicItemDataset(
        rows, [{"func": piece, "takes": takes, "provides": "sig"}]
    )
    upstream = hubert()
    cache = FeatureCache(tmp_path / "cache", upstream)
    cache.fill("train", pieces, progressbar=False)
    states, frames = cache.read(["x2"])
    wav = read_audio(path)[None, 9000:31000]
    expected, count = upstream(wav)
    assert torch.equal(states[1], expected[1]) and torch.equal(frames, count)


class Killed(Exception):
    """Stands for a run that is killed."""


def fails_at(monkeypatch, call, error):
    """The nth waveform is not computed."""
    count = 0
    write = feature_cache._write_at

    def fail(file, offset, values):
        nonlocal count
        count += len(values) > 1
        if count == call and len(values) > 1:
            write(file, offset, values[: len(values) // 2])
            raise error
        write(file, offset, values)

    monkeypatch.setattr(feature_cache, "_write_at", fail)


def test_an_interrupted_run_goes_on_where_it_was(
    upstream, dataset, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        fails_at(patch, 3, Killed())
        with pytest.raises(Killed):
            FeatureCache(tmp_path / "c", upstream).fill("train", dataset)
    done = np.fromfile(tmp_path / "c/train/done.bin", np.uint8)
    assert done.tolist() == [1, 1, 0, 0]

    ran = []
    upstream.register_forward_pre_hook(lambda m, args: ran.append(len(args[0])))
    cache = FeatureCache(tmp_path / "c", upstream)
    ran.clear()  # of the probe
    with pytest.raises(KeyError, match="a is not in the cache"):
        cache.read(["a"])
    cache.fill("train", dataset, progressbar=False)
    assert len(ran) == 2
    for name in LENGTHS:
        (first, *_), _ = cache.read([name])
        assert torch.equal(first, computed(upstream, dataset, name)[0][0])
    cache.fill("train", dataset, progressbar=False)
    assert len(ran) == 2 + len(LENGTHS)  # nothing but what the test computed


def test_a_full_disk_ends_cleanly_and_nothing_half_written_is_read(
    upstream, dataset, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        fails_at(patch, 2, OSError(errno.ENOSPC, "No space left on device"))
        with pytest.raises(OSError, match="disk is full.*free some") as error:
            FeatureCache(tmp_path / "c", upstream).fill("train", dataset)
    assert error.value.errno == errno.ENOSPC
    cache = FeatureCache(tmp_path / "c", upstream)
    cache.fill("train", dataset, progressbar=False)
    for name in LENGTHS:
        (first, *_), _ = cache.read([name])
        assert torch.equal(first, computed(upstream, dataset, name)[0][0])


def test_what_does_not_fit_is_refused_before_it_is_computed(
    dataset, tmp_path, monkeypatch
):
    upstream = hubert()
    cache = FeatureCache(tmp_path / "c", upstream)
    usage = SimpleNamespace(free=1000)
    monkeypatch.setattr(feature_cache.shutil, "disk_usage", lambda _: usage)
    upstream.register_forward_hook(lambda *_: pytest.fail("computed"))
    with pytest.raises(OSError, match="0.000 GB free.*float16"):
        cache.fill("train", dataset)


def test_size_and_hours_are_told_first(dataset, tmp_path, caplog):
    upstream = hubert()
    cache = FeatureCache(tmp_path / "c", upstream)
    with caplog.at_level("INFO"):
        cache.fill("train", dataset, progressbar=False)
    size = (tmp_path / "c/train/features.bin").stat().st_size
    told = next(r.message for r in caplog.records if "Features of" in r.message)
    assert f"4 utterances, 0.00 h, {size / 1e9:.3f} GB in float32" in told


def refilled(folder, upstream, dataset, dtype="float32"):
    FeatureCache(folder, upstream, dtype).fill("train", dataset)


def test_another_upstream_is_refused(dataset, tmp_path):
    folder = tmp_path / "cache"
    refilled(folder, hubert(), dataset)
    refilled(folder, hubert(), dataset)  # the same
    other = hubert()
    other.model.encoder.layers[1].attention.k_proj.bias.data[0] += 1e-6
    with pytest.raises(ValueError, match="weights differ.*Delete this folder"):
        refilled(folder, other, dataset)
    other = hubert()
    other.normalize_wav = False
    with pytest.raises(ValueError, match="upstream's settings differ"):
        refilled(folder, other, dataset)
    with pytest.raises(ValueError, match="upstream's class differ"):
        refilled(folder, FilterbankEncoder(), dataset)
    with pytest.raises(ValueError, match="dtype was float32, now.*float16"):
        refilled(folder, hubert(), dataset, "float16")


def test_a_setting_of_filterbanks_is_noticed(dataset, tmp_path):
    refilled(tmp_path / "cache", FilterbankEncoder(), dataset)
    other = FilterbankEncoder(f_min=100)
    with pytest.raises(ValueError, match="upstream's settings differ"):
        refilled(tmp_path / "cache", other, dataset)


def test_other_data_is_refused(dataset, tmp_path):
    folder, upstream = tmp_path / "cache", FilterbankEncoder()
    refilled(folder, upstream, dataset)
    fewer = DynamicItemDataset(dict(list(dataset.data.items())[:3]), READ)
    with pytest.raises(ValueError, match="were 4 utterances, now there are 3"):
        refilled(folder, upstream, fewer)
    path = dataset.data["b"]["wav"]
    os.utime(path, ns=(0, 0))
    with pytest.raises(ValueError, match="modified of the utterance b was"):
        refilled(folder, upstream, dataset)
    soundfile.write(path, np.zeros(16000), 16000)
    with pytest.raises(
        ValueError, match="samples of the utterance b was 16037"
    ):
        refilled(folder, upstream, dataset)


def test_ids_are_of_one_utterance_only(dataset, tmp_path):
    (tmp_path / "other").mkdir()
    other = speech(tmp_path / "other", seed=2, lengths={"a": 8000})
    cache = FeatureCache(tmp_path / "cache", FilterbankEncoder())
    cache.fill("train", dataset, progressbar=False)
    cache.fill("same", dataset, progressbar=False)
    with pytest.raises(ValueError, match="test: a is the id of another"):
        cache.fill("test", other, progressbar=False)


def test_waveforms_that_are_not_their_files_are_refused(dataset, tmp_path):
    def crop(wav):
        return read_audio(wav)[:4000]

    data = dataset.data
    cropped = DynamicItemDataset(
        data, [{"func": crop, "takes": "wav", "provides": "sig"}]
    )
    cache = FeatureCache(tmp_path / "cache", FilterbankEncoder())
    with pytest.raises(ValueError, match="a: sig has 26 frames, and .* 51"):
        cache.fill("train", cropped, progressbar=False)


def test_an_utterance_too_short_is_named(tmp_path):
    short = speech(tmp_path, lengths={"a": 8000, "tiny": 100})
    with pytest.raises(ValueError, match="tiny has 100 samples.*min_duration"):
        FeatureCache(tmp_path / "cache", hubert()).fill("train", short)


@pytest.mark.parametrize("freeze", ["trained", "training"])
def test_an_upstream_that_is_trained_is_refused(freeze, tmp_path):
    upstream = HuggingFaceEncoder("hubert", False, config=SMALL)
    if freeze == "training":
        upstream.requires_grad_(False)
    else:
        upstream.eval()
    with pytest.raises(ValueError, match="cannot be cached.*freeze: True"):
        FeatureCache(tmp_path, upstream)


def test_an_unknown_dtype_is_refused(tmp_path):
    with pytest.raises(ValueError, match="'int8' is none of float32, float16"):
        FeatureCache(tmp_path, FilterbankEncoder(), "int8")
