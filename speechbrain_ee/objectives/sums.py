"""Sums of exit losses.

Authors
 * SpeechBrain-EE contributors 2026
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from speechbrain_ee.objectives.predictions import ExitPredictions
from speechbrain_ee.objectives.weights import uniform


class ExitLossSum:
    """Weighted sum of the exits' losses: Eq. 2 of arXiv 2309.09546.

    Arguments
    ---------
    weights : callable
        From exit layers to one weight each, as in ``objectives.weights``.

    Example
    -------
    >>> objective = ExitLossSum()
    >>> one, log_probs = torch.tensor([1]), torch.full((2, 1, 2, 2), 0.5).log()
    >>> objective(ExitPredictions([2, 4], log_probs, 2 * one, one[None], one))
    tensor(0.5754)
    """

    def __init__(
        self, weights: Callable[[Sequence[int]], torch.Tensor] = uniform
    ):
        self.weights = weights

    def __call__(self, predictions: ExitPredictions) -> torch.Tensor:
        """The loss of a batch.

        Arguments
        ---------
        predictions : ExitPredictions
            Of the batch.

        Returns
        -------
        torch.Tensor
            A scalar: for each exit the mean over utterances of the loss per
            label, weighted and added up.
        """
        return weighted_sum(
            predictions.losses, self.weights(predictions.exit_layers)
        )


def weighted_sum(losses: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Weighted sum over exits of the mean over utterances.

    Arguments
    ---------
    losses : torch.Tensor
        Shape (exits, batch).
    weights : torch.Tensor
        One per exit, of shape (exits,).

    Returns
    -------
    torch.Tensor
        A scalar.

    Example
    -------
    >>> losses = torch.tensor([[1.0, 1.0], [0.5, 0.25]])
    >>> weighted_sum(losses, torch.ones(2))
    tensor(1.3750)
    """
    # Not a product of matrices, which autocast would do in half precision.
    return (weights.to(losses) * losses.mean(dim=1)).sum()
