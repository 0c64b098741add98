"""Objectives: losses over exits, their weights and training schemes."""

from speechbrain_ee.objectives.attention import (
    attention_exit_losses,
    with_end,
)
from speechbrain_ee.objectives.confidence import InverseConfidence
from speechbrain_ee.objectives.ctc import ctc_exit_losses, frames_needed
from speechbrain_ee.objectives.distillation import (
    PosteriorDistillation,
    TranscriptDistillation,
)
from speechbrain_ee.objectives.predictions import ExitPredictions
from speechbrain_ee.objectives.sampling import AlternateExits, RandomExits
from speechbrain_ee.objectives.sums import ExitLossSum, weighted_sum

__all__ = [
    "AlternateExits",
    "ExitLossSum",
    "ExitPredictions",
    "attention_exit_losses",
    "InverseConfidence",
    "PosteriorDistillation",
    "RandomExits",
    "TranscriptDistillation",
    "ctc_exit_losses",
    "frames_needed",
    "weighted_sum",
    "with_end",
]
