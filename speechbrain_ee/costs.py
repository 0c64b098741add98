"""Multiply-accumulate operations (MACs) of layers and heads.

Counted by PyTorch, not by formula: every layer here costs a quadratic in the
number of frames (attention is the square), so three counts give it exactly for
any backbone. Counted are the products of matrices and convolutions in encoder
layers and heads, for one utterance without padding; the front end is apart.

Authors
 * SpeechBrain-EE contributors 2026
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from speechbrain_ee.encoders import EncoderState, LayerwiseEncoder
from speechbrain_ee.heads import ClusterBranches, CTCHeads

_LENGTHS = (32, 48, 64)


class ExitCosts:
    """MACs spent until each exit has been read.

    Arguments
    ---------
    encoder : LayerwiseEncoder
        Its layers are counted one by one, up to the last exit.
    heads : CTCHeads or ClusterBranches
        Its exits; an exit also pays for the heads read on the way.
    exit_layers : sequence of int, optional
        Those of the exits that are read (default: all).

    Example
    -------
    >>> from speechbrain_ee.encoders.huggingface import HuggingFaceEncoder
    >>> small = {"num_hidden_layers": 2, "hidden_size": 32}
    >>> small |= {"num_attention_heads": 4, "intermediate_size": 64}
    >>> encoder = HuggingFaceEncoder("hubert", pretrained=False, config=small)
    >>> costs = ExitCosts(encoder, CTCHeads([1, 2], 32, vocab_size=10))
    >>> # projections 4 D², feed-forward 2 D F, attention 2 T D; head D V
    >>> int(costs(1, torch.tensor([100]))) == 100 * (
    ...     4 * 32**2 + 2 * 32 * 64 + 2 * 100 * 32 + 32 * 10
    ... )
    True
    """

    def __init__(
        self,
        encoder: LayerwiseEncoder,
        heads: CTCHeads | ClusterBranches,
        exit_layers: Sequence[int] | None = None,
    ):
        exit_layers = heads.exit_layers if exit_layers is None else exit_layers
        total = np.zeros(3)
        self._coefficients = {}
        for layer in range(1, max(exit_layers) + 1):
            total = total + self._count_step(encoder, layer)
            if layer in exit_layers:
                total = total + self._count_head(encoder, heads, layer)
                self._coefficients[layer] = total

    def __call__(self, exit_layer: int, frames: torch.Tensor) -> torch.Tensor:
        """MACs of all layers and heads up to and with this exit.

        Arguments
        ---------
        exit_layer : int
            One of the exits.
        frames : torch.Tensor
            Real frames of each utterance, int64 of shape (batch,).

        Returns
        -------
        torch.Tensor
            float64 of shape (batch,).
        """
        a, b, c = self._coefficients[exit_layer].tolist()
        frames = frames.double()
        return (a * frames + b) * frames + c

    def _count_step(self, encoder, layer):
        device = next(encoder.parameters()).device

        def step(time):
            """The next layer on so many frames."""
            hidden = torch.zeros(1, time, encoder.output_size, device=device)
            frames = torch.tensor([time])
            context = encoder.make_context(hidden, frames)
            state = EncoderState(hidden, frames, layer - 1, context)
            return lambda: encoder.step(state)

        return _quadratic(step)

    def _count_head(self, encoder, heads, layer):
        device = next(encoder.parameters()).device

        def read(time):
            """The head on so many frames."""
            hidden = torch.zeros(1, time, encoder.output_size, device=device)
            return lambda: heads.read(hidden, torch.tensor([time]), layer)

        return _quadratic(read)


def _quadratic(make: Callable[[int], Callable]) -> np.ndarray:
    """Coefficients of the MACs of ``make(time)()``, highest power first."""
    macs = []
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        for time in _LENGTHS:
            run = make(time)
            with FlopCounterMode(display=False) as counter:
                run()
            macs.append(counter.get_total_flops() / 2)
    return np.linalg.solve(np.vander(_LENGTHS, 3).astype(float), macs).round(6)
