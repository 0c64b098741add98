"""Task models that say one thing of an utterance: its class, or its speaker.

As SUPERB fixes them (Yang et al., arXiv 2105.01051; the sizes are those of its
code, s3prl). What stands behind the end of an utterance changes nothing.

Authors
 * SpeechBrain-EE contributors 2026
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from speechbrain.lobes.models.ECAPA_TDNN import (
    AttentiveStatisticsPooling,
    Classifier,
)
from torch.nn.functional import relu

from speechbrain_ee.encoders.base import moments, relative_lengths


class MeanPooling(torch.nn.Module):
    """Mean over real frames.

    Arguments
    ---------
    input_size : int
        Channels.

    Example
    -------
    >>> pooling = MeanPooling(1)
    >>> pooling(torch.tensor([[[1.0], [3.0], [8.0]]]), torch.tensor([2]))
    tensor([[2.]])
    """

    def __init__(self, input_size: int):
        super().__init__()
        self.output_size = input_size

    def forward(
        self, features: torch.Tensor, frames: torch.Tensor
    ) -> torch.Tensor:
        """Pool over time.

        Arguments
        ---------
        features : torch.Tensor
            Shape (batch, time, channel).
        frames : torch.Tensor
            Real frames of each utterance, int64 of shape (batch,).

        Returns
        -------
        torch.Tensor
            Shape (batch, output_size).
        """
        return moments(features, frames)[0]


class StatisticsPooling(torch.nn.Module):
    """Mean and standard deviation over real frames.

    SpeechBrain's of this name adds noise to the mean, also in evaluation.

    Arguments
    ---------
    input_size : int
        Channels.

    Example
    -------
    >>> pooling = StatisticsPooling(1)
    >>> pooling(torch.tensor([[[1.0], [3.0], [8.0]]]), torch.tensor([2]))
    tensor([[2., 1.]])
    """

    def __init__(self, input_size: int):
        super().__init__()
        self.output_size = 2 * input_size

    def forward(
        self, features: torch.Tensor, frames: torch.Tensor
    ) -> torch.Tensor:
        """See ``MeanPooling.forward``."""
        mean, variance = moments(features, frames)
        # The root has no gradient at 0, where a channel never changes.
        return torch.cat([mean, variance.clamp_min(1e-10).sqrt()], dim=-1)


class AttentivePooling(torch.nn.Module):
    """Mean and standard deviation, weighted by attention over real frames.

    SpeechBrain's ``AttentiveStatisticsPooling`` (Okabe et al., 2018), without
    the statistics of the utterance at each frame, as its batch norm would see
    padding in training.

    Arguments
    ---------
    input_size : int
        Channels.

    Example
    -------
    >>> pooling = AttentivePooling(4)
    >>> pooling(torch.randn(2, 9, 4), torch.tensor([9, 5])).shape
    torch.Size([2, 8])
    """

    def __init__(self, input_size: int):
        super().__init__()
        self.output_size = 2 * input_size
        self.pooling = AttentiveStatisticsPooling(
            input_size, global_context=False
        )
        self.pooling.tdnn.norm = torch.nn.Identity()

    def forward(
        self, features: torch.Tensor, frames: torch.Tensor
    ) -> torch.Tensor:
        """See ``MeanPooling.forward``."""
        lengths = relative_lengths(features, frames)
        return self.pooling(features.transpose(1, 2), lengths).squeeze(2)


POOLINGS = {
    "mean": MeanPooling,
    "statistics": StatisticsPooling,
    "attentive": AttentivePooling,
}


class UtteranceClassifier(torch.nn.Module):
    """Linear projection, pooling over time, a linear layer per slot.

    SUPERB's model for keywords, intents, emotions and speakers, which has no
    non-linearity. It pools by the mean.

    Arguments
    ---------
    input_size : int
        Channels of what the layer interface gives.
    num_classes : sequence of int
        Classes of each slot: one slot, except for labels of several parts,
        such as action, object and location of an intent.
    proj_size : int
        Channels behind the projection.
    pooling : str
        ``mean``, ``statistics`` (with the standard deviation) or ``attentive``.

    Raises
    ------
    ValueError
        For another pooling, or a slot with a single class.

    Example
    -------
    >>> classifier = UtteranceClassifier(8, num_classes=[6, 14, 4])
    >>> logits = classifier(torch.randn(2, 50, 8), torch.tensor([50, 20]))
    >>> [slot.shape[1] for slot in logits]
    [6, 14, 4]
    """

    def __init__(
        self,
        input_size: int,
        num_classes: Sequence[int],
        proj_size: int = 256,
        pooling: str = "mean",
    ):
        super().__init__()
        if pooling not in POOLINGS:
            raise ValueError(
                f"pooling: {pooling!r} is none of {', '.join(POOLINGS)}."
            )
        if not num_classes or min(num_classes) < 2:
            raise ValueError(
                f"num_classes: {list(num_classes)} must have two classes or "
                "more for each slot, as [12]."
            )
        self.num_classes = list(num_classes)
        self.projection = torch.nn.Linear(input_size, proj_size)
        self.pooling = POOLINGS[pooling](proj_size)
        # One matrix for all slots.
        self.output = torch.nn.Linear(
            self.pooling.output_size, sum(self.num_classes)
        )

    def forward(
        self, features: torch.Tensor, frames: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Logits of each slot.

        Arguments
        ---------
        features : torch.Tensor
            Shape (batch, time, channel).
        frames : torch.Tensor
            Real frames of each utterance, int64 of shape (batch,).

        Returns
        -------
        tuple of torch.Tensor
            One of shape (batch, classes) per slot.
        """
        pooled = self.pooling(self.projection(features), frames)
        return self.output(pooled).split(self.num_classes, dim=-1)


class SpeakerEmbedder(torch.nn.Module):
    """An x-vector with cosines to the speakers of the training set.

    SUPERB's model for speaker verification: a projection, the x-vector's five
    time-delay layers (Snyder et al., 2018) without batch norm, mean and
    standard deviation over time, and two linear layers. The embedding is read
    behind the first of these, the cosines behind the second. The time-delay
    layers see no frame beyond the ends of an utterance, so that seven are lost
    at either; SpeechBrain's ``Xvector`` mirrors the end of the batch instead,
    padding and all, and normalises over it.

    Arguments
    ---------
    input_size : int
        Channels of what the layer interface gives.
    num_speakers : int
        Speakers to train with.
    channels : int
        Of the projection, the time-delay layers, and the embedding.
    pooled_channels : int
        Of the last time-delay layer.

    Example
    -------
    >>> embedder = SpeakerEmbedder(8, num_speakers=10, channels=16)
    >>> embeddings, cosines = embedder(
    ...     torch.randn(2, 50, 8), torch.tensor([50, 20])
    ... )
    >>> embeddings.shape, cosines.shape
    (torch.Size([2, 16]), torch.Size([2, 10]))
    """

    kernel_sizes = (5, 3, 3, 1, 1)
    dilations = (1, 2, 3, 1, 1)

    def __init__(
        self,
        input_size: int,
        num_speakers: int,
        channels: int = 512,
        pooled_channels: int = 1500,
    ):
        super().__init__()
        self.num_speakers = num_speakers
        self.projection = torch.nn.Linear(input_size, channels)
        sizes = [*[channels] * 5, pooled_channels]
        self.layers = torch.nn.ModuleList(
            torch.nn.Conv1d(sizes[k], sizes[k + 1], kernel, dilation=dilation)
            for k, (kernel, dilation) in enumerate(
                zip(self.kernel_sizes, self.dilations, strict=True)
            )
        )
        self.pooling = StatisticsPooling(pooled_channels)
        self.embedding = torch.nn.Linear(self.pooling.output_size, channels)
        self.hidden = torch.nn.Linear(channels, channels)
        self.classifier = Classifier(channels, out_neurons=num_speakers)

    @property
    def least_frames(self) -> int:
        """What an utterance needs: one frame is left of so many."""
        lost = zip(self.kernel_sizes, self.dilations, strict=True)
        return 1 + sum((kernel - 1) * dilation for kernel, dilation in lost)

    def forward(
        self, features: torch.Tensor, frames: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings, and how near they are to each training speaker.

        Arguments
        ---------
        features : torch.Tensor
            Shape (batch, time, channel).
        frames : torch.Tensor
            Real frames of each utterance, ``least_frames`` or more, int64 of
            shape (batch,).

        Returns
        -------
        embeddings : torch.Tensor
            Shape (batch, channels).
        cosines : torch.Tensor
            Shape (batch, speakers).

        Raises
        ------
        ValueError
            If an utterance is shorter.
        """
        if int(frames.min()) < self.least_frames:
            raise ValueError(
                f"An utterance has {int(frames.min())} frames, and a speaker's "
                f"embedding needs {self.least_frames}: leave it out, or take "
                "a longer piece."
            )
        hidden = self.projection(features).transpose(1, 2)
        for layer in self.layers:
            hidden = relu(layer(hidden))
        pooled = self.pooling(
            hidden.transpose(1, 2), frames - self.least_frames + 1
        )
        embeddings = relu(self.embedding(pooled))
        hidden = relu(self.hidden(embeddings))
        return embeddings, self.classifier(hidden[:, None]).squeeze(1)
