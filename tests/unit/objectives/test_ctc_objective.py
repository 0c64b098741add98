"""Exit losses: against torch one by one, and what cannot be spelled."""

import pytest
import torch
from torch.nn.functional import ctc_loss

from speechbrain_ee.objectives import (
    ExitLossSum,
    ExitPredictions,
    ctc_exit_losses,
    frames_needed,
)
from speechbrain_ee.objectives.weights import falling, last, rising, uniform


@pytest.fixture
def batch():
    torch.manual_seed(0)
    log_probs = torch.randn(3, 2, 9, 5).log_softmax(-1)
    tokens = torch.tensor([[1, 2, 2], [3, 0, 0]])
    return log_probs, torch.tensor([9, 6]), tokens, torch.tensor([3, 1])


def test_one_call_equals_a_call_for_each_exit_and_utterance(batch):
    log_probs, frames, tokens, counts = batch
    losses = ctc_exit_losses(*batch)
    assert losses.shape == (3, 2)
    for k in range(3):
        for b in range(2):
            alone = ctc_loss(
                log_probs[k, b, : frames[b]],
                tokens[b, : counts[b]],
                frames[b],
                counts[b],
                reduction="none",
            )
            assert torch.allclose(losses[k, b], alone, atol=1e-5)


def test_padded_frames_do_not_count(batch):
    log_probs, frames, tokens, counts = batch
    louder = log_probs.clone()
    louder[:, 1, 6:] = 0.0
    assert torch.equal(
        ctc_exit_losses(*batch),
        ctc_exit_losses(louder, frames, tokens, counts),
    )


def test_the_sum_is_weighted_over_exits_and_a_mean_per_label(batch):
    losses = ctc_exit_losses(*batch)
    objective = ExitLossSum(lambda _: torch.tensor([1.0, 0.0, 2.0]))
    expected = ((losses[0] + 2 * losses[2]) / torch.tensor([3, 1])).mean()
    loss = objective(ExitPredictions([2, 4, 6], *batch))
    assert torch.allclose(loss, expected)


def test_a_target_longer_than_its_frames_has_no_loss_and_no_gradient():
    logits = torch.randn(1, 2, 4, 5, requires_grad=True)
    tokens = torch.tensor([[1, 2, 3, 3], [1, 2, 3, 4]])
    counts = torch.tensor([4, 4])
    assert (frames_needed(tokens, counts) > 4).tolist() == [True, False]
    losses = ctc_exit_losses(
        logits.log_softmax(-1), torch.tensor([4, 4]), tokens, counts
    )
    losses.sum().backward()
    assert losses[0, 0] == 0 and losses[0, 1] > 0
    assert logits.grad[0, 0].abs().sum() == 0
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("weights", [uniform, rising, falling, last])
def test_weights_sum_to_the_number_of_exits(weights):
    assert torch.isclose(weights([2, 4, 6, 8]).sum(), torch.tensor(4.0))


def test_rising_rises_and_falling_falls():
    assert (rising([2, 4, 6]).diff() > 0).all()
    assert (falling([2, 4, 6]).diff() < 0).all()
