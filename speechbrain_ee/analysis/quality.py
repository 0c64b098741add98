"""How good waveforms are that a model has cleaned or taken apart.

PESQ and STOI need the packages ``pesq`` and ``pystoi`` (``pip install
speechbrain-ee[quality]``).

Authors
 * SpeechBrain-EE contributors 2026
"""

from __future__ import annotations

import math
from importlib import import_module

import numpy as np
import torch
from speechbrain.nnet.losses import get_si_snr_with_pitwrapper

from speechbrain_ee.encoders.base import SAMPLE_RATE

PESQ_SECONDS = 0.25  # what an utterance needs
LOWEST_PESQ = 1.0


def check_libraries() -> None:
    """Raise, before hours are spent, unless PESQ and STOI can be computed.

    Raises
    ------
    ImportError
        Naming what is missing.
    """
    for name in ("pesq", "pystoi"):
        _library(name)


def pesq(reference: np.ndarray, estimate: np.ndarray) -> tuple[float, bool]:
    """Perceptual evaluation of speech quality, wide-band (ITU-T P.862.2).

    It has no value for silence. A silent estimate counts as the lowest value of
    the scale, 1, so that silence is never the better choice; where the
    reference is at fault there is no value.

    Arguments
    ---------
    reference : np.ndarray
        Clean speech at 16 kHz, of shape (samples,), a quarter of a second at
        least.
    estimate : np.ndarray
        What is judged, of the same shape.

    Returns
    -------
    value : float
        From 1 to 4.64; NaN if the reference is silent or too short.
    failed : bool
        Whether PESQ gave no value.

    Example
    -------
    >>> speech = np.random.default_rng(0).standard_normal(8000)
    >>> round(pesq(speech, speech)[0], 2), pesq(speech, 0 * speech)
    (4.64, (1.0, True))
    """
    value = _pesq(reference, estimate)
    if value is not None:
        return value, False
    at_fault = _pesq(reference, reference) is None
    return (math.nan if at_fault else LOWEST_PESQ), True


def _pesq(reference, estimate) -> float | None:
    """None where the library finds nothing to judge."""
    library = _library("pesq")
    if not (reference.any() and estimate.any()):
        return None  # it would divide by zero
    try:
        return float(library.pesq(SAMPLE_RATE, reference, estimate, "wb"))
    except library.PesqError:
        return None


def stoi(reference: np.ndarray, estimate: np.ndarray) -> float:
    """Short-time objective intelligibility (Taal et al., 2011).

    Arguments
    ---------
    reference : np.ndarray
        Clean speech at 16 kHz, of shape (samples,).
    estimate : np.ndarray
        What is judged, of the same shape.

    Returns
    -------
    float
        In percent; about 0 if there is less than 0.4 s of speech.

    Example
    -------
    >>> speech = np.random.default_rng(0).standard_normal(8000)
    >>> round(stoi(speech, speech))
    100
    """
    return 100 * float(
        _library("pystoi").stoi(reference, estimate, SAMPLE_RATE)
    )


def si_sdr(sources: torch.Tensor, estimates: torch.Tensor) -> float:
    """Scale-invariant ratio of signal to distortion (Le Roux et al., 2019).

    Means are taken away first. Of several sources it is the mean, in the order
    that makes it highest.

    Arguments
    ---------
    sources : torch.Tensor
        Of shape (samples, sources).
    estimates : torch.Tensor
        Of the same shape.

    Returns
    -------
    float
        In dB; -80 for silence.

    Example
    -------
    >>> sources = torch.randn(8000, 2)
    >>> noisy = sources + 0.1 * torch.randn(8000, 2)
    >>> round(si_sdr(sources, noisy.flip(1)))
    20
    """
    # In single precision its sums would be off by some hundredths.
    pair = (x[None].double() for x in (sources, estimates))
    return -float(get_si_snr_with_pitwrapper(*pair))


def _library(name: str):
    """One of those that are imported only when they are needed."""
    try:
        return import_module(name)
    except ImportError as error:
        raise ImportError(
            f"The quality of waveforms is judged by the package {name} "
            f"({error}): pip install 'speechbrain-ee[quality]', which builds "
            "pesq with a C compiler."
        ) from error
