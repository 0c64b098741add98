"""A Brain that trains an encoder with CTC exits and evaluates the real loop.

Authors
 * SpeechBrain-EE contributors 2026
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import pandas as pd
import speechbrain as sb
import torch
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.utils.distributed import if_main_process
from speechbrain.utils.logger import get_logger
from speechbrain.utils.metric_stats import ErrorRateStats
from tqdm.auto import tqdm

from speechbrain_ee.analysis.gates import gate_curve
from speechbrain_ee.analysis.loops import loop_row
from speechbrain_ee.analysis.recorder import ExitTimer, TraceRecorder
from speechbrain_ee.analysis.replay import sweep
from speechbrain_ee.analysis.traces import Traces
from speechbrain_ee.brains.encoder import (
    EncoderBrain,
    gate_table,
    leave_to_gate,
)
from speechbrain_ee.costs import ExitCosts
from speechbrain_ee.encoders.base import samples_of
from speechbrain_ee.exits import (
    ExitSelector,
    NeverLeave,
    check_selector,
    get_score,
    get_selector,
)
from speechbrain_ee.files import replacing
from speechbrain_ee.gates import LayerGate
from speechbrain_ee.heads import CTCHeads, ExitOutput
from speechbrain_ee.objectives import (
    ExitLossSum,
    ExitPredictions,
    frames_needed,
)
from speechbrain_ee.runtime import EarlyExitLoop
from speechbrain_ee.tokenizer import decode_labels, labels_of

logger = get_logger(__name__)


class EarlyExitCTC(EncoderBrain):
    """Training with the sum of exit losses; evaluation of every exit.

    Batches have ``id``, ``sig``, ``tokens`` and ``wrd``. The modules are
    ``encoder`` (a LayerwiseEncoder) and ``exits`` (CTCHeads).

    Arguments
    ---------
    tokenizer : SentencePiece
        SpeechBrain's; turns labels into words.
    objective : callable, optional
        From ExitPredictions to the training loss, as
        ``speechbrain_ee.objectives.ExitLossSum``, which is the default.
    teacher : FrozenTeacher, optional
        For objectives whose ``needs_teacher`` is True. It hears the waveforms
        that the student hears.
    start : FrozenTeacher, optional
        A finished run whose weights encoder and exits start from; a gate starts
        anew.
    gate_only : bool
        Whether nothing is trained but the encoder's gate.
    ctc_source : str, optional
        A plain CTC model in Hugging Face format that encoder and exits start
        from, see ``speechbrain_ee.heads.pretrained.start_from_ctc``.
    wav_augment : torch.nn.Module, optional
        As ``speechbrain.augment.augmenter.Augmenter``.
    error_rate_computer : callable
        Makes the ErrorRateStats of an exit.
    select_by : str
        The figure on dev that chooses checkpoints: ``WER_mean`` over exits,
        or ``WER_exit<k>`` of one.
    **kwargs
        Those of ``EncoderBrain``.
    """

    averaged = ("encoder", "exits")

    def __init__(
        self,
        tokenizer,
        objective=None,
        teacher=None,
        start=None,
        gate_only: bool = False,
        ctc_source: str | None = None,
        wav_augment=None,
        error_rate_computer=ErrorRateStats,
        select_by: str = "WER_mean",
        **kwargs,
    ):
        super().__init__(select_by=select_by, **kwargs)
        self.tokenizer = tokenizer
        self.wav_augment = wav_augment
        self.error_rate_computer = error_rate_computer
        self.exits = self.unwrapped["exits"]
        self.exit_layers = self.exits.exit_layers
        self.objective = objective or ExitLossSum()
        self.teacher = teacher
        self.labels = tokenizer.sp.vocab_size()
        if self.labels > self.exits.vocab_size:
            raise ValueError(
                f"The tokenizer has {self.labels} labels, the exits only "
                f"{self.exits.vocab_size}: raise output_neurons."
            )
        figures = ["WER_mean", *(f"WER_exit{k}" for k in self.exit_layers)]
        if select_by not in figures:
            raise ValueError(
                f"select_by: {select_by!r} is none of {', '.join(figures)}."
            )
        if ctc_source is not None:
            self._start_from(ctc_source)
        if start is not None:
            self._check_run(start)
            start.give_weights(self.encoder, self.exits)
        freeze_unread(self.encoder, self.exit_layers)
        self._prepare_gate(gate_only)
        self._prepare_teacher()

    def _start_from(self, source):
        """Weights of a plain CTC model, its labels in our order."""
        # Here, as only Hugging Face encoders need transformers.
        from speechbrain_ee.heads.pretrained import start_from_ctc

        labels = labels_of(self.tokenizer.sp)
        start_from_ctc(self.encoder, self.exits, source, labels)

    def _check_run(self, run):
        """Raise unless a run says the same labels for the same frames."""
        run.check_student(
            self.encoder,
            self.exits,
            self.tokenizer.sp,
            self.hparams.sample_rate,
        )

    def _prepare_gate(self, gate_only):
        """Check that all that it chooses can be trained, or it alone is."""
        gate, last = self.encoder.gate, self.exit_layers[-1]
        if gate is not None and last < self.encoder.num_layers:
            raise ValueError(
                f"gate: it chooses among {self.encoder.num_layers} layers, but "
                f"the last exit stands at layer {last}. End exit_layers with "
                f"{self.encoder.num_layers}."
            )
        if gate_only:
            leave_to_gate(self.encoder)
            self.exits.requires_grad_(False)

    def compute_forward(self, batch, stage):
        """Log-probabilities of every exit.

        Arguments
        ---------
        batch : PaddedBatch
            With ``sig``.
        stage : Stage
            Waveforms are augmented in training.

        Returns
        -------
        log_probs : torch.Tensor
            Shape (exits, batch, time, vocabulary).
        frames : torch.Tensor
            Real frames of each utterance, int64 of shape (batch,).
        teacher_log_probs : torch.Tensor
            Shape (batch, time, vocabulary); None without a teacher.
        """
        states, frames, teacher_log_probs = self.encode(batch, stage)
        return self.modules.exits(states), frames, teacher_log_probs

    def encode(self, batch, stage):
        """States at the exits, and what the teacher hears.

        Arguments
        ---------
        batch : PaddedBatch
            With ``sig``.
        stage : Stage
            Waveforms are augmented in training.

        Returns
        -------
        states : list of torch.Tensor
            One of shape (batch, time, channel) per exit.
        frames : torch.Tensor
            Real frames of each utterance, int64 of shape (batch,).
        teacher_log_probs : torch.Tensor
            Shape (batch, time, vocabulary); None without a teacher.
        """
        batch = batch.to(self.device)
        wavs, wav_lens = batch.sig
        if stage == sb.Stage.TRAIN and self.wav_augment is not None:
            wavs, wav_lens = self.wav_augment(wavs, wav_lens)
        self.tell_step()
        states, frames = self.modules.encoder(
            wavs,
            wav_lens,
            layers=self.exit_layers,
            normed=self.exits.normed_layers,
        )
        heard = None if self.teacher is None else self.teacher(wavs, wav_lens)
        return states, frames, heard

    def targets(self, batch, stage):
        """Labels as the waveforms have become, once these are encoded.

        Arguments
        ---------
        batch : PaddedBatch
            With ``tokens``.
        stage : Stage
            Waveforms may be repeated in training.

        Returns
        -------
        tokens : torch.Tensor
            Targets without sentence marks, int64 of shape (batch, tokens).
        token_counts : torch.Tensor
            How many of them are real, int64 of shape (batch,).
        """
        tokens, token_lens = batch.tokens
        token_counts = (token_lens * tokens.shape[1]).round().long()
        if stage == sb.Stage.TRAIN and self.wav_augment is not None:
            tokens = self.wav_augment.replicate_labels(tokens)
            token_counts = self.wav_augment.replicate_labels(token_counts)
        return tokens, token_counts

    def compute_objectives(self, predictions, batch, stage):
        """Weighted sum of the exit losses, and in training what a gate adds.

        Outside training, errors are counted too.

        Arguments
        ---------
        predictions : tuple
            From ``compute_forward``.
        batch : PaddedBatch
            With ``id``, ``tokens`` and ``wrd``.
        stage : Stage
            Of the experiment.

        Returns
        -------
        torch.Tensor
            A scalar.
        """
        seen = self.seen(predictions, batch, stage)
        loss = self.objective(seen)
        if stage != sb.Stage.TRAIN:
            self.count_errors(seen, batch)
            return loss
        return self.with_penalty(loss)

    def seen(self, predictions, batch, stage) -> ExitPredictions:
        """What the objective sees of a batch.

        Arguments
        ---------
        predictions : tuple
            From ``compute_forward``.
        batch : PaddedBatch
            With ``tokens``.
        stage : Stage
            Of the experiment.

        Returns
        -------
        ExitPredictions
            With the step, in training.
        """
        log_probs, frames, teacher_log_probs = predictions
        return ExitPredictions(
            self.exit_layers,
            log_probs,
            frames,
            *self.targets(batch, stage),
            self.exits.blank_index,
            step=self.optimizer_step if stage == sb.Stage.TRAIN else None,
            teacher_log_probs=teacher_log_probs,
        )

    def count_errors(self, seen: ExitPredictions, batch) -> None:
        """Take down what each exit gets wrong in a batch.

        Arguments
        ---------
        seen : ExitPredictions
            Of the batch.
        batch : PaddedBatch
            With ``id`` and ``wrd``.
        """
        targets = [words.split() for words in batch.wrd]
        for k, stats in self.error_rates.items():
            output = ExitOutput(
                seen.log_probs[self.exit_layers.index(k)],
                seen.frames,
                exit_layer=k,
                blank_index=self.exits.blank_index,
            )
            hyps = self.decode(output.hypotheses)
            stats.append(batch.id, [h.split() for h in hyps], targets)

    def decode(self, hypotheses: Sequence[Sequence[int]]) -> list[str]:
        """Transcripts of label sequences.

        Arguments
        ---------
        hypotheses : sequence of sequence of int
            Without blanks.

        Returns
        -------
        list of str
            Words, separated by spaces.
        """
        return decode_labels(self.tokenizer.sp, hypotheses)

    def on_stage_start(self, stage, epoch=None):
        """Fresh error counts."""
        if stage != sb.Stage.TRAIN:
            self.error_rates = {
                k: self.error_rate_computer() for k in self.exit_layers
            }

    def figures(self, loss):
        """Error rates of every exit."""
        rates = {
            f"WER_exit{k}": stats.summarize("error_rate")
            for k, stats in self.error_rates.items()
        }
        return {**rates, "WER_mean": sum(rates.values()) / len(rates)}

    def check_lengths(
        self, dataset: DynamicItemDataset, targets: bool = False
    ) -> None:
        """Raise, before hours are spent, if an utterance is too short.

        Arguments
        ---------
        dataset : DynamicItemDataset
            With the items ``id``, ``duration`` (s) and ``tokens``.
        targets : bool
            Whether it must be long enough for its target too, as in training.
            This holds at its own tempo; where augmentation makes it too short
            after all, it has no loss.

        Raises
        ------
        ValueError
            Naming the utterances and what can be done.
        """
        with dataset.output_keys_as(["id", "duration", "tokens"]):
            items = list(dataset)
        samples = samples_of(
            (item["duration"] for item in items), self.hparams.sample_rate
        )
        frames = self.encoder.frames_of(samples).tolist()
        short, long = [], []
        for item, given in zip(items, frames, strict=True):
            count = torch.tensor([len(item["tokens"])])
            needed = int(frames_needed(item["tokens"][None], count))
            if given < self.encoder.least_frames:
                short.append(f"{item['id']} ({given} frames)")
            elif targets and needed > given:
                long.append(f"{item['id']} ({given} frames, {needed} needed)")
        if short:
            raise ValueError(
                f"{len(short)} utterances are too short for the encoder, which "
                f"needs {self.encoder.least_frames} frames: "
                f"{', '.join(short[:5])}. Leave them out when the data is "
                "prepared (min_duration)."
            )
        if long:
            raise ValueError(
                f"{len(long)} targets are longer than CTC can spell in the "
                f"frames of their utterances: {', '.join(long[:5])}. Leave "
                "these out when the data is prepared, sub-sample less, or use "
                "a larger vocabulary of sub-word units."
            )

    def evaluate_exits(
        self,
        dataset: DynamicItemDataset,
        name: str,
        folder: str | Path,
        scores: Sequence = (),
        selectors: Mapping[str, ExitSelector] | None = None,
        loader_kwargs: Mapping | None = None,
        groups: Mapping[str, str] = MappingProxyType({"speaker": "spk_id"}),
        gates: Mapping[str, LayerGate] | None = None,
        target_layers: Sequence[float] = (),
    ) -> Traces:
        """Read every exit of every utterance, then leave early for real.

        Writes ``wer_<name>_exit<layer>.txt``, ``traces_<name>.csv``,
        ``curve_<name>.csv`` (replayed from the traces) and ``loop_<name>.csv``
        (measured) into the folder, with the best checkpoints on dev. Where
        there are gates, ``gates_<name>.csv`` has what each of them does at the
        last exit, and the curve has it too.

        Arguments
        ---------
        dataset : DynamicItemDataset
            With ``id``, ``sig``, ``wrd``, ``duration`` and those of ``groups``.
        name : str
            Of the set.
        folder : str or Path
            Where the files go.
        scores : sequence
            What ``get_score`` takes; each is traced at every exit.
        selectors : mapping, optional
            Name to ExitSelector; each runs the loop, after full depth.
        loader_kwargs : mapping, optional
            For the data loader.
        groups : mapping
            Grouping columns of the traces, by the item that holds them.
        gates : mapping, optional
            As for ``gates_of``.
        target_layers : sequence of float
            How many layers gates are asked for that serve any number.

        Returns
        -------
        Traces
            What every exit said.
        """
        self.on_evaluate_start(min_key=self.select_by)
        self.modules.eval()
        loader = self.make_loader(dataset, sb.Stage.TEST, loader_kwargs)
        costs = ExitCosts(self.encoder, self.exits)
        groups = self._present(groups, dataset)
        keys = ["id", "wrd", "duration", *groups.values()]
        with dataset.output_keys_as(keys):
            items = {item["id"]: item for item in dataset}
        recorder = TraceRecorder(
            self.exit_layers,
            [get_score(score) for score in scores],
            self.decode,
            {i: item["wrd"] for i, item in items.items()},
            {
                column: {i: item[key] for i, item in items.items()}
                for column, key in groups.items()
            },
            self.error_rate_computer,
        )
        timer = ExitTimer()
        full = NeverLeave()
        plain = EarlyExitLoop(self.encoder, self.exits, full, costs)
        watched = EarlyExitLoop(
            self.encoder, self.exits, full, costs, watched=recorder.scores
        )
        self._warm_up(plain, loader)
        self._run_loop(f"{name}: time", plain, loader, timer)
        self._run_loop(f"{name}: traces", watched, loader, recorder)
        recorder.take_seconds(timer)
        traces = Traces.from_frame(recorder.table(), source=f"traces of {name}")
        if if_main_process():
            recorder.write(folder, name)
        for layer, stats in recorder.error_rates.items():
            figures = {"WER": stats.summarize("error_rate")}
            self.log({"set": name, "exit": layer}, test_stats=figures)

        rows = []
        selectors = {"full_depth": NeverLeave(), **(selectors or {})}
        for label, selector in selectors.items():
            loop = EarlyExitLoop(self.encoder, self.exits, selector, costs)
            batches, ids = self._run_loop(label, loop, loader)
            hyps = self.decode([h for one in batches for h in one.hypotheses])
            stats = self.error_rate_computer()
            stats.append(
                ids,
                [hyp.split() for hyp in hyps],
                [items[i]["wrd"].split() for i in ids],
            )
            rows.append(
                loop_row(
                    label,
                    loop.selector,
                    batches,
                    [one["num_edits"] for one in stats.scores],
                    [one["num_ref_tokens"] for one in stats.scores],
                    ids,
                    traces,
                    sum(float(items[i]["duration"]) for i in ids),
                )
            )
            figures = {
                "WER": rows[-1]["error_rate"],
                "mean exit": rows[-1]["mean_exit_layer"],
                "seconds": rows[-1]["seconds"],
            }
            self.log({"set": name, "selector": label}, test_stats=figures)
        curve = sweep(traces)
        gated = self._run_gates(loader, items, groups, gates, target_layers)
        if len(gated):
            curve = pd.concat([curve, gate_curve(gated)[curve.columns]])
        if if_main_process():
            folder = Path(folder)
            with replacing(folder / f"loop_{name}.csv") as file:
                pd.DataFrame(rows).to_csv(file, index=False)
            with replacing(folder / f"curve_{name}.csv") as file:
                curve.to_csv(file, index=False, float_format="%.9g")
            if len(gated):
                with replacing(folder / f"gates_{name}.csv") as file:
                    gated.to_csv(file, index=False, encoding="utf-8")
        return traces

    @torch.no_grad()
    def error_rate(self, dataset, loader_kwargs=None):
        """Of the CTC head of the last exit, by what is most probable."""
        self.modules.eval()
        stats, last = self.error_rate_computer(), self.exit_layers[-1]
        loader = self.make_loader(dataset, sb.Stage.TEST, loader_kwargs)
        for seen, batch in enumerate(loader):
            if self.debug and seen == self.debug_batches:
                break
            batch = batch.to(self.device)
            with self.evaluation_ctx:
                (hidden,), frames = self.encoder(
                    *batch.sig, layers=[last], normed=self.exits.normed_layers
                )
                output = CTCHeads.read(self.exits, hidden, frames, last)
            hyps = self.decode(output.hypotheses)
            stats.append(
                batch.id,
                [hyp.split() for hyp in hyps],
                [words.split() for words in batch.wrd],
            )
        return stats.summarize("error_rate")

    def _run_gates(
        self, loader, items, groups, gates, target_layers
    ) -> pd.DataFrame:
        """A row for each gate, target and utterance."""
        tables = []
        for label, gate in self.each_target(gates, target_layers):
            last = self.exit_layers[-1:]
            loop = EarlyExitLoop(
                self.encoder, self.exits, "never", exit_layers=last
            )
            told = f"{label} {gate.target_layers or ''}"
            batches, ids = self._run_loop(told, loop, loader)
            rows = self._gate_rows(batches, ids, items, groups)
            tables.append(gate_table(label, gate, rows))
        return (
            pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()
        )

    def _gate_rows(self, batches, ids, items, groups):
        hyps = self.decode([h for one in batches for h in one.hypotheses])
        refs = [items[i]["wrd"] for i in ids]
        stats = self.error_rate_computer()
        stats.append(
            ids, [hyp.split() for hyp in hyps], [ref.split() for ref in refs]
        )

        def all_of(name):
            """A figure of every utterance."""
            return torch.cat([getattr(one, name) for one in batches]).tolist()

        return {
            "id": ids,
            "exit_layer": all_of("exit_layer"),
            "layers_run": all_of("layers_run"),
            "layers": [row for one in batches for row in one.layers],
            "hyp": hyps,
            "ref": refs,
            "errors": [one["num_edits"] for one in stats.scores],
            "ref_len": [one["num_ref_tokens"] for one in stats.scores],
            "frames": all_of("frames"),
            "macs": all_of("macs"),
            "seconds": all_of("seconds"),
            **{c: [items[i][key] for i in ids] for c, key in groups.items()},
        }

    def check_strategies(
        self,
        scores: Sequence,
        selectors: Mapping,
        gates: Mapping[str, LayerGate] | None = None,
        target_layers: Sequence[float] = (),
    ) -> None:
        """Raise, before hours are spent, if the evaluation could not run.

        Arguments
        ---------
        scores : sequence
            As for ``evaluate_exits``.
        selectors : mapping
            As for ``evaluate_exits``.
        gates : mapping, optional
            As for ``evaluate_exits``.
        target_layers : sequence of float
            As for ``evaluate_exits``.

        Raises
        ------
        ValueError
            Naming the score, selector or gate, with the reason.
        """
        self.check_gates(gates, target_layers)
        scores = [get_score(x) for x in scores]
        TraceRecorder(self.exit_layers, scores, self.decode, {})
        for label, selector in selectors.items():
            try:
                check_selector(selector, self.exit_layers, scores)
            except ValueError as error:
                raise ValueError(f"selectors: {label}: {error}") from error
            scores.extend(get_selector(selector).scores)
        for score in scores:
            if score.searches and not self.exits.has_decoder:
                raise ValueError(
                    f"score {score.name} reads an attention decoder, and these "
                    "exits have CTC heads only."
                )

    def _prepare_teacher(self) -> None:
        """Move it beside the student, or raise if it cannot teach it."""
        if self.teacher is None:
            if getattr(self.objective, "needs_teacher", False):
                raise ValueError(
                    "objective: it learns from a frozen model. Give the folder "
                    "of a finished run: --teacher results/…"
                )
            return
        if not getattr(self.objective, "needs_teacher", False):
            raise ValueError(
                "teacher: the objective does not listen to it. Take one that "
                "does, such as --objective teacher_posteriors, or none."
            )
        self._check_run(self.teacher)
        self.teacher.to(self.device)

    def _present(self, groups, dataset) -> dict[str, str]:
        """The grouping columns that a dataset has."""
        items = next(iter(dataset.data.values()), {})
        missing = [key for key in groups.values() if key not in items]
        if missing:
            logger.warning(
                "groups: the data has no column %s; traces go without.",
                ", ".join(missing),
            )
        return {c: key for c, key in groups.items() if key in items}

    def _warm_up(self, loop, loader) -> None:
        """Walk one batch, so that no selector pays for a cold start."""
        batch = next(iter(loader)).to(self.device)
        with self.evaluation_ctx:
            loop(*batch.sig, ids=batch.id)

    def _run_loop(self, label, loop, loader, on_exit=None):
        """How the utterances of a whole set left, and their names."""
        if self.device_type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        batches, ids = [], []
        for batch in tqdm(loader, desc=label, disable=self.noprogressbar):
            batch = batch.to(self.device)
            with self.evaluation_ctx:
                left = loop(*batch.sig, ids=batch.id, on_exit=on_exit)
            batches.append(left)
            ids.extend(batch.id)
            if self.debug and len(batches) == self.debug_batches:
                break
        return batches, ids


def freeze_unread(encoder, exit_layers: Sequence[int]) -> None:
    """Freeze layers that no exit reads, and say so.

    Arguments
    ---------
    encoder : LayerwiseEncoder
        Its layers behind the last exit never run.
    exit_layers : sequence of int
        Rising.

    Raises
    ------
    ValueError
        If an exit lies outside the encoder.
    """
    last = exit_layers[-1]
    if last > encoder.num_layers:
        raise ValueError(
            f"exit_layers: {list(exit_layers)} lie outside an encoder of "
            f"{encoder.num_layers} layers."
        )
    if last < encoder.num_layers:
        logger.warning(
            "The last exit stands at layer %d of %d: the layers behind it are "
            "neither trained nor run. End exit_layers with %d to use them.",
            last,
            encoder.num_layers,
            encoder.num_layers,
        )
        encoder.layers[last:].requires_grad_(False)
