"""A Brain that trains a task model behind a frozen upstream.

Authors
 * SpeechBrain-EE contributors 2026
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import pandas as pd
import speechbrain as sb
import torch
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.utils.distributed import if_main_process
from tqdm.auto import tqdm

from speechbrain_ee.analysis.statistics import Bootstrap
from speechbrain_ee.brains.base import RecipeBrain
from speechbrain_ee.feature_cache import FeatureCache
from speechbrain_ee.files import replacing


class DownstreamBrain(RecipeBrain):
    """Training of a layer interface and a task model; the upstream stays.

    Batches have ``id`` and ``sig``, and what the task needs. The modules are
    ``upstream`` (a frozen LayerwiseEncoder), ``interface`` (a LayerInterface,
    which makes one sequence of all hidden states) and ``downstream``.

    Subclasses say what the loss is and how an utterance is judged.

    Arguments
    ---------
    metric : str
        What the error rate is called in results.
    **kwargs
        Those of ``RecipeBrain``.

    Raises
    ------
    ValueError
        If the upstream would be trained.
    """

    averaged = ("interface", "downstream")

    def __init__(self, metric: str = "error_rate", **kwargs):
        super().__init__(**kwargs)
        self.metric = metric
        self.cache = None
        self.upstream = self.unwrapped["upstream"]
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

    def use_cache(
        self,
        folder: str | Path,
        datasets: Mapping[str, DynamicItemDataset],
        dtype: str = "float32",
    ) -> None:
        """Compute the hidden states of datasets once, and read them from then.

        Their waveforms are then not read again.

        Arguments
        ---------
        folder : str or Path
            Of the cache, which other runs with the same upstream can share.
        datasets : mapping
            Name to dataset, with ``id``, ``sig`` and ``wav``.
        dtype : str
            ``float32`` or ``float16``.
        """
        cache = FeatureCache(folder, self.upstream, dtype, self.device)
        for name, dataset in datasets.items():
            cache.fill(name, dataset, progressbar=not self.noprogressbar)
            keys = dict(dataset.pipeline.output_mapping)
            dataset.set_output_keys([key for key in keys if key != "sig"])
        self.cache = cache

    def states(self, batch) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Hidden states of a batch, from the upstream or from the cache.

        Arguments
        ---------
        batch : PaddedBatch
            With ``id`` and, without a cache, ``sig``.

        Returns
        -------
        states : list of torch.Tensor
            0 to the last layer, each of shape (batch, time, channel).
        frames : torch.Tensor
            Real frames of each utterance, int64 of shape (batch,), on the CPU.
        """
        if self.cache is not None:
            states, frames = self.cache.read(batch.id)
            return [state.to(self.device) for state in states], frames
        with torch.no_grad():
            return self.modules.upstream(*batch.sig)

    def fit_interface(
        self, dataset: DynamicItemDataset, loader_kwargs: Mapping | None = None
    ) -> None:
        """Fit the interface to hidden states, if it is of that kind.

        Arguments
        ---------
        dataset : DynamicItemDataset
            To train on.
        loader_kwargs : mapping, optional
            For the data loader.
        """
        interface = self.unwrapped["interface"]
        if not interface.needs_fit:
            return
        loader = self.make_dataloader(
            dataset,
            sb.Stage.VALID,
            **{**(loader_kwargs or {}), "ckpt_prefix": None},
        )
        interface.fit(self.states(batch.to(self.device)) for batch in loader)

    def compute_forward(self, batch, stage):
        """What the task model says of a batch.

        Arguments
        ---------
        batch : PaddedBatch
            As for ``states``.
        stage : Stage
            Of the experiment.

        Returns
        -------
        object
            As the downstream gives it.
        """
        states, frames = self.states(batch.to(self.device))
        features = self.modules.interface(states, frames)
        more = self.downstream_inputs(batch)
        return self.modules.downstream(features, frames, **more)

    def downstream_inputs(self, batch) -> dict:
        """What the task model wants to know beside features and frames.

        Arguments
        ---------
        batch : PaddedBatch
            As for ``states``.

        Returns
        -------
        dict
            Arguments of its ``forward``.
        """
        return {}

    def compute_objectives(self, predictions, batch, stage):
        """The loss of the task; outside training, errors too.

        Arguments
        ---------
        predictions : object
            From ``compute_forward``.
        batch : PaddedBatch
            With the targets.
        stage : Stage
            Of the experiment.

        Returns
        -------
        torch.Tensor
            A scalar.
        """
        if stage != sb.Stage.TRAIN:
            self.judged.extend(self.judge(predictions, batch))
        return self.loss(predictions, batch)

    @abstractmethod
    def loss(self, predictions, batch) -> torch.Tensor:
        """The loss of a batch.

        Arguments
        ---------
        predictions : object
            What the downstream says.
        batch : PaddedBatch
            With the targets.

        Returns
        -------
        torch.Tensor
            A scalar.
        """

    @abstractmethod
    def judge(self, predictions, batch) -> Sequence[Mapping]:
        """What is right and wrong about each utterance.

        Arguments
        ---------
        predictions : object
            What the downstream says.
        batch : PaddedBatch
            With ``id`` and the targets.

        Returns
        -------
        sequence of mapping
            ``id``, ``hyp``, ``ref``, ``errors`` and ``ref_len`` of each
            utterance, and what else the task wants in the traces. The error
            rate of a set is the sum of its errors by the sum of ``ref_len``.
        """

    def on_stage_start(self, stage, epoch=None):
        """Fresh error counts."""
        self.judged = []

    def figures(self, loss):
        """As of ``summary``."""
        return self.summary(self.judged)

    def summary(self, rows: Sequence[Mapping]) -> dict[str, float]:
        """The figures of utterances that were judged.

        Arguments
        ---------
        rows : sequence of mapping
            As ``judge`` gives them.

        Returns
        -------
        dict
            Name to number: ``error_rate``, in percent.
        """
        return {"error_rate": _error_rate(rows)}

    def predict(
        self,
        dataset: DynamicItemDataset,
        loader_kwargs: Mapping | None = None,
        name: str = "",
    ) -> Iterator[tuple]:
        """What the task model says of a set, as it is now.

        Arguments
        ---------
        dataset : DynamicItemDataset
            With what batches need.
        loader_kwargs : mapping, optional
            For the data loader.
        name : str
            Of the set, for the progress bar.

        Yields
        ------
        batch : PaddedBatch
            Some utterances.
        predictions : object
            As the downstream gives them.
        """
        self.modules.eval()
        loader = self.make_dataloader(
            dataset,
            sb.Stage.TEST,
            **{**(loader_kwargs or {}), "ckpt_prefix": None},
        )
        for batch in tqdm(loader, desc=name, disable=self.noprogressbar):
            with torch.no_grad(), self.evaluation_ctx:
                predictions = self.compute_forward(batch, sb.Stage.TEST)
            yield batch, predictions

    def judge_set(
        self,
        dataset: DynamicItemDataset,
        loader_kwargs: Mapping | None = None,
        name: str = "",
    ) -> list[Mapping]:
        """Judge every utterance of a set by the model as it is now.

        Arguments
        ---------
        dataset : DynamicItemDataset
            With what batches need.
        loader_kwargs : mapping, optional
            For the data loader.
        name : str
            Of the set, for the progress bar.

        Returns
        -------
        list of mapping
            As ``judge`` gives them; with ``--debug`` of some batches only.
        """
        rows = []
        for batch, predictions in self.predict(dataset, loader_kwargs, name):
            rows.extend(self.judge(predictions, batch))
            if self.debug and len(rows) >= self.debug_batches * len(batch):
                break
        return rows

    def error_rate(
        self,
        dataset: DynamicItemDataset,
        loader_kwargs: Mapping | None = None,
    ) -> float:
        """How wrong the model is on a set, as it is now.

        Arguments
        ---------
        dataset : DynamicItemDataset
            With what batches need.
        loader_kwargs : mapping, optional
            For the data loader.

        Returns
        -------
        float
            In percent.
        """
        return _error_rate(self.judge_set(dataset, loader_kwargs))

    def results(self, traces: pd.DataFrame) -> pd.DataFrame:
        """The figures of a set, with their intervals.

        Arguments
        ---------
        traces : pandas.DataFrame
            From ``evaluate_set``.

        Returns
        -------
        pandas.DataFrame
            ``metric``, ``group`` ("all", or some of the utterances), ``value``,
            ``low``, ``high`` and ``utterances``.
        """
        rate = Bootstrap(len(traces)).error_rate_interval(
            traces["errors"].to_numpy(), traces["ref_len"].to_numpy()
        )
        return pd.DataFrame(
            [
                {
                    "metric": self.metric,
                    "group": "all",
                    **rate._asdict(),
                    "utterances": len(traces),
                }
            ]
        )

    def evaluate_set(
        self,
        dataset: DynamicItemDataset,
        name: str,
        folder: str | Path,
        loader_kwargs: Mapping | None = None,
        groups: Mapping[str, str] = MappingProxyType({}),
    ) -> pd.DataFrame:
        """Judge every utterance of a set by the best checkpoints on dev.

        Writes ``traces_<name>.csv`` into the folder.

        Arguments
        ---------
        dataset : DynamicItemDataset
            With what batches need, and the items of ``groups``.
        name : str
            Of the set.
        folder : str or Path
            Where the file goes.
        loader_kwargs : mapping, optional
            For the data loader.
        groups : mapping
            Grouping columns of the traces, by the item that holds them.

        Returns
        -------
        pandas.DataFrame
            The traces, with one row per utterance.
        """
        self.on_evaluate_start(**self.best)
        rows = self.judge_set(dataset, loader_kwargs, name)
        with dataset.output_keys_as(["id", *groups.values()]):
            items = {item["id"]: item for item in dataset}
        depth = self.upstream.num_layers
        traces = pd.DataFrame(
            {
                "id": row["id"],
                "exit_layer": depth,
                "layers_run": depth,
                **row,
                **{g: items[row["id"]][key] for g, key in groups.items()},
            }
            for row in rows
        ).sort_values("id", ignore_index=True)
        if if_main_process():
            with replacing(Path(folder) / f"traces_{name}.csv") as file:
                traces.to_csv(file, index=False, encoding="utf-8")
        self.log({"set": name}, test_stats=self.summary(rows))
        return traces


def _error_rate(rows: Sequence[Mapping]) -> float:
    """Of utterances that were judged, in percent."""
    errors = sum(row["errors"] for row in rows)
    return 100 * errors / sum(row["ref_len"] for row in rows)
