"""Gates that drop layers at random.

Authors
 * SpeechBrain-EE contributors 2026
"""

from __future__ import annotations

import numpy as np
import torch

from speechbrain_ee.gates.base import LayerGate, keep_top, same_for_all


class RandomN(LayerGate):
    """Layers drawn at random for each utterance, exactly as many as wanted.

    The draw depends on the seed and the utterance's own samples; with a larger
    target, an utterance keeps the same layers and others. In training, and
    without a target, all run.

    Arguments
    ---------
    target_layers : float, optional
        See ``LayerGate``.
    closing_norm : bool
        See ``LayerGate``.
    seed : int
        See ``LayerGate``.

    Example
    -------
    >>> from speechbrain_ee.encoders import EncoderState
    >>> gate = RandomN(target_layers=2)
    >>> gate.prepare(num_layers=4, width=8)
    >>> keys = torch.tensor([7, 8])
    >>> frames = torch.tensor([5, 5])
    >>> state = EncoderState(torch.zeros(2, 5, 8), frames, keys=keys)
    >>> gate.eval().plan(state).sum(dim=1)
    tensor([2., 2.])
    """

    name = "random_n"
    serves_targets = True

    @property
    def keyed(self):
        """See ``LayerGate.keyed``."""
        return self.target_layers is not None

    def plan(self, state):
        """See ``LayerGate.plan``."""
        if self.training or self.target_layers is None:
            return torch.ones(len(state), self.num_layers)
        drawn = self.uniforms(state, 1 + self.num_layers)[:, 1:]
        return keep_top(drawn, self.counts(state)).float()


class BernoulliGate(RandomN):
    """Each layer is dropped by chance in training, as in LayerDrop.

    In evaluation all layers run, or with ``target_layers`` so many, drawn as
    ``RandomN`` draws them. LDASR's variant has ``closing_norm: True`` and is
    drawn once per batch; its code also scales log-probabilities, which this
    does not.

    Arguments
    ---------
    p : float
        The chance that a layer is dropped, from 0 on and below 1.
    draw : str
        ``batch``: one draw for a whole batch, the same in all processes; or
        ``utterance``.
    rising : bool
        The chance rises with depth, from p / L at the first layer to p at the
        last, as in stochastic depth (arXiv 1603.09382); else it is the same at
        all.
    target_layers : float, optional
        See ``LayerGate``.
    closing_norm : bool
        See ``LayerGate``.
    seed : int
        See ``LayerGate``.

    Example
    -------
    >>> from speechbrain_ee.encoders import EncoderState
    >>> gate = BernoulliGate(p=0.5, rising=True)
    >>> gate.prepare(num_layers=4, width=8)
    >>> gate.chances.tolist()
    [0.125, 0.25, 0.375, 0.5]
    >>> state = EncoderState(torch.zeros(2, 5, 8), torch.tensor([5, 5]))
    >>> gate.plan(state).shape, gate.eval().plan(state).mean()
    (torch.Size([2, 4]), tensor(1.))
    """

    name = "random"
    rule = RandomN.name

    def __init__(
        self,
        p: float = 0.2,
        draw: str = "batch",
        rising: bool = False,
        target_layers: float | None = None,
        closing_norm: bool = False,
        seed: int = 1234,
    ):
        super().__init__(target_layers, closing_norm, seed)
        if not 0 <= p < 1:
            raise ValueError(f"p: {p} must lie between 0 and 1, and below 1.")
        if draw not in ("batch", "utterance"):
            raise ValueError(f"draw: {draw!r} is neither batch nor utterance.")
        self.p = p
        self.draw = draw
        self.rising = rising

    def build(self):
        """See ``LayerGate.build``."""
        depth = torch.arange(1, self.num_layers + 1) / self.num_layers
        self.chances = self.p * (
            depth if self.rising else torch.ones_like(depth)
        )

    @property
    def keyed(self):
        """See ``LayerGate.keyed``."""
        if self.training:
            return self.draw == "utterance"
        return super().keyed

    def plan(self, state):
        """See ``LayerGate.plan``."""
        if not self.training:
            return super().plan(state)
        if self.draw == "utterance":
            drawn = self.uniforms(state, self.num_layers, self.step)
            return (drawn >= self.chances).float()
        rng = np.random.default_rng([self.seed, self.step])
        drawn = torch.from_numpy(rng.random(self.num_layers))
        return same_for_all(drawn >= self.chances, len(state))
