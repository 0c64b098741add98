"""Task models behind an upstream that is fine-tuned, or has a gate."""

from dataclasses import replace

import pandas as pd
import pytest
import speechbrain as sb
import torch

from speechbrain_ee.brains import DownstreamClassifier
from speechbrain_ee.checkpoints import SafeCheckpointer
from speechbrain_ee.downstreams import UtteranceClassifier, make_class_encoder
from speechbrain_ee.exits import FixedLayer
from speechbrain_ee.experiment import evaluate_downstream
from speechbrain_ee.gates import (
    BernoulliGate,
    FirstN,
    FixedMask,
    GreedyMasks,
    InputConditionedGate,
    RandomN,
)
from speechbrain_ee.interfaces import PCAConcat, SingleLayer
from tests.unit.brains.noises import (
    RUN,
    SAMPLES,
    batch_of,
    dataset,
    make_noises,
)
from tests.unit.encoders.backbones import build

OPTIONS = {"batch_size": 3}
LAYERS = 4


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_noises(tmp_path_factory.mktemp("data"))


def rate(lr):
    return lambda parameters: torch.optim.Adam(parameters, lr)


def make_brain(data, folder=None, frozen=True, interface=None, **settings):
    torch.manual_seed(0)
    upstream = build("hubert-base").encoder.eval()
    if frozen:
        upstream.freeze_backbone()
    else:
        upstream.model.masked_spec_embed.requires_grad_(False)
        settings.setdefault("encoder_opt_class", rate(0.01))
    interface = interface or SingleLayer(upstream.state_sizes)
    downstream = UtteranceClassifier(interface.output_size, [3])
    parts = {"interface": interface, "downstream": downstream}
    return DownstreamClassifier(
        {"speaker": make_class_encoder(data / "labels_speaker.txt", "xyz")},
        modules={"upstream": upstream, **parts},
        hparams={},
        run_opts=RUN,
        checkpointer=folder and SafeCheckpointer(folder / "save", parts),
        opt_class=lambda parameters: torch.optim.Adam(parameters, 0.01),
        select_by="error_rate",
        **settings,
    )


def values(module):
    return {k: x.clone() for k, x in module.state_dict().items()}


def changed(module, before):
    return {
        k for k, x in values(module).items() if not torch.equal(x, before[k])
    }


def fit(brain, data, epochs=(1,)):
    sets = dataset(data)
    brain.fit(list(epochs), sets, sets, OPTIONS, OPTIONS)
    return {
        x.stem for x in brain.checkpointer.find_checkpoint().paramfiles.values()
    }


def test_an_upstream_is_fine_tuned_at_its_own_rate(data, tmp_path):
    brain = make_brain(
        data, tmp_path, frozen=False, encoder_opt_class=rate(0.0)
    )
    before = values(brain.upstream)
    names = fit(brain, data)
    assert {"upstream", "interface", "downstream"} <= names
    assert changed(brain.upstream, before) == set()  # its rate is 0
    assert brain.rates == {"lr": 0.01, "lr_encoder": 0.0}
    brain = make_brain(data, tmp_path / "one", frozen=False)
    before = values(brain.upstream)
    fit(brain, data)
    moved = changed(brain.upstream, before)
    assert any("layers.0" in k for k in moved)
    assert any(f"layers.{LAYERS - 1}" in k for k in moved)
    # And evaluated with these weights.
    again = make_brain(data, tmp_path / "one", frozen=False)
    again.on_evaluate_start(min_key="error_rate")
    assert changed(again.upstream, values(brain.upstream)) == set()


def test_a_gate_learns_through_a_frozen_upstream(data, tmp_path):
    gate = InputConditionedGate()
    brain = make_brain(data, tmp_path, gate=gate, encoder_opt_class=rate(0))
    before, first = values(brain.upstream), values(gate)
    names = fit(brain, data)
    assert "gate" in names and "upstream" not in names
    moved = changed(brain.upstream, before)
    assert moved and all(k.startswith("gate.") for k in moved)
    assert changed(gate, first)
    again = make_brain(data, tmp_path, gate=InputConditionedGate())
    again.on_evaluate_start(min_key="error_rate")
    assert changed(again.upstream.gate, values(gate)) == set()


def test_the_penalty_counts_in_training_only(data):
    gate = InputConditionedGate(logit_weight=1000.0)
    brain = make_brain(data, gate=gate)
    batch = batch_of(data)
    losses = {}
    for stage in (sb.Stage.TRAIN, sb.Stage.VALID):
        brain.modules.train(stage == sb.Stage.TRAIN)
        brain.on_stage_start(stage)
        predictions = brain.compute_forward(batch, stage)
        task = brain.loss(predictions, batch)
        losses[stage] = brain.compute_objectives(predictions, batch, stage)
        assert (losses[stage] > task + 1) == (stage == sb.Stage.TRAIN)


def test_random_gates_draw_anew_at_each_step(data):
    brain = make_brain(data, gate=BernoulliGate(p=0.5))
    brain.modules.train()
    batch, found = batch_of(data), []
    for step in (0, 0, 1):
        brain.optimizer_step = step
        found.append(brain.features(batch, sb.Stage.TRAIN)[0])
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_a_dropped_layer_hands_its_input_on(data):
    brain = make_brain(data, gate=FixedMask("1010"))
    brain.modules.eval()
    batch = batch_of(data)
    with torch.no_grad():
        found, frames = brain.features(batch, sb.Stage.TEST)
        brain.upstream.attach(None)
        state = brain.upstream.begin(*batch.sig)
        for runs in (True, False, True, False):
            if runs:
                state = brain.upstream.step(state)
            else:
                state = replace(state, layer=state.layer + 1)
    for row, count in enumerate(frames.tolist()):
        expected = state.hidden[row, :count]
        assert torch.allclose(found[row, :count], expected, atol=1e-5)
    assert {one["layers"] for one in brain.departures.values()} == {"1010"}
    assert {one["layers_run"] for one in brain.departures.values()} == {2}


@torch.no_grad()
def test_each_utterance_is_read_as_it_would_be_alone(data):
    brain = make_brain(data, gate=RandomN(2.5))
    brain.modules.eval()
    alone = {}
    for name in SAMPLES:
        found, _ = brain.features(batch_of(data, [name]), sb.Stage.TEST)
        alone[name] = found[0], brain.departures[name]
    batch = batch_of(data)
    together, frames = brain.features(batch, sb.Stage.TEST)
    assert len({one["layers"] for one in brain.departures.values()}) >= 3
    for row, name in enumerate(batch.id):
        expected, left = alone[name]
        found = together[row, : int(frames[row])]
        assert torch.allclose(found, expected, atol=1e-5)
        now = brain.departures[name]
        for column in ("layers", "layers_run", "frames", "macs"):
            assert now[column] == left[column]


@pytest.mark.parametrize("own", [None, InputConditionedGate])
def test_each_gate_and_target_is_evaluated(own, data, tmp_path):
    gate = None if own is None else own()
    brain = make_brain(data, tmp_path, gate=gate)
    fit(brain, data)
    others = {"random_n": RandomN(), "first_n": FirstN()}
    others["greedy"] = GreedyMasks(utterances=3)
    evaluate_downstream(
        brain,
        ("dev", dataset(data)),
        {"test": dataset(data)},
        tmp_path,
        {"speaker": "speaker"},
        OPTIONS,
        others,
        [1, 2.5, LAYERS],
    )
    assert brain.upstream.gate is gate
    texts = {"layers": str, "id": str}
    table = pd.read_csv(tmp_path / "gates_test.csv", dtype=texts)
    names = [*others] if own is None else ["input_conditioned", *others]
    assert table["gate"].unique().tolist() == names
    assert len(table) == len(names) * 3 * len(SAMPLES)
    assert (table["layers"].str.count("1") == table["layers_run"]).all()
    assert ((table["layers_run"] - table["target_layers"]).abs() < 1).all()
    assert set(table["speaker"]) == {"x", "y", "z"}
    # At full depth, all say what the model says.
    full = table[table["layers_run"] == LAYERS].groupby("id")
    assert (full["hyp"].nunique() == 1).all()
    plain = full[["macs"]].min()["macs"]
    for layers in ("1000", "0100"):
        part = table[table["layers"] == layers].set_index("id")
        part = part[part["gate"] != "input_conditioned"]["macs"]
        share = part / plain[part.index]
        assert (share - 1 / LAYERS).abs().max() < 0.01
    masks = pd.read_csv(tmp_path / "masks_greedy.csv", dtype=texts)
    assert masks["layers_run"].tolist() == [4, 3, 2, 1, 0]
    curve = pd.read_csv(tmp_path / "curve_test.csv")
    assert len(curve) == len(names) * 3
    rates = table.groupby(["gate", "target_layers"], sort=False)["errors"]
    assert curve["error_rate"].tolist() == pytest.approx(100 * rates.mean())
    report = (tmp_path / "report.md").read_text()
    assert "## Layers chosen by gates" in report
    traces = pd.read_csv(tmp_path / "traces_test.csv", dtype=texts)
    assert ("layers" in traces) == (own is not None)


def test_the_gate_alone_is_trained_from_a_run(data, tmp_path):
    first = make_brain(data, tmp_path / "first", frozen=False)
    fit(first, data)
    settings = {"init_from": tmp_path / "first", "gate_only": True}
    gate = InputConditionedGate()
    brain = make_brain(
        data, tmp_path / "second", frozen=False, gate=gate, **settings
    )
    started = {
        k: x for k, x in values(brain.upstream).items() if "gate" not in k
    }
    assert changed(first.upstream, started) == set()
    parts = ("upstream", "interface", "downstream")
    before = {k: values(brain.unwrapped[k]) for k in parts}
    assert "upstream" in fit(brain, data)
    assert changed(gate, {k[5:]: x for k, x in before["upstream"].items()})
    moved = changed(brain.upstream, before["upstream"])
    assert all(k.startswith("gate.") for k in moved)
    for name in parts[1:]:
        assert changed(brain.unwrapped[name], before[name]) == set()


def test_an_early_exit_of_a_fine_tuned_upstream(data, tmp_path):
    brain = make_brain(data, tmp_path, frozen=False, exits=FixedLayer(2))
    assert not any(
        w.requires_grad for w in brain.upstream.layers[2:].parameters()
    )
    fit(brain, data)
    traces = brain.evaluate_set(dataset(data), "test", tmp_path, OPTIONS)
    assert set(traces["layers_run"]) == {2}
    assert traces[["macs", "seconds", "frames"]].gt(0).all(axis=None)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gate": RandomN(), "exits": "never"}, "gate: .* Take one of the two"),
        ({"gate": FirstN(5)}, "target_layers: 5"),
        ({"frozen": False, "exits": {"scale": 1.0}}, "exits: .*branches"),
        (
            {"frozen": False, "encoder_opt_class": None},
            "upstream: .*freeze: True, or give encoder_opt_class",
        ),
        ({"gate_only": True}, "gate_only: there is no gate"),
        ({"gate_only": True, "gate": RandomN()}, "gate_only: there is no gate"),
        (
            {"gate_only": True, "gate": InputConditionedGate()},
            "gate_only: .*init_from",
        ),
    ],
)
def test_what_cannot_go_together_is_refused(settings, message, data):
    with pytest.raises(ValueError, match=message):
        make_brain(data, **settings)


def test_an_interface_is_not_fitted_to_states_that_change(data):
    sizes = [32] * (LAYERS + 1)
    with pytest.raises(ValueError, match="interface: it is fitted"):
        make_brain(data, gate=RandomN(), interface=PCAConcat(sizes))


def test_states_that_change_are_not_kept(data, tmp_path):
    sets = {"test": dataset(data)}
    for settings in ({"gate": RandomN()}, {"frozen": False}):
        with pytest.raises(ValueError, match="feature_cache: .*null"):
            make_brain(data, **settings).use_cache(tmp_path, sets)
    brain = make_brain(data)
    brain.use_cache(tmp_path, sets)
    with pytest.raises(ValueError, match="eval_gates: .*feature_cache"):
        brain.check_gates({"random_n": RandomN()}, [2])


def test_a_start_that_is_none_is_refused(data, tmp_path):
    with pytest.raises(FileNotFoundError, match="init_from: .*no checkpoint"):
        make_brain(data, init_from=tmp_path)
