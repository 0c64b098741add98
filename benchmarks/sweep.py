#!/usr/bin/env python3
"""How long the command line takes to sweep the traces of a large set.

> python benchmarks/sweep.py

Authors
 * SpeechBrain-EE contributors 2026
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd

from speechbrain_ee.analysis.traces import HIGHER_IS_CONFIDENT


def make_traces(path, utterances, exit_layers, seed=0):
    """Write traces of made-up numbers, with every column that runs write.

    Arguments
    ---------
    path : Path
        The file.
    utterances : int
        How many.
    exit_layers : list of int
        The exits.
    seed : int
        Seed of the numbers.
    """
    rng = np.random.default_rng(seed)
    rows = utterances * len(exit_layers)
    words = rng.integers(1, 40, utterances).repeat(len(exit_layers))
    layers = np.tile(exit_layers, utterances)
    names = np.char.add("utterance-", np.arange(utterances).astype(str))
    text = np.array([" ".join(["WORD"] * count) for count in words])
    columns = {
        "id": names.repeat(len(exit_layers)),
        "exit_layer": layers,
        "layers_run": layers,
        "hyp": text,
        "ref": text,
        "errors": rng.binomial(words, 1 / layers),
        "ref_len": words,
        "frames": words * 10,
        "macs": words * layers * 1e6,
        "seconds": words * layers * 1e-4,
    }
    for score in HIGHER_IS_CONFIDENT:
        columns[score] = rng.uniform(size=rows)
        columns[f"{score}_seconds"] = rng.uniform(size=rows) * 1e-3
    pd.DataFrame(columns).to_csv(path, index=False)


def main():
    """Time the whole command, imports included."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--utterances", type=int, default=5000)
    parser.add_argument("--points", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    exit_layers = [2, 4, 6, 8, 10, 12]
    with TemporaryDirectory() as folder:
        traces, curve = Path(folder, "traces.csv"), Path(folder, "curve.csv")
        make_traces(traces, options.utterances, exit_layers)
        seconds = []
        for _ in range(options.repeats):
            start = time.perf_counter()
            subprocess.run(
                [
                    *(sys.executable, "-m", "speechbrain_ee.cli", "sweep"),
                    *(traces, "--points", str(options.points)),
                    *("--out", curve),
                ],
                check=True,
            )
            seconds.append(time.perf_counter() - start)
        print(
            f"{options.utterances} utterances, {len(exit_layers)} exits, "
            f"{len(HIGHER_IS_CONFIDENT)} scores, {options.points} thresholds "
            f"({len(pd.read_csv(curve))} rows): median {np.median(seconds):.2f}"
            f" s, from {min(seconds):.2f} to {max(seconds):.2f} s"
        )


if __name__ == "__main__":
    main()
