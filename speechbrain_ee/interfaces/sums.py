"""One layer, or weighted sums over layers.

Authors
 * SpeechBrain-EE contributors 2026
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.functional import layer_norm, linear

from speechbrain_ee.interfaces.base import LayerInterface


class SingleLayer(LayerInterface):
    """The state of one layer.

    Where an exit was taken, a negative ``layer`` counts from the exit, so that
    -1 always is the last layer that ran.

    Arguments
    ---------
    input_sizes : sequence of int
        See ``LayerInterface``.
    layer : int
        Which state, 0 for the front-end output; -1 for the last, -2 for the
        one before it.
    normalize : bool
        See ``LayerInterface``.

    Example
    -------
    >>> states = [torch.full((1, 2, 3), float(k)) for k in range(4)]
    >>> interface = SingleLayer([3, 3, 3, 3], layer=-1)
    >>> interface(states)[0, 0, 0], interface(states[:2])[0, 0, 0]
    (tensor(3.), tensor(1.))
    """

    def __init__(
        self,
        input_sizes: Sequence[int],
        layer: int = -1,
        normalize: bool = False,
    ):
        super().__init__(input_sizes, normalize)
        if not -len(self.input_sizes) <= layer < len(self.input_sizes):
            raise ValueError(
                f"layer: {layer} is none of the {len(self.input_sizes)} "
                "states, the front-end output among them."
            )
        self.layer = layer
        self.output_size = self.input_sizes[layer]

    def combine(self, states: list[torch.Tensor]) -> torch.Tensor:
        """See ``LayerInterface``."""
        index = self.layer + (len(states) if self.layer < 0 else 0)
        if not 0 <= index < len(states):
            raise ValueError(
                f"layer: {self.layer} is not among the {len(states)} states of "
                "the layers that ran. Leave later, or read layer -1."
            )
        if states[index].shape[-1] != self.output_size:
            raise ValueError(
                f"layer: state {index} has {states[index].shape[-1]} channels "
                f"and not the {self.output_size} of state {self.layer}. Leave "
                "at layers of one width."
            )
        return states[index]


class WeightedSum(LayerInterface):
    """A weighted sum of all states, with learnt weights.

    The softmax over L scalars that start at zero, as in SUPERB (arXiv
    2105.01051) and the baseline of arXiv 2406.12209. On the first n states it
    is the softmax over n scalars.

    Arguments
    ---------
    input_sizes : sequence of int
        See ``LayerInterface``; all must be equal.
    normalize : bool
        See ``LayerInterface``.

    Example
    -------
    >>> states = [torch.full((1, 2, 3), float(k)) for k in range(4)]
    >>> interface = WeightedSum([3, 3, 3, 3])
    >>> interface(states).mean().item(), interface(states[:2]).mean().item()
    (1.5, 0.5)
    """

    def __init__(self, input_sizes: Sequence[int], normalize: bool = False):
        super().__init__(input_sizes, normalize)
        self.output_size = self._one_width()
        self.weights = torch.nn.Parameter(torch.zeros(len(self.input_sizes)))

    def combine(self, states: list[torch.Tensor]) -> torch.Tensor:
        """See ``LayerInterface``."""
        return _sum(states, self.weights[: len(states)].softmax(dim=0))

    def layer_weights(self) -> torch.Tensor:
        """See ``LayerInterface``."""
        return self.weights.detach().softmax(dim=0)


class PerExitWeightedSum(LayerInterface):
    """A weighted sum with other weights for each number of states.

    The "dynamic-s" featuriser of DAISY's code (arXiv 2406.05464): utterances
    that leave at layer k have k + 1 scalars of their own, which start at zero,
    and their softmax. ``WeightedSum``, which shares one scalar per state among
    all exits, is its "dynamic" one.

    Arguments
    ---------
    input_sizes : sequence of int
        See ``LayerInterface``; all must be equal.
    normalize : bool
        See ``LayerInterface``.

    Example
    -------
    >>> states = [torch.full((1, 2, 3), float(k)) for k in range(4)]
    >>> interface = PerExitWeightedSum([3, 3, 3, 3])
    >>> with torch.no_grad():
    ...     interface.weights[1, 1] = 99.0
    >>> interface(states).mean().item(), interface(states[:2]).mean().item()
    (1.5, 1.0)
    """

    def __init__(self, input_sizes: Sequence[int], normalize: bool = False):
        super().__init__(input_sizes, normalize)
        self.output_size = self._one_width()
        layers = len(self.input_sizes)
        # Row n - 1 is for n states; what lies right of its first n is not read.
        self.weights = torch.nn.Parameter(torch.zeros(layers, layers))

    def combine(self, states: list[torch.Tensor]) -> torch.Tensor:
        """See ``LayerInterface``."""
        row = self.weights[len(states) - 1, : len(states)]
        return _sum(states, row.softmax(dim=0))


class GroupedWeightedSum(LayerInterface):
    """Weighted sums inside groups of layers, concatenated and projected.

    As in arXiv 2406.12209, which has 2, 3 and 4 groups. Groups are contiguous;
    where they do not divide the L states evenly, the first L mod g groups hold
    one more (as ``numpy.array_split``), which is our reading.

    Arguments
    ---------
    input_sizes : sequence of int
        See ``LayerInterface``; all must be equal.
    num_groups : int
        How many groups, at most one per state.
    normalize : bool
        See ``LayerInterface``.

    Example
    -------
    >>> interface = GroupedWeightedSum([8] * 13, num_groups=3)
    >>> interface.group_sizes, interface.output_size
    ([5, 4, 4], 8)
    """

    def __init__(
        self,
        input_sizes: Sequence[int],
        num_groups: int = 2,
        normalize: bool = False,
    ):
        super().__init__(input_sizes, normalize)
        layers = len(self.input_sizes)
        if not 1 <= num_groups <= layers:
            raise ValueError(
                f"num_groups: {num_groups} outside 1 to {layers}, the number "
                "of states. Lower it."
            )
        self.output_size = self._one_width()
        least, longer = divmod(layers, num_groups)
        self.group_sizes = [least + (g < longer) for g in range(num_groups)]
        self.weights = torch.nn.Parameter(torch.zeros(layers))
        self.projection = torch.nn.Linear(
            num_groups * self.output_size, self.output_size
        )

    def combine(self, states: list[torch.Tensor]) -> torch.Tensor:
        """See ``LayerInterface``."""
        sums, first = [], 0
        for size in self.group_sizes:
            group = states[first : first + size]
            weights = self.weights[first : first + len(group)].softmax(dim=0)
            sums.append(
                _sum(group, weights) if group else torch.zeros_like(states[0])
            )
            first += size
        return self.projection(torch.cat(sums, dim=-1))

    def layer_weights(self) -> torch.Tensor:
        """See ``LayerInterface``; they sum to 1 in each group."""
        groups = self.weights.detach().split(self.group_sizes)
        return torch.cat([group.softmax(dim=0) for group in groups])


class AttentionWeightedSum(LayerInterface):
    """A weighted sum whose weights depend on the frame: our own baseline.

    Each state has a vector and a bias, which give it a score; the weights are
    the softmax of the scores. The vectors read states after a layer norm
    without parameters, so that loud layers are not heard first; what is summed
    is the state itself. All start at zero: at first it is the mean of the
    states, and with vectors of zero it stays a ``WeightedSum``.

    Arguments
    ---------
    input_sizes : sequence of int
        See ``LayerInterface``; all must be equal.
    normalize : bool
        See ``LayerInterface``: whether what is summed is normalised, too.

    Example
    -------
    >>> interface = AttentionWeightedSum([8] * 13)
    >>> sum(parameter.numel() for parameter in interface.parameters())
    117
    """

    def __init__(self, input_sizes: Sequence[int], normalize: bool = False):
        super().__init__(input_sizes, normalize)
        self.output_size = self._one_width()
        layers = len(self.input_sizes)
        self.queries = torch.nn.Parameter(torch.zeros(layers, self.output_size))
        self.biases = torch.nn.Parameter(torch.zeros(layers))

    def combine(self, states: list[torch.Tensor]) -> torch.Tensor:
        """See ``LayerInterface``."""
        scores = [
            linear(layer_norm(state, state.shape[-1:]), query[None], bias[None])
            for state, query, bias in zip(states, self.queries, self.biases)
        ]
        weights = torch.cat(scores, dim=-1).softmax(dim=-1)
        return _sum(states, weights[..., None].unbind(dim=2))


def _sum(states, weights) -> torch.Tensor:
    return sum(w * state for w, state in zip(weights, states, strict=True))
