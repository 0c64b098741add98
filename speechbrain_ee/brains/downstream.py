"""A Brain that trains a task model behind an upstream, frozen or not.

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
from speechbrain.utils.checkpoints import Checkpointer
from speechbrain.utils.distributed import if_main_process, run_on_main
from tqdm.auto import tqdm

from speechbrain_ee.analysis.gates import gate_curve
from speechbrain_ee.analysis.statistics import Bootstrap
from speechbrain_ee.brains.encoder import (
    EncoderBrain,
    gate_table,
    leave_to_gate,
)
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
from speechbrain_ee.gates import LayerGate
from speechbrain_ee.heads import BranchOutput, SilentHeads, load_branches
from speechbrain_ee.runtime import EarlyExitLoop

# What is told of every branch, beside the score that exits read.
BRANCH_SCORES = ("entropy", "max_probability", "margin")
# What is told of an utterance under a gate, beside its groups.
GATE_ROW = (
    *("id", "exit_layer", "layers_run", "layers", "hyp", "ref", "errors"),
    *("ref_len", "frames", "macs", "seconds"),
)


class DownstreamBrain(EncoderBrain):
    """Training of a layer interface and a task model behind an upstream.

    Batches have ``id`` and ``sig``, and what the task needs. The modules are
    ``upstream`` (a LayerwiseEncoder), ``interface`` (a LayerInterface, which
    makes one sequence of all hidden states) and ``downstream``.

    Utterances may leave the upstream early (``exits``); the interface then
    reads the states of each up to its exit. In training, and where states come
    from a cache, all states are there and the exits only say which are read. In
    evaluation without a cache the one loop runs, and no layer behind the last
    departure.

    An upstream that is not frozen is trained too. A gate says which of its
    layers run, and learns through the upstream whether or not that is frozen;
    the state of a layer that an utterance drops is that of the layer before.
    Neither goes with a cache or with exits that read branches, a gate with no
    exits at all. Checkpoints then hold the upstream, or the gate alone where
    nothing else of it is trained. In evaluation the loop tells the layers that
    ran, MACs and seconds of each utterance.

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
    gate : LayerGate, optional
        Which layers of the upstream run.
    encoder_opt_class : callable, optional
        As for ``EncoderBrain``; needed where the upstream is not frozen.
    init_from : str or Path, optional
        Folder of a finished run of the same upstream, interface and
        downstream, whose best checkpoint is the start; a gate starts anew.
    gate_only : bool
        Whether nothing is trained but the gate, which needs ``init_from``.
    **kwargs
        Those of ``EncoderBrain``.

    Raises
    ------
    ValueError
        If exits, gate and upstream do not fit together, or the upstream would
        be trained at a rate that is not its own.
    """

    averaged = ("interface", "downstream")
    encoder_name = "upstream"
    gate_metric = "error_rate"

    def __init__(
        self,
        metric: str = "error_rate",
        exits: BranchExits | ExitSelector | str | Mapping | None = None,
        branches: str | Path | None = None,
        branch_dtype: str = "float32",
        gate: LayerGate | None = None,
        encoder_opt_class=None,
        init_from: str | Path | None = None,
        gate_only: bool = False,
        **kwargs,
    ):
        modules = kwargs["modules"]
        upstream = modules["upstream"]
        if branches is not None:
            loaded = load_branches(branches, upstream, branch_dtype)
            kwargs["modules"] = {**modules, "branches": loaded}
        if gate is not None:
            upstream.attach(gate)
        if gate_only:
            leave_to_gate(upstream)
            if init_from is None:
                raise ValueError(
                    "gate_only: the task model would stay untrained. Name the "
                    "folder of a finished run (init_from)."
                )
            for name in ("interface", "downstream"):
                modules[name].requires_grad_(False)
        trained = [k for k, w in upstream.named_parameters() if w.requires_grad]
        self.learns = bool(trained)
        # Or nothing of it but the gate.
        self.fine_tunes = any(not k.startswith("gate.") for k in trained)
        if not self.fine_tunes:
            encoder_opt_class = None
        elif encoder_opt_class is None:
            raise ValueError(
                f"upstream: {len(trained)} of its parameters would be trained, "
                f"such as {trained[0]}, at the rate of the task model. Set "
                "freeze: True, or give encoder_opt_class."
            )
        super().__init__(encoder_opt_class=encoder_opt_class, **kwargs)
        self.metric = metric
        self.cache = None
        self.upstream = self.encoder
        self.branches = self.unwrapped.get("branches")
        if self.branches is not None:
            self.branches.requires_grad_(False)
        self.exits = get_exits(exits)
        self._costs = {}  # by the exits that are read, and the gate
        self._prepare_exits()
        self._prepare_training()
        if init_from is not None:
            self._start_from(init_from)
        self._keep_trained(self.fine_tunes or init_from is not None)
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

    @property
    def changes(self) -> bool:
        """Whether the states of an utterance are not always the same."""
        return self.learns or self.upstream.gate is not None

    def _prepare_training(self):
        """Check what an upstream that changes goes with."""
        if not self.changes:
            return
        if self.upstream.gate is not None and self.exits is not None:
            raise ValueError(
                "gate: it chooses among all layers, and exits let utterances "
                "leave before the last. Take one of the two."
            )
        fixed = isinstance(self.exits, FixedLayer | NeverLeave | None)
        if self.branches is not None or not fixed:
            raise ValueError(
                "branches: they were trained for an upstream that stays as it "
                "is. Set freeze: True and no gate, or take exits that read "
                "none (full, fixed)."
            )
        if self.unwrapped["interface"].needs_fit:
            raise ValueError(
                "interface: it is fitted to states before training, and these "
                "change (gate, freeze: False). Take one that learns, or "
                "last_layer."
            )
        if isinstance(self.exits, FixedLayer):
            # DDP waits for parameters that are never used.
            self.upstream.layers[self.exits.layer :].requires_grad_(False)

    def _keep_trained(self, whole):
        """Let checkpoints hold the upstream, or what it learns: the gate."""
        if whole:
            name, module = "upstream", self.upstream
        elif self.learns:
            name, module = "gate", self.upstream.gate
        else:
            return
        self.unwrapped[name] = module
        self.averaged = (*self.averaged, name)
        if self.checkpointer is not None:
            self.checkpointer.add_recoverable(name, module)

    def _start_from(self, folder):
        """Weights of the best checkpoint of another run, but for its gate."""
        found = Checkpointer(Path(folder) / "save").find_checkpoint(**self.best)
        if found is None:
            raise FileNotFoundError(
                f"init_from: {folder}/save holds no checkpoint with the figure "
                f"{self.select_by}. Give the output_folder of a finished run."
            )
        for name in ("upstream", "interface", "downstream"):
            if name not in found.paramfiles:  # a frozen upstream
                continue
            module, file = self.unwrapped[name], found.paramfiles[name]
            load = module.load_state_dict
            if name == "upstream":
                load = self.upstream.load_backbone
            try:
                load(torch.load(file, "cpu", weights_only=True))
            except (RuntimeError, ValueError) as error:
                raise ValueError(
                    f"init_from: {name} of {folder} is built otherwise: "
                    f"{error} Set the same sizes and labels, or take another "
                    "run."
                ) from error

    def _count(self, layers: Sequence[int]) -> ExitCosts:
        """MACs up to each of the exits that are read, counted once."""
        key = (*layers, self.upstream.gate)
        if key not in self._costs:
            heads = self.branches
            if heads is None:
                heads = SilentHeads(layers)
            costs = ExitCosts(self.upstream, heads, layers)
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

        Raises
        ------
        ValueError
            If the upstream is trained or has a gate.
        """
        if self.changes:
            raise ValueError(
                "feature_cache: the states of this upstream change (gate, "
                "freeze: False). Set feature_cache: null."
            )
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
        with torch.set_grad_enabled(self.learns and torch.is_grad_enabled()):
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
        loader = self.make_loader(dataset, sb.Stage.VALID, loader_kwargs)
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
        tables = []
        loader = self.make_loader(dataset, sb.Stage.TEST, loader_kwargs)
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
        if rule is None:
            return self._leave_together(batch, training)
        layers, selector = rule
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

        if self.cache is None and not training:
            loop = EarlyExitLoop(
                *(self.upstream, self.branches, selector, self._count(layers)),
                exit_layers=layers,
            )
            left = loop(*batch.sig, ids=list(batch.id), on_leave=note)
            return groups, left.frames
        states, frames = self.states(batch, layers[-1])
        taken, outputs = self._take_exits(
            rule, list(batch.id), states, frames, training
        )
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

    def _leave_together(self, batch, training):
        """As of ``_leave``, where nobody leaves before the others."""
        fixed = isinstance(self.exits, FixedLayer)
        depth = self.exits.layer if fixed else self.upstream.num_layers
        if self.changes and depth > 0 and not training:
            return self._walk(batch, depth)
        if training:
            self.tell_step()
        states, frames = self.states(batch, depth)
        if not training:
            self._note(batch.id, len(states) - 1)
        return [(torch.arange(len(frames)), states)], frames

    def _take_exits(self, rule, ids, states, frames, training):
        """The exit of each utterance, and what the branches say at exits.

        In training nobody asks for the latter, and what is known is not read
        again.
        """
        known = self._training_exits
        if training and known.keys() >= set(ids):
            return torch.tensor([known[name] for name in ids]), {}
        layers, selector = rule
        with torch.no_grad():
            read = self._read(states, frames, ids, layers)
            taken = exits_taken(selector, read)
        fixed = self.cache is not None and isinstance(self.exits, BranchExits)
        if training and fixed:
            known.update(zip(ids, taken.tolist()))
        return taken, {output.exit_layer: output for output in read}

    def _walk(self, batch, depth) -> tuple[list[tuple], torch.Tensor]:
        """All leave at one layer, and the loop tells what that has cost."""
        groups = []
        costs = self._count([depth])
        loop = EarlyExitLoop(
            *(self.upstream, SilentHeads([depth]).eval(), "never", costs)
        )
        left = loop(
            *batch.sig,
            on_leave=lambda output, rows, states: groups.append((rows, states)),
        )
        self._note(batch.id, depth)
        told = {
            "layers_run": left.layers_run.tolist(),
            "frames": left.frames.tolist(),
            "macs": left.macs.tolist(),
            "seconds": left.seconds.tolist(),
        }
        if left.layers is not None:
            told["layers"] = left.layers
        for row, name in enumerate(batch.id):
            figures = {column: found[row] for column, found in told.items()}
            self.departures[name] |= figures
        return groups, left.frames

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
        """The loss of the task, in training with what a gate adds.

        Outside training, errors are counted too.

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
        return self.with_penalty(self.loss(predictions, batch))

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
            ``mean_exit_layer``, or ``mean_layers_run`` under a gate; empty
            where there is neither.
        """
        column = "exit_layer"
        if self.upstream.gate is not None:
            column = "layers_run"
        elif self.exits is None:
            return {}
        left = [self.departures[row["id"]][column] for row in rows]
        return {f"mean_{column}": sum(left) / len(left)}

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
        loader = self.make_loader(dataset, sb.Stage.TEST, loader_kwargs)
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

    def error_rate(self, dataset, loader_kwargs=None):
        """See ``EncoderBrain.error_rate``."""
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
        traces = self._trace(rows, dataset, groups)
        if if_main_process():
            with replacing(Path(folder) / f"traces_{name}.csv") as file:
                traces.to_csv(file, index=False, encoding="utf-8")
        self.log({"set": name}, test_stats=self.summary(rows))
        return traces

    def _trace(self, rows, dataset, groups) -> pd.DataFrame:
        """What was said of each utterance, where it left, and its groups."""
        with dataset.output_keys_as(["id", *groups.values()]):
            items = {item["id"]: item for item in dataset}
        return pd.DataFrame(
            {
                "id": row["id"],
                **self.departures[row["id"]],
                **row,
                **{g: items[row["id"]][key] for g, key in groups.items()},
            }
            for row in rows
        ).sort_values("id", ignore_index=True)

    def check_gates(self, gates=None, target_layers=()):
        """See ``EncoderBrain.check_gates``."""
        super().check_gates(gates, target_layers)
        if gates and (self.exits is not None or self.cache is not None):
            raise ValueError(
                "eval_gates: they choose among layers that really run, to the "
                "last. Leave out exits and feature_cache."
            )

    def evaluate_gates(
        self,
        dataset: DynamicItemDataset,
        name: str,
        folder: str | Path,
        loader_kwargs: Mapping | None = None,
        groups: Mapping[str, str] = MappingProxyType({}),
        gates: Mapping[str, LayerGate] | None = None,
        target_layers: Sequence[float] = (),
    ) -> None:
        """Judge every utterance of a set under each gate and target.

        Writes ``gates_<name>.csv`` and ``curve_<name>.csv`` into the folder,
        where there are gates; with the weights that the model has now.

        Arguments
        ---------
        dataset : DynamicItemDataset
            As for ``evaluate_set``.
        name : str
            Of the set.
        folder : str or Path
            Where the files go.
        loader_kwargs : mapping, optional
            For the data loader.
        groups : mapping
            As for ``evaluate_set``.
        gates : mapping, optional
            As for ``gates_of``.
        target_layers : sequence of float
            As for ``check_gates``.
        """
        self.check_gates(gates, target_layers)
        tables = []
        for label, gate in self.each_target(gates, target_layers):
            told = f"{name}: {label} {gate.target_layers or ''}"
            rows = self.judge_set(dataset, loader_kwargs, told)
            table = self._trace(rows, dataset, groups)
            tables.append(gate_table(label, gate, table[[*GATE_ROW, *groups]]))
        if tables and if_main_process():
            table = pd.concat(tables, ignore_index=True)
            with replacing(Path(folder) / f"gates_{name}.csv") as file:
                table.to_csv(file, index=False, encoding="utf-8")
            curve = gate_curve(table).drop(columns=["low", "high", "masks"])
            with replacing(Path(folder) / f"curve_{name}.csv") as file:
                curve.to_csv(file, index=False, float_format="%.9g")


def _error_rate(rows: Sequence[Mapping]) -> float:
    """Of utterances that were judged, in percent."""
    errors = sum(row["errors"] for row in rows)
    return 100 * errors / sum(row["ref_len"] for row in rows)
