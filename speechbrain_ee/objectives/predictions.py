"""What an objective sees of a training batch.

Authors
 * SpeechBrain-EE contributors 2026
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from speechbrain_ee.encoders.base import padding_mask
from speechbrain_ee.objectives.attention import (
    attention_exit_losses,
    with_end,
)
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
    teacher_log_probs : torch.Tensor, optional
        What a frozen model says of the same waveforms, without gradient, of
        shape (batch, time, vocabulary). Only objectives whose ``needs_teacher``
        is True get it.
    token_log_probs : torch.Tensor, optional
        What attention decoders say of each label and of the sentence's end, of
        shape (exits, batch, tokens + 1, vocabulary).
    eos_index : int
        Index of the sentence's end.
    ctc_weight : float
        Weight of CTC in the loss where there are decoders, λ_CTC of Wright et
        al. (arXiv 2309.09546), Eq. 4; the rest is the decoders', λ_CE.
    label_smoothing : float
        Share of the decoders' targets that is spread over all labels.

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
    teacher_log_probs: torch.Tensor | None = None
    token_log_probs: torch.Tensor | None = None
    eos_index: int = 2
    ctc_weight: float = 0.3
    label_smoothing: float = 0.0

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
        if self.token_log_probs is not None:
            attention = attention_exit_losses(
                self.token_log_probs,
                with_end(self.tokens, self.token_counts, self.eos_index),
                self.label_smoothing,
            )
            losses = torch.lerp(attention, losses, self.ctc_weight)
        return losses / self.token_counts.clamp_min(1)

    def mean_over_frames(self, values: torch.Tensor) -> torch.Tensor:
        """Mean over the real frames of each utterance.

        Arguments
        ---------
        values : torch.Tensor
            Shape (..., batch, time).

        Returns
        -------
        torch.Tensor
            Shape (..., batch).
        """
        padding = padding_mask(self.log_probs[0], self.frames)
        total = values.masked_fill(padding, 0.0).sum(dim=-1)
        return total / self.frames.to(values.device).clamp_min(1)
