"""The recogniser of ML-SUPERB: padding, sizes, sub-sampling, SpecAugment."""

import pytest
import torch

from speechbrain_ee.downstreams import ConvTransformerCTC, SpecAugment
from speechbrain_ee.interfaces import HierarchicalConv, WeightedSum

SMALL = {"input_size": 12, "labels": 7, "linear_size": 20, "d_model": 16}
SMALL |= {"nhead": 4, "d_ffn": 32}


def size(*modules):
    return sum(p.numel() for m in modules for p in m.parameters())


@pytest.fixture
def small():
    torch.manual_seed(0)
    return ConvTransformerCTC(**SMALL).eval()


@pytest.mark.parametrize("normalize_variance", [False, True])
def test_an_utterance_gets_in_a_padded_batch_what_it_gets_alone(
    normalize_variance,
):
    torch.manual_seed(0)
    model = ConvTransformerCTC(
        **SMALL, normalize_variance=normalize_variance
    ).eval()
    frames = torch.tensor([41, 7, 30])
    features = torch.randn(3, 41, 12)
    # What stands in the padding must not matter, be it zeros or not.
    features[1, 7:] = 1e3
    log_probs, left = model(features, frames)
    for row, (count, kept) in enumerate(zip(frames, left)):
        alone, frames_alone = model(features[row, None, :count], count[None])
        assert frames_alone.tolist() == [kept] == [alone.shape[1]]
        torch.testing.assert_close(
            log_probs[row, :kept], alone[0], atol=1e-5, rtol=0
        )
    total = log_probs.detach().exp().sum(dim=-1)
    torch.testing.assert_close(total, torch.ones_like(total))


def test_it_is_the_chain_of_the_benchmark(small):
    """Step by step, without SpeechBrain's norm and positions."""
    x = torch.randn(1, 23, 12)
    log_probs, left = small(x, torch.tensor([23]))
    y = small.linear(x)
    y = y - y.mean(dim=1, keepdim=True)
    first, _, second, _ = small.convolutions
    y = torch.conv2d(y[:, None], first.weight, first.bias, stride=2).relu()
    y = torch.conv2d(y, second.weight, second.bias).relu()
    # A frame has its channels outside, its bands inside.
    y = torch.stack([y[0, :, t].reshape(-1) for t in range(y.shape[2])])
    y = small.projection(y) * 4.0
    angle = torch.arange(len(y))[:, None] / 10000 ** (torch.arange(8) / 8)
    y[:, 0::2] += angle.sin()
    y[:, 1::2] += angle.cos()
    y, _ = small.transformer(y[None])
    expected = small.output(y).log_softmax(-1)
    assert left.tolist() == [expected.shape[1]] == [9]
    torch.testing.assert_close(log_probs, expected, atol=1e-5, rtol=1e-5)


def test_frames_are_counted_as_the_convolutions_make_them(small):
    for count in range(7, 30):
        made = small.convolutions(torch.zeros(1, 1, count, 20)).shape[2]
        assert int(small.frames_after(torch.tensor(count))) == made
    assert small.frames_after(torch.tensor([0, 3, 6, 7])).tolist() == [
        *(0, 0, 0, 1)
    ]


def test_too_short_and_too_long_utterances_are_refused(small):
    with pytest.raises(ValueError, match="6 to 20 frames leave 0 to 7"):
        small(torch.randn(2, 20, 12), torch.tensor([20, 6]))
    short = ConvTransformerCTC(**SMALL, max_frames=5)
    with pytest.raises(ValueError, match="must be 1 to 5. Leave .* max_frames"):
        short(torch.randn(1, 20, 12), torch.tensor([20]))


def test_it_has_the_benchmarks_size():
    model = ConvTransformerCTC(input_size=768, labels=30)
    linear = 768 * 80 + 80
    convolutions = 9 * 256 + 256 + 9 * 256 * 256 + 256
    projection = 37 * 256 * 256 + 256
    attention, norms = 4 * (256 * 256 + 256), 4 * 256
    feed_forward = 2 * 256 * 1024 + 1024 + 256
    layers = 2 * (attention + norms + feed_forward)
    output = 2 * 256 + 256 * 30 + 30
    assert size(model) == (linear + convolutions + projection + layers + output)


def test_a_weighted_sum_with_a_larger_downstream_has_as_many_parameters():
    states = [768] * 13
    control = ConvTransformerCTC(768, labels=30, d_ffn=5337)
    usual = ConvTransformerCTC(768, labels=30)
    ours = size(WeightedSum(states), control)
    theirs = size(HierarchicalConv(states), usual)
    assert ours == pytest.approx(theirs, rel=0.001)
    # To the nearest width.
    step = size(ConvTransformerCTC(768, 30, d_ffn=5338)) - size(control)
    assert abs(ours - theirs) <= step / 2


def test_every_parameter_learns_through_spec_augment(small):
    model = ConvTransformerCTC(**SMALL, spec_augment=SpecAugment(5, 2, 6))
    log_probs, _ = model(torch.randn(2, 60, 12), torch.tensor([60, 40]))
    (log_probs * torch.randn_like(log_probs)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    with torch.no_grad():
        features, frames = torch.randn(1, 60, 12), torch.tensor([60])
        first, second = (model.eval()(features, frames)[0] for _ in range(2))
    assert torch.equal(first, second)  # nothing is masked in evaluation


def test_masks_lie_within_real_frames_and_differ_between_utterances():
    torch.manual_seed(0)
    augment = SpecAugment(0, 2, 27, 10, 0.05)
    features = torch.ones(4, 400, 80)
    features[1:, 200:] = 7.0
    masked = augment(features, torch.tensor([400, 200, 200, 200]))
    assert (masked[1:, 200:] == 7.0).all()  # not touched
    assert features.min() == 1  # not in place
    hidden = masked[:, :200] == 0
    frames = hidden.all(dim=2)
    channels = hidden.all(dim=1)
    assert len({tuple(row.tolist()) for row in frames}) == 4
    assert len({tuple(row.tolist()) for row in channels}) == 4
    for row in range(1, 4):
        # Ten masks of at most 5 % of 200 frames; two of at most 27 channels.
        assert 0 < frames[row].sum() <= 100
        assert channels[row].sum() <= 54
    # Three masks of at most 7 frames, also of an utterance of 5.
    few = SpecAugment(0, 0, 0, 3, 1.0, time_width=7)
    hidden = few(features, torch.tensor([400, 5, 200, 200])) == 0
    frames = hidden.all(dim=2).sum(dim=1)
    assert (frames <= torch.tensor([21, 5, 21, 21])).all() and frames[0] > 0
    # A short utterance has no whole frame to hide.
    short = SpecAugment(0, 0, 0, 10, 0.05)(features, torch.tensor([19] * 4))
    assert (short == features).all()


def test_time_is_warped_and_goes_on_to_its_end():
    torch.manual_seed(0)
    ramp = torch.arange(100.0)[None, :, None].expand(2, -1, 4).clone()
    ramp[1, 50:] = -1.0
    warped = SpecAugment(5, 0, 0, 0)(ramp, torch.tensor([100, 50]))
    assert not torch.equal(warped[0], ramp[0])
    assert (warped[1, 50:] == -1.0).all()
    assert (warped - ramp).abs().max() <= 6
    assert warped[0, -1, 0] == pytest.approx(99, abs=0.1)
    assert warped[1, 49, 0] == pytest.approx(49, abs=0.1)
