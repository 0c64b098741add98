"""The Brain with a gate: losses, optimisers, starts, masks found on dev."""

from functools import partial

import pandas as pd
import pytest
import speechbrain as sb
import torch
from speechbrain.dataio.batch import PaddedBatch
from speechbrain.dataio.dataset import DynamicItemDataset

from speechbrain_ee.analysis.gates import gate_curve, read_gates
from speechbrain_ee.brains import EarlyExitCTC
from speechbrain_ee.gates import FirstN, FixedMask, GreedyMasks, RandomN
from speechbrain_ee.heads import CTCHeads
from speechbrain_ee.inference import FrozenTeacher
from tests.unit.encoders.backbones import NUM_LAYERS, build
from tests.unit.gates.gates import LEARNED, ROWS

SAMPLES = {"a": 16000, "b": 9000, "c": 12000}
SGD = torch.optim.SGD


class Labels:
    """As much of a tokenizer as the Brain asks for."""

    def __init__(self):
        self.sp = self
        self.vocab_size = lambda: 5
        self.id_to_piece = ["<pad>", "<unk>", *"abc"].__getitem__
        self.decode_ids = lambda ids: " ".join("abcde"[i] for i in ids)


def make_modules(gate=None, exits=(2, NUM_LAYERS), seed=0):
    encoder = build("conformer-RoPEMHA").encoder
    torch.manual_seed(seed)
    encoder.attach(gate)
    heads = CTCHeads(exits, encoder.output_size, vocab_size=5)
    return {"encoder": encoder, "exits": heads}


def make_brain(gate=None, exits=(2, NUM_LAYERS), **settings):
    return EarlyExitCTC(
        tokenizer=Labels(),
        modules=make_modules(gate, exits),
        hparams={"sample_rate": 16000},
        run_opts={"noprogressbar": True},
        **{"opt_class": partial(SGD, lr=0.1), **settings},
    )


def item(name):
    samples = SAMPLES[name]
    generator = torch.Generator().manual_seed(samples)
    return {
        "id": name,
        "sig": torch.randn(samples, generator=generator),
        "tokens": torch.tensor([1, 2, 3]),
        "wrd": "b c d",
        "duration": samples / 16000,
        "spk_id": "x",
    }


def batch():
    return PaddedBatch([item(name) for name in SAMPLES])


def loader():
    return torch.utils.data.DataLoader(
        [batch()], batch_size=None, collate_fn=lambda one: one
    )


def dataset():
    data = {name: {**item(name)} for name in SAMPLES}
    for row in data.values():
        del row["id"]
    keys = ["id", "sig", "tokens", "wrd", "duration", "spk_id"]
    return DynamicItemDataset(data, output_keys=keys)


def loss_of(brain, stage=sb.Stage.TRAIN):
    one = batch()
    predictions = brain.compute_forward(one, stage)
    return brain.compute_objectives(predictions, one, stage)


@pytest.mark.parametrize("row", ROWS)
def test_one_step_trains_every_parameter(row):
    brain = make_brain(ROWS[row]())
    brain.modules.train()
    loss_of(brain).backward()
    without = [
        name
        for name, p in brain.modules.named_parameters()
        if p.requires_grad and p.grad is None
    ]
    assert without == []


def test_the_penalty_counts_in_training_only():
    brain = make_brain(ROWS[LEARNED[0]]())
    brain.modules.eval()  # nothing else is random
    brain.encoder.gate.train()
    with torch.no_grad():
        brain.compute_forward(batch(), sb.Stage.TRAIN)
        penalty = brain.encoder.gate.penalty()
        whole = loss_of(brain)
        brain.encoder.gate.logit_weight = 0.0
        task = loss_of(brain)
    assert penalty > 0
    assert torch.allclose(whole - task, penalty, atol=1e-4)
    brain.modules.eval()
    brain.on_stage_start(sb.Stage.VALID)
    brain.encoder.gate.logit_weight = 9.0
    first = loss_of(brain, sb.Stage.VALID)
    brain.encoder.gate.logit_weight = 0.0
    assert torch.equal(first, loss_of(brain, sb.Stage.VALID))


def test_the_gate_is_told_the_step():
    brain = make_brain(ROWS["random batch"]())
    brain.fit(range(1, 4), loader())
    assert brain.encoder.gate.step == 2


def test_the_gate_is_trained_at_the_rate_of_the_new_parts():
    brain = make_brain(
        ROWS[LEARNED[0]](), encoder_opt_class=partial(SGD, lr=0.01)
    )
    brain.init_optimizers()
    of_encoder, of_rest = (
        {id(p) for group in one.param_groups for p in group["params"]}
        for one in (brain.encoder_optimizer, brain.optimizer)
    )
    gate = {id(p) for p in brain.encoder.gate.parameters()}
    assert gate <= of_rest and not gate & of_encoder
    assert of_rest | of_encoder == {id(p) for p in brain.modules.parameters()}


@pytest.mark.parametrize("twofold", [False, True])
def test_the_gate_alone_is_trained(twofold):
    settings = {"encoder_opt_class": partial(SGD, lr=0.1)} if twofold else {}
    brain = make_brain(ROWS[LEARNED[0]](), gate_only=True, **settings)
    before = {n: p.clone() for n, p in brain.modules.named_parameters()}
    brain.fit(range(1, 4), loader(), loader())
    changed = {
        name
        for name, p in brain.modules.named_parameters()
        if not torch.equal(p, before[name])
    }
    assert changed and all(".gate." in name for name in changed)
    assert not brain.encoder.layers.training


@pytest.mark.parametrize("gate", [None, FirstN(2)])
def test_without_anything_to_train_it_is_said(gate):
    with pytest.raises(ValueError, match="gate_only: there is no gate that"):
        make_brain(gate, gate_only=True)


def test_exits_before_the_last_layer_are_refused():
    with pytest.raises(ValueError, match="4 layers, but .* layer 3"):
        make_brain(FirstN(2), exits=(1, 3))


def start_of(modules, **options):
    return FrozenTeacher(modules, Labels(), 16000, key="init_from", **options)


def test_a_run_gives_all_weights_but_those_of_its_gate():
    run = make_modules(ROWS[LEARNED[0]](), seed=7)
    given = {n: p.clone() for n, p in run["encoder"].state_dict().items()}
    gate = ROWS[LEARNED[2]]()  # of other sizes
    brain = make_brain(gate, start=start_of(run))
    for name, value in brain.encoder.state_dict().items():
        if not name.startswith("gate."):
            assert torch.equal(value, given[name])
    for key, value in brain.exits.state_dict().items():
        assert torch.equal(value, run["exits"].state_dict()[key])
    assert all(p.requires_grad for p in brain.encoder.parameters())


def test_a_run_that_is_built_otherwise_is_refused():
    with pytest.raises(ValueError, match="init_from: .*is built otherwise"):
        make_brain(start=start_of(make_modules(exits=(1, NUM_LAYERS))))


# --- evaluation -------------------------------------------------------------


def test_each_gate_and_target_is_evaluated(tmp_path):
    brain = make_brain(ROWS["random ldasr"]())
    own = brain.encoder.gate
    gates = {
        "first_n": FirstN(),
        "best": GreedyMasks(),
        "half": FixedMask(every=2),
    }
    data = dataset()
    brain.fit_gates(data, tmp_path, gates, {"batch_size": 2})
    brain.check_strategies([], {}, gates, [0, 2, 4])
    traces = brain.evaluate_exits(
        data,
        "test",
        tmp_path,
        ["entropy"],
        gates=gates,
        target_layers=[0, 2, 4],
        loader_kwargs={"batch_size": 2},
    )
    assert brain.encoder.gate is own and own.target_layers == 2
    assert all(one.closing_norm for one in gates.values())
    table = read_gates(tmp_path, "test")
    runs = table.groupby(["gate", "target_layers"], sort=False)
    assert list(runs.groups) == [
        *(("random_n", n) for n in (0, 2, 4)),
        *(("first_n", n) for n in (0, 2, 4)),
        *(("best", n) for n in (0, 2, 4)),
        ("half", 2),
    ]
    assert (table["layers_run"] == table["target_layers"]).all()
    assert set(table.loc[table["gate"] == "half", "layers"]) == {"1010"}
    last = table[(table["gate"] == "first_n") & (table["target_layers"] == 4)]
    curve = pd.read_csv(tmp_path / "curve_test.csv").set_index("selector")
    row = curve.loc["first_n"].iloc[-1]
    assert row["error_rate"] == pytest.approx(
        100 * last["errors"].sum() / last["ref_len"].sum()
    )
    assert row["mean_layers_run"] == 4 and row["macs"] == pytest.approx(
        last["macs"].mean()
    )
    assert gate_curve(table)["masks"].min() >= 1
    assert len(traces) == 3  # those of the own gate at its own target
    assert (traces.layers_run[:, -1] == 2).all()

    masks = pd.read_csv(tmp_path / "masks_best.csv", dtype={"layers": str})
    assert masks["layers_run"].tolist() == [4, 3, 2, 1, 0]
    for count, mask in zip(masks["layers_run"], masks["layers"]):
        best = table[(table["gate"] == "best") & (table["layers_run"] == count)]
        assert set(best["layers"]) <= {mask}


def test_masks_are_the_best_of_each_elimination(tmp_path):
    """What was measured is the error rate that evaluation finds."""
    brain = make_brain()
    gate = GreedyMasks()
    brain.fit_gates(dataset(), tmp_path, {"g": gate}, {"batch_size": 2})
    found = pd.read_csv(tmp_path / "masks_g.csv", dtype={"layers": str})
    for _, row in found.iterrows():
        brain.encoder.attach(FixedMask(row["layers"]))
        rate = brain.error_rate(dataset(), {"batch_size": 2})
        assert rate == pytest.approx(row["WER"], abs=1e-3)


def test_a_gate_that_does_not_fit_is_named():
    with pytest.raises(ValueError, match="target_layers: 9 is no number"):
        make_brain(FirstN(2)).check_strategies([], {}, {}, [1, 9])
    with pytest.raises(ValueError, match="eval_gates: mine: target_layers: 7"):
        make_brain().check_strategies([], {}, {"mine": RandomN(7)}, [2])
