#!/usr/bin/env python3
"""What DAISY's exits save of the time of a frozen upstream, in one run.

> python benchmarks/daisy.py
> python benchmarks/daisy.py --size base --seconds 2 20 --repeats 10
> python benchmarks/daisy.py --device cuda --repeats 20

Timed is what stands between front end and task model: layers, branches, their
entropy, and the states handed over. Weights are random: thresholds are set for
each layer from the entropies, so that exits are mixed and their mean is about
4, 6 and 8 of 12; a threshold of DAISY's own would do the same where branches
are trained. Full depth is all layers without a branch. Ratios are medians of
runs that stand side by side, beside the share of layers that is left to run, of
utterances and by their frames. In batches full depth also runs the padding; the
exits cut what nobody needs any more.

Authors
 * SpeechBrain-EE contributors 2026
"""

import argparse
import time
from statistics import median

import torch
from torch.nn.utils.rnn import pad_sequence

from speechbrain_ee.costs import ExitCosts
from speechbrain_ee.encoders.huggingface import HuggingFaceEncoder
from speechbrain_ee.exits import BranchExits, get_score
from speechbrain_ee.heads import ClusterBranches
from speechbrain_ee.runtime import EarlyExitLoop

SAMPLE_RATE = 16000
LAYERS = range(1, 13)
SIZES = {
    "small": {
        "hidden_size": 128,
        "num_attention_heads": 4,
        "intermediate_size": 512,
        "conv_dim": [64] * 7,
    },
    "base": {},  # 12 x 768
}
CLUSTERS = {"small": 100, "base": 500}
TARGETS = (4, 6, 8)
SCORE_LIMIT = 0.06  # of a layer, at 768 channels


class Clock:
    """Seconds between laps, the GPU's work included."""

    def __init__(self, device):
        self.device = device
        self.lap()

    def lap(self):
        """Seconds since the last lap."""
        if self.device == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        lap, self.last = now - getattr(self, "last", now), now
        return lap


def make(size, device):
    """A HuBERT and its branches, of random weights."""
    upstream = HuggingFaceEncoder(
        "hubert", pretrained=False, freeze=True, config=SIZES[size]
    )
    branches = ClusterBranches(LAYERS, upstream.output_size, CLUSTERS[size])
    return upstream.to(device).eval(), branches.to(device).eval()


def batches_of(wavs, size, device):
    """Padded batches of so many utterances, with relative lengths."""
    for first in range(0, len(wavs), size):
        part = wavs[first : first + size]
        padded = pad_sequence(part, batch_first=True).to(device)
        lens = torch.tensor([len(wav) / padded.shape[1] for wav in part])
        yield padded, lens


def entropies(upstream, branches, wavs, device):
    """Of each utterance alone, of shape (utterances, layers)."""
    score, rows = get_score("entropy"), []
    for wav, lens in batches_of(wavs, 1, device):
        states, frames = upstream(wav, lens)
        read = [branches.read(states[k], frames, k) for k in LAYERS]
        rows.append(torch.cat([score(output).cpu() for output in read]))
    return torch.stack(rows)


def depth_of(share):
    """Mean exit where this share of those that are left leaves at a layer."""
    return sum((1 - share) ** (k - 1) for k in LAYERS)


def thresholds_for(values, target):
    """Thresholds by layer for a mean exit, from quantiles of entropies.

    At each layer the same share of the utterances that are left goes.
    """
    low, high = 0.0, 1.0
    for _ in range(50):
        share = (low + high) / 2
        low, high = (share, high) if depth_of(share) > target else (low, share)
    thresholds, left, owed = {}, values, 0.0
    for column, layer in enumerate(LAYERS):
        owed += share * len(left)
        count = min(int(owed + 0.5), len(left) - 1)
        owed -= count
        ordered = left[:, column].sort().values
        if count > 0:
            middle = (ordered[count - 1] + ordered[count]) / 2
            thresholds[layer] = middle.item()
            left = left[left[:, column] > middle]
    return thresholds


def full_depth(upstream, batches, device):
    """Seconds of all layers, keeping their states, and of the front end."""
    front, layers, clock = 0.0, 0.0, Clock(device)
    for wavs, lens in batches:
        state = upstream.begin(wavs, lens)
        front += clock.lap()
        states = [state.hidden]
        while state.layer < upstream.num_layers:
            state = upstream.step(state)
            states.append(state.hidden)
        layers += clock.lap()
    return layers, front


def with_exits(loop, batches, device):
    """Seconds of all behind the front end, and where utterances left."""
    seconds, depths, frames, clock = 0.0, [], [], Clock(device)
    for wavs, lens in batches:
        handed = []
        left = loop(wavs, lens, on_leave=lambda *x, to=handed: to.append(x))
        seconds += clock.lap() - left.front_end_seconds
        depths.append(left.exit_layer)
        frames.append(left.frames)
        assert sum(len(rows) for _, rows, _ in handed) == len(wavs)
    return seconds, torch.cat(depths).double(), torch.cat(frames).double()


def branch_share(upstream, branches, wavs, device, repeats):
    """Seconds of a branch and its entropy, by those of a layer."""
    score, ratios, clock = get_score("entropy"), [], Clock(device)
    padded, lens = next(batches_of(wavs[-1:], 1, device))
    state = upstream.begin(padded, lens)
    for repeat in range(10 * repeats + 1):
        clock.lap()
        after = upstream.step(state)
        layer = clock.lap()
        score(branches.read(after.hidden, after.frames, 1))
        branch = clock.lap()
        if repeat > 0:  # warm-up
            ratios.append(branch / layer)
    return median(ratios), len(wavs[-1]) / SAMPLE_RATE


def measure(size, args):
    """Print all of one model."""
    upstream, branches = make(size, args.device)
    longest = torch.linspace(*args.seconds, args.utterances)
    lengths = (longest * SAMPLE_RATE).long()
    # Of different kinds, so that their entropies are.
    wavs = [
        0.1 * torch.randn(n) + k * torch.sin(torch.arange(n) * 0.002 * (k + 1))
        for k, n in enumerate(lengths.tolist())
    ]
    order = torch.randperm(len(wavs)).tolist()
    values = entropies(upstream, branches, wavs, args.device)[order]
    wavs = [wavs[i] for i in order]
    costs = ExitCosts(upstream, branches)
    loops = {}
    for target in TARGETS:
        exits = BranchExits(threshold=thresholds_for(values, target))
        exits.prepare(branches)
        selector = exits.selector(training=False)
        loops[target] = EarlyExitLoop(upstream, branches, selector, costs)
    width, clusters = upstream.output_size, branches.num_clusters
    print(f"{size}: 12 layers x {width}, {clusters} clusters", flush=True)
    for batch_size in (1, args.batch_size):
        batches = list(batches_of(wavs, batch_size, args.device))
        seconds = {name: [] for name in ("full", "front end", *TARGETS)}
        for repeat in range(args.repeats + 1):
            layers, front = full_depth(upstream, batches, args.device)
            seconds["full"].append(layers)
            seconds["front end"].append(front)
            told = {}
            for target, loop in loops.items():
                spent, *told[target] = with_exits(loop, batches, args.device)
                seconds[target].append(spent)
            if repeat == 0:  # warm-up
                seconds = {name: [] for name in seconds}
        print(
            f"  batches of {batch_size}: full depth "
            f"{median(seconds['full']):.3f} s, front end apart "
            f"{median(seconds['front end']):.3f} s"
        )
        for target, (depths, frames) in told.items():
            ratio = median(
                a / b for a, b in zip(seconds[target], seconds["full"])
            )
            weighted = (depths @ frames / frames.sum()).item()
            print(
                f"    mean exit {depths.mean():.2f}: {ratio:.3f} of the time, "
                f"{depths.mean() / 12:.3f} of the layers "
                f"({weighted / 12:.3f} by frames)",
                flush=True,
            )
    share, heard = branch_share(
        upstream, branches, wavs, args.device, args.repeats
    )
    verdict = ""
    if size == "base":
        verdict = " ok" if share <= SCORE_LIMIT else " ABOVE"
        verdict = f" (limit {SCORE_LIMIT}){verdict}"
    print(
        f"  a branch and its entropy / a layer, {heard:.1f} s of speech: "
        f"{share:.4f}{verdict}",
        flush=True,
    )


@torch.no_grad()
def main():
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", choices=SIZES, help="default: both")
    parser.add_argument("--utterances", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument(
        "--seconds", type=float, nargs=2, default=(1, 4), help="from, to"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    start, end = args.seconds
    print(
        f"{args.utterances} utterances of {start:g} to {end:g} s, {args.device}"
        f", {args.threads} thread(s), medians of {args.repeats} interleaved "
        f"runs, torch {torch.__version__}"
    )
    for size in [args.size] if args.size else SIZES:
        measure(size, args)


if __name__ == "__main__":
    main()
