"""Clusters of an encoder's states by k-means: targets that need no labels.

The states may be those of a layer of a pre-trained model or, with an encoder of
no layers, MFCCs.

Authors
 * SpeechBrain-EE contributors 2026
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import speechbrain as sb
import torch
from sklearn.cluster import MiniBatchKMeans
from speechbrain.dataio.batch import PaddedBatch
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.utils.logger import get_logger
from tqdm.auto import tqdm

from speechbrain_ee.encoders import LayerwiseEncoder, check_layers
from speechbrain_ee.encoders.base import SAMPLE_RATE, samples_of
from speechbrain_ee.files import replacing

logger = get_logger(__name__)

BATCH = 10000  # frames per step of k-means, as fairseq has it


class Clusters(torch.nn.Module):
    """Centroids of k-means, and what is known of how they were found.

    Arguments
    ---------
    centroids : torch.Tensor
        Shape (clusters, channel).
    inertia : float
        Mean squared distance of a frame to its centroid.
    source : str
        What was clustered, such as ``mfcc 0`` or a model and its layer.

    Example
    -------
    >>> clusters = Clusters(torch.tensor([[0.0, 0.0], [4.0, 0.0]]))
    >>> clusters(torch.tensor([[[1.0, 5.0], [3.0, 5.0]]]))
    tensor([[0, 1]])
    >>> path = getfixture("tmp_path") / "clusters.npz"
    >>> clusters.save(path)
    >>> len(Clusters.load(path))
    2
    """

    def __init__(
        self,
        centroids: torch.Tensor,
        inertia: float = float("nan"),
        source: str = "",
    ):
        super().__init__()
        self.register_buffer("centroids", centroids)
        self.inertia = inertia
        self.source = source

    def __len__(self) -> int:
        """The number of clusters."""
        return len(self.centroids)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """The nearest centroid of each frame.

        Arguments
        ---------
        features : torch.Tensor
            Shape (…, channel).

        Returns
        -------
        torch.Tensor
            int64 of shape (…).
        """
        centroids = self.centroids.float()
        # Squared distances without the part that all centroids share.
        products = features.float() @ centroids.T
        return (centroids.square().sum(dim=1) - 2 * products).argmin(dim=-1)

    def save(self, path: str | Path) -> None:
        """Write the centroids.

        Arguments
        ---------
        path : str or Path
            A file whose name ends in ``.npz``.
        """
        with replacing(path) as partial, open(partial, "wb") as file:
            np.savez(
                file,
                centroids=self.centroids.cpu().numpy(),
                inertia=self.inertia,
                source=self.source,
            )

    @classmethod
    def load(cls, path: str | Path) -> Clusters:
        """Read centroids.

        Arguments
        ---------
        path : str or Path
            What ``save`` wrote.

        Returns
        -------
        Clusters
            The same.
        """
        with np.load(path, allow_pickle=False) as file:
            centroids = torch.from_numpy(file["centroids"])
            return cls(centroids, float(file["inertia"]), str(file["source"]))


class FrameTargets(torch.nn.Module, ABC):
    """Waveforms to the cluster of each frame; nothing is trained.

    Subclasses say what the cluster of a state is, and how many there are.

    Arguments
    ---------
    upstream : LayerwiseEncoder
        Whose states are told apart.
    layer : int
        Of which layer.
    subsampling : int
        One label is given for so many states, that of the one in the middle.
    """

    num_clusters: int

    def __init__(
        self, upstream: LayerwiseEncoder, layer: int, subsampling: int = 1
    ):
        super().__init__()
        self.upstream = upstream
        self.layer = layer
        self.subsampling = subsampling

    def train(self, mode: bool = True):
        """Evaluation mode stays on."""
        return super().train(False)

    @abstractmethod
    def label(self, hidden: torch.Tensor) -> torch.Tensor:
        """The clusters of states that are there already.

        Arguments
        ---------
        hidden : torch.Tensor
            States of ``layer``, before the encoder's final norm, of shape
            (batch, time, channel).

        Returns
        -------
        torch.Tensor
            int64 of shape (batch, labels).
        """

    @torch.no_grad()
    def forward(
        self, wavs: torch.Tensor, wav_lens: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The clusters of an utterance.

        Arguments
        ---------
        wavs : torch.Tensor
            Waveforms of shape (batch, samples).
        wav_lens : torch.Tensor, optional
            Lengths relative to the longest, of shape (batch,).

        Returns
        -------
        labels : torch.Tensor
            int64 of shape (batch, time).
        frames : torch.Tensor
            Real labels of each utterance, int64 of shape (batch,), on the CPU.
        """
        (hidden,), frames = self.upstream(wavs, wav_lens, layers=[self.layer])
        middle, step = self.subsampling // 2, self.subsampling
        return self.label(hidden), (frames - middle + step - 1) // step


class ClusterTargets(FrameTargets):
    """Waveforms to the nearest centroid of each frame's state.

    Arguments
    ---------
    upstream : LayerwiseEncoder
        Whose states were clustered.
    layer : int
        Of which layer.
    clusters : Clusters
        The centroids.
    subsampling : int
        One label is given for so many states, that of the one in the middle,
        as ``labels_per_frame`` says.

    Example
    -------
    >>> from speechbrain_ee.encoders import FilterbankEncoder
    >>> upstream = FilterbankEncoder("mfcc", 23, n_mfcc=13, normalize=False)
    >>> targets = ClusterTargets(upstream, 0, Clusters(torch.randn(5, 39)), 2)
    >>> labels, frames = targets(torch.randn(2, 8000))
    >>> labels.shape, frames.tolist()
    (torch.Size([2, 25]), [25, 25])
    """

    def __init__(
        self,
        upstream: LayerwiseEncoder,
        layer: int,
        clusters: Clusters,
        subsampling: int = 1,
    ):
        super().__init__(upstream, layer, subsampling)
        check_layers([layer], upstream.num_layers, first=0)
        width = upstream.state_sizes[layer]
        if clusters.centroids.shape[1] != width:
            raise ValueError(
                f"The clusters have {clusters.centroids.shape[1]} channels, "
                f"layer {layer} of the encoder {width}: they were found on "
                f"other states ({clusters.source})."
            )
        self.clusters = clusters
        self.requires_grad_(False).eval()

    @property
    def num_clusters(self) -> int:
        """How many clusters there are."""
        return len(self.clusters)

    @torch.no_grad()
    def label(self, hidden: torch.Tensor) -> torch.Tensor:
        """See ``FrameTargets.label``."""
        return self.clusters(
            hidden[:, self.subsampling // 2 :: self.subsampling]
        )


def labels_per_frame(
    upstream: LayerwiseEncoder, encoder: LayerwiseEncoder
) -> int:
    """How many states one encoder has for each of another.

    Arguments
    ---------
    upstream : LayerwiseEncoder
        Whose states have been clustered.
    encoder : LayerwiseEncoder
        That is to predict the clusters.

    Returns
    -------
    int
        As 2 for MFCCs every 10 ms and an encoder's frames every 20 ms.

    Raises
    ------
    ValueError
        If it is no whole number, or below 1.

    Example
    -------
    >>> from speechbrain_ee.encoders import FilterbankEncoder
    >>> labels_per_frame(FilterbankEncoder(), FilterbankEncoder(hop_length=20))
    2
    """
    long = torch.tensor(1000 * SAMPLE_RATE)
    ratio = int(upstream.frames_of(long)) / int(encoder.frames_of(long))
    if round(ratio) < 1 or abs(ratio - round(ratio)) > 0.01:
        raise ValueError(
            f"There are {ratio:.2f} targets for each frame of the encoder. "
            "Take them from states at its frame rate, or at a multiple of it."
        )
    return round(ratio)


def fit_clusters(
    features: Iterable[torch.Tensor],
    num_clusters: int,
    seed: int = 0,
    source: str = "",
) -> Clusters:
    """Find clusters by scikit-learn's mini-batch k-means, in one pass.

    Arguments
    ---------
    features : iterable of torch.Tensor
        Frames, each of shape (any number, channel), in an order by chance.
    num_clusters : int
        How many clusters.
    seed : int
        Of the first centroids.
    source : str
        Goes into the result.

    Returns
    -------
    Clusters
        With the mean squared distance that was measured before each step but
        the first, so on frames that had not been learned from.

    Raises
    ------
    ValueError
        If there are fewer frames than clusters.

    Example
    -------
    >>> frames = torch.randn(500, 2, generator=torch.manual_seed(0))
    >>> frames[::2] += 20
    >>> clusters = fit_clusters(frames.split(50), num_clusters=2)
    >>> sorted(clusters.centroids.mean(dim=1).round().int().tolist())
    [0, 20]
    """
    kmeans = MiniBatchKMeans(
        num_clusters,
        batch_size=BATCH,
        n_init=1,
        reassignment_ratio=0.0,
        random_state=seed,
    )
    distances, measured, steps = 0.0, 0, 0
    for frames in _in_batches(features, max(BATCH, num_clusters)):
        if steps == 0 and len(frames) < num_clusters:
            raise ValueError(
                f"{len(frames)} frames are too few for {num_clusters} "
                "clusters: give more speech, or ask for fewer clusters."
            )
        if steps > 0:
            distances -= kmeans.score(frames)  # minus the sum of squares
            measured += len(frames)
        kmeans.partial_fit(frames)
        steps += 1
    if steps == 1:
        distances, measured = -kmeans.score(frames), len(frames)
    centroids = torch.from_numpy(kmeans.cluster_centers_).float()
    return Clusters(centroids, distances / measured, source)


def _in_batches(features, size):
    """The same frames in NumPy arrays of ``size`` rows; the last has fewer."""
    kept, count = [], 0
    for frames in features:
        kept.append(frames.float().cpu().numpy())
        count += len(frames)
        while count >= size:
            joined = np.concatenate(kept)
            yield joined[:size]
            kept, count = [joined[size:]], count - size
    if count or not kept:
        yield np.concatenate(kept) if kept else np.empty((0, 1))


def cluster_speech(
    dataset: DynamicItemDataset,
    upstream: LayerwiseEncoder,
    layer: int,
    num_clusters: int,
    max_frames: int = 1_000_000,
    batch_size: int = 8,
    seed: int = 0,
    source: str = "",
    device: str | torch.device = "cpu",
    progressbar: bool = True,
) -> Clusters:
    """Find the clusters of a layer's states over a dataset.

    Arguments
    ---------
    dataset : DynamicItemDataset
        With ``sig`` and, in seconds, ``duration``.
    upstream : LayerwiseEncoder
        Whose states are clustered.
    layer : int
        Of which layer, 0 for those of the front end.
    num_clusters : int
        How many clusters.
    max_frames : int
        About so many frames are used, drawn from all utterances.
    batch_size : int
        Utterances per batch.
    seed : int
        Of all that is drawn.
    source : str
        Goes into the result.
    device : str or torch.device
        Where the encoder runs.
    progressbar : bool
        Whether to show one.

    Returns
    -------
    Clusters
        On the CPU.
    """
    check_layers([layer], upstream.num_layers, first=0)
    generator = torch.Generator().manual_seed(seed)
    samples = samples_of(row["duration"] for row in dataset.data.values())
    share = min(1.0, max_frames / int(upstream.frames_of(samples).sum()))
    upstream.to(device).eval()

    @torch.no_grad()
    def states():
        """Frames drawn from each batch of utterances, mixed."""
        loader = torch.utils.data.DataLoader(
            dataset,
            batch_size=batch_size,
            shuffle=True,
            generator=generator,
            collate_fn=PaddedBatch,
        )
        for batch in tqdm(loader, desc="k-means", disable=not progressbar):
            wavs, wav_lens = batch.to(device).sig
            (hidden,), frames = upstream(wavs, wav_lens, layers=[layer])
            rows = torch.cat([h[:n] for h, n in zip(hidden, frames.tolist())])
            drawn = torch.randperm(len(rows), generator=generator)
            count = max(1, round(share * len(rows)))
            yield rows[drawn[:count].to(rows.device)]

    found = fit_clusters(states(), num_clusters, seed, source)
    logger.info(
        f"k-means: {num_clusters} clusters of {source}, mean squared distance "
        f"{found.inertia:.4g} per frame"
    )
    return found


def clusters_of_run(path: str | Path, source: str, find) -> Clusters:
    """Clusters that were found before, or are found now and kept.

    Arguments
    ---------
    path : str or Path
        Where they are kept.
    source : str
        What they must have been found on.
    find : callable
        Finds them.

    Returns
    -------
    Clusters
        Read from the file on every process.

    Raises
    ------
    ValueError
        If the file holds clusters of something else.
    """

    def make():
        """Find them, once."""
        if not Path(path).is_file():
            find().save(path)

    sb.utils.distributed.run_on_main(make)
    clusters = Clusters.load(path)
    if clusters.source != source:
        raise ValueError(
            f"{path} holds clusters of {clusters.source}, not of {source}. "
            "Delete it, or choose another output_folder."
        )
    return clusters
