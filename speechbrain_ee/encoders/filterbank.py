"""Features alone, as an encoder without layers.

Authors
 * SpeechBrain-EE contributors 2026
"""

from __future__ import annotations

import torch
from speechbrain.processing.features import InputNormalization

from speechbrain_ee.encoders.base import (
    EncoderState,
    LayerwiseEncoder,
    check_frames,
    relative_lengths,
    sample_counts,
    silence_padding,
)
from speechbrain_ee.encoders.features import feature_frames, make_features


class FilterbankEncoder(LayerwiseEncoder):
    """Filterbank features, the upstream that others are compared with.

    It has no layers and nothing to train: its only state, 0, holds the
    features. The default is the ``fbank`` upstream of SUPERB and ML-SUPERB: 80
    log-mel energies every 10 ms with first and second derivatives, each of the
    240 channels of an utterance brought to zero mean and unit variance.

    Arguments
    ---------
    features : str
        ``fbank``, ``mfcc`` or ``power_mel``, as in ``make_features``.
    n_mels : int
        Mel bands.
    deltas : bool
        Whether first and second derivatives stand behind the features.
    normalize : bool
        Whether each channel of an utterance is normalised.
    **options
        As ``n_mfcc`` and ``hop_length`` (ms), see ``make_features``.

    Example
    -------
    >>> encoder = FilterbankEncoder()
    >>> encoder.num_layers, encoder.state_sizes
    (0, [240])
    >>> wavs, wav_lens = torch.randn(2, 8000), torch.tensor([1.0, 0.5])
    >>> (features,), frames = encoder(wavs, wav_lens)
    >>> features.shape, frames.tolist()
    (torch.Size([2, 51, 240]), [51, 26])
    """

    def __init__(
        self,
        features: str = "fbank",
        n_mels: int = 80,
        deltas: bool = True,
        normalize: bool = True,
        **options,
    ):
        super().__init__()
        for neighbours in ("context", "requires_grad"):
            if options.get(neighbours):
                raise ValueError(
                    f"{neighbours}: these features are fixed, and each frame "
                    f"stands alone. Set {neighbours}: False."
                )
        self.compute_features = make_features(features, n_mels, **options)
        self.deltas = deltas
        self.normalize = (
            InputNormalization(norm_type="sentence") if normalize else None
        )
        channels = len(self.compute_features.compute_deltas.kernel)
        self.output_size = 3 * channels if deltas else channels
        self.no_layers = torch.nn.ModuleList()
        self.train(False)

    def train(self, mode: bool = True):
        """Evaluation mode stays on, as in a frozen model."""
        return super().train(False)

    @property
    def layers(self):
        """See ``LayerwiseEncoder.layers``: there are none."""
        return self.no_layers

    def frames_of(self, samples):
        """See ``LayerwiseEncoder.frames_of``."""
        return feature_frames(self.compute_features, samples)

    @torch.no_grad()
    def begin(self, wavs, wav_lens=None):
        """See ``LayerwiseEncoder.begin``."""
        samples = sample_counts(wavs, wav_lens)
        frames = self.frames_of(samples)
        check_frames(frames, samples)
        hidden = self.compute_features(silence_padding(wavs, samples))
        hidden = hidden[:, : int(frames.max())]
        if self.deltas:
            hidden = self._with_deltas(hidden, frames)
        if self.normalize is not None:
            hidden = self.normalize(hidden, relative_lengths(hidden, frames))
        return EncoderState(hidden, frames)

    def _with_deltas(self, hidden, frames):
        """First and second derivatives behind the features.

        SpeechBrain repeats the last frame of the batch; here the last frame of
        each utterance goes on.
        """
        time = torch.arange(hidden.shape[1])
        real = torch.minimum(time, frames[:, None] - 1).to(hidden.device)
        rows = torch.arange(len(hidden), device=hidden.device)[:, None]
        parts = [hidden]
        for _ in range(2):
            parts.append(
                self.compute_features.compute_deltas(parts[-1][rows, real])
            )
        return torch.cat(parts, dim=-1)

    def make_context(self, hidden, frames):
        """See ``LayerwiseEncoder.make_context``: nothing is needed."""
        return {}

    def keep_context(self, context, hidden, frames, rows):
        """See ``LayerwiseEncoder.keep_context``."""
        return {}

    def run_layer(self, state):
        """See ``LayerwiseEncoder.run_layer``: there is no layer to run."""
        raise IndexError("Filterbank features have no layers to run.")

    def final_norm(self, hidden):
        """See ``LayerwiseEncoder.final_norm``: none."""
        return hidden
