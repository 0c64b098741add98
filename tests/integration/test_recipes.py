"""Every YAML of every recipe runs end to end on a small corpus.

The rows of ``tests/recipes/*.csv`` have the columns of SpeechBrain's own.
"""

import json
import re
import shutil
import sys
from inspect import signature
from operator import eq, ge, gt, le, lt

import pandas as pd
import pytest
import speechbrain as sb
import torch
import transformers
from hyperpyyaml import load_hyperpyyaml
from ruamel.yaml import YAML

from speechbrain_ee.encoders.huggingface import HuggingFaceEncoder
from speechbrain_ee.overrides import resolve_overrides
from tests.integration.recipes import (
    DEBUG,
    LM,
    PRETRAININGS,
    RECOGNISERS,
    ROOT,
    ROWS,
    SPLITS,
    check,
    flags,
    is_taught,
    missing_files,
    name,
    run,
    trains,
)


@pytest.mark.slow
@pytest.mark.parametrize("row", RECOGNISERS, ids=name)
def test_the_recipe_runs_from_end_to_end(row, request, tmp_path):
    if LM in row["test_debug_flags"]:
        request.getfixturevalue("language_model")
    if row == next(filter(trains, ROWS)):
        tmp_path, _ = request.getfixturevalue("trained")
    else:
        corpora = request.getfixturevalue("corpora")
        if is_taught(row):
            request.getfixturevalue("teacher")
        check(run(row, corpora, tmp_path, *(() if trains(row) else DEBUG)))
    assert missing_files(row, tmp_path) == []

    log = (tmp_path / "train_log.txt").read_text()
    settings = YAML().load(tmp_path / "hyperparams.yaml")
    layers = list(settings["exit_layers"])
    for layer in layers:
        assert f"valid WER_exit{layer}: " in log
    if trains(row):
        assert performance_is_met(row["test_debug_checks"], tmp_path)

    (measured,) = tmp_path.glob("loop_*test.csv")
    test = measured.stem.removeprefix("loop_")
    traces = pd.read_csv(tmp_path / f"traces_{test}.csv")
    assert traces["exit_layer"].unique().tolist() == layers
    if settings["gate"] is None:
        assert (traces["exit_layer"] == traces["layers_run"]).all()
    utterances = traces["id"].nunique()
    assert len(traces) == len(layers) * utterances
    assert utterances == SPLITS["test"] if trains(row) else utterances > 0
    assert traces[["entropy", "entropy_seconds"]].notna().all(axis=None)
    rising = traces.groupby("id")[["macs", "seconds"]]
    assert rising.apply(lambda t: (t.diff()[1:] > 0).all(axis=None)).all()

    loop = pd.read_csv(measured).set_index("selector")
    deepest = loop.loc["full_depth"]
    assert deepest["mean_exit_layer"] == layers[-1]
    last = traces[traces["exit_layer"] == layers[-1]]
    rate = 100 * last["errors"].sum() / last["ref_len"].sum()
    assert deepest["error_rate"] == pytest.approx(rate)
    report = (tmp_path / f"wer_{test}_exit{layers[-1]}.txt").read_text()
    assert report.startswith(f"%WER {rate:.2f}")

    curve = pd.read_csv(tmp_path / f"curve_{test}.csv")
    if settings["gate"] is not None:
        check_gates(tmp_path, settings, test, curve)
    fixed = curve[curve["selector"] == "fixed"]
    fixed = fixed[: len(layers)]  # behind them, a gate of that name
    assert fixed["threshold"].tolist() == layers
    assert fixed["error_rate"].iloc[-1] == pytest.approx(rate)


def check_gates(folder, settings, name, curve):
    """Traces tell which layers ran, and each gate is on the curve."""
    texts = {"id": str, "layers": str}
    traces = pd.read_csv(folder / f"traces_{name}.csv", dtype=texts)
    gates = pd.read_csv(folder / f"gates_{name}.csv", dtype=texts)
    for table in (traces, gates):
        assert (table["layers"].str.count("1") == table["layers_run"]).all()
        assert (table["layers"].str.len() == table["exit_layer"]).all()
    served = gates["gate"].isin(["random_n", "first_n", "greedy"])
    chosen = set(gates.loc[served, "target_layers"])
    if served.any():
        assert chosen == set(settings["target_layers"])
        target = gates.loc[served, "target_layers"]
        assert ((gates.loc[served, "layers_run"] - target).abs() < 1).all()
    for gate, part in gates.groupby("gate"):
        rows = curve[curve["selector"] == gate]
        assert {*part["target_layers"]} <= {*rows["threshold"]}
    for masks in folder.glob("masks_*.csv"):
        found = pd.read_csv(masks, dtype=texts)
        deepest = settings["exit_layers"][-1]
        assert found["layers_run"].tolist() == [*range(deepest, -1, -1)]


@pytest.mark.slow
def test_a_language_model_is_trained(language_model):
    row = next(row for row in ROWS if row["Task"] == "LM")
    assert missing_files(row, language_model) == []
    log = (language_model / "train_log.txt").read_text().splitlines()
    losses = [float(re.search(r"train loss: ([\d.e+]+)", x)[1]) for x in log]
    assert losses[-1] < losses[0]


@pytest.mark.slow
@pytest.mark.parametrize("row", PRETRAININGS, ids=name)
def test_a_hubert_is_pretrained(row, corpora, tmp_path):
    learns = "--number_of_epochs=" in row["test_debug_flags"]
    check(run(row, corpora, tmp_path, *(() if learns else DEBUG)))
    assert missing_files(row, tmp_path) == []
    model, report = transformers.HubertModel.from_pretrained(
        tmp_path / "hubert", output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    encoder = HuggingFaceEncoder(str(tmp_path / "hubert"), freeze=True)
    assert encoder.state_sizes == [32] * 3
    facts = json.loads((tmp_path / "hubert" / "pretraining.json").read_text())
    assert facts["clusters"] == 8 and facts["hours"] > 0
    if learns:
        assert facts["utterances"] == SPLITS["train"] + SPLITS["test"]
        log = (tmp_path / "train_log.txt").read_text()
        losses = [float(x) for x in re.findall(r"train loss: ([\d.e+-]+)", log)]
        assert len(losses) == 4 and losses[-1] < losses[0]


@pytest.mark.slow
def test_two_processes_pretrain_together(corpora, tmp_path):
    torchrun = (sys.executable, "-m", "torch.distributed.run")
    done = run(
        *(PRETRAININGS[0], corpora, tmp_path, *DEBUG),
        "--distributed_backend=gloo",
        launcher=(*torchrun, "--standalone", "--nproc_per_node=2"),
    )
    check(done)
    assert (tmp_path / "hubert" / "model.safetensors").is_file()


def performance_is_met(checks, output_folder):
    """The ``performance_check`` as SpeechBrain words it."""
    parts = re.search(r"performance_check=\[(.*?)\]", checks)[1].split(",")
    file, variable, limit, epoch = (part.strip() for part in parts)
    lines = (output_folder / file).read_text().splitlines()
    line = next(line for line in lines if f"{epoch}," in line)
    value = float(re.search(rf"{variable}: ([-+\d.e]+)", line)[1])
    sign, bound = re.fullmatch(r"([<>]=?|==)(.+)", limit).groups()
    holds = {"<": lt, "<=": le, ">": gt, ">=": ge, "==": eq}[sign]
    return holds(value, float(bound))


@pytest.mark.slow
def test_a_trained_run_can_be_evaluated_again(trained, corpora, tmp_path):
    folder, row = trained
    shutil.copytree(folder, tmp_path / "run")
    (tmp_path / "run" / "traces_test.csv").unlink()
    log = tmp_path / "run" / "train_log.txt"
    before = log.read_text()
    check(run(row, corpora, tmp_path / "run", "--test_only"))
    same = ["id", "exit_layer", "hyp", "errors", "entropy"]
    again = pd.read_csv(tmp_path / "run" / "traces_test.csv")[same]
    assert again.equals(pd.read_csv(folder / "traces_test.csv")[same])
    assert "train loss" not in log.read_text()[len(before) :]


# What cannot be downloaded here cannot run here.
BLOCKS = sorted((ROOT / "hparams").glob("*/*.yaml"))
PUBLIC = [block for block in BLOCKS if "source: " in block.read_text()]


@pytest.mark.parametrize("block", PUBLIC, ids=lambda b: b.stem)
def test_the_block_of_a_public_model_freezes_it(block):
    settings = YAML().load(block)
    assert settings.tag.value == (
        "!new:speechbrain_ee.encoders.huggingface.HuggingFaceEncoder"
    )
    assert settings.keys() <= signature(HuggingFaceEncoder).parameters.keys()
    assert re.fullmatch(r"[\w-]+/[\w.-]+", settings["source"])
    assert settings["freeze"] is True


@pytest.mark.parametrize(
    "block", [x for x in BLOCKS if x not in PUBLIC], ids=lambda b: b.stem
)
def test_every_block_is_used_by_a_run(block):
    singular = block.parent.name.removesuffix("s")
    used = [
        f"--{key}={block.stem}"
        for key in (block.parent.name, singular)
        for row in ROWS
        if f"--{key}={block.stem}" in flags(row)
    ]
    assert used


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ctc", "aed"])
def test_two_processes_train_together(kind, corpora, tmp_path):
    small = next(
        row
        for row in ROWS
        if name(row) == f"conformer_{kind}_ee_small"
        and LM not in row["test_debug_flags"]
    )
    torchrun = (sys.executable, "-m", "torch.distributed.run")
    done = run(
        *(small, corpora, tmp_path, *DEBUG, "--distributed_backend=gloo"),
        launcher=(*torchrun, "--standalone", "--nproc_per_node=2"),
    )
    check(done)
    loop = pd.read_csv(tmp_path / "loop_test.csv")
    assert loop["selector"][0] == "full_depth"


@pytest.mark.parametrize(
    ("hparam_file", "millions"),
    [
        ("LibriSpeech/hparams/conformer_ctc_ee.yaml", 31.47),  # paper: 31.0
        ("LibriSpeech/hparams/conformer_ctc_ee_small.yaml", 2.06),
        ("LibriSpeech/hparams/conformer_ctc_single.yaml", 31.14),
        ("LibriSpeech/hparams/demo.yaml", 1.04),
        ("LibriSpeech/hparams/conformer_aed_ee.yaml", 13.33),  # paper: 13.3
        ("LibriSpeech/hparams/conformer_aed_ee_small.yaml", 2.31),
        ("LibriSpeech/hparams/conformer_aed_single.yaml", 13.33),
        ("LibriSpeech/hparams/lm_transformer.yaml", 93.33),
        ("LibriSpeech/hparams/hubert_pretrain.yaml", 94.59),
        ("LibriSpeech/hparams/hubert_pretrain_small.yaml", 2.70),
        ("TED-LIUM/hparams/conformer_ctc_ee.yaml", 31.47),  # paper: 31.0
        ("TED-LIUM/hparams/conformer_ctc_single.yaml", 31.14),
        ("VoxPopuli/hparams/conformer_ctc_ee.yaml", 31.47),
        ("VoxPopuli/hparams/conformer_ctc_single.yaml", 31.14),
    ],
)
def test_the_model_has_the_size_it_should(hparam_file, millions, tmp_path):
    settings = {"data_folder": "", "output_folder": str(tmp_path)}
    with open(ROOT / "recipes" / hparam_file, encoding="utf-8") as file:
        hparams = load_hyperpyyaml(file, settings)
    modules = torch.nn.ModuleDict(hparams["modules"])
    count = sum(p.numel() for p in modules.parameters())
    assert count / 1e6 == pytest.approx(millions, abs=0.01)


@pytest.mark.parametrize("encoder", ["wav2vec2", "wavlm", "hubert"])
@pytest.mark.parametrize("layers", [None, 6])
def test_the_pretrained_models_have_the_papers_size(encoder, layers, tmp_path):
    yaml = f"{encoder}_ctc_{'single' if layers else 'ee'}.yaml"
    settings = {"data_folder": "", "output_folder": str(tmp_path)}
    settings |= {"source": encoder, "pretrained": False}
    if layers:
        settings["num_layers"] = layers
    hparams_file = ROOT / "recipes" / "LibriSpeech" / "hparams" / yaml
    with open(hparams_file, encoding="utf-8") as file:
        hparams = load_hyperpyyaml(file, settings)
    count = sum(
        p.numel()
        for module in hparams["modules"].values()
        for p in module.parameters()
    )
    # Paper: 94.0 and, WavLM, 94.7. A layer of width 768 has 7.09.
    expected = 94.4 - 7.09 * (12 - layers) if layers else 94.4
    assert count / 1e6 == pytest.approx(expected, rel=0.03)
    assert hparams["exits"].vocab_size == 32
    assert hparams["encoder"].model.config.layerdrop == 0


@pytest.mark.parametrize("row", RECOGNISERS, ids=name)
def test_the_modules_that_run_are_those_that_are_saved(row, models, tmp_path):
    given = [flag for flag in flags(row) if LM not in flag]
    given.append(f"--output_folder={tmp_path}")
    given = [one.replace("tests/tmp", str(models)) for one in given]
    hparams_file, _, text = sb.parse_arguments([row["Hparam_file"], *given])
    text = resolve_overrides(ROOT / hparams_file, text, ROOT / "hparams")
    with open(ROOT / hparams_file, encoding="utf-8") as file:
        hparams = load_hyperpyyaml(file, text)
    saved = hparams["checkpointer"].recoverables
    for key in ("encoder", "exits"):
        assert saved[key] is hparams["modules"][key] is hparams[key]
    if "Transformer" in hparams:
        encoder = hparams["encoder"]
        assert encoder.transformer is hparams["Transformer"]
        assert encoder.normalize is hparams["modules"]["normalize"]
        assert encoder.compute_features is hparams["compute_features"]
    else:
        schedules = (saved["scheduler"], saved["encoder_scheduler"])
        assert schedules[0] is not schedules[1]


def test_every_yaml_is_listed():
    listed = {row["Hparam_file"] for row in ROWS}
    found = (ROOT / "recipes").glob("*/hparams/**/*.yaml")
    assert {str(path.relative_to(ROOT)) for path in found} == listed


@pytest.mark.parametrize("row", ROWS, ids=name)
def test_every_file_of_a_row_exists(row):
    for column in ("Script_file", "Data_prep_file", "Readme_file"):
        assert (ROOT / row[column]).is_file()
