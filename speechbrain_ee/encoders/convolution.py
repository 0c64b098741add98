"""Convolutions over time that see real frames only.

SpeechBrain's convolutions mirror the end of the *batch*. Here the end of each
*utterance* is mirrored, so that an utterance of a padded batch gets what the
same convolution gives for it alone.

Authors
 * SpeechBrain-EE contributors 2026
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from speechbrain.lobes.models.convolution import ConvolutionFrontEnd
from speechbrain.nnet.CNN import Conv1d, Conv2d, get_padding_elem


def continue_ends(
    x: torch.Tensor, frames: torch.Tensor, width: int, mode: str
) -> torch.Tensor:
    """Continue each utterance past its end as a convolution would pad it.

    Arguments
    ---------
    x : torch.Tensor
        Shape (batch, time, …).
    frames : torch.Tensor
        Real frames of each utterance, int64 of shape (batch,), each > width
        for ``reflect``.
    width : int
        How many frames to write behind the end.
    mode : str
        ``reflect`` (the mirror image) or ``constant`` (zeros).

    Returns
    -------
    torch.Tensor
        Shape (batch, time + width, …).

    Example
    -------
    >>> x = torch.tensor([[1, 2, 3, 9], [5, 6, 7, 8]])[..., None]
    >>> continue_ends(x, torch.tensor([3, 4]), 2, "reflect")[..., 0]
    tensor([[1, 2, 3, 2, 1, 0],
            [5, 6, 7, 8, 7, 6]])
    """
    x = torch.cat([x, x.new_zeros(len(x), width, *x.shape[2:])], dim=1)
    rows = torch.arange(len(x), device=x.device)[:, None]
    ends = frames.to(x.device)[:, None]
    offsets = torch.arange(width, device=x.device)
    if mode == "reflect":
        values = x[rows, (ends - 2 - offsets).clamp_min(0)]
    elif mode == "constant":
        values = x.new_zeros(())
    else:
        raise ValueError(f"Padding mode {mode!r}: only reflect or constant.")
    return x.index_put((rows, ends + offsets), values)


class _TimeAxis:
    """Kernel, stride, dilation and padding of a convolution along time."""

    def __init__(self, conv: Conv1d | Conv2d):
        sizes = conv.kernel_size, conv.stride, conv.dilation
        if isinstance(conv, Conv2d):
            sizes = tuple(size[-1] for size in sizes)
        self.kernel, self.stride, self.dilation = sizes
        self.left = self.right = 0
        if conv.padding == "same":
            self.left = self.right = get_padding_elem(
                conv.in_channels, self.stride, self.kernel, self.dilation
            )[0]
        elif conv.padding == "causal":
            self.left = (self.kernel - 1) * self.dilation

    def frames_out(self, frames: torch.Tensor) -> torch.Tensor:
        """How many frames the convolution makes of so many."""
        reach = self.dilation * (self.kernel - 1) + 1
        return (frames + self.left + self.right - reach) // self.stride + 1


def frames_after(
    cnn: ConvolutionFrontEnd, frames: torch.Tensor
) -> torch.Tensor:
    """How many frames a front end makes of so many.

    Arguments
    ---------
    cnn : ConvolutionFrontEnd
        SpeechBrain's convolutional front end.
    frames : torch.Tensor
        Feature frames of each utterance, int64 of shape (batch,).

    Returns
    -------
    torch.Tensor
        int64 of shape (batch,); 0 where the front end cannot mirror an
        utterance so short.

    Example
    -------
    >>> cnn = ConvolutionFrontEnd(
    ...     (8, 30, 10), 2, 1, [8, 8], [3, 3], [2, 2], residuals=[False, False]
    ... )
    >>> frames_after(cnn, torch.tensor([30, 9, 1])).tolist()
    [8, 3, 0]
    """
    for block in cnn.values():
        for conv in _convolutions(block.convs):
            axis = _TimeAxis(conv)
            enough = frames > axis.right
            frames = axis.frames_out(frames) * enough
    return frames


def convolve_front_end(
    cnn: ConvolutionFrontEnd, x: torch.Tensor, frames: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run a front end, each utterance as if it were alone.

    Arguments
    ---------
    cnn : ConvolutionFrontEnd
        SpeechBrain's convolutional front end.
    x : torch.Tensor
        Features of shape (batch, time, channel).
    frames : torch.Tensor
        Real frames of each utterance, int64 of shape (batch,), on the CPU.

    Returns
    -------
    out : torch.Tensor
        Shape (batch, time', channel', …).
    frames : torch.Tensor
        Real frames of each utterance after it, int64 of shape (batch,).
    """
    if bool((frames == x.shape[1]).all()):
        return cnn(x), frames_after(cnn, frames)
    for block in cnn.values():
        out, frames_out = _convolve(block.convs, x, frames)
        if block.reduce_conv is not None:
            out = out + _convolve(block.reduce_conv, x, frames)[0]
            out = block.drop(out)
        x, frames = out, frames_out
    return x, frames


def _convolutions(layers) -> list[Conv1d | Conv2d]:
    return [x for x in layers.values() if isinstance(x, (Conv1d, Conv2d))]


def _convolve(layers, x, frames):
    for layer in layers.values():
        if isinstance(layer, (Conv1d, Conv2d)):
            axis = _TimeAxis(layer)
            x = continue_ends(x, frames, axis.right, layer.padding_mode)
            frames = axis.frames_out(frames)
            x = layer(x)[:, : int(frames.max())]
        else:
            x = layer(x)
    return x, frames


@contextmanager
def real_frames_only(
    convs: Iterable[torch.nn.Module], frames: torch.Tensor, mask: torch.Tensor
) -> Iterator[None]:
    """While open, these convolutions see nothing behind an utterance's end.

    SpeechBrain's ``Conv1d`` (batch, time, channel) gets each end continued as
    it pads; torch's own ``Conv1d`` (batch, channel, time) gets zeros.

    Arguments
    ---------
    convs : iterable of torch.nn.Module
        Convolutions of stride 1 that keep the number of frames.
    frames : torch.Tensor
        Real frames of each utterance, int64 of shape (batch,), on the CPU.
    mask : torch.Tensor
        True at padded frames, of shape (batch, time).

    Example
    -------
    >>> conv = torch.nn.Conv1d(1, 1, 3, padding=1, bias=False)
    >>> x = torch.tensor([[[1.0, 2.0, 9.0]]])
    >>> frames, mask = torch.tensor([2]), torch.tensor([[False, False, True]])
    >>> with real_frames_only([conv], frames, mask):
    ...     y = conv(x)
    >>> torch.allclose(y[..., :2], conv(x[..., :2]))
    True
    """

    def blank(module, args):
        """Zero the padding."""
        return (args[0].masked_fill(mask[:, None], 0.0),)

    with ExitStack() as stack:
        for conv in convs:
            if isinstance(conv, Conv1d):
                width = _TimeAxis(conv).right

                def extend(module, args, width=width):
                    """Go on behind the end of each utterance."""
                    return (
                        continue_ends(
                            args[0], frames, width, module.padding_mode
                        ),
                    )

                def cut(module, args, output):
                    """Take away what was added."""
                    return output[:, : mask.shape[1]]

                hooks = [
                    conv.register_forward_pre_hook(extend),
                    conv.register_forward_hook(cut),
                ]
            else:
                hooks = [conv.register_forward_pre_hook(blank)]
            for hook in hooks:
                stack.callback(hook.remove)
        yield
