"""A head that tells which cluster each frame belongs to, and its targets.

Authors
 * SpeechBrain-EE contributors 2026
"""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError

import torch
from speechbrain.utils.logger import get_logger
from torch.serialization import (
    get_unsafe_globals_in_checkpoint,
    safe_globals,
)

from speechbrain_ee.clusters import FrameTargets
from speechbrain_ee.encoders import LayerwiseEncoder

logger = get_logger(__name__)

OURS = "cluster_head.safetensors"  # in the folder of a model pre-trained here
# What torch.load says of a file that it does not know, or of half a file.
_UNREADABLE = (EOFError, RuntimeError, UnpicklingError, ValueError)
_KEYS = ("final_proj.weight", "final_proj.bias", "label_embs_concat")
_REMEDY = (
    "Give the file of a checkpoint that still has its pre-training head, or "
    "take clusters of k-means as targets (targets: layer, or mfcc)."
)


class ClusterHead(torch.nn.Module):
    """The prediction head of HuBERT (arXiv 2106.07447, Eq. 3).

    The logit of a cluster is the cosine between the projected state and the
    cluster's embedding, divided by a temperature. Keys of the ``state_dict``
    are those of fairseq's HuBERT.

    Arguments
    ---------
    input_size : int
        Channels of the states.
    num_clusters : int
        How many clusters there are.
    proj_size : int
        Size of the embeddings; 256 in HuBERT Base, 768 in Large.
    temperature : float
        What cosines are divided by.

    Example
    -------
    >>> head = ClusterHead(input_size=8, num_clusters=100)
    >>> head(torch.randn(2, 5, 8)).shape
    torch.Size([2, 5, 100])
    >>> list(head.state_dict())
    ['label_embs_concat', 'final_proj.weight', 'final_proj.bias']
    """

    def __init__(
        self,
        input_size: int,
        num_clusters: int,
        proj_size: int = 256,
        temperature: float = 0.1,
    ):
        super().__init__()
        self.temperature = temperature
        self.final_proj = torch.nn.Linear(input_size, proj_size)
        self.label_embs_concat = torch.nn.Parameter(
            torch.rand(num_clusters, proj_size)  # as fairseq starts them
        )

    @property
    def num_clusters(self) -> int:
        """How many clusters there are."""
        return len(self.label_embs_concat)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits of every frame.

        Arguments
        ---------
        hidden : torch.Tensor
            States of shape (…, input_size).

        Returns
        -------
        torch.Tensor
            Logits of shape (…, num_clusters), not yet a distribution.
        """
        normalize = torch.nn.functional.normalize
        projected = normalize(self.final_proj(hidden), dim=-1)
        embeddings = normalize(self.label_embs_concat, dim=-1)
        return projected @ embeddings.T / self.temperature


def load_cluster_head(
    source: str | Path, num_clusters: int | None = None
) -> ClusterHead:
    """The cluster head that a model was pre-trained with.

    Nothing of a file is executed: what it holds beside tensors and plain
    values, such as fairseq's dictionaries, is passed over.

    Arguments
    ---------
    source : str or Path
        The folder of a model that ``pretrain_hubert.py`` wrote, its
        ``cluster_head.safetensors``, or a checkpoint of fairseq's HuBERT: the
        ``state_dict``, or a mapping with it as ``model``.
    num_clusters : int, optional
        How many clusters there must be; where a model was trained with several
        sets of labels, how many the first set has.

    Returns
    -------
    ClusterHead
        Frozen. Of several sets of labels that share a projection, the first.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it has no cluster head, one of another size, or several sets of
        labels that cannot be told apart.

    Example
    -------
    >>> path = getfixture("tmp_path") / "hubert.pt"
    >>> torch.save({"model": ClusterHead(8, 100).state_dict()}, path)
    >>> load_cluster_head(path).num_clusters
    100
    """
    path = Path(source)
    if path.is_dir():
        path = path / OURS
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no cluster head in {source}: no file {path}. {_REMEDY}"
        )
    read = _read_ours if path.suffix == ".safetensors" else _read_fairseq
    weights, temperature, label_sets = read(path)
    missing = [key for key in _KEYS if key not in weights]
    if missing:
        raise ValueError(
            f"{path} has no cluster head: {', '.join(missing)} is not in it. "
            f"{_REMEDY}"
        )
    projection, embeddings = weights[_KEYS[0]], weights[_KEYS[2]]
    proj_size = embeddings.shape[1]
    if len(projection) != proj_size:
        raise ValueError(
            f"{path}: final_proj gives {len(projection)} channels and labels "
            f"have {proj_size}: each set of labels has a projection of its own "
            "(untie_final_proj), and which belongs to which is not known. "
            + _REMEDY
        )
    embeddings = _first_set(path, embeddings, num_clusters, label_sets)
    head = ClusterHead(
        projection.shape[1], len(embeddings), proj_size, temperature
    )
    head.load_state_dict(
        {**{key: weights[key] for key in _KEYS}, _KEYS[2]: embeddings}
    )
    return head.float().requires_grad_(False).eval()


def _first_set(path, embeddings, num_clusters, label_sets):
    """The embeddings of the first set of labels."""
    found = len(embeddings)
    if num_clusters is None and label_sets > 1:
        raise ValueError(
            f"{path} was trained with {label_sets} sets of labels, {found} "
            "clusters in all. Set num_clusters to those of the first set."
        )
    if num_clusters in (None, found):
        return embeddings
    if num_clusters > found or label_sets == 1:
        raise ValueError(
            f"{path} has a head of {found} clusters, not of num_clusters: "
            f"{num_clusters}. Set num_clusters: {found}, or null to take what "
            "the head has."
        )
    logger.warning(
        f"{path}: of {found} clusters the first {num_clusters} are taken, as "
        "those of its first set of labels."
    )
    return embeddings[:num_clusters]


def _read_ours(path):
    """Weights, temperature and number of label sets of a file of ours."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        weights = {key: file.get_tensor(key) for key in file.keys()}
        temperature = float((file.metadata() or {}).get("temperature", 0.1))
    return weights, temperature, 1


class _PassedOver:
    """Stands for an object of a class that is not to be loaded."""

    def __init__(self, *args, **kwargs):
        pass

    def __setstate__(self, state):
        pass


def _read_fairseq(path):
    """The same of a checkpoint by fairseq; 0 sets where it does not tell."""
    try:
        others = get_unsafe_globals_in_checkpoint(path)
        with safe_globals([(_PassedOver, name) for name in others]):
            checkpoint = torch.load(path, "cpu", weights_only=True)
    except _UNREADABLE as error:
        raise ValueError(
            f"{path} cannot be read as a checkpoint of PyTorch: {error}. "
            "Write its state_dict by torch.save of a PyTorch since 1.6, or "
            f"choose other targets. {_REMEDY}"
        ) from error
    weights = checkpoint
    if isinstance(checkpoint, dict):
        weights = checkpoint.get("model", checkpoint)
    if not isinstance(weights, dict):
        raise ValueError(f"{path} holds no state_dict. {_REMEDY}")
    settings = checkpoint.get("cfg")
    settings = settings if isinstance(settings, dict) else {}
    labels = (settings.get("task") or {}).get("labels") or ()
    temperature = (settings.get("model") or {}).get("logit_temp", 0.1)
    return weights, temperature, len(labels)


class HeadTargets(FrameTargets):
    """Waveforms to the cluster that a model's own head tells of each frame.

    The targets of DAISY (arXiv 2406.05464): the most probable cluster, by the
    encoder's output for speech of which nothing is masked.

    Arguments
    ---------
    upstream : LayerwiseEncoder
        The model.
    head : ClusterHead
        It was pre-trained with.

    Example
    -------
    >>> from speechbrain_ee.encoders import FilterbankEncoder
    >>> upstream = FilterbankEncoder()
    >>> targets = HeadTargets(upstream, ClusterHead(240, 5, proj_size=4))
    >>> labels, frames = targets(torch.randn(2, 8000))
    >>> labels.shape, frames.tolist()
    (torch.Size([2, 51]), [51, 51])
    """

    def __init__(self, upstream: LayerwiseEncoder, head: ClusterHead):
        super().__init__(upstream, upstream.num_layers)
        width = upstream.state_sizes[-1]
        if head.final_proj.in_features != width:
            raise ValueError(
                f"The cluster head reads {head.final_proj.in_features} "
                f"channels, the upstream's output has {width}: they do not "
                "belong together."
            )
        self.head = head
        self.requires_grad_(False).eval()

    @property
    def num_clusters(self) -> int:
        """How many clusters there are."""
        return self.head.num_clusters

    @torch.no_grad()
    def label(self, hidden: torch.Tensor) -> torch.Tensor:
        """See ``FrameTargets.label``."""
        return self.head(self.upstream.final_norm(hidden)).argmax(dim=-1)
