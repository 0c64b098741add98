"""Objectives: losses over exits and their weights."""

from speechbrain_ee.objectives.ctc import (
    ctc_exit_losses,
    frames_needed,
    sum_exit_losses,
)

__all__ = ["ctc_exit_losses", "frames_needed", "sum_exit_losses"]
