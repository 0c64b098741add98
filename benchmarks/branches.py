#!/usr/bin/env python3
"""What reading a branch costs, beside a layer of HuBERT Base.

> python benchmarks/branches.py
> python benchmarks/branches.py --repeats 3 --seconds 2 20

Random weights, one utterance, walked as the loop walks it: behind each of some
layers of width 768 stands a branch of 500 clusters. What it takes from the
state to the entropy of the utterance is divided by what its layer took; the
figure is the median over layers and walks. It must stay at 6% or less. In
float32 it cannot where utterances are short: 768 x 500 are 5.4% of the
multiply-adds of a layer without attention. The same is told of branches in
bfloat16 (branch_dtype), of the product of matrices alone, and of a reading that
makes log-probabilities first, as CTC heads do. Walks stand in an order by
chance. Seconds are those of the processor, so that other jobs hardly matter.

Authors
 * SpeechBrain-EE contributors 2026
"""

import argparse
import copy
import random
import time
from statistics import median

import torch

from speechbrain_ee.encoders.huggingface import HuggingFaceEncoder
from speechbrain_ee.exits import get_score
from speechbrain_ee.heads import ClusterBranches, ExitOutput

MOST = 0.06
LAYERS = 4  # enough that a layer's weights are not in the cache
ENTROPY = get_score("entropy")


def scored(branches, hidden, frames, layer):
    """The entropy of an utterance."""
    return ENTROPY(branches.read(hidden, frames, layer))


def normalised(branches, hidden, frames, layer):
    """The same by log-probabilities."""
    log_probs = branches.logits(hidden, layer).log_softmax(dim=-1)
    return ENTROPY(ExitOutput(log_probs, frames, layer))


def product(branches, hidden, frames, layer):
    """The linear layer alone."""
    return branches.logits(hidden, layer)


def in_bfloat16(branches, hidden, frames, layer):
    """The entropy, by logits in half precision."""
    return scored(branches.in_bfloat16, hidden, frames, layer)


FORMS = {
    "branch": scored,
    "branch in bfloat16": in_bfloat16,
    "with log-probabilities": normalised,
    "linear layer alone": product,
}


@torch.inference_mode()
def walk(encoder, branches, wavs, form):
    """Ratio of branch and layer at each layer."""
    state = encoder.begin(wavs)
    ratios = []
    for layer in branches.exit_layers:
        start = time.process_time()
        state = encoder.step(state)
        middle = time.process_time()
        form(branches, state.hidden, state.frames, layer)
        ratios.append((time.process_time() - middle) / (middle - start))
    return ratios


def main():
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--clusters", type=int, default=500)
    parser.add_argument(
        "--seconds", type=float, nargs="+", default=[2, 5, 10, 20]
    )
    parser.add_argument("--repeats", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    random.seed(0)
    # A narrow front end, which is not measured.
    config = {"num_hidden_layers": LAYERS, "conv_dim": [32] * 7}
    encoder = HuggingFaceEncoder("hubert", False, freeze=True, config=config)
    branches = ClusterBranches(
        range(1, LAYERS + 1), encoder.output_size, args.clusters
    ).eval()
    branches.in_bfloat16 = copy.deepcopy(branches).bfloat16()
    print(
        f"{encoder.output_size} channels, {args.clusters} clusters, "
        f"{args.threads} thread(s), medians of {args.repeats} interleaved "
        f"walks of {LAYERS} layers, torch {torch.__version__}"
    )
    for seconds in args.seconds:
        wavs = 0.1 * torch.randn(1, int(16000 * seconds))
        ratios = {name: [] for name in FORMS}
        for repeat in range(args.repeats + 1):
            for name in random.sample(list(FORMS), len(FORMS)):
                found = walk(encoder, branches, wavs, FORMS[name])
                if repeat > 0:  # the first one warms up
                    ratios[name] += found
        told = {name: median(one) for name, one in ratios.items()}
        least = min(told["branch"], told["branch in bfloat16"])
        word = "ok" if least <= MOST else "ABOVE"
        parts = ", ".join(f"{name} {x:.2%}" for name, x in told.items())
        print(
            f"{seconds:g} s, of a layer: {parts} (at most {MOST:.0%}) {word}",
            flush=True,
        )


if __name__ == "__main__":
    main()
