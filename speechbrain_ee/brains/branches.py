"""A Brain that trains branches behind a frozen upstream: DAISY's first stage.

Authors
 * SpeechBrain-EE contributors 2026
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import speechbrain as sb
import torch
from speechbrain.dataio.dataset import DynamicItemDataset
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm

from speechbrain_ee.analysis.branches import BranchReadings
from speechbrain_ee.brains.base import RecipeBrain
from speechbrain_ee.brains.hubert import draw_masks
from speechbrain_ee.clusters import ClusterTargets
from speechbrain_ee.encoders.base import padding_mask, sample_counts
from speechbrain_ee.encoders.huggingface import HuggingFaceEncoder
from speechbrain_ee.heads import BranchOutput, HeadTargets


class BranchBrain(RecipeBrain):
    """Training of cluster branches by cross-entropy; the upstream stays.

    The loss of branch k is the mean over frames of −ln p(cluster), and all are
    trained in one pass (arXiv 2406.05464). Batches have ``sig``. The modules
    are ``upstream``, a frozen LayerwiseEncoder that is kept in evaluation mode,
    and ``branches``, a ClusterBranches.

    Arguments
    ---------
    targets : ClusterTargets or HeadTargets
        Says which cluster each frame belongs to.
    masked_only : bool
        Whether spans of frames are masked, as in pre-training, and only those
        count; the targets are those of the whole speech in any case. By default
        nothing is masked, and all real frames count.
    mask_prob : float
        The share of frames that the spans would cover without overlap.
    mask_length : int
        Frames of a span.
    **kwargs
        Those of ``RecipeBrain``.

    Raises
    ------
    ValueError
        If the upstream would be trained, if it cannot mask, or if targets and
        branches differ in the number of clusters or frames.
    """

    averaged = ("branches",)

    def __init__(
        self,
        targets: ClusterTargets | HeadTargets,
        masked_only: bool = False,
        mask_prob: float = 0.8,
        mask_length: int = 10,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.targets = targets.to(self.device)
        self.masked_only = masked_only
        self.mask_prob = mask_prob
        self.mask_length = mask_length
        self.upstream = self.unwrapped["upstream"]
        self.branches = self.unwrapped["branches"]
        self._check()

    def _check(self):
        """Raise before hours are spent."""
        trained = [
            name
            for name, weight in self.upstream.named_parameters()
            if weight.requires_grad
        ]
        if trained:
            raise ValueError(
                f"upstream: {len(trained)} of its parameters would be trained, "
                f"such as {trained[0]}. Set freeze: True."
            )
        if self.branches.num_clusters != self.targets.num_clusters:
            raise ValueError(
                f"The branches have {self.branches.num_clusters} clusters, the "
                f"targets {self.targets.num_clusters}. Set num_clusters to "
                "that of the targets."
            )
        sizes = self.upstream.state_sizes
        deepest, width = self.branches.exit_layers[-1], self.branches.input_size
        if deepest > self.upstream.num_layers or any(
            sizes[k] != width for k in self.branches.exit_layers
        ):
            raise ValueError(
                f"Branches at {self.branches.exit_layers} for states of "
                f"{width} channels: the upstream has {len(sizes) - 1} layers, "
                f"and states of {sizes} channels."
            )
        if self.masked_only and not (
            isinstance(self.upstream, HuggingFaceEncoder)
            and "model.masked_spec_embed" in self.upstream.state_dict()
        ):
            raise ValueError(
                "masked_only: the upstream has no embedding that stands for "
                "masked frames. Set masked_only: False."
            )

    @torch.no_grad()
    def states(self, wavs, wav_lens, masked=None):
        """What branches read, and the targets.

        Arguments
        ---------
        wavs : torch.Tensor
            Waveforms of shape (batch, samples).
        wav_lens : torch.Tensor
            Lengths relative to the longest, of shape (batch,).
        masked : torch.Tensor, optional
            True at frames that the upstream does not see, of shape (batch,
            time).

        Returns
        -------
        states : list of torch.Tensor
            One state of shape (batch, time, channel) per branch.
        labels : torch.Tensor
            int64 of shape (batch, time).
        frames : torch.Tensor
            Real frames of each utterance, int64 of shape (batch,), on the CPU.
        """
        self.upstream.eval()  # fit() says train() to all modules
        exits = self.branches.exit_layers
        shared = masked is None and self.targets.upstream is self.upstream
        asked = sorted({*exits, self.targets.layer}) if shared else exits
        if masked is None:
            found, frames = self.upstream(wavs, wav_lens, layers=asked)
        else:
            state = self.upstream.begin(wavs, wav_lens, masked)
            found, frames = [], state.frames
            while state.layer < exits[-1]:
                state = self.upstream.step(state)
                if state.layer in exits:
                    found.append(state.hidden)
        by_layer = dict(zip(asked, found, strict=True))
        if shared:  # the same states, read once
            labels = self.targets.label(by_layer[self.targets.layer])
        else:
            labels, _ = self.targets(wavs, wav_lens)
        states = [by_layer[k] for k in exits]
        return states, labels[:, : int(frames.max())], frames

    def draw_masks(self, frames, stage):
        """Spans to be masked; outside training the same every time.

        Arguments
        ---------
        frames : torch.Tensor
            Real frames of each utterance, int64 of shape (batch,), on the CPU.
        stage : Stage
            Of the experiment.

        Returns
        -------
        torch.Tensor
            bool of shape (batch, time).
        """
        chance = np.random.get_state()
        if stage != sb.Stage.TRAIN:
            np.random.seed(0)
        masked = draw_masks(frames, self.mask_prob, self.mask_length)
        if stage != sb.Stage.TRAIN:
            np.random.set_state(chance)
        return masked.to(self.device)

    def compute_forward(self, batch, stage):
        """Logits of all branches, and targets, of the frames that count.

        Arguments
        ---------
        batch : PaddedBatch
            With ``sig``.
        stage : Stage
            Of the experiment.

        Returns
        -------
        logits : torch.Tensor
            Shape (branches, frames, clusters), float32.
        labels : torch.Tensor
            int64 of shape (frames,).
        """
        wavs, wav_lens = batch.to(self.device).sig
        masked = None
        if self.masked_only:
            frames = self.upstream.frames_of(sample_counts(wavs, wav_lens))
            masked = self.draw_masks(frames, stage)
        states, labels, frames = self.states(wavs, wav_lens, masked)
        if masked is None:
            count = ~padding_mask(states[0], frames)
        else:
            count = masked
        # Padding is left out before the heads, which then have less to do.
        logits = self.modules.branches([hidden[count] for hidden in states])
        return logits.float(), labels[count]

    def compute_objectives(self, predictions, batch, stage):
        """Mean over frames and branches of −ln p, in nats.

        Arguments
        ---------
        predictions : tuple
            From ``compute_forward``.
        batch : PaddedBatch
            Not read.
        stage : Stage
            Of the experiment.

        Returns
        -------
        torch.Tensor
            A scalar; 0 where no frame counts.
        """
        logits, labels = predictions
        losses = _losses(logits, labels).sum(dim=1)
        count = len(labels)
        self.sums["frames"] += count
        self.sums["loss"] = self.sums["loss"] + losses.detach().cpu()
        right = (logits.detach().argmax(dim=-1) == labels).sum(dim=1)
        self.sums["right"] = self.sums["right"] + right.cpu()
        return losses.mean() / max(count, 1)

    def on_stage_start(self, stage, epoch=None):
        """Count anew."""
        exits = len(self.branches.exit_layers)
        self.sums = {
            "frames": 0,
            "loss": torch.zeros(exits),
            "right": torch.zeros(exits),
        }

    def figures(self, loss):
        """Loss (nats per frame) and accuracies (%) of a stage."""
        frames = max(self.sums["frames"], 1)
        accuracy = (100 * self.sums["right"] / frames).tolist()
        exits = self.branches.exit_layers
        return {
            "loss": float(self.sums["loss"].mean()) / frames,
            "accuracy": sum(accuracy) / len(accuracy),
            f"accuracy_layer{exits[0]}": accuracy[0],
            f"accuracy_layer{exits[-1]}": accuracy[-1],
        }

    @torch.no_grad()
    def measure(
        self,
        dataset: DynamicItemDataset,
        loader_kwargs: Mapping | None = None,
        name: str = "",
    ) -> BranchReadings:
        """What the branches say of a set, as they are now; nothing is masked.

        Arguments
        ---------
        dataset : DynamicItemDataset
            With ``sig``.
        loader_kwargs : mapping, optional
            For the data loader.
        name : str
            Of the set, for the progress bar.

        Returns
        -------
        BranchReadings
            Of every utterance; with ``--debug`` of some batches.
        """
        self.modules.eval()
        loader = self.make_dataloader(
            dataset,
            sb.Stage.TEST,
            **{**(loader_kwargs or {}), "ckpt_prefix": None},
        )
        exits = self.branches.exit_layers
        columns = {"frames": [], "entropies": [], "right": [], "losses": []}
        bar = tqdm(loader, desc=name, disable=self.noprogressbar)
        for batches, batch in enumerate(bar):
            if self.debug and batches == self.debug_batches:
                break
            with self.evaluation_ctx:
                states, labels, frames = self.states(*batch.to(self.device).sig)
                outputs = [
                    self.branches.read(hidden, frames, k)
                    for k, hidden in zip(exits, states)
                ]
            found = [_told_of(output, labels) for output in outputs]
            columns["frames"].append(frames.numpy())
            for key, of_layers in zip(
                ("entropies", "right", "losses"), zip(*found)
            ):
                columns[key].append(torch.stack(of_layers, dim=1).numpy())
        rows = {key: np.concatenate(parts) for key, parts in columns.items()}
        return BranchReadings(list(exits), **rows)


def _losses(logits, labels):
    """−ln p of each frame's cluster, of shape (branches, frames)."""
    labels = labels.expand(logits.shape[:-1])
    return cross_entropy(
        logits.flatten(end_dim=-2), labels.flatten(), reduction="none"
    ).view_as(labels)


def _told_of(output: BranchOutput, labels: torch.Tensor):
    """Of each utterance: mean entropy, frames that are right, summed −ln p."""
    losses = _losses(output.log_probs, labels)
    right = output.log_probs.argmax(dim=-1) == labels
    entropies = output.frame_entropies
    return (
        (entropies * output.mask).sum(dim=1).cpu() / output.frames,
        (right & output.mask).sum(dim=1).cpu(),
        (losses * output.mask).sum(dim=1).cpu(),
    )
