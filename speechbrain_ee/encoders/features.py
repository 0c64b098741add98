"""The features that speech encoders read, by name.

Authors
 * SpeechBrain-EE contributors 2026
"""

from __future__ import annotations

from functools import partial

import torch
from speechbrain.lobes.features import MFCC, Fbank


class PowerMel(Fbank):
    """Mel filterbank energies without the logarithm.

    The code of Wright et al. (arXiv 2309.09546) reads these, though the paper
    says MFCC. Options are those of ``speechbrain.lobes.features.Fbank``.

    Arguments
    ---------
    **options
        As ``n_mels``.

    Example
    -------
    >>> import torch
    >>> wavs = torch.rand(2, 16000, generator=torch.manual_seed(0))
    >>> features = PowerMel(n_mels=80)(wavs)
    >>> features.shape, bool((features >= 0).all())
    (torch.Size([2, 101, 80]), True)
    """

    def __init__(self, **options):
        super().__init__(**options)
        self.compute_fbanks.log_mel = False


FEATURES = {
    "fbank": Fbank,
    "mfcc": partial(MFCC, deltas=False, context=False),
    "power_mel": PowerMel,
}


def make_features(kind: str, n_mels: int = 80, **options):
    """Make the features that a recipe names.

    Arguments
    ---------
    kind : str
        ``fbank`` (log-mel), ``mfcc`` (as many coefficients as mel bands) or
        ``power_mel`` (mel without the logarithm).
    n_mels : int
        Mel bands, and channels of the features.
    **options
        As ``sample_rate``, ``n_fft``, ``win_length`` and ``hop_length`` (ms) of
        SpeechBrain's ``Fbank`` and ``MFCC``.

    Returns
    -------
    torch.nn.Module
        From waveforms (batch, samples) to features (batch, time, n_mels).

    Raises
    ------
    ValueError
        If there are no such features.

    Example
    -------
    >>> import torch
    >>> make_features("mfcc", n_mels=40)(torch.rand(1, 16000)).shape
    torch.Size([1, 101, 40])
    """
    if kind not in FEATURES:
        raise ValueError(
            f"features: {kind!r} is none of {', '.join(FEATURES)}."
        )
    if kind == "mfcc":
        options = {"n_mfcc": n_mels, **options}
    return FEATURES[kind](n_mels=n_mels, **options)


def feature_frames(
    compute_features: torch.nn.Module, samples: torch.Tensor
) -> torch.Tensor:
    """How many frames are made of waveforms.

    Arguments
    ---------
    compute_features : torch.nn.Module
        As from ``make_features``.
    samples : torch.Tensor
        Samples of each utterance, int64 of any shape.

    Returns
    -------
    torch.Tensor
        int64 of the same shape, 0 where there are no samples.

    Example
    -------
    >>> feature_frames(make_features("fbank"), torch.tensor([16000, 159, 0]))
    tensor([101,   1,   0])
    """
    # SpeechBrain's STFT is centred: a frame at every hop, the first at 0.
    hop = compute_features.compute_STFT.hop_length
    return (samples // hop + 1) * (samples > 0)
