"""Overrides: blocks by name, and names that do not exist."""

from pathlib import Path

import pytest
import torch
from hyperpyyaml import load_hyperpyyaml

from speechbrain_ee.exits import (
    BranchExits,
    Patience,
    Threshold,
    get_exits,
    get_score,
    get_selector,
)
from speechbrain_ee.gates import GATES
from speechbrain_ee.heads import ClusterBranches
from speechbrain_ee.interfaces import build_interface
from speechbrain_ee.objectives import ExitLossSum, ExitPredictions
from speechbrain_ee.objectives.weights import rising
from speechbrain_ee.overrides import resolve_overrides

ROOT = Path(__file__).parents[2]
BLOCKS = ROOT / "hparams"
RECIPE = ROOT / "recipes/LibriSpeech/hparams/conformer_ctc_ee_small.yaml"


def load(overrides, tmp_path):
    hparams_file = tmp_path / "train.yaml"
    hparams_file.write_text(
        "lr: 0.1\n"
        "scores: [entropy]\n"
        "objective: !new:speechbrain_ee.objectives.ExitLossSum\n"
        "    weights: null\n"
        "selectors:\n"
        "    mine: !new:speechbrain_ee.exits.FixedLayer\n"
        "        layer: 2\n"
    )
    overrides = resolve_overrides(hparams_file, overrides, BLOCKS)
    with open(hparams_file, encoding="utf-8") as file:
        return load_hyperpyyaml(file, overrides, overrides_must_match=False)


def test_a_block_takes_the_place_of_what_stood_there(tmp_path):
    hparams = load("selectors: patience\nobjective: rising", tmp_path)
    assert "mine" not in hparams["selectors"]
    assert isinstance(hparams["selectors"]["patience_3"], Patience)
    assert isinstance(hparams["objective"], ExitLossSum)
    assert hparams["objective"].weights is rising
    assert hparams["lr"] == 0.1


def test_a_block_may_stand_in_a_file_of_ones_own(tmp_path, monkeypatch):
    folder = tmp_path / "my runs"
    folder.mkdir()
    block = "shallow:\n    selector: fixed\n    layer: 4\n"
    (folder / "thresholds.yaml").write_text(block)
    monkeypatch.chdir(folder)
    for name in ("thresholds.yaml", "./thresholds.yaml"):
        hparams = load(f"selectors: {name}", tmp_path)
        assert hparams["selectors"] == {
            "shallow": {"selector": "fixed", "layer": 4}
        }
        assert get_selector(hparams["selectors"]["shallow"]).layer == 4


def test_values_written_out_are_left_as_they_are(tmp_path):
    hparams = load(
        "scores: [margin, entropy]\nlr: 0.5\n"
        "selectors: {fast: {selector: fixed, layer: 4}}",
        tmp_path,
    )
    assert hparams["scores"] == ["margin", "entropy"] and hparams["lr"] == 0.5
    assert get_selector(hparams["selectors"]["fast"]).layer == 4
    assert hparams["selectors"]["mine"].layer == 2


def test_nothing_to_override_is_fine(tmp_path):
    assert load("", tmp_path)["selectors"]["mine"].layer == 2


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ("n_mel: 40", "no key 'n_mel'. Did you mean 'n_mels'?"),
        ("selectors: patince", "no block 'patince'.*Did you mean 'patience'?"),
        ("selectors: nowhere.yaml", "selectors: there is no file nowhere.yaml"),
        ("objective: zzz", "There are: alternate, falling, .*uniform."),
        ("lr: 1\nlr: 2", "same key twice: .*lr"),
    ],
)
def test_the_nearest_name_is_suggested(overrides, told):
    with pytest.raises(ValueError, match=told.replace("?", r"\?")):
        resolve_overrides(RECIPE, overrides, BLOCKS)


def load_block(block, tmp_path):
    hparams_file = tmp_path / "train.yaml"
    hparams_file.write_text(f"block: !include:{block}")
    with open(hparams_file, encoding="utf-8") as file:
        return load_hyperpyyaml(file)["block"]


# Upstreams would be downloaded; tests/unit/encoders/test_upstreams.py has them.
@pytest.mark.parametrize(
    "block",
    sorted(set(BLOCKS.glob("*/*.yaml")) - set(BLOCKS.glob("upstreams/*"))),
    ids=lambda block: f"{block.parent.name}/{block.stem}",
)
def test_every_block_holds_what_its_key_takes(block, tmp_path):
    value = load_block(block, tmp_path)
    if block.parent.name == "selectors":
        for selector in value.values():
            get_selector(selector).prepare(range(2, 14, 2), lambda k, n: n)
    elif block.parent.name == "scores":
        assert all(get_score(score).name for score in value)
    elif block.parent.name == "interfaces":
        assert build_interface(value, [16] * 13).output_size == 16
    elif block.parent.name == "exits":
        assert get_exits(value) is value
        branches = ClusterBranches(range(1, 13), input_size=8, num_clusters=4)
        learns = isinstance(value, BranchExits)
        value.prepare(branches if learns else branches.exit_layers)
    elif block.parent.name in ("gates", "eval_gates"):
        gates = value.values() if isinstance(value, dict) else [value]
        for gate in gates:
            gate.prepare(num_layers=12, width=8)
            assert GATES[gate.name] is type(gate)
    else:
        log_probs = torch.full((3, 1, 4, 3), 1 / 3).log()
        one = torch.tensor([1])
        batch = ExitPredictions(
            [2, 4],
            log_probs[:2],
            4 * one,
            one[None],
            one,
            step=1,
            teacher_log_probs=log_probs[2],
        )
        assert value(batch) > 0


def test_options_of_a_score_reach_it_from_a_block(tmp_path):
    block = BLOCKS / "scores" / "wright.yaml"
    entropy, confidence = load_block(block, tmp_path)
    assert get_score(entropy).options == {"normalization": "vocabulary"}
    assert Threshold(confidence, 0.5).scores[0].options == {"k": 300}
