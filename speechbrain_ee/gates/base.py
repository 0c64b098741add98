"""Which layers of an encoder run, for which utterance.

Authors
 * SpeechBrain-EE contributors 2026
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch

from speechbrain_ee.encoders.base import EncoderState


class LayerGate(torch.nn.Module, ABC):
    """Decides which layers run. The encoder it is attached to obeys.

    A gate of one kind gives a ``plan`` for all layers before the first one
    runs. One of the other kind (``layerwise``) is asked by ``decide`` before
    each layer, and knows the running state. In evaluation, decisions are 0 or 1
    and a layer runs for those utterances only that keep it; so it is in
    training, except where the gate ``mixes``.

    Zero layers may be kept: what comes after then reads the front end's
    output.

    Arguments
    ---------
    target_layers : float, optional
        How many layers an utterance keeps in evaluation, for gates that serve
        targets; 2.5 lets half of the utterances keep 2 and half 3, drawn by
        their own samples. None is the gate's own default.
    closing_norm : bool
        Whether a dropped layer keeps the LayerNorm that it ends with, if it
        ends with one, as in LDASR.
    seed : int
        Of all draws. A draw depends on it, on the utterance's samples and, in
        training, on ``step``: not on the process, nor on the batch.

    Attributes
    ----------
    name : str
        What results call it.
    serves_targets : bool
        Whether ``set_target`` says how many layers run.
    layerwise : bool
        Whether it decides layer by layer.
    mixes : bool
        Whether in training all layers run, and the values of the gate mix
        what goes into a layer with what comes out.
    step : int
        Of the training; the Brain sets it.
    """

    name: str
    serves_targets = False
    layerwise = False
    mixes = False

    def __init__(
        self,
        target_layers: float | None = None,
        closing_norm: bool = False,
        seed: int = 1234,
    ):
        super().__init__()
        self.target_layers = self.default_target = target_layers
        self.closing_norm = closing_norm
        self.seed = seed
        self.step = 0
        self.num_layers = self.width = None

    def prepare(self, num_layers: int, width: int) -> None:
        """Learn the sizes of the encoder, and check the settings against them.

        Arguments
        ---------
        num_layers : int
            Its layers.
        width : int
            Channels of its states.

        Raises
        ------
        ValueError
            If the settings do not fit, or the gate belongs to another encoder.
        """
        if self.num_layers is None:
            self.num_layers, self.width = num_layers, width
            self.build()
            self.set_target(self.default_target)
        elif (num_layers, width) != (self.num_layers, self.width):
            raise ValueError(
                f"gate: {self.name} was made for {self.num_layers} layers of "
                f"width {self.width}, not for {num_layers} of width {width}: "
                "make another one."
            )

    def build(self) -> None:
        """Check the settings, and make what depends on sizes; once."""

    def set_target(self, target_layers: float | None) -> None:
        """Say how many layers an utterance keeps in evaluation from now on.

        Arguments
        ---------
        target_layers : float, optional
            None brings back what the gate was made with.

        Raises
        ------
        ValueError
            If there are not so many layers, or the gate serves no targets.
        """
        if target_layers is None:
            target_layers = self.default_target
        if target_layers is not None:
            if not self.serves_targets:
                raise ValueError(
                    f"target_layers: the gate {self.name!r} keeps the layers "
                    "that it was made with. Leave target_layers out, or take "
                    "a gate that serves any number of layers."
                )
            check_count("target_layers", target_layers, self.num_layers)
        self.target_layers = target_layers

    @property
    def rule(self) -> str:
        """What results call what the gate does in evaluation."""
        return self.name

    @property
    def mixing(self) -> bool:
        """Whether all layers run now, mixed by the values of the gate."""
        return self.mixes and self.training

    @property
    def keyed(self) -> bool:
        """Whether draws need the key of each utterance."""
        return self.target_layers is not None and bool(self.target_layers % 1)

    @abstractmethod
    def plan(self, state: EncoderState) -> torch.Tensor:
        """What is decided before the first layer.

        Arguments
        ---------
        state : EncoderState
            The state at layer 0.

        Returns
        -------
        torch.Tensor
            Of shape (batch, layers), from 0 (skip) to 1 (run); of shape
            (batch, 0) where the gate decides layer by layer.
        """

    def decide(self, state: EncoderState) -> torch.Tensor:
        """Whether the next layer runs, for gates that are ``layerwise``.

        Arguments
        ---------
        state : EncoderState
            The running state.

        Returns
        -------
        torch.Tensor
            Of shape (batch,), from 0 to 1.
        """
        raise NotImplementedError(f"{self.name} decides before layer 1.")

    def penalty(self) -> torch.Tensor | None:
        """What the last walk in training adds to the task's loss.

        Returns
        -------
        torch.Tensor or None
            A scalar, given once; None for gates that learn nothing.
        """
        return None

    def counts(self, state: EncoderState) -> torch.Tensor:
        """How many layers each utterance keeps in evaluation.

        Arguments
        ---------
        state : EncoderState
            With keys, if the target is fractional.

        Returns
        -------
        torch.Tensor
            int64 of shape (batch,), on the CPU.
        """
        whole = math.floor(self.target_layers)
        counts = torch.full((len(state),), whole)
        if self.keyed:
            drawn = self.uniforms(state, 1)[:, 0]
            counts += drawn < self.target_layers - whole
        return counts

    def uniforms(
        self, state: EncoderState, count: int, *numbers: int
    ) -> torch.Tensor:
        """Numbers between 0 and 1, drawn anew for each utterance.

        Arguments
        ---------
        state : EncoderState
            With keys.
        count : int
            How many for each.
        *numbers : int
            What they depend on beside the seed and the key, as the step.

        Returns
        -------
        torch.Tensor
            float64 of shape (batch, count), on the CPU.
        """
        if state.keys is None:
            raise RuntimeError(
                "The state has no keys: attach the gate before begin()."
            )
        drawn = [
            np.random.default_rng([self.seed, key, *numbers]).random(count)
            for key in state.keys.tolist()
        ]
        return torch.from_numpy(np.stack(drawn))


def check_count(key: str, count: float, num_layers: int) -> None:
    """Raise unless an encoder has so many layers.

    Arguments
    ---------
    key : str
        What settings call the number.
    count : float
        Of layers to keep.
    num_layers : int
        Of the encoder.

    Raises
    ------
    ValueError
        Naming key, number and range.

    Example
    -------
    >>> check_count("target_layers", 2.5, 12)
    >>> check_count("target_layers", 13, 12)
    Traceback (most recent call last):
      ...
    ValueError: target_layers: 13 is no number from 0 to 12, as many layers ...
    """
    number = isinstance(count, int | float) and not isinstance(count, bool)
    if not number or not 0 <= count <= num_layers:
        raise ValueError(
            f"{key}: {count!r} is no number from 0 to {num_layers}, as many "
            "layers as the encoder has. Name one of these."
        )


def keep_top(scores: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """The layers with the highest scores; of equal ones, the first.

    Arguments
    ---------
    scores : torch.Tensor
        Of shape (batch, layers).
    counts : torch.Tensor
        How many to keep, int64 of shape (batch,).

    Returns
    -------
    torch.Tensor
        bool of shape (batch, layers).

    Example
    -------
    >>> scores = torch.tensor([[0.1, 0.3, 0.2], [5.0, 5.0, 4.0]])
    >>> keep_top(scores, torch.tensor([2, 1])).int()
    tensor([[0, 1, 1],
            [1, 0, 0]], dtype=torch.int32)
    """
    order = scores.argsort(dim=1, descending=True, stable=True)
    return order.argsort(dim=1) < counts.to(scores.device)[:, None]


def same_for_all(mask: Sequence | torch.Tensor, batch: int) -> torch.Tensor:
    """One mask for every utterance.

    Arguments
    ---------
    mask : sequence or torch.Tensor
        Of shape (layers,).
    batch : int
        Utterances.

    Returns
    -------
    torch.Tensor
        float32 of shape (batch, layers).

    Example
    -------
    >>> same_for_all([True, False], 2)
    tensor([[1., 0.],
            [1., 0.]])
    """
    return torch.as_tensor(mask).float().expand(batch, -1)
