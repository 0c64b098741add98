"""What stands between the layers of an encoder and what reads them.

The designs are those of Shih and Harwath, "Interface Design for Self-Supervised
Speech Models" (arXiv 2406.12209), and one of our own.

Authors
 * SpeechBrain-EE contributors 2026
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from numbers import Integral

import torch
from torch.nn.functional import layer_norm

from speechbrain_ee.encoders.base import padding_mask


class LayerInterface(torch.nn.Module, ABC):
    """Hidden states of an encoder, made one sequence.

    States are counted as everywhere here: 0 = front-end output, k = after layer
    k. All that an interface does, it does frame by frame.

    Where an exit was taken, only the states up to it are there. What is missing
    is then zero-filled, so that ``output_size`` stays the same; weighted sums
    share the weight among the states that are there.

    Subclasses set ``output_size`` and write ``combine``.

    Arguments
    ---------
    input_sizes : sequence of int
        Channels of each state, the front-end output first.
    normalize : bool
        Whether each state gets a layer norm without parameters first.
    """

    output_size: int
    needs_fit = False  # whether ``fit`` comes before the first ``forward``

    def __init__(self, input_sizes: Sequence[int], normalize: bool = False):
        super().__init__()
        self.input_sizes = _checked_sizes(input_sizes)
        self.normalize = normalize
        self._ablated = None

    @abstractmethod
    def combine(self, states: list[torch.Tensor]) -> torch.Tensor:
        """What the interface does with states that are checked and normalised.

        Arguments
        ---------
        states : list of torch.Tensor
            The first 1 to L states, each of shape (batch, time, channel).

        Returns
        -------
        torch.Tensor
            Shape (batch, time, output_size).
        """

    def forward(
        self,
        states: Sequence[torch.Tensor],
        frames: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Make one sequence of the states.

        Arguments
        ---------
        states : sequence of torch.Tensor
            All states, or the first of them if an exit was taken, each of shape
            (batch, time, channel).
        frames : torch.Tensor, optional
            Real frames of each utterance, int64 of shape (batch,): the output
            is zero behind them.

        Returns
        -------
        torch.Tensor
            Shape (batch, time, output_size).

        Raises
        ------
        ValueError
            If number or width of the states are not what was announced.
        """
        output = self.combine(self._prepared(states))
        if frames is None:
            return output
        return output.masked_fill(padding_mask(output, frames)[..., None], 0.0)

    def fit(
        self, batches: Iterable[tuple[Sequence[torch.Tensor], torch.Tensor]]
    ) -> None:
        """Learn from data without gradients, where ``needs_fit`` says so.

        Arguments
        ---------
        batches : iterable of tuple
            States and real frames of each batch, as for ``forward``.

        Raises
        ------
        TypeError
            If this interface is trained with what stands behind it.
        """
        raise TypeError(
            f"{self._name} is trained by gradients: there is nothing to fit."
        )

    def layer_weights(self) -> torch.Tensor | None:
        """How much each state weighs, where that is learnt and fixed.

        Returns
        -------
        torch.Tensor or None
            Shape (layers,), detached, with sum 1 (in each group, if there are
            groups); None where the weights depend on the data or there are
            none.
        """
        return None

    @contextmanager
    def without(self, layer: int) -> Iterator[None]:
        """Zero-fill the state of one layer, after the norm, for ablations.

        Arguments
        ---------
        layer : int
            Which state, 0 for the front-end output.

        Yields
        ------
        None

        Raises
        ------
        ValueError
            If there is no such state.
        """
        if not 0 <= layer < len(self.input_sizes):
            raise ValueError(
                f"layer: {layer} outside 0 to {len(self.input_sizes) - 1}."
            )
        self._ablated = layer
        try:
            yield
        finally:
            self._ablated = None

    def absent(self, layer: int, like: torch.Tensor) -> torch.Tensor:
        """What stands in for a state that is missing.

        Arguments
        ---------
        layer : int
            Which state.
        like : torch.Tensor
            Another state, for its batch, time, dtype and device.

        Returns
        -------
        torch.Tensor
            Zeros of shape (batch, time, channel).
        """
        return like.new_zeros(*like.shape[:2], self.input_sizes[layer])

    def filled(self, states: list[torch.Tensor]) -> list[torch.Tensor]:
        """All states, those that are missing filled in.

        Arguments
        ---------
        states : list of torch.Tensor
            The first 1 to L states.

        Returns
        -------
        list of torch.Tensor
            L states.
        """
        missing = range(len(states), len(self.input_sizes))
        return [*states, *(self.absent(k, like=states[0]) for k in missing)]

    @property
    def _name(self) -> str:
        return type(self).__name__

    def _one_width(self) -> int:
        """The width of every state, where a design needs one."""
        widths = set(self.input_sizes)
        if len(widths) > 1:
            raise ValueError(
                f"{self._name} needs states of one width, and these have "
                f"{list(self.input_sizes)} channels: use ConcatProjection, "
                "PCAConcat or SingleLayer."
            )
        return widths.pop()

    def _prepared(self, states: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """States checked, normalised, and one of them ablated."""
        states = list(states)
        if not 1 <= len(states) <= len(self.input_sizes):
            raise ValueError(
                f"{self._name} was made for {len(self.input_sizes)} states and "
                f"got {len(states)}."
            )
        widths = [state.shape[-1] for state in states]
        if widths != list(self.input_sizes[: len(states)]):
            raise ValueError(
                f"{self._name} was made for states of {list(self.input_sizes)} "
                f"channels and got {widths}."
            )
        if self.normalize:
            states = [layer_norm(state, state.shape[-1:]) for state in states]
        if self._ablated is not None and self._ablated < len(states):
            states[self._ablated] = self.absent(self._ablated, like=states[0])
        return states


def build_interface(
    interface: Callable[..., LayerInterface], input_sizes: Sequence[int]
) -> LayerInterface:
    """Make the interface that a block names, for the states that there are.

    Arguments
    ---------
    interface : callable
        A class with its options, by ``!name:`` in YAMLs.
    input_sizes : sequence of int
        Channels of each state, the front-end output first.

    Returns
    -------
    LayerInterface
        Ready for states of these widths.

    Raises
    ------
    TypeError
        If the block makes something else.
    ValueError
        If it cannot read such states.

    Example
    -------
    >>> from speechbrain_ee.interfaces import WeightedSum
    >>> interface = build_interface(WeightedSum, [8, 8, 8])
    >>> interface([torch.randn(2, 5, 8) for _ in range(3)]).shape
    torch.Size([2, 5, 8])
    """
    hint = "name a class of speechbrain_ee.interfaces by !name:, with options."
    if not callable(interface) or isinstance(interface, torch.nn.Module):
        raise TypeError(f"interface: {interface!r} cannot be built; {hint}")
    made = interface(input_sizes=_checked_sizes(input_sizes))
    if not isinstance(made, LayerInterface):
        raise TypeError(f"interface: {made!r} is no LayerInterface; {hint}")
    return made


def _checked_sizes(input_sizes) -> tuple[int, ...]:
    sizes = () if isinstance(input_sizes, Integral) else tuple(input_sizes)
    if not sizes or not all(isinstance(s, Integral) and s > 0 for s in sizes):
        raise ValueError(
            f"input_sizes: {input_sizes} must be the channels of one state or "
            "more, as [768, 768, 768]."
        )
    return tuple(int(size) for size in sizes)
