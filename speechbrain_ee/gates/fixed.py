"""Gates that are the same for every utterance.

Authors
 * SpeechBrain-EE contributors 2026
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from speechbrain_ee.gates.base import LayerGate, keep_top, same_for_all


class RunAll(LayerGate):
    """Every layer runs, as without a gate.

    Example
    -------
    >>> from speechbrain_ee.encoders import EncoderState
    >>> gate = RunAll()
    >>> gate.prepare(num_layers=3, width=8)
    >>> gate.plan(EncoderState(torch.zeros(1, 5, 8), torch.tensor([5])))
    tensor([[1., 1., 1.]])
    """

    name = "all"

    def plan(self, state):
        """See ``LayerGate.plan``."""
        return torch.ones(len(state), self.num_layers)


class FixedMask(LayerGate):
    """The same layers for every utterance, in training too.

    Arguments
    ---------
    mask : sequence of bool or str, optional
        Whether each layer runs, first to last; as text, "110100".
    every : int, optional
        Instead of a mask: one of so many layers runs, the first of each group.
        With 2 these are layers 1, 3, 5, …
    closing_norm : bool
        See ``LayerGate``.

    Example
    -------
    >>> from speechbrain_ee.encoders import EncoderState
    >>> gate = FixedMask(every=2)
    >>> gate.prepare(num_layers=4, width=8)
    >>> gate.plan(EncoderState(torch.zeros(1, 5, 8), torch.tensor([5])))
    tensor([[1., 0., 1., 0.]])
    """

    name = "fixed"

    def __init__(
        self,
        mask: Sequence[bool] | str | None = None,
        every: int | None = None,
        closing_norm: bool = False,
    ):
        super().__init__(closing_norm=closing_norm)
        if (mask is None) == (every is None):
            raise ValueError("gate: give either mask or every, and just one.")
        self.mask = None if mask is None else [str(int(x)) for x in mask]
        self.every = every
        if set(self.mask or ()) - {"0", "1"}:
            raise ValueError(
                f"mask: {mask} must hold a 1 for each layer that runs and a 0 "
                "for each that does not."
            )

    def build(self):
        """See ``LayerGate.build``."""
        if self.mask is None:
            whole = isinstance(self.every, int)
            if not whole or not 1 <= self.every <= self.num_layers:
                raise ValueError(
                    f"every: {self.every} must be a whole number from 1 to "
                    f"{self.num_layers}, the layers of the encoder."
                )
            self.kept = [k % self.every == 0 for k in range(self.num_layers)]
        elif len(self.mask) != self.num_layers:
            raise ValueError(
                f"mask: it says something of {len(self.mask)} layers, and the "
                f"encoder has {self.num_layers}: give one entry for each."
            )
        else:
            self.kept = [entry == "1" for entry in self.mask]

    def plan(self, state):
        """See ``LayerGate.plan``."""
        return same_for_all(self.kept, len(state))


class FirstN(LayerGate):
    """The first layers, as many as the target says.

    In training without a target, and until there is one, all run.

    Arguments
    ---------
    target_layers : float, optional
        How many; in training too.
    closing_norm : bool
        See ``LayerGate``.
    seed : int
        See ``LayerGate``.

    Example
    -------
    >>> from speechbrain_ee.encoders import EncoderState
    >>> gate = FirstN(target_layers=1)
    >>> gate.prepare(num_layers=3, width=8)
    >>> gate.plan(EncoderState(torch.zeros(1, 5, 8), torch.tensor([5])))
    tensor([[1., 0., 0.]])
    """

    name = "first_n"
    serves_targets = True

    def plan(self, state):
        """See ``LayerGate.plan``."""
        if self.target_layers is None:
            return torch.ones(len(state), self.num_layers)
        none = torch.zeros(len(state), self.num_layers)
        return keep_top(none, self.counts(state)).float()


class GreedyMasks(LayerGate):
    """For each number of layers, the best mask that elimination has found.

    Backward greedy elimination is our choice: from all layers on, the layer is
    dropped whose loss hurts least on a development set, then the next. LDASR
    shows a mask found greedily and does not say how. In training all layers
    run; masks stand in the ``state_dict``, and a checkpoint of before they were
    found leaves those that are there.

    Arguments
    ---------
    target_layers : float, optional
        See ``LayerGate``; all run without.
    utterances : int
        How many of the development set are measured, drawn at random.
    closing_norm : bool
        See ``LayerGate``.
    seed : int
        Of the utterances; and see ``LayerGate``.

    Example
    -------
    >>> from speechbrain_ee.encoders import EncoderState
    >>> gate = GreedyMasks(target_layers=1)
    >>> gate.prepare(num_layers=3, width=8)
    >>> state = EncoderState(torch.zeros(1, 5, 8), torch.tensor([5]))
    >>> worth = torch.tensor([5.0, 1.0, 2.0])
    >>> gate.search(lambda: 8 - float(gate.plan(state)[0] @ worth))
    [(3, 0.0), (2, 1.0), (1, 3.0), (0, 8.0)]
    >>> gate.eval().plan(state)
    tensor([[1., 0., 0.]])
    """

    name = "greedy"
    serves_targets = True

    def __init__(
        self,
        target_layers: float | None = None,
        utterances: int = 200,
        closing_norm: bool = False,
        seed: int = 1234,
    ):
        super().__init__(target_layers, closing_norm, seed)
        if utterances < 1:
            raise ValueError(f"utterances: {utterances} must be at least 1.")
        self.utterances = utterances
        self.trial = None
        self.register_load_state_dict_pre_hook(_keep_masks)

    def build(self):
        """See ``LayerGate.build``."""
        size = self.num_layers + 1, self.num_layers
        # Row n: the mask that keeps n layers.
        self.register_buffer("masks", torch.zeros(size, dtype=torch.bool))
        self.register_buffer("found", torch.zeros((), dtype=torch.bool))

    def search(self, measure: Callable[[], float]) -> list[tuple[int, float]]:
        """Find the masks.

        Arguments
        ---------
        measure : callable
            Gives the loss of what the gate plans at the moment, in evaluation;
            called L (L + 1) / 2 + 1 times for L layers.

        Returns
        -------
        list of tuple
            Layers kept and loss, from all layers to none.
        """
        kept = torch.ones(self.num_layers, dtype=torch.bool)
        self.trial = kept.clone()
        found = [(self.num_layers, measure())]
        self.masks[self.num_layers] = kept
        for count in reversed(range(self.num_layers)):
            losses = {}
            for layer in kept.nonzero().flatten().tolist():
                self.trial = kept.clone()
                self.trial[layer] = False
                losses[layer] = measure()
            # Of equal ones, the deepest.
            worst = min(reversed(losses), key=losses.get)
            kept[worst] = False
            self.masks[count] = kept
            found.append((count, losses[worst]))
        self.trial = None
        self.found.fill_(True)
        return found

    def plan(self, state):
        """See ``LayerGate.plan``."""
        if self.trial is not None:
            return same_for_all(self.trial, len(state))
        if self.training or self.target_layers is None:
            return torch.ones(len(state), self.num_layers)
        if not self.found:
            raise RuntimeError(
                "gate: the greedy masks have not been found yet: evaluate the "
                "run on its development set first, or load a run that has "
                "been."
            )
        return self.masks.cpu()[self.counts(state)].float()


def _keep_masks(gate, state_dict, prefix, *_):
    """Say what is wrong with masks, and keep the own ones if there are none."""
    if not state_dict.get(f"{prefix}found", False):
        state_dict.update(
            {f"{prefix}{name}": own for name, own in gate.named_buffers()}
        )
    for name, own in gate.named_buffers():
        given = state_dict[f"{prefix}{name}"]
        if given.shape != own.shape:
            raise ValueError(
                f"gate: this checkpoint has greedy masks of {given.shape[1]} "
                f"layers, and the encoder has {gate.num_layers}: load one of "
                "the same backbone."
            )
