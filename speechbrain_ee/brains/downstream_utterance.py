"""Brains for task models that say one thing of an utterance.

Authors
 * SpeechBrain-EE contributors 2026
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pandas as pd
import torch
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.dataio.encoder import CategoricalEncoder
from speechbrain.nnet.losses import AngularMargin, LogSoftmaxWrapper
from speechbrain.utils.distributed import if_main_process
from torch.nn.functional import cross_entropy, normalize

from speechbrain_ee.analysis.statistics import Bootstrap
from speechbrain_ee.analysis.verification import (
    Trial,
    equal_error_rate,
    minimum_cost,
    trial_interval,
)
from speechbrain_ee.brains.downstream import DownstreamBrain
from speechbrain_ee.encoders.base import samples_of
from speechbrain_ee.files import replacing


class UtteranceBrain(DownstreamBrain):
    """What the Brains of this module have in common: utterances need length."""

    @property
    def least_frames(self) -> int:
        """How many frames an utterance needs."""
        return self.upstream.least_frames

    def check_lengths(self, dataset: DynamicItemDataset) -> None:
        """Raise, before hours are spent, if an utterance is too short.

        Arguments
        ---------
        dataset : DynamicItemDataset
            With the items ``id`` and ``duration`` (s).

        Raises
        ------
        ValueError
            Naming the utterances and what can be done.
        """
        with dataset.output_keys_as(["id", "duration"]):
            items = list(dataset)
        samples = samples_of(item["duration"] for item in items)
        frames = self.upstream.frames_of(samples).tolist()
        short = [
            f"{item['id']} ({given} frames)"
            for item, given in zip(items, frames, strict=True)
            if given < self.least_frames
        ]
        if short:
            raise ValueError(
                f"{len(short)} utterances are too short for this model, which "
                f"needs {self.least_frames} frames: {', '.join(short[:5])}. "
                "Take their rows out, or leave them out of training by "
                "min_duration."
            )


class DownstreamClassifier(UtteranceBrain):
    """Classes of utterances, by cross-entropy summed over slots.

    Batches have ``id``, ``sig`` and ``labels``. The module ``downstream`` gives
    the logits of each slot. An utterance is right when all of its slots are.

    Arguments
    ---------
    label_encoders : mapping
        A CategoricalEncoder for each slot, by its name.
    **kwargs
        Those of ``DownstreamBrain``.

    Raises
    ------
    ValueError
        If the downstream was made for other numbers of classes.
    """

    def __init__(
        self, label_encoders: Mapping[str, CategoricalEncoder], **kwargs
    ):
        super().__init__(**kwargs)
        self.label_encoders = label_encoders
        made = self.unwrapped["downstream"].num_classes
        found = [len(encoder) for encoder in label_encoders.values()]
        if made != found:
            raise ValueError(
                f"The downstream is made for {made} classes, the data has "
                f"{found} of {', '.join(label_encoders)}."
            )

    def loss(self, predictions, batch):
        """Cross-entropy summed over slots, mean of the utterances, in nats.

        Arguments
        ---------
        predictions : tuple of torch.Tensor
            Logits of each slot.
        batch : PaddedBatch
            With ``labels``.

        Returns
        -------
        torch.Tensor
            A scalar.
        """
        labels = batch.labels.data.T
        return sum(map(cross_entropy, predictions, labels))

    def judge(self, predictions, batch):
        """The likeliest classes of each utterance, and whether they are right.

        Arguments
        ---------
        predictions : tuple of torch.Tensor
            Logits of each slot.
        batch : PaddedBatch
            With ``id`` and ``labels``.

        Returns
        -------
        list of dict
            ``id``; ``hyp`` and ``ref``, the classes of the slots joined by
            " | "; ``errors``, 0 or 1; ``ref_len``, 1; ``max_probability`` of
            what was said, the product over slots; ``margin``, by how much it
            leads in the slot where it leads least. Of several slots,
            ``errors_<slot>`` too.
        """
        hyps, refs, probabilities, margins = [], [], [], []
        pairs = zip(self.label_encoders.values(), predictions, strict=True)
        for slot, (encoder, logits) in enumerate(pairs):
            best = logits.float().softmax(dim=-1).topk(2, dim=-1)
            hyps.append(encoder.decode_torch(best.indices[:, 0].cpu()))
            refs.append(encoder.decode_torch(batch.labels.data[:, slot].cpu()))
            probabilities.append(best.values[:, 0])
            margins.append(best.values[:, 0] - best.values[:, 1])
        probability = torch.stack(probabilities).prod(dim=0).tolist()
        margin = torch.stack(margins).amin(dim=0).tolist()
        rows = []
        for k, name in enumerate(batch.id):
            hyp = [slot[k] for slot in hyps]
            ref = [slot[k] for slot in refs]
            rows.append(
                {
                    "id": name,
                    "hyp": " | ".join(hyp),
                    "ref": " | ".join(ref),
                    "errors": int(hyp != ref),
                    "ref_len": 1,
                    "max_probability": probability[k],
                    "margin": margin[k],
                }
            )
            if len(hyp) > 1:
                names = zip(self.label_encoders, hyp, ref)
                rows[-1] |= {f"errors_{n}": int(h != r) for n, h, r in names}
        return rows

    def results(self, traces):
        """Accuracy of the whole and, where there are several, of the slots.

        Arguments
        ---------
        traces : pandas.DataFrame
            From ``evaluate_set``.

        Returns
        -------
        pandas.DataFrame
            As of ``DownstreamBrain``, in percent.
        """
        bootstrap = Bootstrap(len(traces))
        columns = {"accuracy": "errors"}
        if len(self.label_encoders) > 1:
            slots = self.label_encoders
            columns |= {f"accuracy_{name}": f"errors_{name}" for name in slots}
        rows = []
        for metric, column in columns.items():
            right = 100.0 * (1 - traces[column].to_numpy())
            found = bootstrap.mean_interval(right)
            rows.append({"metric": metric, "group": "all", **found._asdict()})
        return pd.DataFrame(rows).assign(utterances=len(traces))


class DownstreamVerifier(UtteranceBrain):
    """Speaker verification: embeddings learnt by telling speakers apart.

    Batches have ``id``, ``sig`` and, in training and validation, ``labels``,
    the speakers of the training set. The module ``downstream`` gives embeddings
    and cosines to these speakers. Validation tells how often the speaker is
    taken for another (``error_rate``) and the equal error rate of trials
    (``EER``); tests have trials only. The score of a trial is the cosine of two
    embeddings.

    Arguments
    ---------
    label_encoders : mapping
        A CategoricalEncoder of the speakers, by the name of their column.
    trials : mapping
        Trials of each set, by its name.
    valid_name : str
        The set that chooses checkpoints.
    objective : callable, optional
        From cosines (batch, 1, speakers) and speakers (batch, 1) to the loss.
        By default AM-softmax with margin 0.4 and scale 30, as in SUPERB.
    **kwargs
        Those of ``DownstreamBrain``.

    Raises
    ------
    ValueError
        If the downstream was made for another number of speakers.
    """

    def __init__(
        self,
        label_encoders: Mapping[str, CategoricalEncoder],
        trials: Mapping[str, Sequence[Trial]],
        valid_name: str,
        objective=None,
        **kwargs,
    ):
        super().__init__(metric="EER", **kwargs)
        (self.label_encoder,) = label_encoders.values()
        self.trials = trials
        self.valid_name = valid_name
        self.objective = objective or LogSoftmaxWrapper(
            AngularMargin(margin=0.4, scale=30)
        )
        self.downstream = self.unwrapped["downstream"]
        if self.downstream.num_speakers != len(self.label_encoder):
            raise ValueError(
                f"The downstream is made for {self.downstream.num_speakers} "
                f"speakers, the data has {len(self.label_encoder)}."
            )

    @property
    def least_frames(self):
        """As the downstream needs them."""
        return self.downstream.least_frames

    def loss(self, predictions, batch):
        """The objective of the cosines.

        Arguments
        ---------
        predictions : tuple of torch.Tensor
            Embeddings and cosines.
        batch : PaddedBatch
            With ``labels``.

        Returns
        -------
        torch.Tensor
            A scalar.
        """
        _, cosines = predictions
        return self.objective(cosines[:, None], batch.labels.data)

    def judge(self, predictions, batch):
        """The nearest speaker of each utterance, and its embedding.

        Arguments
        ---------
        predictions : tuple of torch.Tensor
            Embeddings and cosines.
        batch : PaddedBatch
            With ``id`` and ``labels``.

        Returns
        -------
        list of dict
            ``id``, ``hyp``, ``ref``, ``errors``, ``ref_len`` and
            ``embedding``.
        """
        embeddings, cosines = predictions
        decode = self.label_encoder.decode_torch
        hyps = decode(cosines.argmax(dim=-1).cpu())
        refs = decode(batch.labels.data[:, 0].cpu())
        return [
            {
                "id": name,
                "hyp": hyp,
                "ref": ref,
                "errors": int(hyp != ref),
                "ref_len": 1,
                "embedding": embedding,
            }
            for name, hyp, ref, embedding in zip(
                *(batch.id, hyps, refs, embeddings.float().cpu()), strict=True
            )
        ]

    def figures(self, loss):
        """Errors of identification, and the equal error rate, in percent."""
        embeddings = {row["id"]: row["embedding"] for row in self.judged}
        # With --debug not all utterances are judged.
        trials = [
            trial
            for trial in self.trials[self.valid_name]
            if {trial.enrol, trial.test} <= embeddings.keys()
        ]
        return {**super().figures(loss), "EER": _eer(score(embeddings, trials))}

    def error_rate(self, dataset, loader_kwargs=None):
        """The equal error rate of the validation set, as the model is now.

        Arguments
        ---------
        dataset : DynamicItemDataset
            That set.
        loader_kwargs : mapping, optional
            For the data loader.

        Returns
        -------
        float
            In percent.
        """
        embeddings = self.embed(dataset, loader_kwargs)
        return _eer(score(embeddings, self.trials[self.valid_name]))

    def embed(
        self,
        dataset: DynamicItemDataset,
        loader_kwargs: Mapping | None = None,
        name: str = "",
    ) -> dict[str, torch.Tensor]:
        """Embeddings of a set, whose speakers need not be known.

        Arguments
        ---------
        dataset : DynamicItemDataset
            With ``id`` and ``sig``.
        loader_kwargs : mapping, optional
            For the data loader.
        name : str
            Of the set, for the progress bar.

        Returns
        -------
        dict
            Embedding of shape (channel,), on the CPU, by utterance.
        """
        embeddings = {}
        for batch, predictions in self.predict(dataset, loader_kwargs, name):
            found = predictions[0].float().cpu()
            embeddings |= zip(batch.id, found, strict=True)
        return embeddings

    def evaluate_set(
        self,
        dataset,
        name,
        folder,
        loader_kwargs=None,
        groups=MappingProxyType({}),
    ):
        """Score the trials of a set by the best checkpoints on dev.

        Writes ``trials_<name>.csv`` into the folder.

        Arguments
        ---------
        dataset : DynamicItemDataset
            With ``id`` and ``sig``.
        name : str
            Of the set.
        folder : str or Path
            Where the file goes.
        loader_kwargs : mapping, optional
            For the data loader.
        groups : mapping
            Of utterances; trials have none.

        Returns
        -------
        pandas.DataFrame
            As from ``score``, with one row per trial.
        """
        self.on_evaluate_start(**self.best)
        embeddings = self.embed(dataset, loader_kwargs, name)
        table = score(embeddings, self.trials[name])
        if if_main_process():
            with replacing(Path(folder) / f"trials_{name}.csv") as file:
                table.to_csv(file, index=False, encoding="utf-8")
        self.log({"set": name}, test_stats={"EER": _eer(table)})
        return table

    def results(self, traces):
        """Equal error rate (percent) and minimum detection cost.

        Arguments
        ---------
        traces : pandas.DataFrame
            Scores, from ``evaluate_set``.

        Returns
        -------
        pandas.DataFrame
            As of ``DownstreamBrain``; ``utterances`` are trials. Intervals take
            trials as independent.
        """
        scores, same = _arrays(traces)
        figures = {"EER": equal_error_rate, "minDCF": minimum_cost}
        return pd.DataFrame(
            {
                "metric": metric,
                "group": "all",
                **trial_interval(figure, scores, same)._asdict(),
                "utterances": len(traces),
            }
            for metric, figure in figures.items()
        )


def score(
    embeddings: Mapping[str, torch.Tensor], trials: Sequence[Trial]
) -> pd.DataFrame:
    """Score trials by the cosine of embeddings.

    Arguments
    ---------
    embeddings : mapping
        Embedding of shape (channel,) by utterance.
    trials : sequence of Trial
        Of these utterances.

    Returns
    -------
    pandas.DataFrame
        ``label`` (1 for one speaker, 0 for two), ``enrol``, ``test`` and
        ``score``.

    Example
    -------
    >>> embeddings = {"a": torch.tensor([1.0, 0]), "b": torch.tensor([0, 2.0])}
    >>> score(embeddings, [Trial(False, "a", "b")])["score"].item()
    0.0
    """
    table = pd.DataFrame(trials, columns=["label", "enrol", "test"])
    unit = {k: normalize(v, dim=0) for k, v in embeddings.items()}
    pairs = zip(table["enrol"], table["test"], strict=True)
    return table.assign(
        label=table["label"].astype(int),
        score=np.array([float(unit[a] @ unit[b]) for a, b in pairs]),
    )


def _arrays(table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Scores, and whether the speaker is the same."""
    return table["score"].to_numpy(), table["label"].to_numpy() == 1


def _eer(table: pd.DataFrame) -> float:
    """In percent; NaN where --debug has left one kind of trials only."""
    scores, same = _arrays(table)
    if same.all() or not same.any():
        return float("nan")
    return equal_error_rate(scores, same)
