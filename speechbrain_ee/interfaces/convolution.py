"""Hierarchical convolution over the layers of an encoder.

Authors
 * SpeechBrain-EE contributors 2026
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.functional import linear

from speechbrain_ee.interfaces.base import LayerInterface


class HierarchicalConv(LayerInterface):
    """Convolutions over the layer axis, until few layers are left.

    The HConv of arXiv 2406.12209, with the settings of its code: floor(log3 L)
    convolutions of kernel 5, stride 3 and padding 2, a ReLU after each, the
    last one too. All have D channels but the last, which has floor(D / layers
    left); what is left is flattened, channel by channel. So 13 states of 768
    channels become 5, then 2 of 384: 768 channels. 25 states of 1024 become 9,
    then 3 of 341: 1023 channels. Read ``output_size``.

    Arguments
    ---------
    input_sizes : sequence of int
        See ``LayerInterface``; all must be equal.
    kernel_size : int
        Layers that a convolution sees.
    stride : int
        Layers between two outputs.
    padding : int, optional
        Layers of zeros at either end (default: kernel_size // 2).
    num_convs : int or str, optional
        How many convolutions: a number; ``linear``, which is floor(L / stride);
        or by default floor(log L) to the base ``log_base``.
    log_base : float, optional
        Of that logarithm (default: ``stride``).
    normalize : bool
        See ``LayerInterface``.

    Example
    -------
    >>> interface = HierarchicalConv([768] * 13)
    >>> sum(parameter.numel() for parameter in interface.parameters())
    4424832
    >>> interface.output_size, interface.num_states
    (768, [13, 5, 2])
    """

    def __init__(
        self,
        input_sizes: Sequence[int],
        kernel_size: int = 5,
        stride: int = 3,
        padding: int | None = None,
        num_convs: int | str | None = None,
        log_base: float | None = None,
        normalize: bool = False,
    ):
        super().__init__(input_sizes, normalize)
        width, layers = self._one_width(), len(self.input_sizes)
        padding = kernel_size // 2 if padding is None else padding
        if not (stride >= 1 and 0 <= padding < kernel_size):
            raise ValueError(
                f"stride: {stride} must be at least 1, and padding: {padding} "
                f"from 0 to below kernel_size: {kernel_size}."
            )
        num_convs = _count(num_convs, log_base, stride, layers)
        self.num_states = [layers]
        for _ in range(num_convs):
            left = (self.num_states[-1] + 2 * padding - kernel_size) // stride
            self.num_states.append(left + 1)
        left = self.num_states[-1]
        if not 1 <= min(self.num_states) <= left <= width:
            raise ValueError(
                f"num_convs: {num_convs} convolutions of kernel {kernel_size}, "
                f"stride {stride} and padding {padding} make {self.num_states} "
                f"states of {width} channels. Each must leave at least one "
                f"state, and the last at most {width}."
            )
        self.output_size = left * (width // left)
        self.convs = torch.nn.ModuleList(
            torch.nn.Conv1d(
                width,
                width if k < num_convs - 1 else width // left,
                kernel_size,
                stride,
                padding,
            )
            for k in range(num_convs)
        )

    def combine(self, states: list[torch.Tensor]) -> torch.Tensor:
        """See ``LayerInterface``."""
        states = self.filled(states)
        for conv in self.convs:
            states = [x.relu() for x in conv_over_layers(conv, states)]
        return torch.stack(states, dim=-1).flatten(start_dim=-2)


def conv_over_layers(
    conv: torch.nn.Conv1d, states: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    """A convolution whose axis is a list of states.

    The same numbers as of ``conv`` on the states stacked along the last axis,
    without moving that axis behind the channels: each output is one product of
    the states under the kernel with the part of the kernel that is over them.

    Arguments
    ---------
    conv : torch.nn.Conv1d
        Its weights; dilation 1, padded with zeros.
    states : sequence of torch.Tensor
        Each of shape (batch, time, channel).

    Returns
    -------
    list of torch.Tensor
        As many states as ``conv`` leaves.

    Example
    -------
    >>> conv = torch.nn.Conv1d(8, 6, kernel_size=5, stride=3, padding=2)
    >>> states = torch.randn(13, 2, 7, 8)
    >>> ours = torch.stack(conv_over_layers(conv, states), dim=-1)
    >>> stock = conv(states.permute(1, 2, 3, 0).flatten(end_dim=1))
    >>> torch.allclose(ours.flatten(end_dim=1), stock, atol=1e-5)
    True
    """
    (size,), (stride,), (padding,) = conv.kernel_size, conv.stride, conv.padding
    channels = conv.in_channels
    # (out, kernel x in): the part over some states is a block of columns.
    weight = conv.weight.transpose(1, 2).flatten(start_dim=1)
    outputs = []
    for first in range(-padding, len(states) + padding - size + 1, stride):
        start, end = max(first, 0), min(first + size, len(states))
        seen = weight[:, (start - first) * channels : (end - first) * channels]
        outputs.append(
            linear(torch.cat(tuple(states[start:end]), dim=-1), seen, conv.bias)
        )
    return outputs


def _count(num_convs, log_base, stride: int, layers: int) -> int:
    """The number of convolutions, and a remedy where there is none."""
    base = stride if log_base is None else log_base
    if num_convs is None:
        if base <= 1:
            raise ValueError(
                f"log_base: {base} must be above 1. Set it, or num_convs."
            )
        # By multiplication: the quotient of two logarithms is not exact.
        count, told = 0, f"floor(log {layers} to the base {base})"
        while base ** (count + 1) <= layers:
            count += 1
    elif num_convs == "linear":
        count, told = layers // stride, f"floor({layers} / {stride})"
    else:
        count, told = num_convs, "set"
    if not isinstance(count, int) or count < 1:
        raise ValueError(
            f"num_convs: {count!r} ({told}), and {layers} states need one "
            "convolution or more. Set num_convs: 1, or use another interface, "
            "as WeightedSum or SingleLayer."
        )
    return count
