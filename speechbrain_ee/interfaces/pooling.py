"""Pooling of layers by a small Transformer.

Authors
 * SpeechBrain-EE contributors 2026
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from speechbrain_ee.interfaces.base import LayerInterface


class CLSPooling(LayerInterface):
    """A learnt token that attends to the states of a frame.

    The CLS pooling of arXiv 2406.12209: at each frame, a Transformer over the
    layer axis reads the token and all states; the output is the token's. The
    paper leaves the size open. One post-norm layer with a feed-forward of the
    width of the states, and learnt positions of layers that start at zero, are
    our reading: for 13 states of 768 channels that is 3.6 million parameters,
    somewhat fewer than the hierarchical convolution has.

    Arguments
    ---------
    input_sizes : sequence of int
        See ``LayerInterface``; all must be equal.
    num_layers : int
        Transformer layers.
    nhead : int
        Attention heads; must divide the channels.
    d_ffn : int, optional
        Width of the feed-forward part (default: that of the states).
    dropout : float
        Inside the Transformer.
    normalize : bool
        See ``LayerInterface``.

    Example
    -------
    >>> interface = CLSPooling([16] * 5, nhead=4)
    >>> interface([torch.randn(2, 7, 16) for _ in range(5)]).shape
    torch.Size([2, 7, 16])
    """

    def __init__(
        self,
        input_sizes: Sequence[int],
        num_layers: int = 1,
        nhead: int = 8,
        d_ffn: int | None = None,
        dropout: float = 0.1,
        normalize: bool = False,
    ):
        super().__init__(input_sizes, normalize)
        width = self._one_width()
        if width % nhead:
            raise ValueError(
                f"nhead: {nhead} must divide the {width} channels of a state."
            )
        self.output_size = width
        self.cls = torch.nn.Parameter(torch.empty(width).normal_(std=0.02))
        self.positions = torch.nn.Parameter(
            torch.zeros(len(self.input_sizes), width)
        )
        self.transformer = torch.nn.TransformerEncoder(
            torch.nn.TransformerEncoderLayer(
                width, nhead, d_ffn or width, dropout, batch_first=True
            ),
            num_layers,
            enable_nested_tensor=False,
        )

    def combine(self, states: list[torch.Tensor]) -> torch.Tensor:
        """See ``LayerInterface``."""
        states = torch.stack(self.filled(states), dim=2) + self.positions
        cls = self.cls.expand(*states.shape[:2], 1, -1)
        tokens = torch.cat([cls, states], dim=2).flatten(end_dim=1)
        *layers, last = self.transformer.layers
        for layer in layers:
            tokens = layer(tokens)
        # Nobody reads what the last layer makes of the other tokens.
        output = tokens[:, :1]
        read, _ = last.self_attn(output, tokens, tokens, need_weights=False)
        output = last.norm1(output + last.dropout1(read))
        inner = last.dropout(last.activation(last.linear1(output)))
        output = last.norm2(output + last.dropout2(last.linear2(inner)))
        return output.unflatten(0, states.shape[:2])[:, :, 0]
