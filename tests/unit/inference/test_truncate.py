"""Truncated models: smaller, and the same at the exit where they end."""

import itertools

import pytest
import torch
from ruamel.yaml import YAML

from speechbrain_ee.inference import EarlyExitASR, truncate_model
from tests.unit.inference.models import (
    KINDS,
    make_run,
    make_wavs,
    read_exits,
)

CPU = {"device": "cpu"}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("truncate")
    return make_run(folder / "run").export(folder / "model")


def load(folder):
    return EarlyExitASR.from_hparams(folder, run_opts=CPU)


def exits_of(asr):
    return read_exits(asr.mods.encoder, asr.mods.exits, *make_wavs())


def assert_same_at(exit_layer, asr, other):
    ours, theirs = exits_of(asr)[exit_layer], exits_of(other)[exit_layer]
    assert torch.equal(ours.log_probs, theirs.log_probs)
    assert ours.hypotheses == theirs.hypotheses


@pytest.mark.parametrize(
    ("kind", "exit_norm", "tied", "exit_layer"),
    [
        *itertools.product(
            ["conformer", "wavlm"],
            ["shared", "own", "none"],
            [False, True],
            [2],
        ),
        ("conformer", "own", False, 1),
        ("conformer", "none", False, 4),
        ("wavlm", "none", True, 1),
        ("wavlm", "own", True, 4),
    ],
)
def test_each_exit_says_what_it_said(
    tmp_path, kind, exit_norm, tied, exit_layer
):
    run = make_run(tmp_path / "run", kind, exit_norm=exit_norm, tied=tied)
    run.export(tmp_path / "model")
    truncate_model(tmp_path / "model", exit_layer, tmp_path / "cut")
    whole, cut = load(tmp_path / "model"), load(tmp_path / "cut")
    kept = [k for k in (1, 2, 4) if k <= exit_layer]
    assert cut.mods.exits.exit_layers == kept
    assert cut.mods.encoder.num_layers == exit_layer
    for k in kept:
        assert_same_at(k, whole, cut)
    wavs, wav_lens = make_wavs()
    whole.set_depth(exit_layer=exit_layer)
    texts = [one.text for one in whole.transcribe_batch(wavs, wav_lens)]
    found = cut.transcribe_batch(wavs, wav_lens)
    assert [one.text for one in found] == texts
    assert {one.exit_layer for one in found} == {exit_layer}


@pytest.mark.parametrize("kind", KINDS)
def test_what_lies_behind_the_exit_is_gone(tmp_path, kind):
    make_run(tmp_path / "run", kind).export(tmp_path / "model")
    cut = truncate_model(tmp_path / "model", 2, tmp_path / "cut")
    whole, asr = load(tmp_path / "model"), load(tmp_path / "cut")
    encoder, exits = (
        torch.load(tmp_path / "cut" / f"{name}.ckpt")
        for name in ("encoder", "exits")
    )
    assert not any(".layers.2." in key for key in encoder)
    assert any(".layers.1." in key for key in encoder)
    assert {key.split(".")[1] for key in exits} == {"1", "2"}
    layer = whole.mods.encoder.layers[3]
    gone = 2 * sum(p.numel() for p in layer.parameters())
    gone += sum(p.numel() for p in whole.mods.exits.linear["4"].parameters())
    assert cut.parameters_before - cut.parameters_after == gone
    counts = [sum(p.numel() for p in m.parameters()) for m in (whole, asr)]
    assert counts == [cut.parameters_before, cut.parameters_after]
    sizes = [
        sum(file.stat().st_size for file in (tmp_path / name).iterdir())
        for name in ("model", "cut")
    ]
    assert sizes == [cut.bytes_before, cut.bytes_after]
    assert sizes[0] - sizes[1] >= 4 * gone


def test_layers_that_no_exit_reads_go_too(tmp_path):
    run = make_run(tmp_path / "run", exit_layers=[1, 3], exit_norm="none")
    run.export(tmp_path / "model")
    truncate_model(tmp_path / "model", 3, tmp_path / "cut")
    cut = load(tmp_path / "cut")
    assert cut.mods.encoder.num_layers == 3
    assert cut.mods.exits.normed_layers == [3]  # it was the last before
    assert_same_at(3, cut, load(tmp_path / "model"))


def test_a_truncated_model_can_be_truncated_again(tmp_path):
    run = make_run(tmp_path / "run", "hubert", exit_norm="own")
    run.export(tmp_path / "model")
    truncate_model(tmp_path / "model", 2, tmp_path / "cut")
    truncate_model(tmp_path / "cut", 2, tmp_path / "same")
    truncate_model(tmp_path / "cut", 1, tmp_path / "again")
    whole = load(tmp_path / "model")
    assert_same_at(2, whole, load(tmp_path / "same"))
    assert_same_at(1, whole, load(tmp_path / "again"))


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        ("never", "never"),
        (
            {"selector": "threshold", "score": "entropy", "threshold": 0.5},
            {"selector": "threshold", "score": "entropy", "threshold": 0.5},
        ),
        (
            {
                "selector": "threshold",
                "score": "entropy",
                "threshold": [0.1, 0.2, 0.3],
            },
            {
                "selector": "threshold",
                "score": "entropy",
                "threshold": [0.1, 0.2],
            },
        ),
        (
            {
                "selector": "threshold",
                "score": "entropy",
                "threshold": {1: 0.1, 4: 0.3},
            },
            {
                "selector": "threshold",
                "score": "entropy",
                "threshold": {1: 0.1},
            },
        ),
        ({"selector": "fixed", "layer": 4}, "never"),
        (
            {"selector": "fixed", "layer": 1},
            {"selector": "fixed", "layer": 1},
        ),
        (
            {"selector": "max_layers", "max_layers": 4},
            {"selector": "max_layers", "max_layers": 4},
        ),
    ],
)
def test_the_selector_forgets_exits_that_are_gone(tmp_path, selector, expected):
    run = make_run(tmp_path / "run")
    run.export(tmp_path / "model", selector=selector)
    truncate_model(tmp_path / "model", 2, tmp_path / "cut")
    asr = load(tmp_path / "cut")
    assert asr.hparams.selector == expected
    assert len(asr.transcribe_batch(*make_wavs())) == 4


def test_a_selector_that_cannot_be_cut_is_refused_before_writing(tmp_path):
    run = make_run(tmp_path / "run")
    selector = {"selector": "random", "mean_exit_layer": 3.0}
    run.export(tmp_path / "model", selector=selector)
    with pytest.raises(
        ValueError, match=r"random.*cannot be used with exits \[1, 2\]"
    ):
        truncate_model(tmp_path / "model", 2, tmp_path / "cut")
    assert not (tmp_path / "cut").exists()


def test_the_header_and_the_rest_of_the_yaml_stay(exported, tmp_path):
    truncate_model(exported, 2, tmp_path / "cut")
    before, after = (
        (folder / "inference.yaml").read_text().splitlines()
        for folder in (exported, tmp_path / "cut")
    )
    changed = [(a, b) for a, b in zip(before, after, strict=True) if a != b]
    assert [b.strip() for _, b in changed] == [
        "num_encoder_layers: 2",
        "exit_layers: [1, 2]",
    ]
    YAML().load(tmp_path / "cut" / "inference.yaml")


def test_an_exit_that_is_none_is_refused(exported, tmp_path):
    with pytest.raises(ValueError, match=r"no exit after layer 3.*\[1, 2, 4\]"):
        truncate_model(exported, 3, tmp_path / "cut")
    assert not (tmp_path / "cut").exists()


def test_a_folder_with_files_is_refused(exported, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="is not empty"):
        truncate_model(exported, 2, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


def test_an_empty_folder_is_taken(exported, tmp_path):
    truncate_model(exported, 2, tmp_path)
    assert load(tmp_path).mods.exits.exit_layers == [1, 2]


def test_a_source_without_a_model_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="has no inference.yaml"):
        truncate_model(tmp_path, 2, tmp_path / "cut")
