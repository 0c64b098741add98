"""k-means targets against scikit-learn and against a naive search."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score
from speechbrain.dataio.dataset import DynamicItemDataset

from speechbrain_ee import clusters as clusters_module
from speechbrain_ee.clusters import (
    Clusters,
    ClusterTargets,
    cluster_speech,
    clusters_of_run,
    fit_clusters,
    labels_per_frame,
)
from speechbrain_ee.encoders import FilterbankEncoder
from speechbrain_ee.encoders.huggingface import HuggingFaceEncoder
from tests.unit.encoders.backbones import SMALL


def mfcc():
    return FilterbankEncoder("mfcc", 23, n_mfcc=13, normalize=False)


def test_the_nearest_centroid_is_found():
    generator = torch.manual_seed(0)
    centroids = 5 * torch.randn(17, 9, generator=generator)
    frames = 5 * torch.randn(4, 50, 9, generator=generator)
    labels = Clusters(centroids)(frames)
    naive = (frames[..., None, :] - centroids).square().sum(-1).argmin(-1)
    assert torch.equal(labels, naive)


@pytest.mark.parametrize("batch", [300, 10000])
def test_known_clusters_are_found_in_a_stream(batch, monkeypatch):
    monkeypatch.setattr(clusters_module, "BATCH", batch)
    generator = torch.manual_seed(1)
    truth = torch.randint(6, (3000,), generator=generator)
    centres = 30 * torch.randn(6, 4, generator=generator)
    frames = centres[truth] + torch.randn(3000, 4, generator=generator)
    found = fit_clusters(frames.split(77), num_clusters=6, seed=3)
    assert adjusted_rand_score(found(frames), truth) > 0.99
    # The variance of four channels: what is left around true centroids.
    assert found.inertia == pytest.approx(4, rel=0.1)


def test_saved_clusters_are_the_same(tmp_path):
    clusters = Clusters(torch.randn(5, 3), 1.5, "MFCCs, layer 0")
    clusters.save(tmp_path / "clusters.npz")
    again = Clusters.load(tmp_path / "clusters.npz")
    assert torch.equal(again.centroids, clusters.centroids)
    assert (again.inertia, again.source) == (1.5, "MFCCs, layer 0")


def test_too_few_frames_are_refused():
    with pytest.raises(ValueError, match="7 frames are too few for 8 clusters"):
        fit_clusters([torch.randn(3, 2), torch.randn(4, 2)], num_clusters=8)
    with pytest.raises(ValueError, match="0 frames are too few"):
        fit_clusters([], num_clusters=8)


def test_other_states_than_those_clustered_are_refused():
    with pytest.raises(ValueError, match="20 channels, layer 0.* 39"):
        ClusterTargets(mfcc(), 0, Clusters(torch.randn(5, 20)))
    with pytest.raises(ValueError, match="1 outside 0 to 0"):
        ClusterTargets(mfcc(), 1, Clusters(torch.randn(5, 39)))


class Times(FilterbankEncoder):
    """Its only feature says where a frame stands."""

    def begin(self, wavs, wav_lens=None):
        """Samples from the first one to the middle of each frame."""
        state = super().begin(wavs, wav_lens)
        hop = torch.arange(state.hidden.shape[1])[None, :, None]
        return replace(state, hidden=160.0 * hop.repeat(len(wavs), 1, 39))


def test_targets_stand_in_the_middle_of_an_encoders_frames():
    encoder = HuggingFaceEncoder("hubert", False, config=SMALL)
    upstream = Times("mfcc", 23, n_mfcc=13)
    ratio = labels_per_frame(upstream, encoder)
    assert ratio == 2
    centroids = 160.0 * torch.arange(400)[:, None].repeat(1, 39)
    targets = ClusterTargets(upstream, 0, Clusters(centroids), ratio)
    for samples in [400, 719, 720, *range(16000, 16000 + 700, 53)]:
        labels, frames = targets(torch.zeros(1, samples))
        longest = int(encoder.frames_of(torch.tensor(samples)))
        assert labels.shape == (1, int(frames)) and longest <= frames
        # A frame of 400 samples every 320; MFCCs' are centred every 160.
        middles = 320 * torch.arange(longest) + 200
        assert (160 * labels[0, :longest] - middles).abs().max() <= 80
    with pytest.raises(ValueError, match="0.50 targets for each frame"):
        labels_per_frame(encoder, upstream)


@pytest.mark.parametrize("layer", [0, 2])
def test_speech_is_clustered_by_any_layer(layer):
    generator = torch.Generator().manual_seed(0)
    waves = {
        name: 0.1 * torch.randn(n, generator=generator)
        for name, n in {"a": 9000, "b": 16000, "c": 12000}.items()
    }
    dataset = DynamicItemDataset(
        {name: {"duration": len(x) / 16000} for name, x in waves.items()},
        [{"func": waves.get, "takes": "id", "provides": "sig"}],
        ["id", "sig"],
    )
    upstream = mfcc()
    if layer:
        upstream = HuggingFaceEncoder(
            "hubert", False, freeze=True, config=SMALL
        )
    settings = {"num_clusters": 4, "progressbar": False, "batch_size": 2}
    found = cluster_speech(dataset, upstream, layer, **settings)
    assert found.centroids.shape == (4, upstream.state_sizes[layer])

    # All frames in one step: the library on the frames themselves.
    rows = [
        upstream(x[None], layers=[layer])[0][0][0].detach()
        for x in waves.values()
    ]
    rows = torch.cat(rows)
    nearest = torch.cdist(rows, found.centroids).square().amin(dim=1).mean()
    assert found.inertia == pytest.approx(float(nearest), rel=1e-3)
    labels, frames = ClusterTargets(upstream, layer, found)(
        torch.nn.utils.rnn.pad_sequence(list(waves.values()), True),
        torch.tensor([9000 / 16000, 1, 12000 / 16000]),
    )
    counted = torch.cat([x[:n] for x, n in zip(labels, frames.tolist())])
    assert (counted == found(rows)).float().mean() > 0.99
    assert len(np.unique(counted)) == 4

    some = cluster_speech(dataset, upstream, layer, max_frames=20, **settings)
    assert not torch.equal(some.centroids, found.centroids)


def test_clusters_of_a_run_are_found_once(tmp_path):
    path = tmp_path / "clusters.npz"
    calls = []

    def find():
        calls.append(1)
        return Clusters(torch.randn(5, 3), 1.0, "MFCCs")

    first = clusters_of_run(path, "MFCCs", find)
    again = clusters_of_run(path, "MFCCs", find)
    assert torch.equal(first.centroids, again.centroids) and len(calls) == 1
    with pytest.raises(ValueError, match="clusters of MFCCs, not of layer 6"):
        clusters_of_run(path, "layer 6", find)
