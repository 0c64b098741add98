"""The sum of exit losses (Eq. 2 of Wright et al., arXiv 2309.09546).

Authors
 * SpeechBrain-EE contributors 2026
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch.nn.functional import ctc_loss

from speechbrain_ee.objectives.weights import uniform


class ExitLossSum:
    """Weighted sum over exits of their CTC losses.

    Arguments
    ---------
    weights : callable
        From exit layers to one weight each, as in ``objectives.weights``.

    Example
    -------
    >>> objective = ExitLossSum()
    >>> one, log_probs = torch.tensor([1]), torch.full((2, 1, 2, 2), 0.5).log()
    >>> objective([2, 4], log_probs, 2 * one, one[None], one)
    tensor(0.5754)
    """

    def __init__(
        self, weights: Callable[[Sequence[int]], torch.Tensor] = uniform
    ):
        self.weights = weights

    def __call__(
        self,
        exit_layers: Sequence[int],
        log_probs: torch.Tensor,
        frames: torch.Tensor,
        tokens: torch.Tensor,
        token_counts: torch.Tensor,
        blank_index: int = 0,
    ) -> torch.Tensor:
        """The loss of a batch.

        Arguments
        ---------
        exit_layers : sequence of int
            The layers read out, rising.
        log_probs : torch.Tensor
            Shape (exits, batch, time, vocabulary).
        frames : torch.Tensor
            Real frames of each utterance, int64 of shape (batch,).
        tokens : torch.Tensor
            Targets without sentence marks, int64 of shape (batch, tokens).
        token_counts : torch.Tensor
            How many of them are real, int64 of shape (batch,).
        blank_index : int
            Index of the blank.

        Returns
        -------
        torch.Tensor
            A scalar.
        """
        losses = ctc_exit_losses(
            log_probs, frames, tokens, token_counts, blank_index
        )
        return sum_exit_losses(losses, token_counts, self.weights(exit_layers))


def ctc_exit_losses(
    log_probs: torch.Tensor,
    frames: torch.Tensor,
    tokens: torch.Tensor,
    token_counts: torch.Tensor,
    blank_index: int = 0,
) -> torch.Tensor:
    """CTC loss of every exit and utterance, in one call.

    Arguments
    ---------
    log_probs : torch.Tensor
        Shape (exits, batch, time, vocabulary).
    frames : torch.Tensor
        Real frames of each utterance, int64 of shape (batch,).
    tokens : torch.Tensor
        Targets without sentence marks, int64 of shape (batch, tokens).
    token_counts : torch.Tensor
        How many of them are real, int64 of shape (batch,).
    blank_index : int
        Index of the blank.

    Returns
    -------
    torch.Tensor
        Negative log-likelihoods in nats, of shape (exits, batch). Where a
        target cannot fit its frames (see ``frames_needed``), 0 without
        gradient.

    Example
    -------
    >>> log_probs = torch.full((2, 1, 2, 2), 0.5).log()
    >>> one = torch.tensor([1])
    >>> losses = ctc_exit_losses(log_probs, 2 * one, one[None], one)
    >>> (-losses).exp()  # of four alignments, three read as the one label
    tensor([[0.7500],
            [0.7500]])
    """
    exits, batch, time, vocabulary = log_probs.shape
    losses = ctc_loss(
        log_probs.reshape(exits * batch, time, vocabulary).transpose(0, 1),
        tokens.repeat(exits, 1),
        frames.to(log_probs.device).repeat(exits),
        token_counts.repeat(exits),
        blank=blank_index,
        reduction="none",
        zero_infinity=True,
    )
    return losses.view(exits, batch)


def frames_needed(
    tokens: torch.Tensor, token_counts: torch.Tensor
) -> torch.Tensor:
    """The fewest frames that CTC can spell a target in.

    Arguments
    ---------
    tokens : torch.Tensor
        Targets, int64 of shape (batch, tokens).
    token_counts : torch.Tensor
        How many of them are real, int64 of shape (batch,).

    Returns
    -------
    torch.Tensor
        int64 of shape (batch,): a frame per label, and one for the blank
        between two equal ones.

    Example
    -------
    >>> tokens = torch.tensor([[3, 3, 4], [5, 6, 6]])
    >>> frames_needed(tokens, torch.tensor([3, 2])).tolist()
    [4, 2]
    """
    second = torch.arange(1, tokens.shape[1], device=tokens.device)
    repeated = tokens[:, 1:] == tokens[:, :-1]
    real = second < token_counts[:, None]
    return token_counts + (repeated & real).sum(dim=1)


def sum_exit_losses(
    losses: torch.Tensor, token_counts: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """Weighted sum over exits of the mean loss per label.

    Arguments
    ---------
    losses : torch.Tensor
        Shape (exits, batch), from ``ctc_exit_losses``.
    token_counts : torch.Tensor
        Labels of each utterance, int64 of shape (batch,).
    weights : torch.Tensor
        One weight per exit, of shape (exits,).

    Returns
    -------
    torch.Tensor
        A scalar.

    Example
    -------
    >>> losses = torch.tensor([[2.0, 4.0], [1.0, 1.0]])
    >>> sum_exit_losses(losses, torch.tensor([2, 4]), torch.ones(2))
    tensor(1.3750)
    """
    per_label = losses / token_counts.clamp_min(1)
    # Not a product of matrices, which autocast would do in half precision.
    return (weights.to(losses) * per_label.mean(dim=1)).sum()
