"""Multiply-accumulate operations (MACs) of layers, heads and gates.

Counted by PyTorch, not by formula: every layer here costs a quadratic in the
number of frames (attention is the square), so three counts give it exactly for
any backbone. Counted are the products of matrices and convolutions in encoder
layers, heads and the gate that chooses layers, for one utterance without
padding; the front end is apart.

Authors
 * SpeechBrain-EE contributors 2026
"""

from __future__ import annotations

import copy
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
        Its layers are counted one by one, up to the last exit; so is what the
        gate that it has now computes before each of them.
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
        layers = range(1, max(exit_layers) + 1)
        self._layers = np.stack([self._count_layer(encoder, k) for k in layers])
        self._heads = {
            k: self._count_head(encoder, heads, k) for k in sorted(exit_layers)
        }
        self.count_gate(encoder)

    def count_gate(self, encoder: LayerwiseEncoder) -> None:
        """Count the gate that an encoder has now, in place of the one before.

        Arguments
        ---------
        encoder : LayerwiseEncoder
            That which was counted.
        """
        self._gate = np.zeros_like(self._layers)
        if encoder.gate is None or not list(encoder.gate.parameters()):
            return
        # On the CPU, where recurrent layers are products of matrices too.
        gate = copy.deepcopy(encoder.gate).cpu().eval()

        def ask(decision, layer):
            """Count one of the gate's decisions."""

            def make(time):
                """The decision on so many frames."""
                hidden = torch.zeros(1, time, encoder.output_size)
                frames, keys = torch.tensor([time]), torch.tensor([0])
                state = EncoderState(hidden, frames, layer, keys=keys)
                return lambda: decision(state)

            return _quadratic(make)

        self._gate[0] = ask(gate.plan, 0)
        if gate.layerwise:
            for layer in range(len(self._gate)):
                self._gate[layer] += ask(gate.decide, layer)

    def __call__(
        self,
        exit_layer: int,
        frames: torch.Tensor,
        ran: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """MACs of layers, heads and gate up to and with this exit.

        Arguments
        ---------
        exit_layer : int
            One of the exits.
        frames : torch.Tensor
            Real frames of each utterance, int64 of shape (batch,).
        ran : torch.Tensor, optional
            Which layers ran for each, bool of shape (batch, exit_layer); all
            by default.

        Returns
        -------
        torch.Tensor
            float64 of shape (batch,).
        """
        if ran is None:
            ran = torch.ones(len(frames), exit_layer, dtype=torch.bool)
        fixed = self._gate[:exit_layer].sum(axis=0)
        fixed = fixed + sum(
            x for k, x in self._heads.items() if k <= exit_layer
        )
        layers = torch.from_numpy(self._layers[:exit_layer])
        a, b, c = (ran.double() @ layers + torch.from_numpy(fixed)).unbind(1)
        frames = frames.double()
        return (a * frames + b) * frames + c

    def _count_layer(self, encoder, layer):
        device = next(encoder.parameters()).device

        def step(time):
            """The next layer on so many frames."""
            hidden = torch.zeros(1, time, encoder.output_size, device=device)
            frames = torch.tensor([time])
            context = encoder.make_context(hidden, frames)
            state = EncoderState(hidden, frames, layer - 1, context)
            return lambda: encoder.run_layer(state)

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
