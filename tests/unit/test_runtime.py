"""The loop over ALL encoders and ALL selectors: exits, costs, transcripts."""

import pytest
import torch

from speechbrain_ee.costs import ExitCosts
from speechbrain_ee.exits import (
    SELECTORS,
    DepthWindow,
    FixedLayer,
    MaxLayers,
    MaxMacs,
    NeverLeave,
    Oracle,
    Patience,
    RandomExit,
    Threshold,
    get_score,
)
from speechbrain_ee.heads import CTCHeads
from speechbrain_ee.runtime import EarlyExitLoop
from tests.unit.encoders.backbones import BACKBONES, build

EXITS = [1, 2, 3, 4]
LENGTHS = (9000, 16000, 12345, 16000 - 37, 8000)
IDS = ["a", "b", "c", "d", "e"]
SCORES = [
    "entropy",
    "max_probability",
    "margin",
    "hypothesis_posterior",
    "sentence_confidence",
    "kl_to_previous",
    "state_similarity",
]


@pytest.fixture(scope="module", params=BACKBONES)
def model(request):
    """An encoder with heads, its batch, and every exit of every utterance
    walked alone: outputs[id][exit_layer]."""
    encoder = build(request.param).encoder
    heads = CTCHeads(EXITS, encoder.output_size, vocab_size=6).eval()
    for head in heads.linear.values():  # else random heads say next to nothing
        torch.nn.init.normal_(head.weight)
    generator = torch.Generator().manual_seed(2)
    wavs = [0.1 * torch.randn(n, generator=generator) for n in LENGTHS]
    outputs = {name: {} for name in IDS}
    alone = EarlyExitLoop(
        encoder,
        heads,
        NeverLeave(),
        watched=[get_score(name) for name in SCORES],
    )
    for name, wav in zip(IDS, wavs):

        def collect(output, account, name=name):
            outputs[name][output.exit_layer] = output

        alone(wav[None], ids=[name], on_exit=collect)
    return encoder, heads, wavs, outputs, alone.costs


def batch_of(wavs):
    batch = torch.nn.utils.rnn.pad_sequence(wavs, batch_first=True)
    lens = torch.tensor([len(wav) / batch.shape[1] for wav in wavs])
    return batch, lens


def median_threshold(name, outputs):
    """A threshold that splits the batch, in the widest gap near the middle."""
    score = get_score(name, **({"k": 4} if "sentence" in name else {}))
    values = [score(o[k]).item() for o in outputs.values() for k in EXITS[:3]]
    values = sorted(v for v in values if v == v)
    gaps = [b - a for a, b in zip(values, values[1:])]
    middle = range(len(gaps) // 4, max(1, 3 * len(gaps) // 4) + 1)
    widest = max(middle, key=lambda i: gaps[i])
    return Threshold(score, (values[widest] + values[widest + 1]) / 2)


def selectors(outputs, costs):
    """One of every kind, set so that exits are mixed where they can be."""
    frames = {name: o[1].frames for name, o in outputs.items()}
    budget = costs(2, frames["c"]).item() + 1  # longer ones cannot pay for it
    return {
        "fixed": FixedLayer(2),
        "max_layers": MaxLayers(3),
        "max_macs": MaxMacs(budget),
        "never": NeverLeave(),
        "oracle": Oracle(dict(zip(IDS, [1, 4, 2, 1, 2]))),
        "patience": Patience(2, tolerance=0.5),
        "random": RandomExit(2.0, seed=3),
        "window": DepthWindow(2, 3, median_threshold("entropy", outputs)),
        **{
            f"threshold {name}": median_threshold(name, outputs)
            for name in SCORES
        },
    }


def expected_exit(selector, outputs):
    """Where the selector lets an utterance go that walks alone."""
    for k in EXITS[:-1]:
        if bool(selector(outputs[k])[0]):
            return k
    return EXITS[-1]


def test_each_utterance_of_a_batch_leaves_as_it_would_alone(model):
    encoder, heads, wavs, outputs, costs = model
    kinds = selectors(outputs, costs)
    assert {kind.split()[0] for kind in kinds} == set(SELECTORS)
    mixed = 0
    for kind, selector in kinds.items():
        loop = EarlyExitLoop(encoder, heads, selector, costs)
        left = loop(*batch_of(wavs), ids=IDS)
        exits = [expected_exit(selector, outputs[name]) for name in IDS]
        assert left.exit_layer.tolist() == exits, kind
        assert left.layers_run.tolist() == exits, kind
        assert left.hypotheses == [
            outputs[name][k].hypotheses[0] for name, k in zip(IDS, exits)
        ], kind
        assert left.macs.tolist() == [
            costs(k, outputs[name][k].frames).item()
            for name, k in zip(IDS, exits)
        ], kind
        mixed += len(set(exits)) > 1
    assert mixed >= 4  # the batch really was split, not by one selector alone


def test_nothing_behind_the_last_departure_runs(model):
    encoder, heads, wavs, _, costs = model
    ran = []
    hooks = [
        layer.register_forward_hook(
            lambda m, args, out, k=k: ran.append((k, len(args[0])))
        )
        for k, layer in enumerate(encoder.layers, start=1)
    ]
    leave = Oracle(dict(zip(IDS, [1, 2, 1, 2, 1])))
    EarlyExitLoop(encoder, heads, leave, costs)(*batch_of(wavs), ids=IDS)
    for hook in hooks:
        hook.remove()
    assert ran == [(1, 5), (2, 2)]  # layer, utterances


def collected(loop, wavs, ids):
    """The states that a loop hands over, by utterance: {id: (exit, states)}."""
    found = {}

    def note(output, rows, states):
        assert rows.tolist() == sorted(rows.tolist())
        assert [ids[i] for i in rows] == output.ids
        for place, (name, count) in enumerate(zip(output.ids, output.frames)):
            own = [state[place, :count] for state in states]
            found[name] = output.exit_layer, own

    return loop(*batch_of(wavs), ids=ids, on_leave=note), found


def test_who_leaves_takes_along_the_states_it_has_alone(model):
    encoder, heads, wavs, outputs, costs = model
    exits = dict(zip(IDS, [2, 4, 1, 2, 3]))
    loop = EarlyExitLoop(encoder, heads, Oracle(exits), costs)
    left, found = collected(loop, wavs, IDS)
    assert found.keys() == exits.keys()
    for name, wav, frames in zip(IDS, wavs, left.frames):
        taken, states = found[name]
        alone, count = encoder(wav[None], layers=range(taken + 1))
        assert taken == exits[name] and count == frames
        assert len(states) == taken + 1
        for one, other in zip(states, alone):
            assert torch.allclose(one, other[0, :frames], atol=1e-5, rtol=0)


def small_loop(selector, exits=EXITS, **options):
    encoder = build("conformer-RoPEMHA").encoder
    heads = CTCHeads(exits, encoder.output_size, vocab_size=6).eval()
    return EarlyExitLoop(encoder, heads, selector, **options)


def test_states_are_held_and_not_copied_until_somebody_leaves():
    loop = small_loop(Oracle(dict(zip(IDS, [4, 4, 2, 4, 4]))))
    seen, step = [], loop.encoder.step

    def watch(state):
        seen.append(step(state))
        return seen[-1]

    loop.encoder.step = watch
    handed = {}

    def note(output, rows, states):
        handed[output.exit_layer] = rows.tolist(), states

    loop(torch.randn(5, 16000), ids=IDS, on_leave=note)
    rows, states = handed[2]
    assert rows == [2] and [len(x) for x in states] == [1, 1, 1]
    rows, states = handed[4]
    assert rows == [0, 1, 3, 4] and [len(x) for x in states] == [4] * 5
    # Those of the layers behind the last departure are the encoder's own.
    for state, other in zip(states[3:], seen[2:], strict=True):
        assert state.data_ptr() == other.hidden.data_ptr()


def test_what_the_exit_before_said_goes_along():
    score, values = get_score("kl_to_previous"), {}
    loop = small_loop(Oracle({"x": 2, "y": 4}))
    watching = EarlyExitLoop(
        loop.encoder, loop.heads, loop.selector, loop.costs, watched=[score]
    )
    seen = {}

    def note(output, account):
        seen[output.exit_layer] = score(output)

    def leave(output, rows, states):
        values.update(zip(output.ids, score(output)))

    wavs = torch.randn(2, 16000)
    watching(wavs, None, ["x", "y"], on_exit=note, on_leave=leave)
    assert torch.isclose(values["x"], seen[2][0])
    assert torch.isclose(values["y"], seen[4][-1])


def test_some_of_the_exits_can_be_passed_over():
    loop = small_loop(NeverLeave())
    some = EarlyExitLoop(
        loop.encoder, loop.heads, Threshold("entropy", 0.0), exit_layers=[1, 3]
    )
    read, seen = loop.heads.read, []
    loop.heads.read = lambda *args: seen.append(args[-1]) or read(*args)
    left = some(torch.randn(2, 16000))
    assert left.exit_layer.tolist() == [3, 3] and seen == [1, 3]
    every = loop.costs(3, left.frames)
    assert (some.costs(3, left.frames) < every).all()
    with pytest.raises(ValueError, match=r"no exit at 3, but at \[1, 4"):
        small_loop(NeverLeave(), exits=[1, 4], exit_layers=[1, 3])


def test_seconds_add_up_and_the_front_end_is_apart():
    loop = small_loop(Oracle({"x": 1, "y": 4}))
    left = loop(torch.randn(2, 16000), torch.tensor([0.5, 1.0]), ["x", "y"])
    assert (left.seconds > 0).all() and left.front_end_seconds > 0
    assert left.seconds[1] > left.seconds[0]


def test_the_account_given_on_the_way_is_that_of_the_exit():
    loop = small_loop(Oracle({"x": 1, "y": 4}))
    seen = []

    def note(output, account):
        seen.append((output.exit_layer, output.ids, account.macs.tolist()))

    left = loop(torch.randn(2, 16000), None, ["x", "y"], on_exit=note)
    assert [(k, ids) for k, ids, _ in seen] == [
        (1, ["x", "y"]),
        (2, ["y"]),
        (3, ["y"]),
        (4, ["y"]),
    ]
    assert seen[0][2][0] == left.macs[0] and seen[3][2][0] == left.macs[1]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_broken_log_probs_never_leave_early_and_break_nobody_else(bad):
    loop = small_loop(Threshold("entropy", 100.0))
    begin = loop.encoder.begin

    def break_one(*args):
        state = begin(*args)
        state.hidden[0, 3] = bad
        return state

    loop.encoder.begin = break_one
    left = loop(torch.randn(2, 16000))
    assert left.exit_layer.tolist() == [4, 1]


def test_an_empty_hypothesis_is_an_empty_transcript():
    loop = small_loop(Threshold("hypothesis_posterior", 0.5))
    for head in loop.heads.linear.values():
        torch.nn.init.zeros_(head.weight)
        head.bias.data = torch.tensor([99.0, 0, 0, 0, 0, 0])
    left = loop(torch.randn(2, 16000))
    assert left.hypotheses == [(), ()]
    assert left.exit_layer.tolist() == [1, 1]


def test_modules_in_training_mode_are_refused():
    loop = small_loop(NeverLeave())
    loop.encoder.train()
    with pytest.raises(RuntimeError, match="eval"):
        loop(torch.randn(1, 16000))


def test_exits_outside_the_encoder_are_refused():
    encoder = build("conformer-RoPEMHA").encoder
    heads = CTCHeads([2, 6], encoder.output_size, vocab_size=6).eval()
    with pytest.raises(ValueError, match=r"\[2, 6\].*4 layers"):
        EarlyExitLoop(encoder, heads, NeverLeave())


def test_a_selector_that_does_not_fit_the_exits_is_refused():
    with pytest.raises(ValueError, match="5"):
        small_loop(FixedLayer(5))


@pytest.mark.parametrize("batch", [1, 32])
@pytest.mark.parametrize("name", SCORES)
def test_batches_of_one_and_of_many_under_autocast(batch, name):
    options = {"k": 4} if "sentence" in name else {}
    score = get_score(name, **options)
    values = {}
    loop = small_loop(NeverLeave())
    loop = EarlyExitLoop(
        loop.encoder, loop.heads, NeverLeave(), loop.costs, watched=[score]
    )

    def note(output, account):
        values[output.exit_layer] = score(output)

    wavs = torch.randn(batch, 6000)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        left = loop(wavs, on_exit=note)
    assert left.exit_layer.tolist() == [4] * batch
    assert all(v.dtype == torch.float32 for v in values.values())


@pytest.mark.parametrize("name", ["kl_to_previous", "state_similarity"])
def test_what_the_exit_before_said_is_cut_with_the_batch(name):
    score, seen = get_score(name), {}
    loop = small_loop(Oracle({"long": 1, "short": 4}))
    watching = EarlyExitLoop(
        loop.encoder, loop.heads, loop.selector, loop.costs, watched=[score]
    )

    def note(output, account):
        seen[output.exit_layer] = score(output)[-1].item()

    wavs = torch.randn(2, 16000)
    wavs[1, 7000:] = 0
    watching(wavs, torch.tensor([1, 7 / 16]), ["long", "short"], on_exit=note)
    alone = EarlyExitLoop(
        loop.encoder, loop.heads, NeverLeave(), loop.costs, watched=[score]
    )
    together = dict(seen)
    alone(wavs[1:, :7000], ids=["short"], on_exit=note)
    for k in (2, 3, 4):
        assert together[k] == pytest.approx(seen[k], abs=1e-5)


def test_a_selector_may_be_named():
    loop = small_loop({"selector": "fixed", "layer": 2})
    assert loop(torch.randn(1, 16000)).exit_layer.tolist() == [2]
    with pytest.raises(ValueError, match="threshold"):
        small_loop("treshold")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_gpu_gives_the_exits_of_the_cpu():
    loop = small_loop(RandomExit(2.0))
    wavs, ids = torch.randn(5, 16000), IDS
    on_cpu = loop(wavs, ids=ids)
    loop.encoder.cuda()
    loop.heads.cuda()
    on_gpu = loop(wavs.cuda(), ids=ids)
    assert on_gpu.exit_layer.tolist() == on_cpu.exit_layer.tolist()
    assert on_gpu.hypotheses == on_cpu.hypotheses


def test_costs_can_be_shared():
    loop = small_loop(NeverLeave())
    costs = ExitCosts(loop.encoder, loop.heads)
    again = EarlyExitLoop(loop.encoder, loop.heads, NeverLeave(), costs)
    assert again.costs is costs
