"""Objectives: losses over exits and their weights."""

from speechbrain_ee.objectives.attention import (
    attention_exit_losses,
    with_end,
)
from speechbrain_ee.objectives.ctc import ctc_exit_losses, frames_needed
from speechbrain_ee.objectives.predictions import ExitPredictions
from speechbrain_ee.objectives.sums import ExitLossSum, weighted_sum

__all__ = [
    "ExitLossSum",
    "ExitPredictions",
    "attention_exit_losses",
    "ctc_exit_losses",
    "frames_needed",
    "weighted_sum",
    "with_end",
]
