"""CTC losses of all exits at once.

Authors
 * SpeechBrain-EE contributors 2026
"""

from __future__ import annotations

import torch
from torch.nn.functional import ctc_loss


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
