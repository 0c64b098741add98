"""The exported folder: complete, readable, self-contained, whole or not."""

import shutil

import numpy as np
import pytest
import torch
import transformers
from ruamel.yaml import YAML

from speechbrain_ee.exits import Threshold
from speechbrain_ee.inference import EarlyExitASR
from tests.unit.inference.models import (
    HUGGING_FACE,
    SPEECHBRAIN,
    make_run,
    make_wavs,
)

CPU = {"device": "cpu"}


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "run")


def names(folder):
    return sorted(file.name for file in folder.iterdir())


def load(path):
    return YAML().load(path.read_text(encoding="utf-8"))


def test_the_folder_holds_what_inference_needs(run, tmp_path):
    folder = run.export(tmp_path / "model")
    assert names(folder) == [
        "encoder.ckpt",
        "exits.ckpt",
        "inference.yaml",
        "normalizer.ckpt",
        "tokenizer.model",
    ]


def test_the_runs_own_folder_can_be_written_to(run):
    run.export(run.folder)
    run.export(run.folder)
    assert "hyperparams.yaml" in names(run.folder)
    assert EarlyExitASR.from_hparams(run.folder, run_opts=CPU)


def test_the_yaml_says_no_more_than_the_model(run, tmp_path):
    text = (run.export(tmp_path / "model") / "inference.yaml").read_text()
    for word in ("ugment", "Spectrogram", "Counter", "results"):
        assert word not in text.split("without augmentation")[1]
    tree = load(tmp_path / "model" / "inference.yaml")
    assert list(tree) == [
        "sample_rate",
        "encoder",
        "exits",
        "modules",
        "tokenizer",
        "selector",
        "pretrained_path",
        "pretrainer",
    ]
    assert tree["encoder"]["transformer"]["num_encoder_layers"] == 4
    assert tree["exits"]["exit_layers"] == [1, 2, 4]
    assert tree["selector"] == "never"
    assert "# few" not in text
    assert text.startswith("# A speech recogniser with early exits")
    assert "encoder.ckpt, exits.ckpt, normalizer.ckpt, tokenizer.model" in text
    assert "set_depth(exit_layer=1)" in text
    assert max(map(len, text.splitlines())) <= 88


def test_what_is_shared_stays_shared(tmp_path):
    shared = SPEECHBRAIN.replace("strides: [2, 2]", "strides: !ref <steps>")
    shared += "\nsteps: [2, 2]\n"
    shared = shared.replace("residuals: [False, False]", "residuals: !ref <no>")
    shared = shared.replace("dim: 1", "dim: 1\nno: [False, False]")
    text = {}
    for name, template in {"one": SPEECHBRAIN, "two": shared}.items():
        run = make_run(tmp_path / name, template=template)
        folder = run.export(tmp_path / f"{name}_model")
        text[name] = (folder / "inference.yaml").read_text()
    # In both, pair is used twice; in the second, steps and no only once.
    assert text["one"] == text["two"]
    assert text["one"].count("&id001") == text["one"].count("*id001") == 1


def test_without_global_statistics_no_file_holds_them(tmp_path):
    run = make_run(tmp_path / "run", norm_type="sentence")
    run.export(tmp_path / "model")
    assert "normalizer.ckpt" not in names(tmp_path / "model")
    text = (tmp_path / "model" / "inference.yaml").read_text()
    assert "normalizer" not in text
    asr = EarlyExitASR.from_hparams(tmp_path / "model", run_opts=CPU)
    assert asr.transcribe_batch(*make_wavs())


def test_global_statistics_travel(run, tmp_path):
    run.export(tmp_path / "model")
    asr = EarlyExitASR.from_hparams(tmp_path / "model", run_opts=CPU)
    ours, theirs = asr.mods.normalizer, run.hparams["normalize"]
    assert ours.count == theirs.count > 0
    assert torch.equal(ours.glob_mean, theirs.glob_mean)
    assert torch.equal(ours.glob_std, theirs.glob_std)


def test_a_normaliser_that_has_seen_nothing_is_refused(run, tmp_path):
    run.hparams["normalize"].count = 0
    with pytest.raises(ValueError, match="statistics are empty"):
        run.export(tmp_path / "model")


@pytest.mark.parametrize("do_normalize", [False, True])
def test_a_pretrained_model_needs_its_source_no_more(tmp_path, do_normalize):
    source = tmp_path / "downloaded"
    config = transformers.Wav2Vec2Config(
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=24,
        conv_dim=[8] * 7,
        conv_bias=True,
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
    )
    transformers.AutoModel.from_config(config).save_pretrained(source)
    transformers.Wav2Vec2FeatureExtractor(
        do_normalize=do_normalize
    ).save_pretrained(source)
    head, tail = HUGGING_FACE.split("    config:\n")
    template = head + "\nexits:" + tail.split("\nexits:")[1]
    run = make_run(
        tmp_path / "run", str(source), template=template, pretrained=True
    )
    run.export(tmp_path / "model")
    shutil.rmtree(source)
    text = (tmp_path / "model" / "inference.yaml").read_text()
    assert str(tmp_path) not in text and "save_path" not in text
    node = load(tmp_path / "model" / "inference.yaml")["encoder"]
    assert node["source"] == "wav2vec2"
    assert node["normalize_wav"] is do_normalize
    assert node["config"]["conv_bias"] is True

    asr = EarlyExitASR.from_hparams(tmp_path / "model", run_opts=CPU)
    wavs, wav_lens = make_wavs()
    ours, _ = asr.mods.encoder(1 + wavs, wav_lens)
    theirs, _ = run.modules[0](1 + wavs, wav_lens)
    assert all(map(torch.equal, ours, theirs))


def test_the_yaml_says_in_numbers_what_was_asked_of_the_encoder(tmp_path):
    template = HUGGING_FACE.replace("input_size: 16", "input_size: !ref <size>")
    template = template.replace("<size>", "<encoder.output_size>")
    template = template.replace(
        "    config:\n        num_hidden_layers: !ref <num_layers>",
        "    num_layers: !ref <num_layers>\n    apply_spec_augment: True\n"
        "    config:",
    )
    run = make_run(tmp_path / "run", "wav2vec2", template=template)
    run.export(tmp_path / "model")
    tree = load(tmp_path / "model" / "inference.yaml")
    assert tree["exits"]["input_size"] == 16
    assert tree["encoder"]["config"]["num_hidden_layers"] == 4
    assert {"num_layers", "apply_spec_augment"}.isdisjoint(tree["encoder"])
    asr = EarlyExitASR.from_hparams(tmp_path / "model", run_opts=CPU)
    assert asr.mods.encoder.num_layers == 4


def test_the_name_on_the_hub_is_kept_as_a_comment(tmp_path):
    run = make_run(tmp_path / "run", "hubert")
    text = run.hparams_file.read_text()
    run.hparams_file.write_text(
        text.replace("source: hubert", "source: somebody/hubert-large")
    )
    text = (run.export(tmp_path / "model") / "inference.yaml").read_text()
    assert "source: hubert  # was somebody/hubert-large" in text


# --- selectors ------------------------------------------------------------


@pytest.mark.parametrize(
    "selector",
    [
        "never",
        {"selector": "patience", "patience": 2},
        {"selector": "threshold", "score": "margin", "threshold": {2: 0.5}},
        {"selector": "threshold", "score": "margin", "threshold": [1, 2, 0.5]},
        {"selector": "max_macs", "max_macs": 3e6},
    ],
)
def test_a_selector_travels(run, tmp_path, selector):
    run.export(tmp_path / "model", selector=selector)
    asr = EarlyExitASR.from_hparams(tmp_path / "model", run_opts=CPU)
    assert asr.hparams.selector == selector
    assert len(asr.transcribe_batch(*make_wavs())) == 4


def test_numbers_of_numpy_become_plain_ones(run, tmp_path):
    selector = {
        "selector": "threshold",
        "score": "entropy",
        "threshold": {np.int64(2): np.float64(0.25), 4: np.float32(0.5)},
    }
    run.export(tmp_path / "model", selector=selector)
    tree = load(tmp_path / "model" / "inference.yaml")
    assert tree["selector"]["threshold"] == {2: 0.25, 4: 0.5}


@pytest.mark.parametrize(
    ("selector", "fault"),
    [
        (Threshold("entropy", 0.1), "cannot be written into inference.yaml"),
        ("sometimes", "unknown selector 'sometimes'"),
        ({"selector": "fixed", "layer": 3}, "no exit after layer 3"),
        ({"selector": "fixed", "depth": 2}, "selector: .*depth"),
        ({"selector": "threshold", "score": "entropy"}, "threshold"),
    ],
)
def test_selectors_that_could_not_be_used_are_refused(
    run, tmp_path, selector, fault
):
    with pytest.raises(ValueError, match=fault):
        run.export(tmp_path / "model", selector=selector)
    assert not (tmp_path / "model").exists()


# --- bad YAMLs, and writes that fail --------------------------------------


@pytest.mark.parametrize("key", ["encoder", "exits", "sample_rate"])
def test_a_yaml_that_lacks_something_is_named(run, tmp_path, key):
    text = run.hparams_file.read_text()
    run.hparams_file.write_text(text.replace(f"\n{key}:", "\nother:"))
    with pytest.raises(ValueError, match=f"hyperparams.yaml has no {key}"):
        run.export(tmp_path / "model")


def test_arguments_without_names_are_refused(run, tmp_path):
    text = run.hparams_file.read_text()
    start, end = text.index("\nexits:"), text.index("\nepoch_counter:")
    run.hparams_file.write_text(
        f"{text[:start]}\nexits: !new:speechbrain_ee.heads.CTCHeads\n"
        f"    - [1, 2, 4]\n    - 16\n    - 12\n{text[end:]}"
    )
    with pytest.raises(ValueError, match="arguments of exits by name"):
        run.export(tmp_path / "model")


def test_a_write_that_fails_leaves_the_old_model_whole(
    run, tmp_path, monkeypatch
):
    folder = run.export(tmp_path / "model")
    before = {file: file.read_bytes() for file in folder.iterdir()}
    save, saved = torch.save, []

    def fail_at_the_second(content, file):
        if saved:
            raise OSError("No space left on device")
        saved.append(file)
        save(content, file)

    monkeypatch.setattr(torch, "save", fail_at_the_second)
    torch.nn.init.zeros_(run.modules[1].linear["1"].weight)
    with pytest.raises(OSError, match="No space left"):
        run.export(folder, selector={"selector": "fixed", "layer": 1})
    assert {file: file.read_bytes() for file in folder.iterdir()} == before


def test_the_yaml_is_put_in_place_last(run, tmp_path, monkeypatch):
    import os

    replace, order = os.replace, []

    def note(source, target):
        order.append(target.name)
        replace(source, target)

    monkeypatch.setattr(os, "replace", note)
    run.export(tmp_path / "model")
    assert order[-1] == "inference.yaml"
    assert set(order[:2]) <= {"encoder.ckpt", "exits.ckpt", "normalizer.ckpt"}
    assert len(order) == 5


def test_a_missing_tokenizer_is_named(run, tmp_path):
    run.tokenizer_model.unlink()
    with pytest.raises(FileNotFoundError, match="char.model"):
        run.export(tmp_path / "model")
    assert names(tmp_path / "model") == []
