"""Features alone, as an encoder."""

import pytest
import torch

from speechbrain_ee.encoders import FilterbankEncoder


@pytest.fixture
def wav():
    return torch.randn(1, 8000, generator=torch.manual_seed(0))


def test_every_channel_of_an_utterance_is_normalised(wav):
    (features,), _ = FilterbankEncoder()(wav)
    assert features.mean(dim=1).abs().max() < 1e-5
    assert (features.std(dim=1, correction=0) - 1).abs().max() < 1e-4


def test_mfccs_of_hubert_have_39_channels(wav):
    encoder = FilterbankEncoder("mfcc", 23, normalize=False, n_mfcc=13)
    (features,), _ = encoder(wav)
    assert encoder.state_sizes == [39] == [features.shape[2]]
    first = features[..., 13:26]
    slope = features[:, 2:, :13] - features[:, :-2, :13]
    wide = features[:, 4:, :13] - features[:, :-4, :13]
    expected = (slope[:, 1:-1] + 2 * wide) / 10
    assert torch.allclose(first[:, 2:-2], expected, atol=1e-4)


def test_nothing_is_trained_and_nothing_can_be_run(wav):
    encoder = FilterbankEncoder(deltas=False).train()
    assert not encoder.training
    assert list(encoder.parameters()) == []
    state = encoder.begin(wav.requires_grad_())
    assert not state.hidden.requires_grad
    assert encoder.keep(state, [0]).hidden.shape == (1, 51, 80)
    with pytest.raises(IndexError, match="no layers"):
        encoder.step(state)


def test_features_with_neighbours_are_refused():
    with pytest.raises(ValueError, match="Set context: False"):
        FilterbankEncoder(context=True)
