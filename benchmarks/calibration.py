#!/usr/bin/env python3
"""Whether thresholds keep the risk that they promise, and what that costs.

Development sets are drawn again and again from a generator that is known, so
that the true risk of every threshold is known too: it is taken from a sample of
200,000 utterances.

The generator: an utterance has a difficulty z ~ N(0, 1) and 3 to 30 words. At
exit e a word is wrong with the probability p = sigmoid(b_e + 1.2 z), b = -0.6,
-2.1, -2.7, -3, -3.15, -3.2 at exits 2, 4, ..., 12: a WER from 38 % to 6.7 %, as
of a small Conformer. Four of five times an exit decides a word by a draw that
all exits share, so that deeper ones mostly mend errors; else by one of its own,
so that some are worse at a deeper exit. The score is an entropy, exp(-1 +
0.5 logit(p) + 0.3 u + 0.2 v), with normal u of the utterance and v of the exit.

A violation is a threshold with a true risk above the budget. The best in
hindsight is the threshold of least mean exit whose true risk is within it.

> python benchmarks/calibration.py

Authors
 * SpeechBrain-EE contributors 2026
"""

import argparse
import time

import numpy as np
from scipy.stats import binomtest

from speechbrain_ee.analysis.calibration import keep_risk
from speechbrain_ee.analysis.replay import exits_at, threshold_per_exit
from speechbrain_ee.analysis.risk import (
    excess_loss,
    hoeffding_bentkus,
    one_threshold,
    threshold_by_exit,
)
from speechbrain_ee.analysis.traces import Traces

LAYERS = np.array([2, 4, 6, 8, 10, 12])
OFFSETS = np.array([-0.6, -2.1, -2.7, -3.0, -3.15, -3.2])
LONGEST = 30


def draw(rng, utterances):
    """Traces of a development set, see the head of this file.

    Arguments
    ---------
    rng : np.random.Generator
        Of the numbers.
    utterances : int
        How many.

    Returns
    -------
    Traces
    """
    shape = utterances, len(LAYERS)
    words = rng.integers(3, LONGEST + 1, utterances)
    logit = OFFSETS + 1.2 * rng.standard_normal((utterances, 1))
    wrong = 1 / (1 + np.exp(-logit))
    errors = np.zeros(shape)
    for word in range(LONGEST):
        shared = rng.random((utterances, 1))
        own = rng.random(shape)
        decided = np.where(rng.random(shape) < 0.2, own, shared)
        errors += (decided < wrong) & (word < words)[:, None]
    noise = 0.3 * rng.standard_normal((utterances, 1))
    noise = noise + 0.2 * rng.standard_normal(shape)
    entropy = np.exp(-1 + 0.5 * logit + noise)
    return Traces(
        range(utterances), LAYERS, errors, words, scores={"entropy": entropy}
    )


def truth(world, settings):
    """True risk and mean exit layer of settings, both of shape (T,).

    Arguments
    ---------
    world : Traces
        A sample so large that its means are the truth.
    settings : np.ndarray
        Thresholds of shape (T, E).

    Returns
    -------
    tuple of np.ndarray
    """
    losses, found = excess_loss(world), []
    for part in np.array_split(settings, -(-len(settings) // 20)):
        taken = exits_at(world, "entropy", part)
        risks = np.take_along_axis(losses, taken, axis=1).mean(axis=0)
        found.append((risks, LAYERS[taken].mean(axis=0)))
    return tuple(np.hstack(found))


def main():
    """Print violations and mean exits of each way to test."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--risk", type=float, default=0.02)
    parser.add_argument("--delta", type=float, default=0.1)
    parser.add_argument("--repetitions", type=int, default=500)
    parser.add_argument(
        "--utterances", type=int, nargs="+", default=[200, 500, 2000]
    )
    options = parser.parse_args()
    started = time.perf_counter()
    world = draw(np.random.default_rng(0), 200_000)
    ways = [
        ("one threshold, betting", False, None),
        ("one threshold, Hoeffding-Bentkus", False, hoeffding_bentkus),
        ("threshold per exit, betting", True, None),
    ]
    best = {}
    for per_exit, family in ((False, one_threshold), (True, threshold_by_exit)):
        other = draw(np.random.default_rng(1), 100_000)
        risks, depths = truth(world, family(other, "entropy"))
        best[per_exit] = depths[risks <= options.risk].min()
    print(
        f"risk {options.risk:g}, delta {options.delta:g}, "
        f"{options.repetitions} repetitions; best in hindsight: mean exit "
        f"{best[False]:.2f} of {LAYERS[-1]} with one threshold, "
        f"{best[True]:.2f} with one per exit"
    )
    for utterances in options.utterances:
        rng = np.random.default_rng(2)
        rows, refused = {name: [] for name, _, _ in ways}, {}
        for _ in range(options.repetitions):
            traces = draw(rng, utterances)
            for name, per_exit, p_value in ways:
                if name in refused:
                    continue
                try:
                    threshold, _ = keep_risk(
                        *(traces, "entropy", options.risk, options.delta),
                        per_exit=per_exit,
                        p_value=p_value,
                    )
                except ValueError as error:
                    refused[name] = error
                    continue
                row = threshold_per_exit(traces, "entropy", threshold)
                rows[name].append(row)
        for name, per_exit, _ in ways:
            print(f"n = {utterances}, {name}: ", end="", flush=True)
            if name in refused:
                print(f"refused: {refused[name]}")
                continue
            risks, depths = truth(world, rows[name])
            broken = int((risks > options.risk).sum())
            share = binomtest(broken, len(risks)).proportion_ci()
            above = depths / best[per_exit] - 1
            print(
                f"violations {broken / len(risks):.3f} "
                f"[{share.low:.3f}, {share.high:.3f}], mean exit "
                f"{depths.mean():.2f}, {above.mean():+.1%} of the best "
                f"(nine in ten at most {np.quantile(above, 0.9):+.1%})"
            )
    print(f"{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
