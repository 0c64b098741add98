"""What must hold of every encoder (docs/architecture.md)."""

import pytest
import torch
from speechbrain.lobes.features import Fbank

from speechbrain_ee.encoders import SpeechBrainEncoder
from tests.unit.encoders.backbones import (
    BACKBONES,
    NUM_LAYERS,
    WITHOUT_LAYERS,
    build,
)

LENGTHS = (16000, 9000, 12345, 16000 - 37, 8000)


@pytest.fixture(params=BACKBONES)
def backbone(request):
    return build(request.param)


@pytest.fixture(params=[*BACKBONES, *WITHOUT_LAYERS])
def upstream(request):
    """One that may have no layers."""
    return build(request.param)


@pytest.fixture
def wavs():
    generator = torch.Generator().manual_seed(1)
    return [0.1 * torch.randn(n, generator=generator) for n in LENGTHS]


def padded(wavs):
    """A batch whose padding is loud: it must not be heard."""
    longest = max(map(len, wavs))
    batch = torch.full((len(wavs), longest), 7.0)
    for row, wav in zip(batch, wavs):
        row[: len(wav)] = wav
    return batch, torch.tensor([len(wav) / longest for wav in wavs])


def assert_close(ours, stock):
    assert ours.shape == stock.shape
    assert (ours - stock).abs().max() <= 1e-5


@torch.no_grad()
def test_every_state_and_the_output_equal_the_stock_model(upstream, wavs):
    encoder = upstream.encoder
    for wav in wavs:
        stock = upstream.stock_states(wav[None])
        states, frames = encoder(wav[None])
        assert frames.tolist() == [stock[-1].shape[1]]
        assert len(states) == encoder.num_layers + 1 == len(stock) - 1
        assert [x.shape[2] for x in states] == encoder.state_sizes
        for ours, theirs in zip(states, stock):
            assert_close(ours, theirs)
        assert_close(encoder.final_norm(states[-1]), stock[-1])


@torch.no_grad()
def test_a_padded_batch_equals_each_utterance_alone(upstream, wavs):
    encoder = upstream.encoder
    states, frames = encoder(*padded(wavs), normed=[encoder.num_layers])
    for row, wav in enumerate(wavs):
        stock = upstream.stock_states(wav[None])
        stock = [*stock[:-2], stock[-1]]  # the last state after its norm
        for ours, theirs in zip(states, stock):
            assert_close(ours[row, : frames[row]], theirs[0])


@torch.no_grad()
def test_rows_that_stay_are_not_touched_by_rows_that_leave(backbone, wavs):
    encoder = backbone.encoder
    state = encoder.begin(*padded(wavs))
    for stay in ([0, 1, 2, 4], [2, 1], [0], [0]):  # left at last: wavs[2]
        state = encoder.step(encoder.keep(state, stay))
    assert state.layer == NUM_LAYERS
    assert state.hidden.shape[1] == state.frames.max()
    assert_close(state.hidden, backbone.stock_states(wavs[2][None])[-2])


@torch.no_grad()
def test_only_the_asked_layers_are_given_and_none_behind_them_runs(
    backbone, wavs
):
    encoder = backbone.encoder
    encoder.layers[2].register_forward_hook(lambda *_: pytest.fail("ran"))
    states, _ = encoder(wavs[0][None], layers=[0, 2])
    stock_first = encoder.begin(wavs[0][None]).hidden
    assert len(states) == 2
    assert torch.equal(states[0], stock_first)


def test_gradients_reach_every_trainable_parameter(backbone, wavs):
    encoder = backbone.encoder.train()
    states, _ = encoder(*padded(wavs), normed=[NUM_LAYERS])
    sum(state.square().sum() for state in states).backward()
    without = [
        name
        for name, parameter in encoder.named_parameters()
        if parameter.requires_grad and parameter.grad is None
    ]
    assert without == []


def test_autocast_keeps_padding_out(upstream, wavs):
    encoder = upstream.encoder
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        states, frames = encoder(*padded(wavs), layers=[encoder.num_layers])
        alone, _ = encoder(wavs[1][None], layers=[encoder.num_layers])
    difference = states[0][1, : frames[1]] - alone[0][0]
    assert difference.abs().mean() < 0.1 * alone[0].abs().mean()


def test_a_checkpoint_with_other_layers_is_refused(backbone):
    encoder = backbone.encoder
    weights = {
        key: value
        for key, value in encoder.state_dict().items()
        if f"encoder.layers.{NUM_LAYERS - 1}." not in key
    }
    with pytest.raises(ValueError, match="3 encoder layers, the model 4"):
        encoder.load_state_dict(weights)


@pytest.mark.parametrize(
    ("layers", "fault"),
    [
        ([2, 5], "5 outside 0 to 4"),
        ([-1, 2], "-1 outside"),
        ([2, 2], "deeper than the one before"),
        ([3, 1], "deeper than the one before"),
        ([], "At least one layer"),
    ],
)
def test_impossible_layers_are_refused(backbone, wavs, layers, fault):
    with pytest.raises(ValueError, match=fault):
        backbone.encoder(wavs[0][None], layers=layers)


@pytest.mark.parametrize("neighbours", ["deltas", "context"])
def test_features_that_look_into_the_padding_are_refused(neighbours):
    transformer = build("transformer-RoPEMHA").encoder.transformer
    with pytest.raises(ValueError, match=f"Set {neighbours}: False"):
        SpeechBrainEncoder(transformer, Fbank(**{neighbours: True}))


def test_an_utterance_without_frames_is_named(upstream, wavs):
    batch, wav_lens = padded(wavs)
    wav_lens[2] = 0.0
    with pytest.raises(ValueError, match="Utterance 2 of the batch has 0"):
        upstream.encoder(batch, wav_lens)


def test_frames_of_counts_what_the_encoder_makes(upstream):
    samples = torch.arange(8000, 8000 + 700, 37)
    for n, frames in zip(samples, upstream.encoder.frames_of(samples)):
        state = upstream.encoder.begin(torch.randn(1, int(n)))
        assert state.hidden.shape[1] == frames == state.frames


def test_frames_are_as_far_apart_as_it_says(upstream):
    encoder = upstream.encoder
    shift = encoder.frame_shift
    samples = torch.arange(16000, 16000 + 20 * shift, shift)
    frames = encoder.frames_of(samples)
    assert frames.diff().tolist() == [1] * 19
