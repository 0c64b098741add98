"""Exits that learn from a better one: the last exit, or another model.

A part ``alpha`` of what a student learns is its teacher's word, the rest the
reference. The teacher itself learns from the reference alone, and nothing flows
back to it from its students.

Authors
 * SpeechBrain-EE contributors 2026
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace

import torch
from torch.nn.functional import kl_div

from speechbrain_ee.heads import ExitOutput
from speechbrain_ee.objectives.ctc import ctc_exit_losses
from speechbrain_ee.objectives.predictions import ExitPredictions
from speechbrain_ee.objectives.sums import weighted_sum
from speechbrain_ee.objectives.weights import uniform

TEACHERS = ("last_exit", "model")


class Distillation(ABC):
    """What the kinds of distillation have in common; subclasses say the rest.

    Arguments
    ---------
    teacher : str
        ``last_exit`` teaches the inner exits; ``model``, a frozen one that
        hears the same waveforms, teaches all of them.
    alpha : float
        The teacher's share of the loss, from 0 to 1.
    start : int
        Optimiser steps before anybody listens to the teacher; until then, the
        loss is the plain sum. A last exit that knows nothing but blanks yet
        teaches just that, and may keep a model that starts from random weights
        from ever learning more.
    """

    def __init__(self, teacher: str, alpha: float, start: int):
        if teacher not in TEACHERS:
            raise ValueError(
                f"teacher: {teacher!r} is none of {', '.join(TEACHERS)}."
            )
        if not 0.0 <= alpha <= 1.0:
            raise ValueError(f"alpha: {alpha} must lie from 0 to 1.")
        if start < 0:
            raise ValueError(f"start: {start} must not be below 0.")
        self.teacher = teacher
        self.alpha = alpha
        self.start = start

    @property
    def needs_teacher(self) -> bool:
        """Whether the predictions must hold those of a frozen model."""
        return self.teacher == "model"

    @abstractmethod
    def distilled(
        self,
        students: ExitPredictions,
        teacher: torch.Tensor,
        losses: torch.Tensor,
    ) -> torch.Tensor:
        """What the students lose against their teacher.

        Arguments
        ---------
        students : ExitPredictions
            With the log-probabilities of the taught exits only.
        teacher : torch.Tensor
            Log-probabilities without gradient, of shape (batch, time,
            vocabulary).
        losses : torch.Tensor
            The students' losses against the reference, of shape (taught exits,
            batch).

        Returns
        -------
        torch.Tensor
            Shape (taught exits, batch).
        """

    def __call__(self, predictions: ExitPredictions) -> torch.Tensor:
        """The loss of a batch.

        Arguments
        ---------
        predictions : ExitPredictions
            Of the batch.

        Returns
        -------
        torch.Tensor
            A scalar: summed over exits, averaged over utterances.

        Raises
        ------
        ValueError
            If nobody is there to teach, or to be taught.
        """
        losses, log_probs = predictions.losses, predictions.log_probs
        taught, teacher = len(losses), predictions.teacher_log_probs
        if self.teacher == "last_exit":
            taught, teacher = taught - 1, log_probs[-1]
        if teacher is None:
            raise ValueError(
                "objective: it learns from a frozen model, and there is none. "
                "Give the folder of a finished run: --teacher results/…"
            )
        if not taught:
            raise ValueError(
                "objective: the last exit teaches the inner ones, and there "
                f"are none. Name more exit_layers than "
                f"{list(predictions.exit_layers)}."
            )
        weights = uniform(predictions.exit_layers)
        if predictions.step is not None and predictions.step < self.start:
            return weighted_sum(losses, weights)
        distilled = self.distilled(
            replace(predictions, log_probs=log_probs[:taught]),
            teacher.detach(),
            losses[:taught],
        )
        mixed = torch.lerp(losses[:taught], distilled, self.alpha)
        return weighted_sum(torch.cat([mixed, losses[taught:]]), weights)


class PosteriorDistillation(Distillation):
    """Students learn the teacher's probabilities, frame by frame.

    (1 − alpha) · CTC + alpha · T² · KL(teacher ‖ student), where both are
    softened by the temperature T (Hinton et al., arXiv 1503.02531, whose T²
    keeps the gradients' size) and the divergence is averaged over real frames.
    From the last exit: self-distillation as in Be Your Own Teacher (Zhang et
    al., arXiv 1905.08094), without its loss between hidden states.

    Arguments
    ---------
    teacher : str
        ``last_exit`` or ``model``, as for ``Distillation``.
    alpha : float
        The teacher's share of the loss, from 0 to 1.
    temperature : float
        Above 0; 1 leaves probabilities as they are.
    start : int
        Steps of the plain sum first, as for ``Distillation``.

    Example
    -------
    >>> log_probs = torch.tensor([[[[0.5, 0.5]]], [[[0.0, 1.0]]]]).log()
    >>> one = torch.tensor([1])
    >>> batch = ExitPredictions(
    ...     [2, 4], log_probs.clamp_min(-99), one, one[None], one
    ... )
    >>> PosteriorDistillation(alpha=1.0, temperature=1.0)(batch)
    tensor(0.6931)
    """

    def __init__(
        self,
        teacher: str = "last_exit",
        alpha: float = 0.5,
        temperature: float = 2.0,
        start: int = 0,
    ):
        super().__init__(teacher, alpha, start)
        if temperature <= 0.0:
            raise ValueError(f"temperature: {temperature} must be above 0.")
        self.temperature = temperature

    def distilled(self, students, teacher, losses):
        """See ``Distillation.distilled``; in nats per frame."""
        # The softmax of log-probabilities is that of the logits.
        students_soft, teacher_soft = (
            (log_probs / self.temperature).log_softmax(dim=-1)
            for log_probs in (students.log_probs, teacher)
        )
        divergence = kl_div(
            students_soft,
            teacher_soft.expand_as(students_soft),
            reduction="none",
            log_target=True,
        ).sum(dim=-1)
        return self.temperature**2 * students.mean_over_frames(divergence)


class TranscriptDistillation(Distillation):
    """Students learn the teacher's greedy transcript.

    (1 − alpha) · CTC on the reference + alpha · CTC on the transcript, as in
    the code of Wright et al. (GitHub: augustgw/wav2vec2-ee, whose ``ee_alpha``
    of 0.3 is 1 − alpha, and augustgw/early-exit-transformer, early versions).
    Both are per label of the reference, so that the short transcripts of a
    teacher that knows little do not weigh more. An empty transcript teaches
    nothing: there the reference has the whole loss.

    Arguments
    ---------
    teacher : str
        ``last_exit`` or ``model``, as for ``Distillation``.
    alpha : float
        The teacher's share of the loss, from 0 to 1.
    start : int
        Steps of the plain sum first, as for ``Distillation``.

    Example
    -------
    >>> log_probs = torch.tensor([[[[0.5, 0.25, 0.25]]], [[[0.1, 0.1, 0.8]]]])
    >>> one = torch.tensor([1])
    >>> batch = [2, 4], log_probs.log(), one, one[None], one
    >>> TranscriptDistillation(alpha=1.0)(ExitPredictions(*batch))
    tensor(3.6889)
    """

    def __init__(
        self, teacher: str = "last_exit", alpha: float = 0.7, start: int = 0
    ):
        super().__init__(teacher, alpha, start)

    def distilled(self, students, teacher, losses):
        """See ``Distillation.distilled``; in nats per label."""
        labels, counts = ExitOutput(
            teacher,
            students.frames,
            exit_layer=students.exit_layers[-1],
            blank_index=students.blank_index,
        ).greedy
        place = torch.arange(max(1, int(counts.max())), device=labels.device)
        real = place < counts[:, None]
        tokens = labels.new_zeros(real.shape).masked_scatter(real, labels)
        heard = ctc_exit_losses(
            students.log_probs,
            students.frames,
            tokens,
            counts,
            students.blank_index,
        )
        heard = heard / students.token_counts.clamp_min(1)
        return torch.where(counts > 0, heard, losses)
