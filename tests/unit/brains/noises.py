"""Some noises with labels, for Brains of task models."""

import numpy as np
import soundfile
import torch
from speechbrain.dataio.batch import PaddedBatch

from speechbrain_ee.experiment import make_utterance_datasets
from speechbrain_ee.heads import ClusterBranches, save_branches

SAMPLES = {"a": 9000, "b": 16000, "c": 12345, "d": 8000, "e": 15000, "f": 6400}
RUN = {"device": "cpu", "noprogressbar": True}


def make_noises(folder):
    """Noises, the CSV of them, and the folder of branches."""
    generator = np.random.default_rng(0)
    lines = ["ID,duration,wav,speaker"]
    for k, (name, samples) in enumerate(SAMPLES.items()):
        noise = generator.normal(size=samples).cumsum() if k % 2 else None
        noise = generator.normal(size=samples) if noise is None else noise
        wave = 0.2 * noise / np.abs(noise).max()
        soundfile.write(folder / f"{name}.wav", wave, 16000)
        wav = f"$data_root/{name}.wav"
        lines.append(f"{name},{samples / 16000},{wav},{'xyz'[k % 3]}")
    (folder / "data.csv").write_text("\n".join(lines) + "\n")
    torch.manual_seed(3)
    branches = ClusterBranches([1, 2, 3, 4], input_size=32, num_clusters=6)
    for weight in branches.parameters():  # else all clusters are as likely
        torch.nn.init.normal_(weight)
    save_branches(folder / "branches", branches, {})
    return folder


def dataset(data):
    file = data / "data.csv"
    sets = (file, file, {"test": file})
    return make_utterance_datasets(data, ["speaker"], data, *sets)[1]


def batch_of(data, names=tuple(SAMPLES)):
    items = {item["id"]: item for item in dataset(data)}
    return PaddedBatch([items[name] for name in names])
