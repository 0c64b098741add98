"""Leaving by chance: what every exit rule must beat.

Authors
 * SpeechBrain-EE contributors 2026
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def random_exit_probabilities(exit_layers: Sequence[int], mean) -> np.ndarray:
    """The distribution over exits of largest entropy with a given mean.

    It is p(k) ∝ exp(λ · layer k), which becomes certainty at the first and at
    the last exit.

    Arguments
    ---------
    exit_layers : sequence of int
        E exits, rising.
    mean : float or np.ndarray
        Expected exit layers, of any shape.

    Returns
    -------
    np.ndarray
        Probabilities of the shape of ``mean`` with E behind it.

    Raises
    ------
    ValueError
        If a mean lies outside the exits.

    Example
    -------
    >>> random_exit_probabilities([2, 4, 6], [2, 4, 6]).round(3) + 0.0
    array([[1.   , 0.   , 0.   ],
           [0.333, 0.333, 0.333],
           [0.   , 0.   , 1.   ]])
    """
    layers = np.asarray(exit_layers, dtype=float)
    mean = np.asarray(mean, dtype=float)[..., None]
    first, last = layers[0], layers[-1]
    _check_within(layers, mean)
    low, high = np.full_like(mean, -50.0), np.full_like(mean, 50.0)
    for _ in range(60):
        middle = (low + high) / 2
        # The largest exponent is 0, so that none overflows.
        power = np.exp(middle * (layers - np.where(middle > 0, last, first)))
        deeper = power @ layers / power.sum(-1) < mean[..., 0]
        low = np.where(deeper[..., None], middle, low)
        high = np.where(deeper[..., None], high, middle)
    probabilities = power / power.sum(-1, keepdims=True)
    certain = (mean == layers) & ((mean == first) | (mean == last))
    return np.where(certain.any(-1, keepdims=True), certain, probabilities)


def neighbour_exit_probabilities(
    exit_layers: Sequence[int], mean
) -> np.ndarray:
    """The distribution over two neighbouring exits with a given mean.

    What a fixed exit of a depth between two exits is: a share of utterances
    drawn at random leaves at the one, the others at the other.

    Arguments
    ---------
    exit_layers : sequence of int
        E exits, rising.
    mean : float or np.ndarray
        Expected exit layers, of any shape.

    Returns
    -------
    np.ndarray
        Probabilities of the shape of ``mean`` with E behind it.

    Raises
    ------
    ValueError
        If a mean lies outside the exits.

    Example
    -------
    >>> neighbour_exit_probabilities([2, 4, 8], [2, 5])
    array([[1.  , 0.  , 0.  ],
           [0.  , 0.75, 0.25]])
    """
    layers = np.asarray(exit_layers, dtype=float)
    mean = np.asarray(mean, dtype=float)
    _check_within(layers, mean)
    exits = np.eye(len(layers))
    return np.stack([np.interp(mean, layers, one) for one in exits], axis=-1)


def _check_within(layers, mean):
    """Raise if a mean cannot be one of these exits."""
    if not ((mean >= layers[0]) & (mean <= layers[-1])).all():
        raise ValueError(
            f"mean exit layers must be from {layers[0]:g} to {layers[-1]:g}, "
            f"the exits {layers.astype(int).tolist()}; given {mean.min():g} to "
            f"{mean.max():g}"
        )
