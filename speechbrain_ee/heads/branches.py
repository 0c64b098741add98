"""Branches: behind each layer a linear head that tells clusters.

DAISY (arXiv 2406.05464) trains them on a frozen upstream without any label of a
task, and lets the entropy of what they say decide how deep to go.

Authors
 * SpeechBrain-EE contributors 2026
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import torch

from speechbrain_ee.encoders import LayerwiseEncoder, check_layers
from speechbrain_ee.feature_cache import describe_upstream, upstream_difference
from speechbrain_ee.files import replacing
from speechbrain_ee.heads.output import LOWEST, ExitOutput

WEIGHTS, FACTS = "branches.safetensors", "branches.json"
DTYPES = ("float32", "bfloat16")
# While the mean logit lies so near to 0, and Σ exp(z) hence within e^±20 or so,
# no shift is needed: the entropy is off by some 1e-6 nats, as sums of float32
# are.
_SAFE = 20.0
_TRAIN = "Train branches for this upstream by MiniSUPERB's train_branches.py"


class BranchOutput(ExitOutput):
    """The reading of a branch; it transcribes nothing.

    Log-probabilities are made only when they are asked for. The entropy is
    found without them: it takes one exponential for each cluster.

    Arguments
    ---------
    logits : torch.Tensor
        Shape (batch, time, clusters), float32.
    frames : torch.Tensor
        As for ExitOutput, as are the next four.
    exit_layer : int
        See there.
    ids : list of str, optional
        See there.
    hidden : torch.Tensor, optional
        See there.
    previous : BranchOutput, optional
        See there.

    Example
    -------
    >>> output = BranchOutput(torch.zeros(1, 3, 4), torch.tensor([2]), 1)
    >>> output.frame_entropies
    tensor([[1.3863, 1.3863, 1.3863]])
    >>> output.hypotheses
    [()]
    """

    def __init__(
        self,
        logits: torch.Tensor,
        frames: torch.Tensor,
        exit_layer: int,
        ids: list[str] | None = None,
        hidden: torch.Tensor | None = None,
        previous: BranchOutput | None = None,
    ):
        self.logits = logits
        self.frames = frames
        self.exit_layer = exit_layer
        self.ids = ids
        self.hidden = hidden
        self.previous = previous

    @property
    def given(self) -> torch.Tensor:
        """See ``ExitOutput.given``."""
        return self.logits

    @cached_property
    def log_probs(self) -> torch.Tensor:
        """Log-probabilities of shape (batch, time, clusters)."""
        return self.logits.log_softmax(dim=-1)

    @cached_property
    def frame_entropies(self) -> torch.Tensor:
        """See ``ExitOutput.frame_entropies``."""
        # ln Σ exp(z) − Σ z exp(z) / Σ exp(z): each of these passes counts, as a
        # branch should cost little beside its layer.
        weights = self.logits.exp()
        total = weights.sum(dim=-1)
        mean = weights.mul_(self.logits).sum(dim=-1) / total
        if mean.numel() == 0:
            return mean
        lowest, highest = (float(x) for x in mean.aminmax())
        if -_SAFE < lowest and highest < _SAFE:  # not so if one is NaN
            return total.log() - mean
        # Far from there, or not finite: shifted, so that the largest z is 0.
        logits = self.logits - self.logits.amax(dim=-1, keepdim=True)
        weights = logits.exp()
        total = weights.sum(dim=-1)
        products = weights.mul_(logits.clamp_(min=LOWEST))
        return total.log() - products.sum(dim=-1) / total

    @cached_property
    def hypotheses(self) -> list[tuple[int, ...]]:
        """Nothing, for each utterance."""
        return [()] * len(self)

    def keep(self, rows, history: int = 0) -> BranchOutput:
        """See ``ExitOutput.keep``."""
        rows = torch.as_tensor(rows, dtype=torch.long)
        frames = self.frames[rows]

        def cut(x):
            """Some rows, without padding that none of them needs."""
            return x[:, : int(frames.max())][rows.to(x.device)]

        previous = None
        if self.previous is not None and history > 0:
            previous = self.previous.keep(rows, history - 1)
        return BranchOutput(
            cut(self.logits),
            frames,
            self.exit_layer,
            ids=None if self.ids is None else [self.ids[i] for i in rows],
            hidden=None if self.hidden is None else cut(self.hidden),
            previous=previous,
        )


class ClusterBranches(torch.nn.Module):
    """One linear cluster head behind each state that is read.

    Arguments
    ---------
    exit_layers : sequence of int
        The layers read out, rising (k = after layer k).
    input_size : int
        Channels of the states.
    num_clusters : int
        How many clusters there are.

    Example
    -------
    >>> branches = ClusterBranches([1, 2], input_size=8, num_clusters=5)
    >>> states, frames = [torch.randn(3, 7, 8)] * 2, torch.tensor([7, 7, 4])
    >>> branches(states).shape
    torch.Size([2, 3, 7, 5])
    >>> branches.read(states[0], frames, exit_layer=1).frame_entropies.shape
    torch.Size([3, 7])
    """

    normed_layers = frozenset()  # states are read as they are

    def __init__(
        self, exit_layers: Sequence[int], input_size: int, num_clusters: int
    ):
        super().__init__()
        check_layers(exit_layers, max(exit_layers, default=0))
        if num_clusters < 2:
            raise ValueError(
                f"num_clusters: {num_clusters}, there must be two at least."
            )
        self.exit_layers = list(exit_layers)
        self.input_size = input_size
        self.num_clusters = num_clusters
        self.linear = torch.nn.ModuleDict(
            {
                str(k): torch.nn.Linear(input_size, num_clusters)
                for k in self.exit_layers
            }
        )

    def check_layers(self, layers: Sequence[int]) -> None:
        """Raise unless the layers rise and each of them has a branch.

        Arguments
        ---------
        layers : sequence of int
            Layer indices.

        Raises
        ------
        ValueError
            Naming those at fault.
        """
        check_layers(layers, self.exit_layers[-1])
        without = sorted(set(layers) - set(self.exit_layers))
        if without:
            raise ValueError(
                f"layers: {', '.join(map(str, without))} without a branch; "
                f"there are branches at {self.exit_layers}."
            )

    def logits(self, hidden: torch.Tensor, exit_layer: int) -> torch.Tensor:
        """Cluster scores of one branch.

        Arguments
        ---------
        hidden : torch.Tensor
            The layer's state, of shape (…, input_size).
        exit_layer : int
            Which branch.

        Returns
        -------
        torch.Tensor
            Shape (…, clusters), before the softmax.
        """
        linear = self.linear[str(exit_layer)]
        return linear(hidden.to(linear.weight.dtype))

    def forward(self, states: Sequence[torch.Tensor]) -> torch.Tensor:
        """All branches at once, for training.

        Arguments
        ---------
        states : sequence of torch.Tensor
            The states at ``exit_layers``, each of shape (batch, time, channel).

        Returns
        -------
        torch.Tensor
            Logits of shape (exits, batch, time, clusters).
        """
        return torch.stack(
            [
                self.logits(hidden, k)
                for k, hidden in zip(self.exit_layers, states, strict=True)
            ]
        )

    @torch.no_grad()
    def read(
        self, hidden: torch.Tensor, frames: torch.Tensor, exit_layer: int
    ) -> BranchOutput:
        """One branch, for the loop.

        Arguments
        ---------
        hidden : torch.Tensor
            The layer's state, of shape (batch, time, channel).
        frames : torch.Tensor
            Real frames of each utterance, int64 of shape (batch,), on the CPU.
        exit_layer : int
            Which branch.

        Returns
        -------
        BranchOutput
            What it says.
        """
        logits = self.logits(hidden, exit_layer).float()
        return BranchOutput(logits, frames, exit_layer)


def save_branches(
    folder: str | Path, branches: ClusterBranches, facts: Mapping
) -> None:
    """Write branches, and what is known of them.

    Arguments
    ---------
    folder : str or Path
        Gets ``branches.safetensors`` and ``branches.json``.
    branches : ClusterBranches
        Trained, unwrapped.
    facts : mapping
        What else ``branches.json`` is to hold: ``upstream``, from
        ``describe_upstream``, and what was measured.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> save_branches(folder, ClusterBranches([1, 2], 8, 5), {"steps": 100})
    >>> load_branches(folder).exit_layers, read_facts(folder)["steps"]
    ([1, 2], 100)
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    sizes = {
        "exit_layers": branches.exit_layers,
        "input_size": branches.input_size,
        "num_clusters": branches.num_clusters,
    }
    weights = {key: x.cpu() for key, x in branches.state_dict().items()}
    with replacing(folder / WEIGHTS) as file:
        _safetensors().save_file(weights, file)
    with replacing(folder / FACTS) as file:
        text = json.dumps({**sizes, **facts}, indent=2, ensure_ascii=False)
        file.write_text(f"{text}\n", encoding="utf-8")


def read_facts(folder: str | Path) -> dict:
    """What is known of branches.

    Arguments
    ---------
    folder : str or Path
        What ``save_branches`` wrote.

    Returns
    -------
    dict
        Of ``branches.json``.

    Raises
    ------
    FileNotFoundError
        If the folder holds no branches.
    """
    folder = Path(folder)
    missing = [x for x in (FACTS, WEIGHTS) if not (folder / x).is_file()]
    if missing:
        raise FileNotFoundError(
            f"branches: {folder} holds no {' and no '.join(missing)}. "
            f"{_TRAIN}, and give its folder branches."
        )
    return json.loads((folder / FACTS).read_text(encoding="utf-8"))


def load_branches(
    folder: str | Path,
    upstream: LayerwiseEncoder | None = None,
    dtype: str = "float32",
) -> ClusterBranches:
    """Branches that were trained before, frozen.

    Arguments
    ---------
    folder : str or Path
        What ``save_branches`` wrote.
    upstream : LayerwiseEncoder, optional
        Whose states they are to read, in evaluation mode.
    dtype : str
        What they compute their logits in: ``float32``, or ``bfloat16``, which
        is faster where the hardware has it. Entropies are float32 of either.

    Returns
    -------
    ClusterBranches
        On the CPU, in evaluation mode; nothing of it is trained.

    Raises
    ------
    FileNotFoundError
        If the folder holds no branches.
    ValueError
        If they were trained on an upstream of another width or depth, or of
        other weights or settings; for another ``dtype``.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype: {dtype!r} is none of {', '.join(DTYPES)}.")
    facts = read_facts(folder)
    if upstream is not None:
        _check_upstream(folder, facts, upstream)
    branches = ClusterBranches(
        facts["exit_layers"], facts["input_size"], facts["num_clusters"]
    )
    weights = _safetensors().load_file(Path(folder) / WEIGHTS)
    branches.load_state_dict(weights)
    return branches.requires_grad_(False).eval().to(getattr(torch, dtype))


def _safetensors():
    """The library, which only those need who keep branches."""
    try:
        import safetensors.torch
    except ImportError as error:
        raise ImportError(
            "Branches are kept by safetensors: pip install "
            "'speechbrain-ee[ssl]'"
        ) from error
    return safetensors.torch


def _check_upstream(folder, facts, upstream):
    """Raise if the branches do not belong to an upstream."""
    widths = {
        upstream.state_sizes[k]
        for k in facts["exit_layers"]
        if k <= upstream.num_layers
    }
    of_branches = f"branches: those of {folder} read"
    if widths - {facts["input_size"]}:
        raise ValueError(
            f"{of_branches} states of {facts['input_size']} channels, and the "
            f"upstream has {', '.join(map(str, sorted(widths)))}. {_TRAIN}."
        )
    known = facts.get("upstream")
    deepest = facts["exit_layers"][-1]
    depth = deepest if known is None else len(known["state_sizes"]) - 1
    if deepest > upstream.num_layers or (
        known is not None and depth != upstream.num_layers
    ):
        raise ValueError(
            f"{of_branches} an upstream of {depth} layers, and this one has "
            f"{upstream.num_layers}. {_TRAIN}."
        )
    if known is not None:
        device = next(upstream.parameters(), torch.empty(0)).device
        now = describe_upstream(upstream, device)
        difference = upstream_difference(known, now)
        if difference is not None:
            raise ValueError(
                f"{of_branches} another upstream: {difference} (weights "
                f"{known['weights'][:12]} of {known['class']} then, "
                f"{now['weights'][:12]} of {now['class']} now). {_TRAIN}."
            )
