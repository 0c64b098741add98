"""Weights of the exit losses as pure functions of the exit layers.

Each sums to the number of exits, so that learning rates keep their meaning
when the weighting is swapped.

Authors
 * SpeechBrain-EE contributors 2026
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


def uniform(exit_layers: Sequence[int]) -> torch.Tensor:
    """The plain sum of Wright et al. (arXiv 2309.09546), Eq. 2.

    Arguments
    ---------
    exit_layers : sequence of int
        The layers read out, rising.

    Returns
    -------
    torch.Tensor
        Ones of shape (exits,).

    Example
    -------
    >>> uniform([2, 4, 6])
    tensor([1., 1., 1.])
    """
    return torch.ones(len(exit_layers))


def rising(exit_layers: Sequence[int], power: float = 1.0) -> torch.Tensor:
    """Weights that grow with depth, as in PABEE (Zhou et al., 2020).

    Arguments
    ---------
    exit_layers : sequence of int
        The layers read out, rising.
    power : float
        The weight goes with (exit layer) ** power.

    Returns
    -------
    torch.Tensor
        Shape (exits,).

    Example
    -------
    >>> rising([2, 4, 6])
    tensor([0.5000, 1.0000, 1.5000])
    """
    depth = torch.tensor(exit_layers, dtype=torch.float32) ** power
    return depth * len(exit_layers) / depth.sum()


def falling(exit_layers: Sequence[int], power: float = 1.0) -> torch.Tensor:
    """Weights that shrink with depth: ``rising`` with -power.

    Arguments
    ---------
    exit_layers : sequence of int
        The layers read out, rising.
    power : float
        The weight goes with 1 / (exit layer) ** power.

    Returns
    -------
    torch.Tensor
        Shape (exits,).

    Example
    -------
    >>> falling([2, 4])
    tensor([1.3333, 0.6667])
    """
    return rising(exit_layers, -power)


def last(exit_layers: Sequence[int]) -> torch.Tensor:
    """Nothing but the last exit, for a selector of layers that learns alone.

    The losses of inner exits would have it keep the layers below them.

    Arguments
    ---------
    exit_layers : sequence of int
        The layers read out, rising.

    Returns
    -------
    torch.Tensor
        Shape (exits,).

    Example
    -------
    >>> last([2, 4, 6])
    tensor([0., 0., 3.])
    """
    weights = torch.zeros(len(exit_layers))
    weights[-1] = len(exit_layers)
    return weights
