"""A Brain that pre-trains a HuBERT: masked prediction of clusters.

Authors
 * SpeechBrain-EE contributors 2026
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import speechbrain as sb
import torch
from safetensors.torch import save_file
from torch.nn.functional import cross_entropy
from transformers import HubertConfig, Wav2Vec2FeatureExtractor
from transformers.models.hubert.modeling_hubert import _compute_mask_indices

from speechbrain_ee.brains.base import RecipeBrain
from speechbrain_ee.clusters import Clusters, ClusterTargets
from speechbrain_ee.encoders.base import sample_counts
from speechbrain_ee.encoders.huggingface import HuggingFaceEncoder
from speechbrain_ee.files import replacing
from speechbrain_ee.heads import ClusterHead

LEAST_SPANS = 2  # per utterance, as fairseq has it


class MaskedPrediction(torch.nn.Module):
    """Encoder and cluster head in one forward, as DDP wants them.

    Arguments
    ---------
    encoder : HuggingFaceEncoder
        With ``apply_spec_augment``, so that its mask embedding is trained.
    head : ClusterHead
        Reads the encoder's output.

    Example
    -------
    >>> small = {"num_hidden_layers": 2, "hidden_size": 32}
    >>> small |= {"num_attention_heads": 4, "intermediate_size": 64}
    >>> encoder = HuggingFaceEncoder(
    ...     "hubert", False, config=small, apply_spec_augment=True
    ... )
    >>> model = MaskedPrediction(encoder, ClusterHead(32, 100))
    >>> wavs = torch.randn(1, 8000)
    >>> model(wavs, None, torch.zeros(1, 24, dtype=torch.bool)).shape
    torch.Size([1, 24, 100])
    """

    def __init__(self, encoder: HuggingFaceEncoder, head: ClusterHead):
        super().__init__()
        if not encoder.model.config.apply_spec_augment:
            raise ValueError(
                "The encoder's mask embedding would not be trained. Set "
                "apply_spec_augment: True in it."
            )
        self.encoder = encoder
        self.head = head

    def forward(self, wavs, wav_lens, masked):
        """Logits of the cluster of every frame.

        Arguments
        ---------
        wavs : torch.Tensor
            Waveforms of shape (batch, samples).
        wav_lens : torch.Tensor or None
            Lengths relative to the longest, of shape (batch,).
        masked : torch.Tensor
            bool of shape (batch, time): the frames that the layers do not see.

        Returns
        -------
        torch.Tensor
            Shape (batch, time, clusters).
        """
        state = self.encoder.begin(wavs, wav_lens, masked)
        while state.layer < self.encoder.num_layers:
            state = self.encoder.step(state)
        return self.head(self.encoder.final_norm(state.hidden))


def draw_masks(
    frames: torch.Tensor, mask_prob: float, mask_length: int
) -> torch.Tensor:
    """Draw spans of frames to be masked, by Hugging Face's function.

    Arguments
    ---------
    frames : torch.Tensor
        Real frames of each utterance, int64 of shape (batch,), on the CPU.
    mask_prob : float
        The share of frames that the spans would cover without overlap; a span
        starts at ``mask_prob / mask_length`` of the frames.
    mask_length : int
        Frames of a span.

    Returns
    -------
    torch.Tensor
        bool of shape (batch, time), False at padded frames and in utterances
        that are shorter than a span.

    Example
    -------
    >>> masked = draw_masks(torch.tensor([50, 5]), 0.8, 10)
    >>> masked.shape, int(masked[1].sum()), bool(masked[0].sum() >= 11)
    (torch.Size([2, 50]), 0, True)
    """
    real = torch.arange(int(frames.max())) < frames[:, None]
    if real.shape[1] < mask_length:
        return torch.zeros_like(real)
    masked = _compute_mask_indices(
        tuple(real.shape),
        mask_prob,
        mask_length,
        attention_mask=real.long(),
        min_masks=LEAST_SPANS,
    )
    masked = torch.from_numpy(masked)
    # An utterance without a span gets the last frame of the batch masked.
    return masked & real & (frames >= mask_length)[:, None]


class HubertBrain(RecipeBrain):
    """Training with the cross-entropy of masked frames' clusters.

    Batches have ``sig``; the module is ``model``, a MaskedPrediction. How much
    is masked stands in the encoder's configuration: ``mask_time_prob`` and
    ``mask_time_length``.

    Arguments
    ---------
    targets : ClusterTargets
        Says which cluster each frame belongs to.
    unmasked_weight : float
        Weight of the cross-entropy of frames that are not masked, beside 1 for
        those that are.
    **kwargs
        Those of ``RecipeBrain``.
    """

    averaged = ("model",)

    def __init__(
        self, targets: ClusterTargets, unmasked_weight: float = 0.0, **kwargs
    ):
        super().__init__(**kwargs)
        self.targets = targets.to(self.device)
        self.unmasked_weight = unmasked_weight
        model = self.unwrapped["model"]
        self.encoder = model.encoder
        if len(targets.clusters) != model.head.num_clusters:
            raise ValueError(
                f"The head has {model.head.num_clusters} clusters, the "
                f"targets {len(targets.clusters)}. Set num_clusters to it, or "
                "delete clusters.npz to find others."
            )

    def compute_forward(self, batch, stage):
        """Logits and targets of every frame.

        Arguments
        ---------
        batch : PaddedBatch
            With ``sig``.
        stage : Stage
            Of the experiment.

        Returns
        -------
        logits : torch.Tensor
            Shape (batch, time, clusters).
        labels : torch.Tensor
            int64 of shape (batch, time).
        masked : torch.Tensor
            True at masked frames, of shape (batch, time).
        real : torch.Tensor
            True at frames that are no padding, of shape (batch, time).
        """
        wavs, wav_lens = batch.to(self.device).sig
        frames = self.encoder.frames_of(sample_counts(wavs, wav_lens))
        config = self.encoder.model.config
        masked = draw_masks(
            frames, config.mask_time_prob, config.mask_time_length
        ).to(self.device)
        logits = self.modules.model(wavs, wav_lens, masked)
        labels = self.targets(wavs, wav_lens)[0][:, : logits.shape[1]]
        time = torch.arange(logits.shape[1])
        real = (time < frames[:, None]).to(self.device)
        return logits, labels, masked, real

    def compute_objectives(self, predictions, batch, stage):
        """Mean over masked frames of −log p, in nats, and of the others.

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
            A scalar.
        """
        logits, labels, masked, real = predictions
        losses = cross_entropy(
            logits.float().transpose(1, 2), labels, reduction="none"
        )
        right = (logits.argmax(dim=-1) == labels).detach()
        loss = 0.0
        for name, where, weight in (
            ("masked", masked, 1.0),
            ("unmasked", real & ~masked, self.unmasked_weight),
        ):
            count = where.sum()
            summed = (losses * where).sum()
            loss = loss + weight * summed / count.clamp_min(1)
            self.sums[f"{name}_frames"] += int(count)
            self.sums[f"{name}_right"] += int((right & where).sum())
            self.sums[f"{name}_loss"] += float(summed.detach())
        return loss

    def on_stage_start(self, stage, epoch=None):
        """Count anew; outside training, draw the same masks every time."""
        names = ("frames", "right", "loss")
        self.sums = {
            f"{kind}_{name}": 0
            for kind in ("masked", "unmasked")
            for name in names
        }
        if stage != sb.Stage.TRAIN:
            self.chance = np.random.get_state()
            np.random.seed(0)

    def figures(self, loss):
        """Loss (nats per masked frame) and accuracies (%) of a stage."""
        masked = max(self.sums["masked_frames"], 1)
        unmasked = max(self.sums["unmasked_frames"], 1)
        return {
            "loss": self.sums["masked_loss"] / masked,
            "accuracy": 100 * self.sums["masked_right"] / masked,
            "accuracy_unmasked": 100 * self.sums["unmasked_right"] / unmasked,
        }

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Log loss and accuracy, and keep the best checkpoint."""
        if stage != sb.Stage.TRAIN:
            np.random.set_state(self.chance)
            self.valid_figures = self.figures(stage_loss)
        super().on_stage_end(stage, stage_loss, epoch)


def save_hubert(
    folder: str | Path,
    model: MaskedPrediction,
    clusters: Clusters,
    facts: Mapping,
) -> None:
    """Write a pre-trained model in Hugging Face format.

    ``transformers.HubertModel`` and ``HuggingFaceEncoder`` load the folder. Its
    ``mask_time_prob`` is that of published models, for fine-tuning: the share
    that is masked in pre-training would hide most of the speech there.

    Arguments
    ---------
    folder : str or Path
        Where to write ``config.json``, ``model.safetensors`` and
        ``preprocessor_config.json``, and beside them
        ``cluster_head.safetensors``, ``clusters.npz`` and
        ``pretraining.json``.
    model : MaskedPrediction
        Trained, unwrapped.
    clusters : Clusters
        What it predicts.
    facts : mapping
        Of the training, for ``pretraining.json``.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    encoder, head = model.encoder, model.head
    encoder.model.save_pretrained(folder)
    config = HubertConfig.from_pretrained(folder)
    config.mask_time_prob = HubertConfig().mask_time_prob
    config.save_pretrained(folder)
    Wav2Vec2FeatureExtractor(
        do_normalize=encoder.normalize_wav, return_attention_mask=False
    ).save_pretrained(folder)
    weights = {key: x.cpu() for key, x in head.state_dict().items()}
    metadata = {"temperature": str(head.temperature)}
    with replacing(folder / "cluster_head.safetensors") as file:
        save_file(weights, file, metadata)
    clusters.save(folder / "clusters.npz")
    with replacing(folder / "pretraining.json") as file:
        text = json.dumps(facts, indent=2, ensure_ascii=False)
        file.write_text(f"{text}\n", encoding="utf-8")
