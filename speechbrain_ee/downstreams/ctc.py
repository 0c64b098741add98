"""The recogniser of ML-SUPERB: sub-sampling, a small Transformer, CTC.

Shi et al., *ML-SUPERB: Multilingual Speech Universal PERformance Benchmark*
(arXiv 2305.10615), as its recipe in ESPnet sets it.

Authors
 * SpeechBrain-EE contributors 2026
"""

from __future__ import annotations

import torch
from speechbrain.augment.freq_domain import Warping
from speechbrain.lobes.models.transformer.Transformer import (
    PositionalEncoding,
    TransformerEncoder,
)
from speechbrain.processing.features import InputNormalization
from torchaudio.functional import mask_along_axis

from speechbrain_ee.encoders.base import padding_mask, relative_lengths


class SpecAugment(torch.nn.Module):
    """Warps and masks each utterance by itself, its real frames only.

    Masks are zeros, drawn anew for each utterance.

    Arguments
    ---------
    time_warp : int
        Window of the time warp, in frames; 0 for none.
    freq_masks : int
        How many masks over channels.
    freq_width : int
        Widths are drawn below this, in channels.
    time_masks : int
        How many masks over frames.
    time_share : float
        Widths are drawn below this share of the utterance.
    time_width : int, optional
        Widths are drawn below this, too, in frames.

    Example
    -------
    >>> features = torch.ones(2, 50, 8)
    >>> masked = SpecAugment(freq_width=4)(features, torch.tensor([50, 30]))
    >>> masked.shape, bool((masked == 0).any())
    (torch.Size([2, 50, 8]), True)
    """

    def __init__(
        self,
        time_warp: int = 5,
        freq_masks: int = 2,
        freq_width: int = 27,
        time_masks: int = 10,
        time_share: float = 0.05,
        time_width: int | None = None,
    ):
        super().__init__()
        self.warp = Warping(time_warp) if time_warp else None
        self.freq_masks = freq_masks
        self.freq_width = freq_width
        self.time_masks = time_masks
        self.time_share = time_share
        self.time_width = time_width

    def forward(
        self, features: torch.Tensor, frames: torch.Tensor
    ) -> torch.Tensor:
        """Augment a batch.

        Arguments
        ---------
        features : torch.Tensor
            Shape (batch, time, channel).
        frames : torch.Tensor
            Real frames of each utterance, int64 of shape (batch,).

        Returns
        -------
        torch.Tensor
            The same shape.
        """
        features = features.clone()
        for row, count in enumerate(frames.tolist()):
            part = features[row : row + 1, :count].clone()
            if self.warp is not None:
                part = self.warp(part)
            for _ in range(self.freq_masks):
                part = mask_along_axis(part, self.freq_width, 0.0, axis=2)
            widest = min(count, self.time_width or count)
            for _ in range(self.time_masks):
                part = mask_along_axis(
                    part, widest, 0.0, axis=1, p=self.time_share
                )
            features[row, :count] = part[0]
        return features


class ConvTransformerCTC(torch.nn.Module):
    """Linear, SpecAugment, mean norm, conv2d2, Transformer layers, CTC.

    ``conv2d2`` halves the number of frames: two convolutions of 3×3 with
    strides 2 and 1, as ESPnet's ``Conv2dSubsampling2``. They are not padded, so
    that each frame that is left has seen real frames only, and an utterance of
    a padded batch gets what it gets alone.

    Arguments
    ---------
    input_size : int
        Width of the features.
    labels : int
        How many there are, with the blank.
    linear_size : int
        What the features are projected to first.
    num_layers : int
        Transformer layers, pre-norm.
    d_model : int
        Their width.
    nhead : int
        Their attention heads.
    d_ffn : int
        Width of their feed-forward part. With 5337, the weighted sum of 13
        states of width 768 has as many parameters behind the upstream as the
        hierarchical convolution with the default.
    dropout : float
        Of the Transformer and of its positions.
    spec_augment : torch.nn.Module, optional
        From features and frames to features; in training only.
    normalize_variance : bool
        Whether the variance of each channel of an utterance is brought to one
        too. ESPnet's ``utterance_mvn`` removes means only.
    max_frames : int
        The most frames that an utterance may have after sub-sampling.

    Example
    -------
    >>> downstream = ConvTransformerCTC(input_size=12, labels=5).eval()
    >>> features, frames = torch.randn(2, 50, 12), torch.tensor([50, 31])
    >>> log_probs, frames = downstream(features, frames)
    >>> log_probs.shape, frames.tolist()
    (torch.Size([2, 22, 5]), [22, 13])
    """

    def __init__(
        self,
        input_size: int,
        labels: int,
        linear_size: int = 80,
        num_layers: int = 2,
        d_model: int = 256,
        nhead: int = 8,
        d_ffn: int = 1024,
        dropout: float = 0.1,
        spec_augment: torch.nn.Module | None = None,
        normalize_variance: bool = False,
        max_frames: int = 5000,
    ):
        super().__init__()
        self.linear = torch.nn.Linear(input_size, linear_size)
        self.spec_augment = spec_augment
        self.normalize = InputNormalization(
            norm_type="sentence", std_norm=normalize_variance
        )
        self.convolutions = torch.nn.Sequential(
            torch.nn.Conv2d(1, d_model, kernel_size=3, stride=2),
            torch.nn.ReLU(),
            torch.nn.Conv2d(d_model, d_model, kernel_size=3),
            torch.nn.ReLU(),
        )
        self.projection = torch.nn.Linear(
            d_model * int(self.frames_after(torch.tensor(linear_size))), d_model
        )
        self.positions = PositionalEncoding(d_model, max_frames)
        self.max_frames = max_frames
        self.scale = d_model**0.5
        self.dropout = torch.nn.Dropout(dropout)
        self.transformer = TransformerEncoder(
            num_layers=num_layers,
            nhead=nhead,
            d_ffn=d_ffn,
            d_model=d_model,
            dropout=dropout,
            normalize_before=True,
        )
        self.output = torch.nn.Linear(d_model, labels)
        self.labels = labels

    def frames_after(self, frames: torch.Tensor) -> torch.Tensor:
        """How many frames are left of so many.

        Arguments
        ---------
        frames : torch.Tensor
            Real frames of each utterance, int64.

        Returns
        -------
        torch.Tensor
            int64 of the same shape; 0 of fewer than 7.
        """
        return ((frames - 3) // 2 - 1).clamp_min(0)

    def forward(
        self, features: torch.Tensor, frames: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities of the labels.

        Arguments
        ---------
        features : torch.Tensor
            Shape (batch, time, input_size).
        frames : torch.Tensor
            Real frames of each utterance, int64 of shape (batch,), on the CPU.

        Returns
        -------
        log_probs : torch.Tensor
            Shape (batch, time', labels).
        frames : torch.Tensor
            Real frames of each utterance after sub-sampling, int64 of shape
            (batch,).

        Raises
        ------
        ValueError
            If an utterance is too short or too long.
        """
        left = self.frames_after(frames)
        least, most = int(left.min()), int(left.max())
        if least < 1 or most > self.max_frames:
            raise ValueError(
                f"Utterances of {int(frames.min())} to {int(frames.max())} "
                f"frames leave {least} to {most} after sub-sampling; it must "
                f"be 1 to {self.max_frames}. Leave such utterances out "
                "when the data is prepared, or raise max_frames."
            )
        x = self.linear(features[:, : int(frames.max())])
        if self.training and self.spec_augment is not None:
            x = self.spec_augment(x, frames)
        x = self.normalize(x, relative_lengths(x, frames))
        x = self.convolutions(x[:, None])
        x = self.projection(x.transpose(1, 2).flatten(2))
        x = self.dropout(self.scale * x + self.positions(x))
        x, _ = self.transformer(x, src_key_padding_mask=padding_mask(x, left))
        return self.output(x).log_softmax(dim=-1), left
