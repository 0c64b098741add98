"""Objectives: losses over exits and their weights."""

from speechbrain_ee.objectives.ctc import (
    ExitLossSum,
    ctc_exit_losses,
    frames_needed,
    sum_exit_losses,
)

__all__ = ["ExitLossSum", "ctc_exit_losses", "frames_needed", "sum_exit_losses"]
