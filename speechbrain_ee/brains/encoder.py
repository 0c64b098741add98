"""What Brains have in common whose encoder is trained, or has a gate.

Authors
 * SpeechBrain-EE contributors 2026
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import speechbrain as sb
import torch
from speechbrain.dataio.dataset import (
    DynamicItemDataset,
    FilteredSortedDynamicItemDataset,
)
from speechbrain.utils.distributed import if_main_process
from speechbrain.utils.optimizers import rm_vector_weight_decay

from speechbrain_ee.brains.base import RecipeBrain
from speechbrain_ee.encoders.base import LayerwiseEncoder
from speechbrain_ee.files import replacing
from speechbrain_ee.gates import GreedyMasks, LayerGate


class EncoderBrain(RecipeBrain):
    """A Brain with an encoder, which may have an optimiser and gates.

    Arguments
    ---------
    encoder_opt_class : callable, optional
        As ``opt_class``, for the encoder alone: it is then trained at a rate
        of its own, and ``opt_class`` trains the rest. Each of the two clips
        its own gradients.
    encoder_lr_annealing : callable, optional
        As ``lr_annealing``, for the encoder's optimiser.
    **kwargs
        Those of ``RecipeBrain``.
    """

    encoder_name = "encoder"  # among the modules
    gate_metric = "WER"  # what greedy masks are found by, as results call it

    def __init__(
        self, encoder_opt_class=None, encoder_lr_annealing=None, **kwargs
    ):
        super().__init__(**kwargs)
        self.encoder = self.unwrapped[self.encoder_name]
        self.encoder_opt_class = encoder_opt_class
        self.encoder_lr_annealing = encoder_lr_annealing
        if encoder_lr_annealing is not None and encoder_opt_class is None:
            raise ValueError(
                "encoder_lr_annealing: it sets the rate of the encoder's own "
                "optimiser; give encoder_opt_class too."
            )

    def init_optimizers(self):
        """One optimiser, or one for the encoder and one for the rest."""
        if self.encoder_opt_class is None:
            super().init_optimizers()
            return
        rest = torch.nn.ModuleDict(self.modules)
        del rest[self.encoder_name]
        encoder = torch.nn.ModuleDict(dict(self.encoder.named_children()))
        if "gate" in encoder:  # it has nothing to forget
            rest["gate"] = encoder.pop("gate")
        if self.remove_vector_weight_decay:
            parameters = map(rm_vector_weight_decay, (encoder, rest))
        else:
            parameters = (encoder.parameters(), rest.parameters())
        of_encoder, of_rest = parameters
        self.encoder_optimizer = self.encoder_opt_class(of_encoder)
        self.optimizer = self.opt_class(of_rest)
        self.optimizers_dict = {
            "opt_class": self.optimizer,
            "encoder_opt_class": self.encoder_optimizer,
        }
        if self.checkpointer is not None:
            self.checkpointer.add_recoverables(
                {
                    "optimizer": self.optimizer,
                    "encoder_optimizer": self.encoder_optimizer,
                }
            )

    @property
    def rates(self) -> dict[str, float]:
        """The learning rate of each optimiser, by its key in recipes."""
        rates = super().rates
        if self.encoder_opt_class is not None:
            group = self.encoder_optimizer.param_groups[0]
            rates["lr_encoder"] = group["lr"]
        return rates

    def on_fit_batch_start(self, batch, should_step):
        """Set the learning rates, also those of the first step."""
        super().on_fit_batch_start(batch, should_step)
        if should_step and self.encoder_lr_annealing is not None:
            self.encoder_lr_annealing(self.encoder_optimizer)

    def make_loader(
        self,
        dataset: DynamicItemDataset,
        stage: sb.Stage,
        loader_kwargs: Mapping | None = None,
    ) -> Iterable:
        """A loader that checkpoints know nothing of.

        Arguments
        ---------
        dataset : DynamicItemDataset
            With what batches need.
        stage : Stage
            Of the experiment.
        loader_kwargs : mapping, optional
            For the data loader.

        Returns
        -------
        iterable of PaddedBatch
            The batches.
        """
        kwargs = {**(loader_kwargs or {}), "ckpt_prefix": None}
        return self.make_dataloader(dataset, stage, **kwargs)

    def tell_step(self) -> None:
        """Tell the gate how far the training is."""
        if self.encoder.gate is not None:
            self.encoder.gate.step = self.optimizer_step

    def with_penalty(self, loss: torch.Tensor) -> torch.Tensor:
        """The loss of a batch in training, and what the gate adds to it.

        Arguments
        ---------
        loss : torch.Tensor
            A scalar, of the task.

        Returns
        -------
        torch.Tensor
            A scalar.
        """
        gate = self.encoder.gate
        penalty = None if gate is None else gate.penalty()
        return loss if penalty is None else loss + penalty

    def gates_of(
        self, gates: Mapping[str, LayerGate] | None = None
    ) -> dict[str, LayerGate]:
        """The gates that the model is evaluated with.

        Arguments
        ---------
        gates : mapping, optional
            Name to gate, beside the encoder's own. What a layer leaves that
            they drop is what it leaves under the own gate.

        Returns
        -------
        dict
            The own gate by its rule, then the others; all know the encoder.
        """
        own, gates = self.encoder.gate, dict(gates or {})
        for label, gate in gates.items():
            if own is not None:
                gate.closing_norm = own.closing_norm
            try:
                gate.prepare(self.encoder.num_layers, self.encoder.output_size)
            except ValueError as error:
                raise ValueError(f"eval_gates: {label}: {error}") from error
        return gates if own is None else {own.rule: own, **gates}

    def check_gates(
        self,
        gates: Mapping[str, LayerGate] | None = None,
        target_layers: Sequence[float] = (),
    ) -> None:
        """Raise, before hours are spent, unless gates can be evaluated.

        Arguments
        ---------
        gates : mapping, optional
            As for ``gates_of``.
        target_layers : sequence of float
            How many layers gates are asked for that serve any number.

        Raises
        ------
        ValueError
            Naming the gate or target, with the reason.
        """
        for gate in self.gates_of(gates).values():
            for target in target_layers if gate.serves_targets else ():
                gate.set_target(target)
            gate.set_target(None)

    def fit_gates(
        self,
        dataset: DynamicItemDataset,
        folder: str | Path,
        gates: Mapping[str, LayerGate] | None = None,
        loader_kwargs: Mapping | None = None,
    ) -> None:
        """Find on a development set what gates have to find there.

        For each of GreedyMasks, writes ``masks_<name>.csv`` into the folder.
        What is measured is ``error_rate``.

        Arguments
        ---------
        dataset : DynamicItemDataset
            With what batches need.
        folder : str or Path
            Where the files go.
        gates : mapping, optional
            As for ``gates_of``.
        loader_kwargs : mapping, optional
            For the data loader.
        """
        greedy = {
            label: gate
            for label, gate in self.gates_of(gates).items()
            if isinstance(gate, GreedyMasks)
        }
        if not greedy:
            return
        self.on_evaluate_start(**self.best)
        self.modules.eval()
        for label, gate in greedy.items():
            rng = np.random.default_rng(gate.seed)
            chosen = rng.permutation(len(dataset))[: gate.utterances]
            some = FilteredSortedDynamicItemDataset(
                dataset, [dataset.data_ids[row] for row in sorted(chosen)]
            )
            measure = partial(self.error_rate, some, loader_kwargs)
            with self.gated(gate):
                found = gate.search(measure)
            if if_main_process():
                columns = ["layers_run", self.gate_metric]
                table = pd.DataFrame(found, columns=columns)
                rows = gate.masks[[n for n, _ in found]].int().tolist()
                table["layers"] = ["".join(map(str, row)) for row in rows]
                with replacing(Path(folder) / f"masks_{label}.csv") as file:
                    table.to_csv(file, index=False, float_format="%.4f")

    @abstractmethod
    def error_rate(
        self,
        dataset: DynamicItemDataset,
        loader_kwargs: Mapping | None = None,
    ) -> float:
        """How wrong the model is on a set, as it is now.

        Arguments
        ---------
        dataset : DynamicItemDataset
            With what batches need; with ``--debug`` some batches are read.
        loader_kwargs : mapping, optional
            For the data loader.

        Returns
        -------
        float
            In percent.
        """

    @contextmanager
    def gated(self, gate: LayerGate):
        """While open, the encoder obeys this gate."""
        own = self.encoder.gate
        self.encoder.attach(gate.to(self.device))
        try:
            yield
        finally:
            gate.set_target(None)
            self.encoder.attach(own)

    def each_target(
        self,
        gates: Mapping[str, LayerGate] | None,
        target_layers: Sequence[float],
    ) -> Iterator[tuple[str, LayerGate]]:
        """Let the encoder obey each gate at each of its targets in turn.

        Arguments
        ---------
        gates : mapping, optional
            As for ``gates_of``.
        target_layers : sequence of float
            As for ``check_gates``.

        Yields
        ------
        label : str
            Name of the gate.
        gate : LayerGate
            Attached, with the target set.
        """
        for label, gate in self.gates_of(gates).items():
            done = set()
            with self.gated(gate):
                for target in target_layers if gate.serves_targets else [None]:
                    gate.set_target(target)
                    if gate.target_layers not in done:
                        done.add(gate.target_layers)
                        yield label, gate


def leave_to_gate(encoder: LayerwiseEncoder) -> None:
    """Train nothing of an encoder but its gate.

    Arguments
    ---------
    encoder : LayerwiseEncoder
        With a gate.

    Raises
    ------
    ValueError
        If there is none that learns.
    """
    if encoder.gate is None or not list(encoder.gate.parameters()):
        raise ValueError(
            "gate_only: there is no gate that learns anything. Take one that "
            "does, such as --gate input_conditioned."
        )
    encoder.freeze_backbone()


def gate_table(
    label: str, gate: LayerGate, rows: Mapping[str, Sequence]
) -> pd.DataFrame:
    """Rows of ``gates_<set>.csv``, of one gate and target.

    Arguments
    ---------
    label : str
        Name of the gate.
    gate : LayerGate
        As it was.
    rows : mapping
        Column to values; ``layers_run`` must be among them.

    Returns
    -------
    pandas.DataFrame
        With ``gate`` and ``target_layers``, which is the mean of the layers
        that ran where the gate serves no targets.
    """
    table = pd.DataFrame(rows)
    target = gate.target_layers
    if not gate.serves_targets:
        target = table["layers_run"].mean()
    place = list(table).index("id") + 1
    table.insert(place, "gate", label)
    table.insert(place + 1, "target_layers", target)
    return table
