"""Tests of recurrent task models."""

import pytest
import torch

from speechbrain_ee.downstreams import PackedLSTM, RecurrentCTC, SpecAugment

FRAMES = torch.tensor([12, 5, 9])


@pytest.fixture
def features():
    """A padded batch, with something large where nothing should be."""
    torch.manual_seed(0)
    batch = torch.randn(3, 14, 6)
    for row, count in enumerate(FRAMES):
        batch[row, count:] = 1000.0
    return batch


@pytest.mark.parametrize("training", [True, False])
def test_padding_changes_nothing(features, training):
    model = RecurrentCTC(6, 5, proj_size=8, hidden_size=4, dropout=0.0)
    model.train(training)
    log_probs, frames = model(features, FRAMES)
    assert log_probs.shape == (3, 14, 5) and torch.equal(frames, FRAMES)
    for row, count in enumerate(FRAMES.tolist()):
        alone, _ = model(features[row : row + 1, :count], FRAMES[row : row + 1])
        assert torch.allclose(log_probs[row, :count], alone[0], atol=1e-6)
    assert torch.allclose(log_probs.exp().sum(-1), torch.ones(3, 14))


def test_layers_read_in_both_directions(features):
    lstm = PackedLSTM(6, 4, num_layers=1).eval()
    before = lstm(features, FRAMES)
    features[1, 2] += 1.0
    changed = (lstm(features, FRAMES) != before).any(-1)
    assert changed.tolist()[1] == [True] * 5 + [False] * 9
    assert not changed[[0, 2]].any()
    # What comes before is heard by one half, what follows by the other.
    halves = (lstm(features, FRAMES) != before).unflatten(-1, (2, 4)).any(-1)
    assert halves[1, :2].tolist() == [[False, True]] * 2
    assert halves[1, 3:5].tolist() == [[True, False]] * 2


def test_the_sizes_are_those_of_minisuperb():
    def layer(size):
        return 2 * 4 * 256 * (size + 256 + 2)

    model = RecurrentCTC(768, labels=32)
    lstm = layer(256) + 2 * layer(512)
    expected = 769 * 256 + lstm + 513 * 32
    assert sum(p.numel() for p in model.parameters()) == expected
    assert model.lstm.lstm.dropout == model.lstm.dropout.p == 0.2


def test_features_are_masked_before_the_projection_in_training():
    augment = SpecAugment(0, 4, 4, 2, 1.0, time_width=3)
    model = RecurrentCTC(6, 5, 8, 4, dropout=0.0, spec_augment=augment)
    features = torch.randn(1, 12, 6)
    seen = []
    model.projection.register_forward_pre_hook(
        lambda _, given: seen.append(given[0])
    )
    torch.manual_seed(0)
    for training in (True, False):
        model.train(training)(features, FRAMES[:1])
    assert (seen[0] == 0).any() and torch.equal(seen[1], features)
