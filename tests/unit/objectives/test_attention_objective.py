"""Cross-entropy of decoders, and Eq. 4 of Wright et al."""

import pytest
import torch
from speechbrain.nnet.losses import kldiv_loss

from speechbrain_ee.objectives import (
    ExitLossSum,
    ExitPredictions,
    attention_exit_losses,
    ctc_exit_losses,
    with_end,
)

FRAMES, COUNTS = torch.tensor([9, 6]), torch.tensor([3, 1])
TOKENS = torch.tensor([[3, 4, 4], [3, 0, 0]])
TARGETS = torch.tensor([[3, 4, 4, 2], [3, 2, -100, -100]])


@pytest.fixture
def log_probs():
    torch.manual_seed(0)
    ctc = torch.randn(3, 2, 9, 5).log_softmax(-1)
    return ctc, torch.randn(3, 2, 4, 5).log_softmax(-1)


def test_targets_end_where_the_sentence_does():
    assert torch.equal(with_end(TOKENS, COUNTS, 2), TARGETS)


def test_the_loss_is_that_of_speechbrains_recipes(log_probs):
    losses = attention_exit_losses(log_probs[1], TARGETS)
    padded = TARGETS.clamp(min=0)
    for k in range(3):
        for b in range(2):
            count = int(COUNTS[b]) + 1
            expected = count * kldiv_loss(
                log_probs[1][k, b : b + 1, :count],
                padded[b : b + 1, :count],
                length=torch.ones(1),
            )
            assert torch.allclose(losses[k, b], expected, atol=1e-5)


def test_what_follows_a_sentence_does_not_count(log_probs):
    louder = log_probs[1].clone()
    louder[:, 1, 2:] = 0.0
    assert torch.equal(
        attention_exit_losses(log_probs[1], TARGETS, 0.1),
        attention_exit_losses(louder, TARGETS, 0.1),
    )


def test_smoothing_spreads_the_target(log_probs):
    plain, spread, smooth = (
        attention_exit_losses(log_probs[1], TARGETS, x) for x in (0.0, 1.0, 0.1)
    )
    assert torch.allclose(smooth, 0.9 * plain + 0.1 * spread, atol=1e-5)


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_the_loss_of_an_exit_weighs_both(log_probs, weight):
    ctc, attention = log_probs
    predictions = ExitPredictions(
        *([2, 4, 6], ctc, FRAMES, TOKENS, COUNTS),
        token_log_probs=attention,
        ctc_weight=weight,
    )
    expected = weight * ctc_exit_losses(ctc, FRAMES, TOKENS, COUNTS)
    expected = expected + (1 - weight) * attention_exit_losses(
        attention, TARGETS
    )
    expected = expected / COUNTS
    assert torch.allclose(predictions.losses, expected, atol=1e-5)
    total = expected.mean(dim=1).sum()
    assert torch.allclose(ExitLossSum()(predictions), total, atol=1e-5)
