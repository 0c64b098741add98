"""Traces of a made-up model whose scores mean something."""

import numpy as np
import pandas as pd

LAYERS = (2, 4, 6)


def make_table(utterances=40, layers=LAYERS, seed=0):
    """A table as ``traces_<set>.csv`` has it."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(utterances):
        words = [f"W{number}", "AND", "SO", "ON"]
        hard = rng.uniform()
        for place, layer in enumerate(layers):
            errors = int(4 * max(0.0, hard - place / len(layers)) + 0.5)
            said = ["HM"] * errors + words[errors:]
            rows.append(
                {
                    "id": f"utterance-{number}",
                    "exit_layer": layer,
                    "layers_run": layer,
                    "hyp": " ".join(said),
                    "ref": " ".join(words),
                    "errors": errors,
                    "ref_len": 4,
                    "frames": 100,
                    "macs": 1e6 * layer,
                    "seconds": 0.01 * layer,
                    "entropy": errors / 4 + 0.1 * rng.uniform(),
                    "entropy_seconds": 0.001,
                    "margin": 1 - errors / 4 - 0.1 * rng.uniform(),
                    "speaker": f"s{number % 3}",
                    "snr": str([0, 10][number % 2]),
                }
            )
    return pd.DataFrame(rows)


def write_run(folder, name="test", **settings):
    """A folder with the traces and the loop of a run."""
    folder.mkdir(parents=True, exist_ok=True)
    table = make_table(**settings)
    table.to_csv(folder / f"traces_{name}.csv", index=False)
    return folder
