"""Interfaces: by hand, frame by frame, and what must hold for all of them."""

import io
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hyperpyyaml import load_hyperpyyaml
from sklearn.decomposition import PCA
from torch.nn.functional import layer_norm

from speechbrain_ee import interfaces
from speechbrain_ee.interfaces import (
    AttentionWeightedSum,
    CLSPooling,
    ConcatProjection,
    GroupedWeightedSum,
    HierarchicalConv,
    LayerInterface,
    PCAConcat,
    PerExitWeightedSum,
    SingleLayer,
    WeightedSum,
    build_interface,
)
from speechbrain_ee.overrides import resolve_overrides

BLOCKS = Path(__file__).parents[3] / "hparams"
# A row for every interface, with its block.
INTERFACES = {
    AttentionWeightedSum: "attention",
    CLSPooling: "cls_pooling",
    ConcatProjection: "concat",
    GroupedWeightedSum: "grouped_weighted_sum",
    HierarchicalConv: "hierarchical_conv",
    PCAConcat: "pca",
    PerExitWeightedSum: "per_exit_weighted_sum",
    SingleLayer: "last_layer",
    WeightedSum: "weighted_sum",
}
# Blocks with other settings.
VARIANTS = {"normalized_weighted_sum": WeightedSum}
LEAST_LAYERS = {GroupedWeightedSum: 2, HierarchicalConv: 3}
ANY_WIDTHS = {ConcatProjection, PCAConcat, SingleLayer}
WIDTH = 32
FRAMES = torch.tensor([6, 4])

every = pytest.mark.parametrize("kind", INTERFACES, ids=lambda k: k.__name__)


def make_states(sizes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 6, size, generator=generator) for size in sizes]


def make(kind, layers=5, seed=0, **options):
    """An interface of which no parameter is zero, in evaluation mode."""
    torch.manual_seed(seed)
    interface = kind([WIDTH] * layers, **options).eval()
    with torch.no_grad():
        for parameter in interface.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    if kind.needs_fit:
        interface.fit(
            (make_states(interface.input_sizes, seed=k), FRAMES)
            for k in range(1, 5)
        )
    return interface


def test_every_interface_has_a_row():
    public = [getattr(interfaces, name) for name in interfaces.__all__]
    classes = {one for one in public if isinstance(one, type)}
    assert classes - {LayerInterface} == set(INTERFACES)
    blocks = {path.stem for path in BLOCKS.glob("interfaces/*.yaml")}
    assert blocks == {*INTERFACES.values(), *VARIANTS}


@pytest.mark.parametrize("layers", [1, 2, 4, 5, 13, 25])
@every
def test_any_number_of_layers(kind, layers):
    if layers < LEAST_LAYERS.get(kind, 1):
        with pytest.raises(ValueError, match="num_groups: 2|num_convs: 1"):
            make(kind, layers)
        return
    interface = make(kind, layers)
    states = make_states([WIDTH] * layers)
    for ran in {1, (layers + 1) // 2, layers}:
        output = interface(states[:ran], FRAMES)
        assert output.shape == (2, 6, interface.output_size)
        assert output.isfinite().all() and output[0].any()


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("ran", [5, 3])
@every
def test_padded_frames_are_zero_and_change_nothing(kind, ran, normalize):
    interface = make(kind, normalize=normalize)
    states = make_states([WIDTH] * ran)
    output = interface(states, FRAMES)
    for state in states:
        state[1, 4:] = 1e4
    assert torch.equal(interface(states, FRAMES), output)
    assert not output[1, 4:].any() and output[1, :4].any(dim=-1).all()
    alone = interface([state[1:, :4] for state in states])
    assert torch.allclose(alone[0], output[1, :4], atol=1e-5)


@every
def test_every_parameter_gets_a_gradient(kind):
    torch.manual_seed(0)
    interface = kind([WIDTH] * 5)
    if kind.needs_fit:
        assert not list(interface.parameters())
        return
    for ran in (5, 2):  # on a prefix, DDP still waits for all of them
        interface.zero_grad()
        states = [x.requires_grad_() for x in make_states([WIDTH] * ran)]
        interface(states, FRAMES).square().sum().backward()
        for name, parameter in interface.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.any() or ran < 5, name
        if kind is not SingleLayer:
            assert all(state.grad.any() for state in states)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize(
    "kind", [CLSPooling, ConcatProjection, HierarchicalConv]
)
def test_missing_states_are_zeros(kind, normalize):
    interface = make(kind, normalize=normalize)
    states = make_states([WIDTH] * 5)
    for ran in range(1, 6):
        zeros = [torch.zeros(2, 6, WIDTH)] * (5 - ran)
        expected = interface([*states[:ran], *zeros])
        assert torch.allclose(interface(states[:ran]), expected, atol=1e-6)


@every
def test_an_ablated_state_is_zero_until_it_comes_back(kind):
    interface = make(kind, normalize=True)
    states = make_states([WIDTH] * 5)
    whole = interface(states)
    for layer in range(5):
        other = [x if k != layer else 0 * x for k, x in enumerate(states)]
        if kind is PCAConcat:  # its zero is the mean
            start = sum(interface.num_components[:layer])
            kept = interface.num_components[layer]
            expected = whole.clone()
            expected[..., start : start + kept] = 0
        else:
            expected = interface(other)
        with interface.without(layer):
            assert torch.allclose(interface(states), expected, atol=1e-6)
            assert not torch.equal(interface(states), whole) or (
                kind is SingleLayer and layer < 4
            )
        assert torch.equal(interface(states), whole)
    with pytest.raises(ValueError, match="layer: 5 outside 0 to 4"):
        with interface.without(5):
            pass


@every
def test_a_checkpoint_holds_all(kind):
    interface, states = make(kind), make_states([WIDTH] * 5)
    file = io.BytesIO()
    torch.save(interface.state_dict(), file)
    other = kind([WIDTH] * 5).eval()
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other(states), interface(states))


@every
def test_half_precision_is_near_full(kind):
    interface, states = make(kind), make_states([WIDTH] * 5)
    expected = interface(states)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = interface(states)
    scale = expected.square().mean().sqrt()
    assert (output - expected).square().mean().sqrt() < 0.03 * scale


@every
def test_states_that_were_not_announced(kind):
    interface = make(kind)
    states = make_states([WIDTH] * 6)
    for wrong in ([], states):
        with pytest.raises(ValueError, match=f"5 states and got {len(wrong)}"):
            interface(wrong)
    with pytest.raises(ValueError, match=r"32\] channels and got \[32, 7\]"):
        interface([states[0], states[1][..., :7]])
    if not kind.needs_fit:
        with pytest.raises(TypeError, match="nothing to fit"):
            interface.fit([(states[:5], FRAMES)])


@every
def test_states_of_different_widths(kind):
    sizes = [6, 12, 12, 12]
    if kind not in ANY_WIDTHS:
        with pytest.raises(
            ValueError, match=r"\[6, 12, 12, 12\] channels: use"
        ):
            build_interface(kind, sizes)
        return
    interface = build_interface(kind, sizes)
    states = make_states(sizes)
    if kind.needs_fit:
        interface.fit([(states, FRAMES)])
    assert interface(states).shape == (2, 6, 12)
    if kind is SingleLayer:
        with pytest.raises(ValueError, match="state 0 has 6 channels"):
            interface(states[:1])


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("ran", [5, 3, 1])
def test_weighted_sum_frame_by_frame(ran, normalize):
    interface = make(WeightedSum, normalize=normalize)
    states = make_states([WIDTH] * ran)
    scalars = interface.weights.detach().double().numpy()[:ran]
    weights = np.exp(scalars) / np.exp(scalars).sum()
    output = interface(states)
    for row in range(2):
        for frame in range(6):
            total = np.zeros(WIDTH)
            for weight, state in zip(weights, states):
                x = state[row, frame].double().numpy()
                if normalize:
                    x = (x - x.mean()) / np.sqrt(x.var() + 1e-5)
                total += weight * x
            assert np.allclose(output[row, frame].detach(), total, atol=1e-5)
    if ran == 5:
        assert np.allclose(interface.layer_weights(), weights, atol=1e-6)


def test_weights_start_equal_and_survive_extremes():
    interface = WeightedSum([4] * 5)
    assert torch.allclose(interface.layer_weights(), torch.full((5,), 0.2))
    with torch.no_grad():
        interface.weights[4] = 1e4
    states = make_states([4] * 5)
    assert torch.allclose(interface(states), states[4])
    assert torch.allclose(interface(states[:2]), (states[0] + states[1]) / 2)


@pytest.mark.parametrize("ran", [5, 3, 1])
def test_each_number_of_states_has_weights_of_its_own(ran):
    interface = make(PerExitWeightedSum)
    states = make_states([WIDTH] * ran)
    weights = interface.weights[ran - 1, :ran].softmax(0)
    expected = sum(w * state for w, state in zip(weights, states))
    assert torch.allclose(interface(states), expected, atol=1e-6)
    with torch.no_grad():
        interface.weights[ran - 1, ran:] += 99.0  # of states that are not there
        interface.weights[: ran - 1] += torch.randn(ran - 1, 5)
        interface.weights[ran:] += torch.randn(5 - ran, 5)
    assert torch.allclose(interface(states), expected, atol=1e-6)
    assert interface.layer_weights() is None


@pytest.mark.parametrize("ran", [5, 4, 2])
@pytest.mark.parametrize("num_groups", [1, 2, 3, 5])
def test_groups_by_hand(num_groups, ran):
    interface = make(GroupedWeightedSum, num_groups=num_groups)
    states = make_states([WIDTH] * ran)
    sums = []
    for group in np.array_split(np.arange(5), num_groups):
        there = [k for k in group if k < ran]
        scalars = interface.weights[there].exp()
        parts = [
            scalar / scalars.sum() * states[k]
            for scalar, k in zip(scalars, there)
        ]
        sums.append(sum(parts, torch.zeros(2, 6, WIDTH)))
    projection = interface.projection
    expected = torch.cat(sums, dim=-1) @ projection.weight.T + projection.bias
    assert torch.allclose(interface(states), expected, atol=1e-5)
    borders = np.array_split(interface.layer_weights(), num_groups)
    assert np.allclose([group.sum() for group in borders], 1)


def test_groups_that_do_not_divide_are_defined():
    assert GroupedWeightedSum([4] * 13, 4).group_sizes == [4, 3, 3, 3]
    assert GroupedWeightedSum([4] * 25, 3).group_sizes == [9, 8, 8]
    with pytest.raises(ValueError, match="num_groups: 6 outside 1 to 5"):
        GroupedWeightedSum([4] * 5, 6)


@pytest.mark.parametrize("ran", [5, 2])
def test_attention_by_hand(ran):
    interface = make(AttentionWeightedSum)
    states = make_states([WIDTH] * ran)
    output = interface(states)
    for row in range(2):
        for frame in range(6):
            x = torch.stack([state[row, frame] for state in states])
            scores = (layer_norm(x, [WIDTH]) * interface.queries[:ran]).sum(-1)
            weights = (scores + interface.biases[:ran]).softmax(0)
            assert torch.allclose(output[row, frame], weights @ x, atol=1e-5)
    # Without queries it is the weighted sum.
    plain = make(WeightedSum)
    with torch.no_grad():
        interface.queries.zero_()
        plain.weights.copy_(interface.biases)
    assert torch.allclose(interface(states), plain(states), atol=1e-6)


def convolve_frame(interface, frame):
    """The definition: loops over outputs, taps and layers of one frame."""
    stack = [x.double().numpy() for x in frame]
    for conv in interface.convs:
        weight = conv.weight.detach().double().numpy()
        (size,), (stride,), (pad,) = conv.kernel_size, conv.stride, conv.padding
        count = (len(stack) + 2 * pad - size) // stride + 1
        outputs = []
        for place in range(count):
            total = conv.bias.detach().double().numpy().copy()
            for tap in range(size):
                layer = place * stride - pad + tap
                if 0 <= layer < len(stack):
                    total += weight[:, :, tap] @ stack[layer]
            outputs.append(np.maximum(total, 0))
        stack = outputs
    return np.stack(stack, axis=-1).flatten()  # channel by channel


@pytest.mark.parametrize(
    ("layers", "options"),
    [
        (13, {}),
        (25, {}),
        (4, {}),
        (5, {"num_convs": "linear"}),
        (6, {"kernel_size": 3, "stride": 2}),
        (7, {"kernel_size": 3, "padding": 0, "num_convs": 1}),
        (9, {"kernel_size": 2, "stride": 1, "padding": 1, "log_base": 4}),
        (1, {"num_convs": 1}),
    ],
)
def test_convolution_frame_by_frame(layers, options):
    interface = make(HierarchicalConv, layers, **options)
    for ran in {layers, max(1, layers // 2)}:
        states = make_states([WIDTH] * ran)
        output = interface(states)
        zeros = [torch.zeros(WIDTH)] * (layers - ran)
        for row in range(2):
            for time in range(6):
                frame = [*(state[row, time] for state in states), *zeros]
                expected = convolve_frame(interface, frame)
                ours = output[row, time].detach()
                assert np.allclose(ours, expected, atol=1e-4, rtol=1e-4)


def test_gradients_are_those_of_the_stock_convolution():
    interface = make(HierarchicalConv, 13).double()
    states = torch.stack(make_states([WIDTH] * 13)).double().requires_grad_()
    inputs = [states, *interface.parameters()]
    torch.manual_seed(1)
    loss = torch.randn(2, 6, WIDTH).double()
    ours = torch.autograd.grad(
        (interface(states.unbind()) * loss).sum(), inputs
    )
    stock = states.permute(1, 2, 3, 0).flatten(end_dim=1)
    for conv in interface.convs:
        stock = conv(stock).relu()
    stock = stock.flatten(start_dim=1).view(2, 6, -1)
    expected = torch.autograd.grad((stock * loss).sum(), inputs)
    for one, other in zip(ours, expected, strict=True):
        assert torch.allclose(one, other, atol=1e-12)


@pytest.mark.parametrize(
    ("layers", "width", "parameters", "num_states", "output_size"),
    [
        (13, 768, 4_424_832, [13, 5, 2], 768),
        (25, 1024, 6_990_165, [25, 9, 3], 1023),
    ],
)
def test_convolutions_of_the_paper(
    layers, width, parameters, num_states, output_size
):
    interface = HierarchicalConv([width] * layers)
    assert sum(p.numel() for p in interface.parameters()) == parameters
    assert interface.num_states == num_states
    assert interface.output_size == output_size


@pytest.mark.parametrize(
    ("layers", "count"), [(3, 1), (8, 1), (9, 2), (26, 2), (27, 3), (243, 5)]
)
def test_the_logarithm_is_that_of_whole_numbers(layers, count):
    # log(243) / log(3) is 4.999… in floating point.
    assert len(HierarchicalConv([8] * layers).convs) == count


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"num_convs": 0}, "num_convs: 0 .*Set num_convs: 1"),
        ({"num_convs": "many"}, "num_convs: 'many'"),
        ({"stride": 1}, "log_base: 1 must be above 1"),
        ({"stride": 0}, "stride: 0"),
        ({"padding": 5}, "padding: 5 from 0 to below kernel_size: 5"),
        ({"padding": 0, "num_convs": 3}, r"make \[5, 1, -1, -1\] states"),
        ({"stride": 1, "num_convs": 1}, "the last at most 4"),
    ],
)
def test_convolutions_that_do_not_fit(options, told):
    with pytest.raises(ValueError, match=told):
        HierarchicalConv([4] * 5, **options)


@pytest.mark.parametrize("num_layers", [1, 2])
def test_pooling_reads_each_frame_and_the_order_of_layers(num_layers):
    interface = make(CLSPooling, num_layers=num_layers)
    states = make_states([WIDTH] * 5)
    output = interface(states)
    # By hand: the token, then the states with their positions.
    for row, frame in ((0, 0), (1, 5)):
        x = torch.stack([state[row, frame] for state in states])
        tokens = torch.cat([interface.cls[None], x + interface.positions])
        expected = interface.transformer(tokens[None])[0, 0]
        assert torch.allclose(output[row, frame], expected, atol=1e-5)
    assert not torch.allclose(interface(states[::-1]), output, atol=1e-2)
    with pytest.raises(ValueError, match="nhead: 5 must divide the 32"):
        CLSPooling([WIDTH] * 5, nhead=5)


def test_concatenation_by_hand():
    sizes = [3, 5, 5]
    interface = ConcatProjection(sizes, output_size=4)
    states = make_states(sizes)
    weight, bias = interface.projection.weight, interface.projection.bias
    parts = weight.split(sizes, dim=1)
    expected = bias + sum(x @ part.T for x, part in zip(states, parts))
    assert torch.allclose(interface(states), expected, atol=1e-5)


@pytest.mark.parametrize("normalize", [False, True])
def test_components_are_those_of_the_real_frames(normalize):
    sizes = [12, 7, 7]
    interface = PCAConcat(sizes, output_size=8, normalize=normalize)
    assert interface.num_components == [3, 3, 2]
    batches = [make_states(sizes, seed=k) for k in range(1, 6)]
    for batch in batches:
        for state in batch:
            state[1, 4:] = 1e4  # padding
    interface.fit((batch, FRAMES) for batch in batches)
    states = make_states(sizes)
    expected = []
    for layer, kept in enumerate(interface.num_components):
        real = torch.cat(
            [torch.cat([b[layer][0], b[layer][1, :4]]) for b in batches]
        )
        new = states[layer].flatten(end_dim=1)
        if normalize:
            real, new = (layer_norm(x, x.shape[-1:]) for x in (real, new))
        pca = PCA(kept, svd_solver="full").fit(real.double())
        expected.append(torch.from_numpy(pca.transform(new.double())))
    expected = torch.cat(expected, dim=-1).view(2, 6, 8)
    output = interface(states).double()
    # The sign of a component is free.
    assert torch.allclose(output.abs(), expected.abs(), atol=1e-4)
    prefix = interface(states[:2])
    assert torch.equal(prefix[..., :6], interface(states)[..., :6])
    assert not prefix[..., 6:].any()


def test_the_sample_is_bounded_fair_and_of_the_seed():
    # Frames are numbered, 10 real ones in each of 30 batches.
    numbers = torch.arange(360.0).view(30, 2, 6, 1)
    batches = [([x, 2 * x], FRAMES) for x in numbers]
    real = {*numbers[:, 0].flatten().tolist()}
    real |= {*numbers[:, 1, :4].flatten().tolist()}
    drawn = torch.zeros(360)
    for seed in range(40):
        interface = PCAConcat([1, 1], output_size=2, samples=30, seed=seed)
        sample = interface._sample(batches)
        assert sample.shape == (30, 2)
        assert torch.equal(sample[:, 1], 2 * sample[:, 0])
        assert len(set(sample[:, 0].tolist())) == 30
        assert set(sample[:, 0].tolist()) <= real
        drawn[sample[:, 0].long()] += 1
    assert torch.equal(sample, interface._sample(batches))
    # 40 draws of 30 frames: 400 of each third of the batches, sd 15.5.
    assert (drawn.view(3, 120).sum(dim=1) - 400).abs().max() < 6 * 15.5


def test_components_that_cannot_be_found():
    interface = PCAConcat([WIDTH] * 2)
    states = make_states([WIDTH] * 2)
    with pytest.raises(RuntimeError, match="call fit"):
        interface(states)
    with pytest.raises(ValueError, match="keeps 16 components .* 10 frames"):
        interface.fit([(states, FRAMES)])
    with pytest.raises(ValueError, match="all 2 states and got 1"):
        interface.fit([(states[:1], FRAMES)])
    with pytest.raises(ValueError, match="leaves 0 components of state 4"):
        PCAConcat([4] * 5)
    with pytest.raises(
        ValueError, match="5 components of state 0.* 4 channels"
    ):
        PCAConcat([4] * 2, output_size=10)


def test_one_layer_by_its_place():
    states = make_states([WIDTH] * 5)
    assert torch.equal(SingleLayer([WIDTH] * 5)(states), states[4])
    assert torch.equal(SingleLayer([WIDTH] * 5)(states[:3]), states[2])
    assert torch.equal(SingleLayer([WIDTH] * 5, layer=2)(states[:3]), states[2])
    with pytest.raises(ValueError, match="layer: 3 is not among the 3 states"):
        SingleLayer([WIDTH] * 5, layer=3)(states[:3])
    with pytest.raises(ValueError, match="layer: 5 is none of the 5 states"):
        SingleLayer([WIDTH] * 5, layer=5)


YAML = """
upstream: !new:types.SimpleNamespace
    state_sizes: [32, 32, 32, 32]
interface: !name:speechbrain_ee.interfaces.WeightedSum
layer_interface: !apply:speechbrain_ee.interfaces.build_interface
    interface: !ref <interface>
    input_sizes: !ref <upstream.state_sizes>
head: !new:torch.nn.Linear
    in_features: !ref <layer_interface.output_size>
    out_features: 3
modules:
    interface: !ref <layer_interface>
    head: !ref <head>
model: !new:torch.nn.ModuleList
    - [!ref <layer_interface>, !ref <head>]
"""


@pytest.mark.parametrize("block", [None, *INTERFACES.values(), *VARIANTS])
def test_a_yaml_holds_one_interface_and_any_block(block, tmp_path):
    hparams_file = tmp_path / "train.yaml"
    hparams_file.write_text(YAML)
    overrides = f"interface: {block}" if block else ""
    overrides = resolve_overrides(hparams_file, overrides, BLOCKS)
    with open(hparams_file, encoding="utf-8") as file:
        hparams = load_hyperpyyaml(file, overrides, overrides_must_match=False)
    interface = hparams["layer_interface"]
    assert isinstance(interface, LayerInterface)
    assert interface.input_sizes == (32, 32, 32, 32)
    assert hparams["modules"]["interface"] is interface
    assert hparams["model"][0] is interface
    assert interface.normalize == (block in VARIANTS)
    if block in VARIANTS:
        assert type(interface) is VARIANTS[block]
    else:
        assert INTERFACES[type(interface)] == (block or "weighted_sum")


@pytest.mark.parametrize(
    ("interface", "sizes", "error", "told"),
    [
        ("weighted_sum", [4], TypeError, "cannot be built; name a class"),
        (torch.nn.Identity(), [4], TypeError, "Identity.* cannot be built"),
        (partial(torch.nn.Linear, 2, 2), [4], TypeError, "input_sizes"),
        (lambda input_sizes: 3, [4], TypeError, "3 is no LayerInterface"),
        (WeightedSum, [], ValueError, "channels of one state or more"),
        (WeightedSum, [4, 0], ValueError, r"\[4, 0\] must be the channels"),
        (WeightedSum, 768, ValueError, "input_sizes: 768 must be"),
    ],
)
def test_what_is_no_interface(interface, sizes, error, told):
    with pytest.raises(error, match=told):
        build_interface(interface, sizes)
