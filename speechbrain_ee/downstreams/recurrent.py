"""Recurrent task models: what stands behind an utterance changes nothing.

Authors
 * SpeechBrain-EE contributors 2026
"""

from __future__ import annotations

import sys

import torch
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from speechbrain_ee.downstreams.ctc import SpecAugment


class PackedLSTM(torch.nn.Module):
    """Bidirectional LSTM layers that see the real frames of each utterance.

    Arguments
    ---------
    input_size : int
        Channels.
    hidden_size : int
        Cells of each direction.
    num_layers : int
        How many layers.
    dropout : float
        Behind each layer, the last too.

    Example
    -------
    >>> lstm = PackedLSTM(8, hidden_size=16, num_layers=2)
    >>> lstm(torch.randn(2, 9, 8), torch.tensor([9, 5])).shape
    torch.Size([2, 9, 32])
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int = 256,
        num_layers: int = 3,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.output_size = 2 * hidden_size
        self.lstm = torch.nn.LSTM(
            input_size,
            hidden_size,
            num_layers,
            batch_first=True,
            dropout=dropout if num_layers > 1 else 0.0,
            bidirectional=True,
        )
        self.dropout = torch.nn.Dropout(dropout)

    def forward(
        self, features: torch.Tensor, frames: torch.Tensor
    ) -> torch.Tensor:
        """Read a batch in both directions.

        Arguments
        ---------
        features : torch.Tensor
            Shape (batch, time, channel).
        frames : torch.Tensor
            Real frames of each utterance, 1 or more, int64 of shape (batch,).

        Returns
        -------
        torch.Tensor
            Shape (batch, time, output_size), zero behind the real frames.
        """
        packed = pack_padded_sequence(
            features, frames.cpu(), batch_first=True, enforce_sorted=False
        )
        output, _ = pad_packed_sequence(
            self.lstm(packed)[0],
            batch_first=True,
            total_length=features.shape[1],
        )
        return self.dropout(output)


class RecurrentCTC(torch.nn.Module):
    """SpecAugment, a linear layer, bidirectional LSTM layers, CTC.

    MiniSUPERB's recogniser (Wang et al., arXiv 2305.19011), which masks the
    features before they are projected, and has no sub-sampling.

    Arguments
    ---------
    input_size : int
        Channels of what the layer interface gives.
    labels : int
        How many there are, with the blank.
    proj_size : int
        Channels behind the projection.
    hidden_size : int
        Cells of each layer and direction.
    num_layers : int
        LSTM layers.
    dropout : float
        Behind each LSTM layer.
    spec_augment : SpecAugment, optional
        From features and frames to features; in training only.

    Example
    -------
    >>> model = RecurrentCTC(8, labels=30, proj_size=16, hidden_size=16)
    >>> log_probs, frames = model(torch.randn(2, 9, 8), torch.tensor([9, 5]))
    >>> log_probs.shape, frames.tolist()
    (torch.Size([2, 9, 30]), [9, 5])
    """

    max_frames = sys.maxsize

    def __init__(
        self,
        input_size: int,
        labels: int,
        proj_size: int = 256,
        hidden_size: int = 256,
        num_layers: int = 3,
        dropout: float = 0.2,
        spec_augment: SpecAugment | None = None,
    ):
        super().__init__()
        self.labels = labels
        self.spec_augment = spec_augment
        self.projection = torch.nn.Linear(input_size, proj_size)
        self.lstm = PackedLSTM(proj_size, hidden_size, num_layers, dropout)
        self.output = torch.nn.Linear(self.lstm.output_size, labels)

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
        if self.training and self.spec_augment is not None:
            features = self.spec_augment(features, frames)
        hidden = self.lstm(self.projection(features), frames)
        return self.output(hidden).log_softmax(dim=-1), frames
