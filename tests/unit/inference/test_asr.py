"""EarlyExitASR: same answers as the loop, knobs, audio files, bad input."""

import math
import os
import pickle
import shutil

import pytest
import soundfile
import torch
from speechbrain.utils.fetching import FetchFrom, FetchSource

from speechbrain_ee.analysis.calibration import write_rule
from speechbrain_ee.exits import Threshold, get_score
from speechbrain_ee.inference import EarlyExitASR
from speechbrain_ee.runtime import EarlyExitLoop
from tests.unit.inference.models import (
    KINDS,
    make_run,
    make_wavs,
    read_exits,
)

CPU = {"device": "cpu"}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("asr")
    return make_run(folder / "run").export(folder / "model")


@pytest.fixture(scope="module")
def loaded(exported):
    return EarlyExitASR.from_hparams(exported, run_opts=CPU)


@pytest.fixture
def asr(loaded):
    loaded.set_depth()
    return loaded


@pytest.fixture
def write(tmp_path):
    """Writes the same sound as an audio file of any kind."""

    def write(name="a.wav", seconds=0.5, rate=16000, channels=1, **settings):
        time = torch.arange(int(seconds * rate)) / rate
        sound = 0.4 * torch.sin(2000 * time + 300 * time**2)
        sides = [sound * (i + 1) for i in range(channels)]
        path = tmp_path / name
        soundfile.write(path, torch.stack(sides, 1).numpy(), rate, **settings)
        return path

    return write


def middling(scores):
    """A value that splits the utterances."""
    ordered = sorted(scores)
    return (ordered[len(ordered) // 2 - 1] + ordered[len(ordered) // 2]) / 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_moved_folder_transcribes_as_the_loop_on_the_trained_modules(
    tmp_path, monkeypatch, kind
):
    run = make_run(tmp_path / "run", kind)
    wavs, wav_lens = make_wavs()
    outputs = read_exits(*run.modules, wavs, wav_lens)
    entropies = get_score("entropy")(outputs[1]).tolist()
    selector = {
        "selector": "threshold",
        "score": "entropy",
        "threshold": middling(entropies),
    }
    run.export(tmp_path / "model", selector=selector)
    shutil.rmtree(run.folder)
    moved = tmp_path / "moved #1 to käse" / "(model)"
    moved.parent.mkdir()
    shutil.move(tmp_path / "model", moved)
    monkeypatch.chdir(moved.parent)
    asr = EarlyExitASR.from_hparams("(model)", run_opts=CPU)

    found = asr.transcribe_batch(wavs, wav_lens)
    left = EarlyExitLoop(*run.modules, selector)(wavs, wav_lens)
    assert [one.exit_layer for one in found] == left.exit_layer.tolist()
    assert len(set(left.exit_layer.tolist())) > 1
    assert [one.text for one in found] == asr.decode(left.hypotheses)
    assert any(one.text for one in found)
    assert [one.layers_run for one in found] == left.layers_run.tolist()
    assert [one.macs for one in found] == left.macs.tolist()
    assert [one.duration for one in found] == [1.0, 0.5625, 0.75, 0.3125]
    assert all(one.seconds > 0 for one in found)
    for i, one in enumerate(found):
        score = get_score("entropy")(outputs[one.exit_layer])[i].item()
        assert one.score == pytest.approx(score, abs=1e-5)


@pytest.mark.parametrize("score", ["kl_to_previous", "state_similarity"])
def test_scores_that_look_back_are_told_too(asr, score):
    wavs, wav_lens = make_wavs()
    asr.set_depth({"selector": "threshold", "score": score, "threshold": {}})
    values = [one.score for one in asr.transcribe_batch(wavs, wav_lens)]
    assert all(math.isfinite(value) for value in values)
    assert len(set(values)) == len(values)


def test_the_score_is_computed_only_where_an_utterance_leaves(asr):
    asked = []

    def spy(output):
        asked.append((output.exit_layer, len(output)))
        return get_score("entropy")(output)

    class Spy(Threshold):
        def __init__(self):
            super().__init__("entropy", 0)
            self.scores = [spy]
            spy.previous = 0

        def __call__(self, output):
            # the first at exit 1, the second at exit 2
            leave = torch.zeros(len(output), dtype=torch.bool)
            leave[0] = True
            return leave

    asr.set_depth(Spy())
    asr.transcribe_batch(*make_wavs())
    assert asked == [(1, 1), (2, 1), (4, 2)]


def test_forward_is_transcription(asr):
    wavs, _ = make_wavs((8000, 8000))
    texts = [one.text for one in asr.transcribe_batch(wavs)]
    assert [one.text for one in asr(wavs)] == texts


def test_labels_that_the_tokenizer_does_not_know_are_left_out(asr):
    assert asr.decode([(3, 11, 3), (10,), ()])[1:] == ["", ""]
    assert asr.decode([(3, 11, 3)]) == asr.decode([(3, 3)]) != [""]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_precision_is_that_of_the_run_options(exported, precision):
    asr = EarlyExitASR.from_hparams(
        exported, run_opts={**CPU, "precision": precision}
    )
    dtypes = []
    asr.mods.encoder.layers[0].register_forward_hook(
        lambda *_: dtypes.append(torch.is_autocast_enabled("cpu"))
    )
    assert asr.transcribe_batch(*make_wavs())
    assert dtypes == [precision == "bf16"]


# --- the knob -------------------------------------------------------------


def exits_taken(asr):
    return [one.exit_layer for one in asr.transcribe_batch(*make_wavs())]


@pytest.mark.parametrize(
    ("knob", "taken"),
    [
        ({}, 4),
        ({"exit_layer": 2}, 2),
        ({"max_layers": 3}, 2),
        ({"selector": "never"}, 4),
        ({"selector": {"selector": "fixed", "layer": 1}}, 1),
        ({"selector": Threshold("entropy", 99.0)}, 1),
        ({"selector": Threshold("entropy", 0.0), "max_layers": 2}, 2),
    ],
)
def test_depth_is_set_at_loading_or_later(exported, asr, knob, taken):
    loaded = EarlyExitASR.from_hparams(exported, run_opts=CPU, **knob)
    asr.set_depth(**knob)
    assert exits_taken(loaded) == exits_taken(asr) == [taken] * 4


def test_depth_goes_back_to_what_the_yaml_says(tmp_path):
    run = make_run(tmp_path / "run")
    run.export(tmp_path / "model", selector={"selector": "fixed", "layer": 2})
    asr = EarlyExitASR.from_hparams(
        tmp_path / "model", exit_layer=1, run_opts=CPU
    )
    assert exits_taken(asr) == [1] * 4
    asr.set_depth()
    assert exits_taken(asr) == [2] * 4
    asr.set_depth(max_layers=1)
    assert exits_taken(asr) == [1] * 4


def test_a_selector_without_a_score_leaves_the_score_empty(asr):
    scores = [one.score for one in asr.transcribe_batch(*make_wavs())]
    assert scores == [None] * 4


def calibrated(path, exit_layers=(1, 2, 4), **options):
    """A file as ``speechbrain-ee calibrate`` writes it; all leave at exit 2."""
    rule = {
        "selector": "threshold",
        "score": get_score("entropy", **options).definition,
        "threshold": {2: math.inf},
        "calibration": {"exit_layers": list(exit_layers)},
    }
    write_rule(path, "mine", rule)
    return path


def test_calibrated_thresholds_are_read_from_their_file(exported, tmp_path):
    file = calibrated(tmp_path / "thresholds.yaml")
    asr = EarlyExitASR.from_hparams(exported, run_opts=CPU, selector=file)
    assert exits_taken(asr) == [2] * 4
    asr.set_depth(str(file), max_layers=1)
    assert exits_taken(asr) == [1] * 4


def test_thresholds_made_for_another_model_are_refused(tmp_path):
    own = {"selector": "threshold", "score": "entropy", "threshold": 0.1}
    model = make_run(tmp_path / "run").export(tmp_path / "m", selector=own)
    asr = EarlyExitASR.from_hparams(model, run_opts=CPU)
    before = exits_taken(asr)
    other = calibrated(tmp_path / "exits.yaml", [2, 4])
    with pytest.raises(ValueError, match=r"made for exits \[2, 4\], not for"):
        asr.set_depth(other)
    other = calibrated(tmp_path / "score.yaml", normalization="unit")
    with pytest.raises(ValueError, match="'unit'.*here that is .*'nats'"):
        asr.set_depth(other)
    assert exits_taken(asr) == before


def test_calibrated_thresholds_go_with_the_exported_model(tmp_path):
    file = calibrated(tmp_path / "thresholds.yaml")
    run = make_run(tmp_path / "run")
    model = run.export(tmp_path / "model", selector=str(file))
    file.unlink()
    asr = EarlyExitASR.from_hparams(model, run_opts=CPU)
    assert exits_taken(asr) == [2] * 4


@pytest.mark.parametrize(
    ("knob", "fault"),
    [
        ({"exit_layer": 2, "selector": "never"}, "exit_layer lets all"),
        ({"exit_layer": 2, "max_layers": 2}, "exit_layer lets all"),
        ({"exit_layer": 3}, r"no exit after layer 3; exits are \[1, 2, 4\]"),
        ({"max_layers": 0}, "no exit within 0 layers"),
        ({"selector": "entropy"}, "unknown selector 'entropy'"),
    ],
)
def test_depths_that_make_no_sense_are_refused_and_change_nothing(
    asr, knob, fault
):
    with pytest.raises(ValueError, match=fault):
        asr.set_depth(**knob)
    assert exits_taken(asr) == [4] * 4


# --- audio files ----------------------------------------------------------


def test_a_file_is_transcribed_as_its_samples_are(asr, write):
    path = write()
    wav = torch.from_numpy(soundfile.read(path, dtype="float32")[0])
    found, expected = asr.transcribe_file(path), asr.transcribe_batch(wav[None])
    assert found.text == expected[0].text
    assert found.duration == 0.5


def test_stereo_is_mixed_down(asr, write):
    heard = {}
    for channels in (1, 2):
        path = write(f"{channels}.flac", channels=channels)
        heard[channels] = asr._load(str(path))
    assert heard[2].shape == (8000,)
    assert torch.allclose(heard[2], 1.5 * heard[1], atol=1e-3)
    assert asr.transcribe_file(path).duration == 0.5


@pytest.mark.parametrize("rate", [8000, 22050, 44100])
def test_other_sample_rates_are_resampled(asr, write, rate):
    native, other = write("a.wav"), write("b.wav", rate=rate)
    heard = asr._load(str(other))
    expected = asr._load(str(native))
    assert len(heard) == 8000
    middle = slice(500, 7500)  # filters start and end in silence
    assert torch.allclose(heard[middle], expected[middle], atol=0.02)
    assert asr.transcribe_file(other).duration == 0.5


def test_files_come_back_in_their_order_and_as_each_alone(asr, write):
    seconds = {"b": 0.3, "a": 1.0, "d": 0.4, "c": 0.7, "e": 0.6}
    paths = [write(f"{k}.wav", seconds=v) for k, v in seconds.items()]
    alone = [asr.transcribe_file(path) for path in paths]
    for batch_size in (1, 2, 8):
        together = asr.transcribe_files(
            [*paths, str(paths[0])], batch_size=batch_size
        )
        assert together[-1] == together[0]
        for one, other in zip(together[:-1], alone, strict=True):
            assert (one.text, one.macs) == (other.text, other.macs)
        durations = [one.duration for one in together[:-1]]
        assert durations == list(seconds.values())


def test_no_files_give_no_transcripts(asr):
    assert asr.transcribe_files([]) == []


def test_a_batch_of_none_is_refused(asr, write):
    with pytest.raises(ValueError, match="batch_size: 0"):
        asr.transcribe_files([write()], batch_size=0)


def test_a_missing_file_is_named_before_any_is_transcribed(
    asr, write, monkeypatch
):
    monkeypatch.setattr(asr, "loop", None)  # would fail
    with pytest.raises(FileNotFoundError, match="nowhere.wav: there is no"):
        asr.transcribe_files([write(), "nowhere.wav"])


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", r"a.wav is empty \(0 bytes\)"),
        (b"ONE TWO THREE" * 99, "a.wav cannot be read as audio"),
    ],
)
def test_files_that_are_no_audio_are_named(asr, tmp_path, content, fault):
    (tmp_path / "a.wav").write_bytes(content)
    with pytest.raises(ValueError, match=fault):
        asr.transcribe_file(tmp_path / "a.wav")


def test_a_file_cut_off_in_its_data_is_named(asr, write):
    path = write("a.flac", seconds=2)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match="a.flac cannot be read as audio"):
        asr.transcribe_file(path)


def test_a_file_without_samples_is_named(asr, write):
    with pytest.raises(ValueError, match="a.wav holds no samples"):
        asr.transcribe_file(write(seconds=0))


def test_a_file_too_short_for_the_encoder_is_named(asr, write):
    with pytest.raises(ValueError, match="a.wav is too short: 80 samples"):
        asr.transcribe_file(write(seconds=0.005))


def test_a_long_file_is_refused_by_its_header(exported, write, monkeypatch):
    asr = EarlyExitASR.from_hparams(exported, max_seconds=1.5, run_opts=CPU)
    path = write(seconds=2)
    loaded = asr.transcribe_file(write("b.wav", seconds=1.5))
    assert loaded.duration == 1.5
    monkeypatch.setattr(asr, "load_audio", None)  # would fail
    with pytest.raises(ValueError, match="lasts 2 s, more than max_seconds"):
        asr.transcribe_file(path)


def test_two_minutes_are_the_limit_by_default(asr, write):
    path = write(seconds=121, rate=100)
    with pytest.raises(ValueError, match="121 s, more than max_seconds: 120"):
        asr.transcribe_file(path)


@pytest.mark.parametrize("kind", ["conformer", "wavlm"])
@pytest.mark.parametrize("score", ["entropy", "hypothesis_posterior"])
def test_nan_and_silence_hurt_nobody(tmp_path, kind, score):
    run = make_run(tmp_path / "run", kind).export(tmp_path / "model")
    asr = EarlyExitASR.from_hparams(
        run,
        selector={"selector": "threshold", "score": score, "threshold": 0.5},
        run_opts=CPU,
    )
    wavs, wav_lens = make_wavs()
    clean = asr.transcribe_batch(wavs, wav_lens)
    wavs[0, 100:200] = math.nan
    wavs[2] = 0
    found = asr.transcribe_batch(wavs, wav_lens)
    assert math.isnan(found[0].score) and found[0].exit_layer == 4
    assert found[0].text == ""
    assert math.isfinite(found[2].score)
    for row in (1, 3):
        assert found[row].text == clean[row].text
        assert found[row].score == pytest.approx(clean[row].score, abs=1e-5)


# --- loading --------------------------------------------------------------


def copy_of(exported, tmp_path):
    return shutil.copytree(exported, tmp_path / "copy")


class Hostile:
    """Makes a folder when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("file", ["encoder", "exits", "normalizer"])
@pytest.mark.parametrize("save", ["pickle", "torch"])
@pytest.mark.parametrize("forced", ["0", "1"])
def test_a_hostile_file_is_named_and_runs_nothing(
    exported, tmp_path, monkeypatch, file, save, forced
):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", forced)
    model = copy_of(exported, tmp_path)
    path, mark = model / f"{file}.ckpt", tmp_path / "mark"
    content = {"weight": Hostile(mark)}
    if save == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(ValueError, match=f"{file}.ckpt was not loaded.*trust"):
        EarlyExitASR.from_hparams(model, run_opts=CPU)
    assert not mark.exists()
    if save == "torch":
        torch.load(path, weights_only=False)
    else:
        pickle.loads(path.read_bytes())
    assert mark.exists()  # so it was hostile


@pytest.mark.parametrize("file", ["encoder.ckpt", "normalizer.ckpt"])
@pytest.mark.parametrize("size", [0, 100, 3000])
def test_a_damaged_file_is_named(exported, tmp_path, file, size):
    model = copy_of(exported, tmp_path)
    content = (model / file).read_bytes()
    (model / file).write_bytes(content[: min(size, len(content) - 100)])
    with pytest.raises(ValueError, match=f"{file} was not loaded"):
        EarlyExitASR.from_hparams(model, run_opts=CPU)


@pytest.mark.parametrize("size", [0, 100])
def test_a_damaged_tokenizer_is_named(exported, tmp_path, size):
    model = copy_of(exported, tmp_path)
    path = model / "tokenizer.model"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match="tokenizer.model is no Sentence"):
        EarlyExitASR.from_hparams(model, run_opts=CPU)


@pytest.mark.parametrize(
    "file", ["encoder.ckpt", "normalizer.ckpt", "tokenizer.model"]
)
def test_a_missing_file_of_the_model_is_named(exported, tmp_path, file):
    model = copy_of(exported, tmp_path)
    (model / file).unlink()
    with pytest.raises(OSError, match=file):
        EarlyExitASR.from_hparams(model, run_opts=CPU)


def test_weights_of_another_model_are_refused(exported, tmp_path):
    model = copy_of(exported, tmp_path)
    weights = torch.load(model / "encoder.ckpt")
    weights.pop("transformer.encoder.norm.norm.weight")
    torch.save(weights, model / "encoder.ckpt")
    with pytest.raises(ValueError, match="encoder.ckpt holds another model"):
        EarlyExitASR.from_hparams(model, run_opts=CPU)


def test_statistics_that_are_none_are_refused(exported, tmp_path):
    model = copy_of(exported, tmp_path)
    torch.save({"mean": torch.zeros(2)}, model / "normalizer.ckpt")
    with pytest.raises(ValueError, match="normalizer.ckpt holds no statistics"):
        EarlyExitASR.from_hparams(model, run_opts=CPU)


def test_a_folder_without_a_model_says_what_to_give(tmp_path):
    with pytest.raises(FileNotFoundError, match="has no inference.yaml"):
        EarlyExitASR.from_hparams(tmp_path)


@pytest.mark.parametrize("source", ["/no/such/model", "./model", "model"])
def test_a_source_that_is_not_there_says_what_to_give(source):
    with pytest.raises(FileNotFoundError, match="no folder here, nor a Hub"):
        EarlyExitASR.from_hparams(source)


def test_a_hub_name_that_cannot_be_reached_says_so(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match="the Hub did not give it"):
        EarlyExitASR.from_hparams("nobody/no-such-model")


def test_a_local_fetch_source_and_a_savedir_work(exported, tmp_path):
    asr = EarlyExitASR.from_hparams(
        FetchSource(FetchFrom.LOCAL, str(exported)),
        savedir=tmp_path / "links",
        run_opts=CPU,
    )
    assert asr.transcribe_batch(*make_wavs())
    assert (tmp_path / "links" / "encoder.ckpt").is_symlink()


def test_the_normaliser_moves_with_the_model(asr):
    assert asr.mods.normalizer is asr.mods.encoder.normalize
