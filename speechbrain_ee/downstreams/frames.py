"""Task models that say something at every frame.

Authors
 * SpeechBrain-EE contributors 2026
"""

from __future__ import annotations

import sys

import torch


class LinearCTC(torch.nn.Module):
    """Two linear layers in a row and a softmax at every frame.

    SUPERB's model for phone recognition (Yang et al., arXiv 2105.01051), which
    has no non-linearity and sees one frame at a time.

    Arguments
    ---------
    input_size : int
        Channels of what the layer interface gives.
    labels : int
        How many there are, with the blank.
    proj_size : int
        Channels between the two.

    Example
    -------
    >>> model = LinearCTC(8, labels=41)
    >>> log_probs, frames = model(torch.randn(2, 9, 8), torch.tensor([9, 5]))
    >>> log_probs.shape, frames.tolist()
    (torch.Size([2, 9, 41]), [9, 5])
    """

    max_frames = sys.maxsize

    def __init__(self, input_size: int, labels: int, proj_size: int = 256):
        super().__init__()
        self.labels = labels
        self.projection = torch.nn.Linear(input_size, proj_size)
        self.output = torch.nn.Linear(proj_size, labels)

    def frames_after(self, frames: torch.Tensor) -> torch.Tensor:
        """How many frames are left of so many: all.

        Arguments
        ---------
        frames : torch.Tensor
            Real frames of each utterance, int64.

        Returns
        -------
        torch.Tensor
            The same.
        """
        return frames

    def forward(
        self, features: torch.Tensor, frames: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities of the labels at every frame.

        Arguments
        ---------
        features : torch.Tensor
            Shape (batch, time, channel).
        frames : torch.Tensor
            Real frames of each utterance, int64 of shape (batch,).

        Returns
        -------
        log_probs : torch.Tensor
            Shape (batch, time, labels).
        frames : torch.Tensor
            As given.
        """
        logits = self.output(self.projection(features))
        return logits.log_softmax(dim=-1), frames
