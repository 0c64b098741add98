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
from speechbrain.utils.distributed import if_main_process, run_on_main
from tqdm.auto import tqdm

from speechbrain_ee.analysis.statistics import Bootstrap
from speechbrain_ee.brains.base import RecipeBrain
from speechbrain_ee.costs import ExitCosts
from speechbrain_ee.exits import (
    BranchExits,
    ExitSelector,
    FixedLayer,
    NeverLeave,
    Score,
    exits_taken,
    get_exits,
    get_score,
)
from speechbrain_ee.feature_cache import FeatureCache
from speechbrain_ee.files import replacing
from speechbrain_ee.heads import BranchOutput, load_branches
from speechbrain_ee.runtime import EarlyExitLoop

# What is told of every branch, beside the score that exits read.
BRANCH_SCORES = ("entropy", "max_probability", "margin")


class DownstreamBrain(RecipeBrain):
    """Training of a layer interface and a task model; the upstream stays.

    Batches have ``id`` and ``sig``, and what the task needs. The modules are
    ``upstream`` (a frozen LayerwiseEncoder), ``interface`` (a LayerInterface,
    which makes one sequence of all hidden states) and ``downstream``.

    Utterances may leave the upstream early (``exits``); the interface then
    reads the states of each up to its exit. In training, and where states come
    from a cache, all states are there and the exits only say which are read. In
    evaluation without a cache the one loop runs, and no layer behind the last
    departure.

    Subclasses say what the loss is and how an utterance is judged.

    Arguments
    ---------
    metric : str
        What the error rate is called in results.
    exits : BranchExits, ExitSelector, str, Mapping or None
        Where utterances leave, as ``get_exits`` takes it; None for full depth.
        ``FixedLayer`` takes any layer, 0 being the front end; what else there
        is reads the branches.
    branches : str or Path, optional
        A folder that ``save_branches`` wrote. They become the module
        ``branches``, which stays as it is.
    branch_dtype : str
        As ``load_branches`` takes it.
    **kwargs
        Those of ``RecipeBrain``.

    Raises
    ------
    ValueError
        If the upstream would be trained, or the exits do not fit it.
    """

    averaged = ("interface", "downstream")

    def __init__(
        self,
        metric: str = "error_rate",
        exits: BranchExits | ExitSelector | str | Mapping | None = None,
        branches: str | Path | None = None,
        branch_dtype: str = "float32",
        **kwargs,
    ):
        if branches is not None:
            modules = kwargs["modules"]
            loaded = load_branches(branches, modules["upstream"], branch_dtype)
            kwargs["modules"] = {**modules, "branches": loaded}
        super().__init__(**kwargs)
        self.metric = metric
        self.cache = None
        self.upstream = self.unwrapped["upstream"]
        self.branches = self.unwrapped.get("branches")
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
        if self.branches is not None:
            self.branches.requires_grad_(False)
        self.exits = get_exits(exits)
        self._costs = {}  # of layers and branches, by the exits that are read
        self._prepare_exits()
        self.departures = {}  # where utterances left in evaluation, by id
        # Where they leave in training, if that is always the same layer.
        self._training_exits = {}

    def _prepare_exits(self):
        """Raise unless the exits fit the upstream and its branches."""
        if self.exits is None:
            return
        depth = self.upstream.num_layers
        try:
            if isinstance(self.exits, FixedLayer | NeverLeave):
                self.exits.prepare(range(depth + 1))
            elif self.branches is None:
                raise ValueError(
                    "it reads branches, and there are none. Train them "
                    "(train_branches.py) and name their folder (branches)."
                )
            elif isinstance(self.exits, BranchExits):
                self.exits.prepare(self.branches)
            else:
                layers = self.branches.exit_layers
                self.exits.prepare(layers, self._count(layers))
        except ValueError as error:
            raise ValueError(
                f"exits: {type(self.exits).__name__} cannot be used with this "
                f"upstream of {depth} layers: {error}"
            ) from error
        if isinstance(self.exits, BranchExits) and self.checkpointer:
            # Optional: what was trained at full depth can be given exits.
            self.checkpointer.add_recoverable(
                "exits", self.exits, optional_load=True
            )

    def _count(self, layers: Sequence[int]) -> ExitCosts:
        """MACs up to each of the exits that are read, counted once."""
        key = tuple(layers)
        if key not in self._costs:
            costs = ExitCosts(self.upstream, self.branches, layers)
            self._costs[key] = costs
        return self._costs[key]

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

    def states(
        self, batch, depth: int | None = None
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Hidden states of a batch, from the upstream or from the cache.

        Arguments
        ---------
        batch : PaddedBatch
            With ``id`` and, without a cache, ``sig``.
        depth : int, optional
            The last layer that is asked for (default: that of the upstream);
            none behind it runs.

        Returns
        -------
        states : list of torch.Tensor
            0 to that layer, each of shape (batch, time, channel).
        frames : torch.Tensor
            Real frames of each utterance, int64 of shape (batch,), on the CPU.
        """
        if depth is None:
            depth = self.upstream.num_layers
        if self.cache is not None:
            states, frames = self.cache.read(batch.id)
            states = states[: depth + 1]
            return [state.to(self.device) for state in states], frames
        with torch.no_grad():
            return self.modules.upstream(*batch.sig, layers=range(depth + 1))

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
        loader = self._load(dataset, sb.Stage.VALID, loader_kwargs)
        interface.fit(self.states(batch.to(self.device)) for batch in loader)

    def fit_exits(
        self,
        dataset: DynamicItemDataset,
        path: str | Path,
        loader_kwargs: Mapping | None = None,
    ) -> None:
        """Let exits learn from a set what they need, if they are of that kind.

        That is one pass over the set at full depth, by one process. A run that
        goes on from a checkpoint takes what stands there.

        Arguments
        ---------
        dataset : DynamicItemDataset
            To train on.
        path : str or Path
            Where settings and statistics are written (JSON).
        loader_kwargs : mapping, optional
            For the data loader.
        """
        if not isinstance(self.exits, BranchExits):
            return
        run_on_main(self._learn_exits, [dataset, path, loader_kwargs])
        self.exits.read(path)

    def _learn_exits(self, dataset, path, loader_kwargs):
        """Statistics of a checkpoint, or of the set."""
        exits, saved = self.exits, None
        if self.checkpointer is not None:
            saved = self.checkpointer.find_checkpoint()
        file = saved and saved.paramfiles.get("exits")
        if file is None or not exits.read(file):
            layers = exits.exit_layers(training=True)
            table = self.branch_scores(
                *(dataset, loader_kwargs, "exits", [exits.score], layers)
            )
            values = table[exits.score.name].to_numpy()
            exits.learn(torch.tensor(values).view(-1, len(layers)))
        exits.write(path)

    def branch_scores(
        self,
        dataset: DynamicItemDataset,
        loader_kwargs: Mapping | None = None,
        name: str = "",
        scores: Sequence[Score] | None = None,
        layers: Sequence[int] | None = None,
    ) -> pd.DataFrame:
        """What every branch says of a set, whose utterances all run through.

        Arguments
        ---------
        dataset : DynamicItemDataset
            With ``id`` and ``sig``, or in the cache.
        loader_kwargs : mapping, optional
            For the data loader.
        name : str
            Of the set, for the progress bar.
        scores : sequence of Score, optional
            What is told (default: ``BRANCH_SCORES``, and what exits read).
        layers : sequence of int, optional
            Of which branches (default: all).

        Returns
        -------
        pandas.DataFrame
            ``id``, ``exit_layer`` and a column for each score; a row per
            utterance and branch, with ``--debug`` of some batches only.
        """
        if scores is None:
            told = {one: get_score(one) for one in BRANCH_SCORES}
            if isinstance(self.exits, BranchExits):
                told[self.exits.score.name] = self.exits.score
            scores = list(told.values())
        layers = self.branches.exit_layers if layers is None else layers
        self.modules.eval()
        tables, loader = [], self._load(dataset, sb.Stage.TEST, loader_kwargs)
        for batch in tqdm(loader, desc=name, disable=self.noprogressbar):
            with torch.no_grad(), self.evaluation_ctx:
                states, frames = self.states(batch.to(self.device), layers[-1])
                tables += [
                    pd.DataFrame(
                        {
                            "id": batch.id,
                            "exit_layer": output.exit_layer,
                            **{x.name: x(output).cpu().numpy() for x in scores},
                        }
                    )
                    for output in self._read(states, frames, batch.id, layers)
                ]
            if self.debug and len(tables) >= self.debug_batches * len(layers):
                break
        table = pd.concat(tables)
        return table.sort_values(["id", "exit_layer"], ignore_index=True)

    def _read(self, states, frames, ids, layers) -> list[BranchOutput]:
        """What branches say of states that are all there."""
        outputs = []
        for layer in layers:
            output = self.branches.read(states[layer], frames, layer)
            output.ids, output.hidden = list(ids), states[layer]
            output.previous = outputs[-1] if outputs else None
            outputs.append(output)
        return outputs

    def _load(self, dataset, stage, loader_kwargs):
        """A loader that checkpoints know nothing of."""
        kwargs = {**(loader_kwargs or {}), "ckpt_prefix": None}
        return self.make_dataloader(dataset, stage, **kwargs)

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
        features, frames = self.features(batch, stage)
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

    def features(
        self, batch, stage: sb.Stage
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What the interface makes of each utterance up to its exit.

        Arguments
        ---------
        batch : PaddedBatch
            As for ``states``.
        stage : Stage
            Of the experiment.

        Returns
        -------
        features : torch.Tensor
            Shape (batch, time, channel).
        frames : torch.Tensor
            Real frames of each utterance, int64 of shape (batch,), on the CPU.
        """
        groups, frames = self._leave(batch.to(self.device), stage)
        parts = [
            self.modules.interface(states, frames[rows])
            for rows, states in groups
        ]
        if len(parts) == 1:
            return parts[0], frames
        features = parts[0].new_zeros(
            len(frames), int(frames.max()), parts[0].shape[-1]
        )
        for (rows, _), part in zip(groups, parts, strict=True):
            features[rows.to(part.device), : part.shape[1]] = part
        return features, frames

    def _leave(self, batch, stage) -> tuple[list[tuple], torch.Tensor]:
        """Who leaves together, and with which states.

        Groups are rows of the batch (rising) and their states 0 to the exit;
        together they are the batch.
        """
        rule, training = self._rule(stage), stage == sb.Stage.TRAIN
        groups = []

        def note(output, rows, states):
            """Utterances that leave at an exit."""
            groups.append((rows, states))
            if not training:
                values = {
                    f"branch_{one.name}": one(output).tolist()
                    for one in selector.scores
                }
                self._note(output.ids, output.exit_layer, values)

        if rule is None:
            fixed = isinstance(self.exits, FixedLayer)
            states, frames = self.states(
                batch, self.exits.layer if fixed else None
            )
            if not training:
                self._note(batch.id, len(states) - 1)
            return [(torch.arange(len(frames)), states)], frames
        layers, selector = rule
        if self.cache is None and not training:
            loop = EarlyExitLoop(
                *(self.upstream, self.branches, selector, self._count(layers)),
                exit_layers=layers,
            )
            left = loop(*batch.sig, ids=list(batch.id), on_leave=note)
            return groups, left.frames
        states, frames = self.states(batch, layers[-1])
        outputs, known = {}, self._training_exits if training else {}
        if not known.keys() >= set(batch.id):
            with torch.no_grad():
                read = self._read(states, frames, batch.id, layers)
                taken = exits_taken(selector, read).tolist()
            outputs = {output.exit_layer: output for output in read}
            known = dict(zip(batch.id, taken, strict=True))
            fixed = self.cache is not None and isinstance(
                self.exits, BranchExits
            )
            if training and fixed:
                self._training_exits |= known
        taken = torch.tensor([known[name] for name in batch.id])
        for layer in taken.unique().tolist():
            rows = (taken == layer).nonzero().flatten()
            ran, output = states[: layer + 1], outputs.get(layer)
            if len(rows) < len(taken):
                longest, place = int(frames[rows].max()), rows.to(self.device)
                ran = [state[place, :longest] for state in ran]
                if output is not None:
                    output = output.keep(rows, selector.history)
            note(output, rows, ran)
        return groups, frames

    def _rule(self, stage) -> tuple[list[int], ExitSelector] | None:
        """The exits that are read, and who leaves; None if all go as deep."""
        if self.exits is None or isinstance(
            self.exits, FixedLayer | NeverLeave
        ):
            return None
        if not isinstance(self.exits, BranchExits):
            return self.branches.exit_layers, self.exits
        training = stage == sb.Stage.TRAIN
        if training and not self.exits.in_training:
            return None
        return self.exits.exit_layers(training), self.exits.selector(training)

    def _note(self, ids, layer, values=MappingProxyType({})):
        """Keep where utterances left, and what the branch said there."""
        for row, name in enumerate(ids):
            self.departures[name] = {
                "exit_layer": layer,
                "layers_run": layer,
                **{column: found[row] for column, found in values.items()},
            }

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
        self.departures = {}

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
            Name to number: ``error_rate``, in percent, and what ``depth`` says.
        """
        return {"error_rate": _error_rate(rows), **self.depth(rows)}

    def depth(self, rows: Sequence[Mapping]) -> dict[str, float]:
        """Where utterances that were judged have left.

        Arguments
        ---------
        rows : sequence of mapping
            As ``judge`` gives them.

        Returns
        -------
        dict
            ``mean_exit_layer``; empty where there are no exits.
        """
        if self.exits is None:
            return {}
        left = [self.departures[row["id"]]["exit_layer"] for row in rows]
        return {"mean_exit_layer": sum(left) / len(left)}

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
        self.departures = {}
        loader = self._load(dataset, sb.Stage.TEST, loader_kwargs)
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
        traces = pd.DataFrame(
            {
                "id": row["id"],
                **self.departures[row["id"]],
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
