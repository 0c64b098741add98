"""What an objective sees of a training batch.

Authors
 * SpeechBrain-EE contributors 2026
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from speechbrain_ee.objectives.ctc import ctc_exit_losses


@dataclass
class ExitPredictions:
    """Everything that the exits say about a batch, and its targets.

    Arguments
    ---------
    exit_layers : sequence of int
        The layers read out, rising.
    log_probs : torch.Tensor
        CTC log-probabilities of shape (exits, batch, time, vocabulary).
    frames : torch.Tensor
        Real frames of each utterance, int64 of shape (batch,).
    tokens : torch.Tensor
        Targets without sentence marks, int64 of shape (batch, tokens).
    token_counts : torch.Tensor
        How many of them are real, int64 of shape (batch,).
    blank_index : int
        Index of the blank.
    step : int, optional
        Optimiser steps taken before this batch, the same in every process;
        None outside training.

    Example
    -------
    >>> one, log_probs = torch.tensor([1]), torch.full((2, 1, 2, 2), 0.5).log()
    >>> predictions = ExitPredictions(
    ...     [2, 4], log_probs, 2 * one, one[None], one
    ... )
    >>> (-predictions.losses).exp()
    tensor([[0.7500],
            [0.7500]])
    """

    exit_layers: Sequence[int]
    log_probs: torch.Tensor
    frames: torch.Tensor
    tokens: torch.Tensor
    token_counts: torch.Tensor
    blank_index: int = 0
    step: int | None = None

    @cached_property
    def losses(self) -> torch.Tensor:
        """The loss of every exit and utterance, in nats per label.

        Returns
        -------
        torch.Tensor
            Shape (exits, batch).
        """
        losses = ctc_exit_losses(
            self.log_probs,
            self.frames,
            self.tokens,
            self.token_counts,
            self.blank_index,
        )
        return losses / self.token_counts.clamp_min(1)
