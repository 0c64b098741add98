"""Weights of exit losses by how sure the exits are.

Authors
 * SpeechBrain-EE contributors 2026
"""

from __future__ import annotations

import torch

from speechbrain_ee.objectives.predictions import ExitPredictions


class InverseConfidence:
    """Losses divided by confidence, so that unsure exits learn more.

    After ``finetune_confidence.py`` in the code of Wright et al. (GitHub:
    augustgw/wav2vec2-ee); their paper does not describe it. As there, the
    confidence is the geometric mean over frames of the largest probability,
    taken as ``least`` if it is lower, and it gets no gradient. Unlike there, it
    is that of an utterance and not of a batch, padded frames do not count, and
    the weights of an utterance's exits are scaled to sum to the number of
    exits: learning rates keep their meaning, and a batch may be split over
    processes.

    Arguments
    ---------
    least : float
        The lowest confidence that is told apart, above 0; 0.1 in their code.

    Example
    -------
    >>> log_probs = torch.tensor([[[[0.5, 0.5]]], [[[0.0, 1.0]]]]).log()
    >>> one = torch.tensor([1])
    >>> batch = ExitPredictions([2, 4], log_probs, one, one[None], one)
    >>> InverseConfidence().weights(batch)
    tensor([[1.3333],
            [0.6667]])
    >>> InverseConfidence()(batch)
    tensor(0.9242)
    """

    def __init__(self, least: float = 0.1):
        if not 0.0 < least <= 1.0:
            raise ValueError(f"least: {least} must lie above 0 and up to 1.")
        self.least = least

    def weights(self, predictions: ExitPredictions) -> torch.Tensor:
        """The weight of every exit and utterance.

        Arguments
        ---------
        predictions : ExitPredictions
            Of the batch.

        Returns
        -------
        torch.Tensor
            Shape (exits, batch), without gradient.
        """
        best = predictions.log_probs.detach().amax(dim=-1)
        confidence = predictions.mean_over_frames(best).exp()
        weights = 1.0 / confidence.clamp_min(self.least)
        return weights * (len(weights) / weights.sum(dim=0))

    def __call__(self, predictions: ExitPredictions) -> torch.Tensor:
        """The loss of a batch.

        Arguments
        ---------
        predictions : ExitPredictions
            Of the batch.

        Returns
        -------
        torch.Tensor
            A scalar: the weighted losses per label, averaged over utterances
            and added up over exits.
        """
        weighted = self.weights(predictions) * predictions.losses
        return weighted.mean(dim=1).sum()
