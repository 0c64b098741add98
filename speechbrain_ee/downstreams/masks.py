"""Masks on the spectrum of speech in noise, or of people who talk at once.

As in MiniSUPERB (Wang et al., arXiv 2305.19011), whose models and losses are
the second versions of s3prl's enhancement and separation.

Authors
 * SpeechBrain-EE contributors 2026
"""

from __future__ import annotations

import torch
from speechbrain.nnet.losses import PitWrapper
from torch.nn.functional import pad

from speechbrain_ee.downstreams.recurrent import PackedLSTM
from speechbrain_ee.encoders.base import padding_mask

DISTANCES = {"l1": torch.nn.L1Loss, "mse": torch.nn.MSELoss}


class MaskEstimator(torch.nn.Module):
    """Bidirectional LSTM layers and a mask for each source, by a sigmoid.

    A mask is laid on log(1 + magnitude) of the short-time spectrum, and the
    phase of the mixture is kept. The spectrum has a frame at every
    ``hop_length`` samples, centred there, with zeros around the utterance.
    Where features are rarer, each of them is repeated, so that those of 20 ms
    stand beside spectra of 10 ms; the spectrum has some frames more than the
    upstream, for which features of zeros stand, or are missing frames cut. All
    this is as in s3prl.

    Arguments
    ---------
    input_size : int
        Channels of what the layer interface gives.
    frame_shift : int
        Samples from one frame of the upstream to the next.
    n_fft : int
        Samples of a transform.
    win_length : int, optional
        Samples of the Hann window in its middle (default: ``n_fft``).
    hop_length : int, optional
        Samples from one spectrum to the next (default: ``frame_shift``).
    num_sources : int
        How many masks.
    hidden_size : int
        Cells of each layer and direction.
    num_layers : int
        LSTM layers.
    dropout : float
        Behind each LSTM layer.

    Raises
    ------
    ValueError
        If frames of the upstream are not a whole number of hops.

    Example
    -------
    >>> model = MaskEstimator(8, 320, n_fft=64, hop_length=160, hidden_size=4)
    >>> masks = model(
    ...     torch.randn(2, 9, 8),
    ...     torch.tensor([9, 5]),
    ...     torch.tensor([3000, 1700]),
    ... )
    >>> masks.shape
    torch.Size([2, 19, 33, 1])
    """

    def __init__(
        self,
        input_size: int,
        frame_shift: int,
        n_fft: int = 512,
        win_length: int | None = None,
        hop_length: int | None = None,
        num_sources: int = 1,
        hidden_size: int = 256,
        num_layers: int = 3,
        dropout: float = 0.1,
    ):
        super().__init__()
        self.n_fft = n_fft
        self.hop_length = hop_length or frame_shift
        self.repeats, rest = divmod(frame_shift, self.hop_length)
        if rest or not self.repeats:
            raise ValueError(
                f"hop_length: the {frame_shift} samples between two frames of "
                f"the upstream are not a multiple of {self.hop_length}: choose "
                "one that divides them, or null for the same."
            )
        self.num_sources = num_sources
        self.bins = n_fft // 2 + 1
        self.lstm = PackedLSTM(input_size, hidden_size, num_layers, dropout)
        self.output = torch.nn.Linear(
            self.lstm.output_size, self.bins * num_sources
        )
        window = torch.hann_window(win_length or n_fft)
        self.register_buffer("window", window, persistent=False)

    def forward(
        self,
        features: torch.Tensor,
        frames: torch.Tensor,
        samples: torch.Tensor,
    ) -> torch.Tensor:
        """Masks of each source.

        Arguments
        ---------
        features : torch.Tensor
            Shape (batch, time, channel).
        frames : torch.Tensor
            Real frames of each utterance, int64 of shape (batch,).
        samples : torch.Tensor
            Real samples of each utterance, int64 of shape (batch,).

        Returns
        -------
        torch.Tensor
            From 0 to 1, of shape (batch, time', bins, sources), where time' is
            that of ``spectra``.
        """
        needed = self.frames_of(samples)
        x = features.repeat_interleave(self.repeats, dim=1)
        x = pad(x, (0, 0, 0, int(needed.max()) - x.shape[1]))
        missing = padding_mask(x, frames * self.repeats)
        x = self.lstm(x.masked_fill(missing[..., None], 0.0), needed)
        masks = self.output(x).sigmoid()
        return masks.unflatten(-1, (self.bins, self.num_sources))

    def frames_of(self, samples: torch.Tensor) -> torch.Tensor:
        """How many frames the spectrum of a waveform has.

        Arguments
        ---------
        samples : torch.Tensor
            Samples of each utterance, int64 of any shape.

        Returns
        -------
        torch.Tensor
            int64 of the same shape.
        """
        return samples // self.hop_length + 1

    def spectra(self, waves: torch.Tensor) -> torch.Tensor:
        """Short-time spectra.

        Arguments
        ---------
        waves : torch.Tensor
            Shape (batch, samples), zero behind the end of an utterance.

        Returns
        -------
        torch.Tensor
            Complex, of shape (batch, time', bins).
        """
        return torch.stft(
            waves.float(),
            *self._settings,
            window=self.window,
            pad_mode="constant",
            return_complex=True,
        ).transpose(1, 2)

    def waveforms(
        self, masks: torch.Tensor, spectrum: torch.Tensor, samples: int
    ) -> torch.Tensor:
        """What is heard of one utterance through its masks.

        Arguments
        ---------
        masks : torch.Tensor
            Shape (time', bins, sources).
        spectrum : torch.Tensor
            Of the mixture, complex of shape (time', bins).
        samples : int
            Of the utterance.

        Returns
        -------
        torch.Tensor
            Shape (samples, sources).
        """
        masked = masks.float() * spectrum.abs().log1p()[..., None]
        heard = torch.polar(masked.expm1(), _phases(spectrum, masked))
        waves = torch.istft(
            heard.permute(2, 1, 0),
            *self._settings,
            window=self.window,
            length=samples,
        )
        return waves.T

    @property
    def _settings(self):
        return self.n_fft, self.hop_length, len(self.window)


class MaskLoss(torch.nn.Module):
    """How far masked spectra are from those of the sources.

    The distance of log(1 + magnitude), summed over frequencies, mean over
    frames and sources. Of several sources it is the smallest over their orders,
    one for the whole utterance (Kolbæk et al., 2017).

    Arguments
    ---------
    distance : str
        ``l1`` or ``mse``.
    phase_sensitive : bool
        Whether a source counts by the part of it that has the phase of the
        mixture, and never by less than nothing, as the phase of the mixture is
        what will be heard.

    Example
    -------
    >>> mixture = torch.randn(1, 9, 33, dtype=torch.cfloat)
    >>> loss = MaskLoss("l1")
    >>> frames = torch.tensor([9])
    >>> loss(torch.ones(1, 9, 33, 1), mixture, mixture[..., None], frames)
    tensor([0.])
    """

    def __init__(self, distance: str = "mse", phase_sensitive: bool = False):
        super().__init__()
        if distance not in DISTANCES:
            raise ValueError(
                f"distance: {distance!r} is none of {', '.join(DISTANCES)}."
            )
        self.phase_sensitive = phase_sensitive
        self.distance = PitWrapper(DISTANCES[distance](reduction="none"))

    def forward(
        self,
        masks: torch.Tensor,
        mixture: torch.Tensor,
        sources: torch.Tensor,
        frames: torch.Tensor,
    ) -> torch.Tensor:
        """The loss of each utterance.

        Arguments
        ---------
        masks : torch.Tensor
            Shape (batch, time', bins, sources).
        mixture : torch.Tensor
            Spectra, complex of shape (batch, time', bins).
        sources : torch.Tensor
            Spectra, complex of shape (batch, time', bins, sources).
        frames : torch.Tensor
            Real frames of the spectra, int64 of shape (batch,).

        Returns
        -------
        torch.Tensor
            Shape (batch,).
        """
        wanted = sources.abs()
        if self.phase_sensitive:
            turned = _phases(mixture, wanted) - sources.angle()
            wanted = wanted * turned.cos().relu()
        found = masks.float() * mixture.abs().log1p()[..., None]
        wanted = wanted.log1p()
        losses = [
            self.distance(one[None, :count], other[None, :count])[0]
            for one, other, count in zip(
                found, wanted, frames.tolist(), strict=True
            )
        ]
        return torch.cat(losses) * found.shape[2]


def _phases(mixture: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Those of a mixture, for each of its sources."""
    return mixture.angle()[..., None].expand_as(like)
