"""Conditions: what sets and utterances are called in noise.

Authors
 * SpeechBrain-EE contributors 2026
"""

from __future__ import annotations

import re

CLEAN = "clean"


def in_noise(name: str, snr: float | None) -> str:
    """The name of a set, or of an utterance that is not clean, in noise.

    Arguments
    ---------
    name : str
        Its name.
    snr : float or None
        Signal-to-noise ratio in dB; None is clean speech.

    Returns
    -------
    str

    Example
    -------
    >>> in_noise("test", 5), in_noise("test", -2.5), in_noise("test", None)
    ('test_snr5', 'test_snr-2.5', 'test_clean')
    """
    return f"{name}_{CLEAN}" if snr is None else f"{name}_snr{snr:g}"


def condition_of(name: str) -> tuple[str, str | None]:
    """The name without noise, and the condition that it tells.

    Arguments
    ---------
    name : str
        Such as ``in_noise`` gives it, or any other.

    Returns
    -------
    name : str
        What stands before the condition.
    condition : str or None
        "clean", or the signal-to-noise ratio as it is written; None if the
        name tells of none.

    Example
    -------
    >>> condition_of("test-clean_snr-2.5"), condition_of("test_clean")
    (('test-clean', '-2.5'), ('test', 'clean'))
    >>> condition_of("test-clean")
    ('test-clean', None)
    """
    found = re.fullmatch(rf"(.+)_(?:({CLEAN})|snr(-?[\d.]+(?:e-?\d+)?))", name)
    return (found[1], found[2] or found[3]) if found else (name, None)


def loudness_of_speech(condition: str) -> float:
    """Something to sort conditions by: the signal-to-noise ratio in dB.

    Arguments
    ---------
    condition : str
        "clean", or a number.

    Returns
    -------
    float
        Infinity for clean speech.

    Example
    -------
    >>> sorted(["0", "clean", "20", "-5"], key=loudness_of_speech)
    ['-5', '0', '20', 'clean']
    """
    return float("inf") if condition == CLEAN else float(condition)
