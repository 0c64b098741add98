#!/usr/bin/env python3
"""What the hierarchical convolution over layers costs, forward and backward.

> python benchmarks/interfaces.py
> python benchmarks/interfaces.py --layers 25 --channels 1024 --repeats 3

Measured in one interleaved run, on random states: our convolution, the naive
form (all states stacked, the layer axis moved behind the channels, Conv1d) and
the product of two square matrices, which stands for the peak of the core. The
share of the peak counts the multiply-adds that the definition needs: products
with padding are left out, as are gradients that nobody asks for. Upstreams are
mostly frozen; "fine-tuned" asks for the gradients of the states too. Below 60%
of the peak, the profile tells why. The other interfaces stand beside it.

Authors
 * SpeechBrain-EE contributors 2026
"""

import argparse
import time
from functools import partial
from statistics import median

import torch
from torch.profiler import ProfilerActivity, profile

from speechbrain_ee.interfaces import (
    AttentionWeightedSum,
    CLSPooling,
    ConcatProjection,
    GroupedWeightedSum,
    HierarchicalConv,
    WeightedSum,
)

LEAST_SHARE = 0.6
SQUARE = 2048
OTHERS = (
    WeightedSum,
    GroupedWeightedSum,
    AttentionWeightedSum,
    ConcatProjection,
    CLSPooling,
)


def naive(interface, states):
    """The hierarchical convolution as its definition reads."""
    x = torch.stack(states, dim=-1).flatten(end_dim=1)
    for conv in interface.convs:
        x = conv(x).relu()
    return x.flatten(start_dim=1).unflatten(0, states[0].shape[:2])


def needed_macs(interface, frames, fine_tuned):
    """Multiply-adds of forward and backward, those with padding left out."""
    total = 0
    for place, conv in enumerate(interface.convs):
        states = interface.num_states[place]
        taps = sum(
            0 <= first + tap < states
            for first in range(
                -conv.padding[0],
                states + conv.padding[0] - conv.kernel_size[0] + 1,
                conv.stride[0],
            )
            for tap in range(conv.kernel_size[0])
        )
        passes = 3 if place or fine_tuned else 2  # output, weights, inputs
        total += passes * taps * conv.in_channels * conv.out_channels
    return total * frames


def step(forward, states, loss):
    """Seconds of a forward and a backward pass."""
    start = time.perf_counter()
    (forward(states) * loss).sum().backward()
    return time.perf_counter() - start


def paired(ones, others):
    """Median of the ratios of runs that stand side by side."""
    return median(a / b for a, b in zip(ones, others, strict=True))


def convolution(interface, states, fine_tuned, repeats):
    """Print the convolution against the naive form and the peak."""
    for state in states:
        state.requires_grad_(fine_tuned)
    loss = torch.randn(*states[0].shape[:2], interface.output_size)
    square = torch.randn(2, SQUARE, SQUARE)
    forms = {"ours": interface, "naive": partial(naive, interface)}
    outputs = [form(states) for form in forms.values()]
    torch.testing.assert_close(*outputs, atol=1e-4, rtol=1e-4)
    seconds = {name: [] for name in (*forms, "peak")}
    for repeat in range(repeats + 1):
        for name, form in forms.items():
            seconds[name].append(step(form, states, loss))
        start = time.perf_counter()
        square[0] @ square[1]
        seconds["peak"].append(time.perf_counter() - start)
        if repeat == 0:  # warm-up
            seconds = {name: [] for name in seconds}
    macs = needed_macs(interface, loss.shape[0] * loss.shape[1], fine_tuned)
    share = paired(seconds["peak"], seconds["ours"]) * macs / SQUARE**3
    speedup = paired(seconds["naive"], seconds["ours"])
    peak = SQUARE**3 / median(seconds["peak"]) / 1e9
    print(f"{'fine-tuned' if fine_tuned else 'frozen'} upstream")
    print(
        "  seconds: "
        + ", ".join(f"{k} {median(v):.3f}" for k, v in seconds.items())
        + f"; {macs / 1e9:.1f} G multiply-adds, peak {peak:.1f} G/s"
    )
    verdict("naive / ours", speedup, 1)
    verdict("share of the peak", share, LEAST_SHARE)
    if share < LEAST_SHARE:
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            step(interface, states, loss)
        averages = profiled.key_averages()
        print(averages.table(sort_by="self_cpu_time_total", row_limit=10))


def others(interface, states, repeats):
    """Print what the other interfaces take, against the convolution."""
    states = [state.detach() for state in states]
    one = torch.ones(())
    print("forward and backward / those of the convolution, frozen upstream")
    for kind in OTHERS:
        other = kind(interface.input_sizes)
        ratios = [
            step(other, states, one) / step(interface, states, one)
            for _ in range(repeats)
        ]
        print(f"  {kind.__name__}: {median(ratios):.3f}", flush=True)


def verdict(what, figure, least):
    """One line: the figure and whether it reaches what is asked."""
    word = "ok" if figure >= least else "BELOW"
    print(f"  {what}: {figure:.3f} (at least {least}) {word}", flush=True)


def main():
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--layers", type=int, default=13)
    parser.add_argument("--channels", type=int, default=768)
    parser.add_argument("--utterances", type=int, default=8)
    parser.add_argument("--frames", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--part", choices=["convolution", "others"], help="default: both"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    sizes = [args.channels] * args.layers
    shape = args.utterances, args.frames, args.channels
    states = [torch.randn(shape) for _ in sizes]
    print(
        f"{args.layers} states of {shape}, {args.threads} thread(s), medians "
        f"of {args.repeats} interleaved runs, torch {torch.__version__}"
    )
    interface = HierarchicalConv(sizes)
    if args.part != "others":
        for fine_tuned in (False, True):
            convolution(interface, states, fine_tuned, args.repeats)
    if args.part != "convolution":
        others(interface, states, args.repeats)


if __name__ == "__main__":
    main()
