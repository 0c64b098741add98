"""Cross-entropy of attention decoders at all exits at once.

Authors
 * SpeechBrain-EE contributors 2026
"""

from __future__ import annotations

import torch
from torch.nn.functional import cross_entropy, pad

_IGNORED = -100  # cross_entropy's own


def with_end(
    tokens: torch.Tensor, token_counts: torch.Tensor, eos_index: int
) -> torch.Tensor:
    """Targets of a decoder: the labels, the sentence's end, no padding.

    Arguments
    ---------
    tokens : torch.Tensor
        Targets without sentence marks, int64 of shape (batch, tokens).
    token_counts : torch.Tensor
        How many of them are real, int64 of shape (batch,).
    eos_index : int
        Index of the sentence's end.

    Returns
    -------
    torch.Tensor
        int64 of shape (batch, tokens + 1), -100 at padding.

    Example
    -------
    >>> tokens = torch.tensor([[5, 6], [7, 0]])
    >>> with_end(tokens, torch.tensor([2, 1]), eos_index=2)
    tensor([[   5,    6,    2],
            [   7,    2, -100]])
    """
    counts = token_counts.to(tokens.device)[:, None]
    place = torch.arange(tokens.shape[1] + 1, device=tokens.device)
    targets = pad(tokens, (0, 1), value=_IGNORED)
    targets = targets.masked_fill(place > counts, _IGNORED)
    return targets.masked_fill(place == counts, eos_index)


def attention_exit_losses(
    token_log_probs: torch.Tensor,
    targets: torch.Tensor,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """Cross-entropy of every exit and utterance.

    Arguments
    ---------
    token_log_probs : torch.Tensor
        Shape (exits, batch, tokens + 1, vocabulary).
    targets : torch.Tensor
        As ``with_end`` gives them, of shape (batch, tokens + 1).
    label_smoothing : float
        Share of the target that is spread over all labels.

    Returns
    -------
    torch.Tensor
        Sums over the target in nats, of shape (exits, batch).

    Example
    -------
    >>> log_probs = torch.full((2, 1, 2, 4), 0.25).log()
    >>> attention_exit_losses(log_probs, torch.tensor([[3, 2]]))
    tensor([[2.7726],
            [2.7726]])
    """
    exits = len(token_log_probs)
    return (
        cross_entropy(
            token_log_probs.flatten(0, 1).transpose(1, 2),
            targets.repeat(exits, 1),
            ignore_index=_IGNORED,
            label_smoothing=label_smoothing,
            reduction="none",
        )
        .sum(dim=1)
        .unflatten(0, (exits, -1))
    )
