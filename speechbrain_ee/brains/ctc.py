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
from speechbrain.utils.optimizers import rm_vector_weight_decay
from tqdm.auto import tqdm

from speechbrain_ee.analysis.loops import loop_row
from speechbrain_ee.analysis.recorder import ExitTimer, TraceRecorder
from speechbrain_ee.analysis.replay import sweep
from speechbrain_ee.analysis.traces import Traces
from speechbrain_ee.brains.base import RecipeBrain
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
from speechbrain_ee.heads import ExitOutput
from speechbrain_ee.objectives import (
    ExitLossSum,
    ExitPredictions,
    frames_needed,
)
from speechbrain_ee.runtime import EarlyExitLoop
from speechbrain_ee.tokenizer import decode_labels, labels_of

logger = get_logger(__name__)


class EarlyExitCTC(RecipeBrain):
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
    encoder_opt_class : callable, optional
        As ``opt_class``, for the encoder alone: it is then trained at a rate
        of its own, and ``opt_class`` trains the rest. Each of the two clips
        its own gradients.
    encoder_lr_annealing : callable, optional
        As ``lr_annealing``, for the encoder's optimiser.
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
        Those of ``RecipeBrain``.
    """

    averaged = ("encoder", "exits")

    def __init__(
        self,
        tokenizer,
        objective=None,
        teacher=None,
        encoder_opt_class=None,
        encoder_lr_annealing=None,
        ctc_source: str | None = None,
        wav_augment=None,
        error_rate_computer=ErrorRateStats,
        select_by: str = "WER_mean",
        **kwargs,
    ):
        super().__init__(select_by=select_by, **kwargs)
        self.tokenizer = tokenizer
        self.encoder_opt_class = encoder_opt_class
        self.encoder_lr_annealing = encoder_lr_annealing
        self.wav_augment = wav_augment
        self.error_rate_computer = error_rate_computer
        self.encoder = self.unwrapped["encoder"]
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
        if encoder_lr_annealing is not None and encoder_opt_class is None:
            raise ValueError(
                "encoder_lr_annealing: it sets the rate of the encoder's own "
                "optimiser; give encoder_opt_class too."
            )
        if ctc_source is not None:
            self._start_from(ctc_source)
        freeze_unread(self.encoder, self.exit_layers)
        self._prepare_teacher()

    def _start_from(self, source):
        """Weights of a plain CTC model, its labels in our order."""
        # Here, as only Hugging Face encoders need transformers.
        from speechbrain_ee.heads.pretrained import start_from_ctc

        labels = labels_of(self.tokenizer.sp)
        start_from_ctc(self.encoder, self.exits, source, labels)

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
        """Weighted sum of the exit losses; outside training, errors too.

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
        if stage != sb.Stage.TRAIN:
            self.count_errors(seen, batch)
        return self.objective(seen)

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

    def init_optimizers(self):
        """One optimiser, or one for the encoder and one for the rest."""
        if self.encoder_opt_class is None:
            super().init_optimizers()
            return
        encoder, rest = self.encoder, torch.nn.ModuleDict(self.modules)
        del rest["encoder"]
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
    ) -> Traces:
        """Read every exit of every utterance, then leave early for real.

        Writes ``wer_<name>_exit<layer>.txt``, ``traces_<name>.csv``,
        ``curve_<name>.csv`` (replayed from the traces) and ``loop_<name>.csv``
        (measured) into the folder, with the best checkpoints on dev.

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

        Returns
        -------
        Traces
            What every exit said.
        """
        self.on_evaluate_start(min_key=self.select_by)
        self.modules.eval()
        loader = self.make_dataloader(
            dataset,
            sb.Stage.TEST,
            **{**(loader_kwargs or {}), "ckpt_prefix": None},
        )
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
            with replacing(Path(folder) / f"curve_{name}.csv") as file:
                sweep(traces).to_csv(file, index=False, float_format="%.9g")
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
        if if_main_process():
            with replacing(Path(folder) / f"loop_{name}.csv") as file:
                pd.DataFrame(rows).to_csv(file, index=False)
        return traces

    def check_strategies(self, scores: Sequence, selectors: Mapping) -> None:
        """Raise, before hours are spent, if the evaluation could not run.

        Arguments
        ---------
        scores : sequence
            As for ``evaluate_exits``.
        selectors : mapping
            As for ``evaluate_exits``.

        Raises
        ------
        ValueError
            Naming the score or selector, with the reason.
        """
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
        self.teacher.check_student(
            self.encoder,
            self.exits,
            self.tokenizer.sp,
            self.hparams.sample_rate,
        )
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
