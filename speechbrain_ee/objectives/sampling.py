"""Schemes that train some of the exits at a step, and others at the next.

An exit that is left out keeps a loss of weight zero, so that every parameter
gets a gradient in every process.

Authors
 * SpeechBrain-EE contributors 2026
"""

from __future__ import annotations

import numpy as np
import torch

from speechbrain_ee.objectives.predictions import ExitPredictions
from speechbrain_ee.objectives.sums import weighted_sum
from speechbrain_ee.objectives.weights import uniform


class AlternateExits:
    """The last exit alone at even steps, the sum of all exits at odd ones.

    The alternating training of BERxiT (Xin et al., EACL 2021). Outside training
    it is the sum of all exits.

    Example
    -------
    >>> one, log_probs = torch.tensor([1]), torch.full((2, 1, 2, 2), 0.5).log()
    >>> batch = [2, 4], log_probs, 2 * one, one[None], one
    >>> objective = AlternateExits()
    >>> objective(ExitPredictions(*batch, step=0))
    tensor(0.2877)
    >>> objective(ExitPredictions(*batch, step=1))
    tensor(0.5754)
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
            A scalar, as of ``ExitLossSum``.
        """
        weights = uniform(predictions.exit_layers)
        if predictions.step is not None and predictions.step % 2 == 0:
            weights[:-1] = 0.0
        return weighted_sum(predictions.losses, weights)


class RandomExits:
    """A few exits at each step, drawn without replacement.

    Their losses are scaled up, so that the mean over draws is the plain sum.
    The draw depends on the seed and the step only: all processes agree on it,
    and so does a run that goes on from a checkpoint. Outside training it is
    the sum of all exits.

    Arguments
    ---------
    num_exits : int
        How many are trained at a step.
    seed : int
        Of the draws.

    Example
    -------
    >>> one, log_probs = torch.tensor([1]), torch.full((2, 1, 2, 2), 0.5).log()
    >>> batch = [2, 4], log_probs, 2 * one, one[None], one
    >>> objective = RandomExits(num_exits=1)
    >>> objective(ExitPredictions(*batch, step=0))  # one, twice
    tensor(0.5754)
    >>> sorted(objective.weights([2, 4], step=0).tolist())
    [0.0, 2.0]
    """

    def __init__(self, num_exits: int = 2, seed: int = 1234):
        if num_exits < 1:
            raise ValueError(f"num_exits: {num_exits} must be at least 1.")
        self.num_exits = num_exits
        self.seed = seed

    def weights(self, exit_layers, step: int | None) -> torch.Tensor:
        """The weights of a step.

        Arguments
        ---------
        exit_layers : sequence of int
            The layers read out, rising.
        step : int, optional
            Optimiser steps taken before; None outside training.

        Returns
        -------
        torch.Tensor
            Shape (exits,): (exits / num_exits) where drawn, else 0.

        Raises
        ------
        ValueError
            If there are fewer exits than should be drawn.
        """
        exits = len(exit_layers)
        if self.num_exits > exits:
            raise ValueError(
                f"num_exits: {self.num_exits} cannot be drawn of the {exits} "
                f"exits {list(exit_layers)}: lower it."
            )
        if step is None:
            return uniform(exit_layers)
        draw = np.random.default_rng([self.seed, step])
        chosen = draw.choice(exits, self.num_exits, replace=False)
        weights = torch.zeros(exits)
        weights[torch.from_numpy(chosen)] = exits / self.num_exits
        return weights

    def __call__(self, predictions: ExitPredictions) -> torch.Tensor:
        """The loss of a batch.

        Arguments
        ---------
        predictions : ExitPredictions
            Of the batch.

        Returns
        -------
        torch.Tensor
            A scalar, as of ``ExitLossSum``.
        """
        weights = self.weights(predictions.exit_layers, predictions.step)
        return weighted_sum(predictions.losses, weights)
