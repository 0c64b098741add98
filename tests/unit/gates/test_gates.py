"""What must hold of every gate on every encoder."""

import copy

import pytest
import torch

from speechbrain_ee.encoders import EncoderState
from speechbrain_ee.gates import (
    GATES,
    BernoulliGate,
    FirstN,
    FixedMask,
    GreedyMasks,
    InputConditionedGate,
    RandomN,
)
from speechbrain_ee.gates.selector import shift_to
from tests.unit.encoders.backbones import BACKBONES, NUM_LAYERS, build
from tests.unit.gates.gates import LEARNED, ROWS, SERVING, selector

LENGTHS = (16000, 9000, 12345, 16000 - 37, 8000)
ENCODERS = {name: build(name).encoder for name in BACKBONES}
CONFORMER = "conformer-RoPEMHA"


@pytest.fixture(params=BACKBONES)
def encoder(request):
    return ENCODERS[request.param]


@pytest.fixture(autouse=True)
def without_gates():
    """What a test attaches is gone after it."""
    yield
    for one in ENCODERS.values():
        one.attach(None)
        one.zero_grad()
        one.eval()


@pytest.fixture
def wavs():
    generator = torch.Generator().manual_seed(1)
    return [0.1 * torch.randn(n, generator=generator) for n in LENGTHS]


def padded(wavs):
    batch = torch.nn.utils.rnn.pad_sequence(wavs, batch_first=True)
    return batch, torch.tensor([len(wav) / batch.shape[1] for wav in wavs])


def attached(encoder, row):
    """The encoder with a gate that does not treat all alike."""
    torch.manual_seed(6)
    gate = ROWS[row]()
    encoder.attach(gate)
    for module in gate.modules():  # logits far from each other
        if isinstance(module, torch.nn.Linear | torch.nn.GRU):
            for weight in module.parameters():
                torch.nn.init.normal_(weight)
    return gate


def walk(encoder, wavs, lens=None):
    """The state behind the last layer, and what ran."""
    state = encoder.begin(wavs, lens)
    while state.layer < encoder.num_layers:
        state = encoder.step(state)
    return state


def test_there_is_a_row_for_every_gate():
    assert {row.split()[0] for row in ROWS} == set(GATES)
    assert all(ROWS[row]().name == row.split()[0] for row in ROWS)


@torch.no_grad()
@pytest.mark.parametrize("row", ROWS)
def test_a_padded_batch_equals_each_utterance_alone(encoder, row, wavs):
    attached(encoder, row)
    together = walk(encoder, *padded(wavs))
    for place, wav in enumerate(wavs):
        alone = walk(encoder, wav[None])
        assert torch.equal(alone.ran[0], together.ran[place])
        ours = together.hidden[place, : together.frames[place]]
        assert (ours - alone.hidden[0]).abs().max() <= 1e-5


@torch.no_grad()
def test_masks_differ_within_a_batch(wavs):
    for k, wav in enumerate(wavs):  # a tone in each, of its own height
        wav += torch.sin(torch.arange(len(wav)) * 0.05 * 2**k)
    mixed = set()
    for row in ROWS:
        encoder = ENCODERS[CONFORMER]
        attached(encoder, row)
        ran = walk(encoder, *padded(wavs)).ran
        if len({tuple(one) for one in ran.tolist()}) > 1:
            mixed.add(row)
    fixed = {row for row in ROWS if row.split()[0] in ("all", "fixed")}
    assert mixed.isdisjoint(fixed | {"greedy"})
    assert mixed >= {"first_n", "random_n", *LEARNED} - fixed


@torch.no_grad()
@pytest.mark.parametrize("row", SERVING)
def test_all_open_is_the_stock_encoder_bit_for_bit(encoder, row, wavs):
    stock, frames = encoder(*padded(wavs))
    gate = attached(encoder, row)
    gate.set_target(NUM_LAYERS)
    states, counted = encoder(*padded(wavs))
    assert torch.equal(frames, counted)
    assert all(map(torch.equal, states, stock))


@torch.no_grad()
@pytest.mark.parametrize("row", SERVING)
@pytest.mark.parametrize("target", [0, 1, 2, 3, 4])
def test_budgets_are_met(row, target, wavs):
    encoder = ENCODERS[CONFORMER]
    gate = attached(encoder, row)
    gate.set_target(target)
    ran = walk(encoder, *padded(wavs)).ran
    assert ran.sum(dim=1).tolist() == [gate.target_layers] * len(wavs)
    if row not in LEARNED:
        assert gate.target_layers == target


@torch.no_grad()
@pytest.mark.parametrize("row", ROWS)
def test_layers_run_for_those_only_that_keep_them(row, wavs):
    encoder, ran = ENCODERS[CONFORMER], {}
    attached(encoder, row)
    hooks = [
        layer.register_forward_hook(
            lambda m, args, out, k=k: ran.update({k: len(args[0])})
        )
        for k, layer in enumerate(encoder.layers)
    ]
    state = walk(encoder, *padded(wavs))
    for hook in hooks:
        hook.remove()
    counts = state.ran.sum(dim=0).tolist()
    assert ran == {k: n for k, n in enumerate(counts) if n}


@torch.no_grad()
@pytest.mark.parametrize("row", ROWS)
def test_who_stays_keeps_plan_and_history(row, wavs):
    encoder = ENCODERS[CONFORMER]
    attached(encoder, row)
    whole = walk(encoder, *padded(wavs))
    state = encoder.step(encoder.begin(*padded(wavs)))
    state = encoder.step(encoder.keep(state, [3, 1]))
    state = walk_on(encoder, encoder.keep(state, [1]))
    assert torch.equal(state.ran[0], whole.ran[1])
    own = whole.hidden[1, : whole.frames[1]]
    assert (state.hidden[0] - own).abs().max() <= 1e-5


def walk_on(encoder, state):
    while state.layer < encoder.num_layers:
        state = encoder.step(state)
    return state


@torch.no_grad()
@pytest.mark.parametrize("row", ROWS)
def test_evaluation_is_deterministic(row, wavs):
    encoder = ENCODERS[CONFORMER]
    gate = attached(encoder, row)
    once = walk(encoder, *padded(wavs))
    torch.manual_seed(99)
    gate.step = 7
    again = walk(encoder, *padded(wavs[::-1]))
    assert torch.equal(once.ran, again.ran.flip(0))


@pytest.mark.parametrize("row", ROWS)
def test_gradients_reach_every_trained_parameter(encoder, row, wavs):
    gate = attached(encoder, row)
    encoder.train()
    for step in range(2):
        encoder.zero_grad()
        gate.step = step
        states, _ = encoder(*padded(wavs), normed=[NUM_LAYERS])
        penalty = gate.penalty()
        loss = sum(state.square().sum() for state in states)
        (loss if penalty is None else loss + penalty).backward()
        without = [
            name
            for name, parameter in encoder.named_parameters()
            if parameter.requires_grad and parameter.grad is None
        ]
        assert without == []


@pytest.mark.parametrize("row", LEARNED)
def test_the_task_reaches_the_selector(row, wavs):
    encoder = ENCODERS[CONFORMER]
    gate = attached(encoder, row)
    encoder.train()
    (last,), _ = encoder(*padded(wavs), layers=[NUM_LAYERS])
    last.square().sum().backward()  # without the penalty
    for name, parameter in gate.named_parameters():
        assert parameter.grad.abs().sum() > 0, name


@torch.no_grad()
@pytest.mark.parametrize("row", LEARNED)
def test_training_mixes_what_evaluation_would_choose(row, wavs):
    """Without noise and with the same counts, values are those of skipping."""
    encoder = ENCODERS[CONFORMER]
    gate = attached(encoder, row)
    gate.estimator = "straight_through"
    gate.trained, gate.in_range = [gate.target_layers], False
    if gate.target_layers % 1:
        gate.trained = [2]
        gate.set_target(2)
    skipped = walk(encoder, *padded(wavs))
    gate.train()  # the backbone stays without dropout
    gate.norms.eval()  # and what features are set against
    mixed = walk(encoder, *padded(wavs))
    assert mixed.ran.all()
    for place, frames in enumerate(mixed.frames):
        ours, theirs = (x.hidden[place, :frames] for x in (mixed, skipped))
        assert (ours - theirs).abs().max() <= 1e-5


@pytest.mark.parametrize("row", ROWS)
def test_draws_of_training_go_by_seed_step_and_samples(row, wavs):
    encoder = ENCODERS[CONFORMER]
    gate = attached(encoder, row)
    gate.train()

    def plans(batch, step):
        gate.step = step
        return walk(encoder, *padded(batch)).plan

    with torch.no_grad():
        first = plans(wavs, 0)
        assert torch.allclose(first, plans(wavs[::-1], 0).flip(0), atol=1e-5)
        later = torch.stack([plans(wavs, step) for step in range(1, 9)])
    random = row.startswith(("random ", "input_conditioned"))
    assert random == bool((later != first).any())
    if row == "random batch":
        assert (later == later[:, :1]).all()


@torch.no_grad()
def test_how_often_layers_are_dropped(wavs):
    encoder = ENCODERS[CONFORMER]
    gate = BernoulliGate(p=0.8, rising=True)
    encoder.attach(gate)
    gate.train()
    state = encoder.begin(*padded(wavs))
    plans = []
    for gate.step in range(2000):
        plans.append(gate.plan(state)[0])
    dropped = 1 - torch.stack(plans).mean(dim=0)
    assert (dropped - torch.tensor([0.2, 0.4, 0.6, 0.8])).abs().max() < 0.04


@torch.no_grad()
def test_a_fractional_target_is_met_on_average():
    encoder = ENCODERS[CONFORMER]
    encoder.attach(RandomN(target_layers=2.25))
    generator = torch.Generator().manual_seed(0)
    wavs = torch.randn(400, 800, generator=generator)
    counts = walk(encoder, wavs).ran.sum(dim=1)
    assert set(counts.tolist()) == {2, 3}
    assert abs(counts.double().mean() - 2.25) < 0.07


@torch.no_grad()
def test_more_layers_are_the_same_and_others(wavs):
    encoder = ENCODERS[CONFORMER]
    gate = RandomN()
    encoder.attach(gate)
    before = None
    for target in range(NUM_LAYERS + 1):
        gate.set_target(target)
        ran = walk(encoder, *padded(wavs)).ran
        assert before is None or (ran | ~before).all()
        before = ran


@torch.no_grad()
def test_what_a_dropped_layer_leaves(encoder, wavs):
    """LDASR: the closing LayerNorm, where there is one; else the input."""
    state = encoder.begin(wavs[0][None])
    for closing in (False, True):
        encoder.attach(FixedMask("0000", closing_norm=closing))
        norm = encoder.closing_norm(0) if closing else None
        expected = state.hidden if norm is None else norm(state.hidden)
        after = encoder.step(encoder.begin(wavs[0][None]))
        assert torch.equal(after.hidden, expected)
    layer = type(encoder.layers[0]).__name__
    stable = "StableLayerNorm" in layer
    ends = "Conformer" in layer or (hasattr(encoder, "model") and not stable)
    assert (encoder.closing_norm(0) is not None) == ends


def test_a_layer_without_closing_norm_is_said(caplog):
    with caplog.at_level("WARNING"):
        ENCODERS["branchformer-RelPosMHAXL"].attach(
            FixedMask("0000", closing_norm=True)
        )
    assert "a dropped layer keeps nothing" in caplog.text


@torch.no_grad()
def test_zero_layers_leave_the_front_end(wavs):
    encoder = ENCODERS[CONFORMER]
    for gate in (FirstN(0), RandomN(0), FixedMask("0000")):
        encoder.attach(gate)
        state = walk(encoder, *padded(wavs))
        assert torch.equal(state.hidden, encoder.begin(*padded(wavs)).hidden)
        assert not state.ran.any()


def test_a_frozen_backbone_trains_the_gate_alone(wavs):
    encoder = build(CONFORMER).encoder
    gate = attached(encoder, LEARNED[0])
    encoder.freeze_backbone()
    encoder.train()
    assert gate.training and not encoder.layers.training
    trained = {n for n, p in encoder.named_parameters() if p.requires_grad}
    assert trained == {f"gate.{name}" for name, _ in gate.named_parameters()}
    (last,), _ = encoder(*padded(wavs), layers=[NUM_LAYERS])
    (last.square().sum() + gate.penalty()).backward()
    assert all(p.grad is not None for p in gate.parameters())


@pytest.mark.parametrize("decides", ["at_once", "layer_by_layer"])
def test_losses_of_the_selector(decides):
    weights = {"balance": 0.5, "compute": 2.0, "logit": 0.1}
    weights = {f"{name}_weight": weight for name, weight in weights.items()}
    gate = selector(decides=decides, **weights)
    gate.prepare(4, 8)
    probabilities = torch.tensor([[0.5, 0.5, 0.5, 0.5], [1.0, 1.0, 1.0, 0.0]])
    kept = torch.tensor([[1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0]])
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0], [1.0, 0.0, -2.0, 1.0]])
    gate.seen = [(logits, probabilities, kept, torch.tensor([2, 4]))]
    # At once, the count is exact and costs nothing.
    compute = (0 + (1 / 4) ** 2) / 2 if gate.layerwise else 0
    share, mean = kept.mean(dim=0), probabilities.mean(dim=0)
    uneven = 4 * (share * mean).sum() / share.sum() ** 2
    expected = 2 * compute + 0.5 * uneven + 0.1 * 12 / 8
    assert torch.isclose(gate.penalty(), expected)
    assert gate.penalty() is None  # given once


def test_layers_compete_where_the_choice_is_made():
    torch.manual_seed(0)
    logits = (8 * torch.rand(5, 6)).requires_grad_()
    counts = torch.tensor([0, 1, 3, 5, 6])
    kept = shift_to(logits, counts).sigmoid()
    assert torch.allclose(kept.sum(dim=1), counts.float(), atol=1e-4)
    assert torch.equal(*(x[1:-1].argsort(dim=1) for x in (kept, logits)))
    # What one layer gains, the others lose.
    kept[:, 0].sum().backward()
    slope = logits.grad[1:-1]
    assert slope[:, 0].min() >= 0 and slope[:, 1:].max() <= 0
    assert slope.sum(dim=1).abs().max() < 1e-5


@pytest.mark.parametrize("decides", ["at_once", "layer_by_layer"])
def test_a_selector_learns_which_layer_an_utterance_needs(decides):
    """Loud utterances need layer 1, others layer 4: one layer for each."""
    torch.manual_seed(0)
    gate = selector(
        train_targets=[1], decides=decides, compute_weight=0.1, hidden_size=16
    )
    gate.prepare(4, 2)
    optimizer = torch.optim.Adam(gate.parameters(), lr=0.02)
    loud = torch.arange(16) % 2 == 0
    needed = torch.where(loud, 0, 3)
    # Features of opposite signs, as a norm would take a common factor away.
    level = torch.where(loud, 1.0, -1.0)[:, None, None]
    hidden = level * torch.tensor([1.0, -1.0]) + 0.1 * torch.randn(16, 6, 2)

    keys, frames = torch.arange(16), torch.full((16,), 6)

    def values():
        state = EncoderState(hidden, frames, keys=keys)
        plan = [gate.plan(state)]
        for layer in range(4 if gate.layerwise else 0):
            state = EncoderState(hidden, frames, layer, keys=keys)
            plan.append(gate.decide(state)[:, None])
        return torch.cat(plan, dim=1)

    for gate.step in range(200):
        plan = values()
        right = plan[torch.arange(16), needed]
        loss = (1 - right).mean() + 0.3 * (plan.sum(dim=1) - 1).abs().mean()
        (loss + gate.penalty()).backward()
        optimizer.step()
        optimizer.zero_grad()
    expected = torch.nn.functional.one_hot(needed, 4).float()
    gate.eval()
    assert (values() == expected).float().mean() > 0.95


def test_a_selector_is_paid_for_what_its_choice_tells_of_the_utterance():
    def penalty(rows):
        gate = selector(draw_targets="batch", dependence_weight=0.5)
        gate.prepare(2, 8)
        rows = torch.tensor(rows, requires_grad=True)
        gate.seen = [(0 * rows, rows, rows.round(), torch.tensor([1, 1]))]
        paid = gate.penalty()
        paid.backward()
        return paid.item(), rows.grad

    nat = torch.tensor(2.0).log().item()
    assert penalty([[1.0, 0.0], [0.0, 1.0]])[0] == pytest.approx(-nat / 2, 1e-3)
    for alike in ([[1.0, 0.0]] * 2, [[0.5, 0.5]] * 2):
        assert penalty(alike)[0] == pytest.approx(0, abs=1e-4)
    # The two are driven apart.
    _, slope = penalty([[0.6, 0.5], [0.4, 0.5]])
    assert slope[0, 0] < 0 < slope[1, 0] and slope[:, 1].abs().max() < 1e-6


# --- bad input --------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "fault"),
    [
        (lambda: FirstN(5), "target_layers: 5 is no number from 0 to 4"),
        (lambda: RandomN(-1), "target_layers: -1 is no number from 0 to 4"),
        (lambda: RandomN("two"), "target_layers: 'two' is no number"),
        (lambda: GreedyMasks(4.5), "target_layers: 4.5 is no number"),
        (lambda: selector(target_layers=9), "target_layers: 9 is no number"),
        (lambda: selector(train_targets=[2, 6]), "train_targets: 6 is no"),
        (lambda: selector(dependence_weight=1), "draw_targets: batch"),
        (lambda: FixedMask([1, 0, 1]), "mask: .* 3 layers, .* has 4"),
        (lambda: FixedMask(every=5), "every: 5 must be .* from 1 to 4"),
        (lambda: FixedMask(every=0), "every: 0 must be"),
        (lambda: FixedMask("1 01"), "mask|invalid literal"),
        (lambda: FixedMask([1, 2, 0, 1]), "mask: .* a 1 for each layer"),
        (lambda: FixedMask("1111", every=2), "just one"),
        (FixedMask, "just one"),
        (lambda: BernoulliGate(p=1.0), "p: 1.0 must lie"),
        (lambda: BernoulliGate(draw="layer"), "neither batch nor utterance"),
        (lambda: GreedyMasks(utterances=0), "utterances: 0"),
        (lambda: selector(summary="mean"), "summary: 'mean' is none of"),
        (lambda: selector(train_targets=[]), "name at least one"),
        (lambda: selector(train_targets={"low": 1}), "lowest and highest"),
    ],
)
def test_bad_settings_are_named(make, fault):
    with pytest.raises(ValueError, match=fault):
        ENCODERS[CONFORMER].attach(make())


@pytest.mark.parametrize("row", ["all", "fixed mask"])
def test_a_gate_that_serves_no_targets_says_so(row):
    gate = attached(ENCODERS[CONFORMER], row)
    with pytest.raises(ValueError, match="keeps the layers that it was made"):
        gate.set_target(2)


@pytest.mark.parametrize(
    ("target", "used"), [(1, 2), (3, 2), (3.5, 4), (2.5, 2), (4, 4), (0, 2)]
)
def test_a_target_not_trained_for_is_replaced_and_said(target, used, caplog):
    gate = selector(train_targets=[2, 4])
    ENCODERS[CONFORMER].attach(gate)
    with caplog.at_level("WARNING"):
        gate.set_target(target)
    assert gate.target_layers == used
    assert (f"not trained for {target}" in caplog.text) == (target != used)


def test_fractions_between_trained_numbers_are_served():
    gate = selector(train_targets=[2, 3])
    ENCODERS[CONFORMER].attach(gate)
    gate.set_target(2.5)
    assert gate.target_layers == 2.5
    gate.set_target(None)
    assert gate.target_layers == 2  # the middle of those trained


def test_a_selector_of_another_backbone_is_refused():
    encoder = ENCODERS[CONFORMER]
    gate = attached(encoder, LEARNED[0])
    weights = copy.deepcopy(gate.state_dict())
    for layers, width in ((3, 16), (4, 32)):
        other = ROWS[LEARNED[0]]()
        other.trained = [1, 2]
        other.default_target = 2
        other.prepare(layers, width)
        with pytest.raises(ValueError, match="trained with another backbone"):
            other.load_state_dict(weights)
    with pytest.raises(ValueError, match="made for 4 layers of width 16"):
        ENCODERS["wavlm-base"].attach(gate)


def test_greedy_masks_of_another_backbone_are_refused():
    gates = [GreedyMasks(), GreedyMasks()]
    for layers, gate in zip((4, 6), gates):
        gate.prepare(layers, 16)
        gate.search(lambda: 0.0)
    with pytest.raises(ValueError, match="greedy masks of 4 layers.* has 6"):
        gates[1].load_state_dict(gates[0].state_dict())


def test_masks_that_nobody_has_looked_for(wavs):
    encoder = ENCODERS[CONFORMER]
    encoder.attach(GreedyMasks(target_layers=2))
    with pytest.raises(RuntimeError, match="not been found yet"):
        walk(encoder, *padded(wavs))


def test_masks_go_with_the_weights_of_the_encoder():
    encoder = ENCODERS[CONFORMER]
    plain = encoder.state_dict()
    attached(encoder, "greedy")
    found = copy.deepcopy(encoder.state_dict())
    encoder.attach(GreedyMasks())
    encoder.load_state_dict(plain)  # of before: they are still to be found
    assert not encoder.gate.found
    encoder.load_state_dict(found)
    assert encoder.gate.masks[1].tolist() == [False] * 3 + [True]


def test_keys_of_the_state_dict():
    encoder = ENCODERS[CONFORMER]
    stock = set(encoder.state_dict())
    for row in ROWS:
        gate = attached(encoder, row)
        own = {f"gate.{key}" for key in gate.state_dict()}
        assert set(encoder.state_dict()) == stock | own
        assert bool(own) == (row == "greedy" or row in LEARNED)


def test_weights_with_and_without_a_selector_are_told_apart():
    encoder = ENCODERS[CONFORMER]
    plain = encoder.state_dict()
    attached(encoder, LEARNED[0])
    gated = encoder.state_dict()
    with pytest.raises(ValueError, match="no weights of the input_conditioned"):
        encoder.load_state_dict(plain)
    encoder.attach(None)
    with pytest.raises(ValueError, match="has a gate with weights"):
        encoder.load_state_dict(gated)


@pytest.mark.parametrize("row", ROWS)
def test_autocast(row, wavs):
    encoder = ENCODERS[CONFORMER]
    attached(encoder, row)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert walk(encoder, *padded(wavs)).hidden.isfinite().all()
    encoder.train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        states, _ = encoder(*padded(wavs), layers=[NUM_LAYERS])
    states[0].float().sum().backward()


def test_the_registry_holds_the_learned_one():
    assert GATES["input_conditioned"] is InputConditionedGate
