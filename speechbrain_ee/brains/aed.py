"""A Brain that trains CTC heads and attention decoders behind one encoder.

Authors
 * SpeechBrain-EE contributors 2026
"""

from __future__ import annotations

from dataclasses import replace

from speechbrain.utils.Accuracy import AccuracyStats
from torch.nn.functional import pad

from speechbrain_ee.brains.ctc import EarlyExitCTC
from speechbrain_ee.objectives import ExitPredictions, with_end


class EarlyExitAED(EarlyExitCTC):
    """Training with both losses of every exit; evaluation by beam search.

    The loss of an exit is Eq. 4 of Wright et al. (arXiv 2309.09546). Each epoch
    is judged by the error rates of the CTC heads, which need no search; the
    accuracy of the decoders is logged beside them. The module ``exits`` is
    AttentionHeads; what finds transcripts in the evaluation is its ``search``.

    Arguments
    ---------
    *args : tuple
        Those of EarlyExitCTC.
    ctc_weight : float
        λ_CTC; the decoders' cross-entropy weighs the rest.
    label_smoothing : float
        Share of the decoders' targets that is spread over all labels.
    **kwargs
        Those of EarlyExitCTC.
    """

    def __init__(
        self,
        *args,
        ctc_weight: float = 0.3,
        label_smoothing: float = 0.0,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        if not 0 <= ctc_weight <= 1:
            raise ValueError(
                f"ctc_weight: {ctc_weight} must lie between 0 and 1."
            )
        self.ctc_weight = ctc_weight
        self.label_smoothing = label_smoothing
        marks = (self.tokenizer.sp.bos_id(), self.tokenizer.sp.eos_id())
        if marks != (self.exits.bos_index, self.exits.eos_index):
            raise ValueError(
                f"The tokenizer has begin and end of a sentence at {marks}, "
                f"the exits at {(self.exits.bos_index, self.exits.eos_index)}: "
                "say in tokenizer_opts where they are (bos_id, eos_id)."
            )
        lm = self.exits.search.lm
        if lm is not None:
            lm.check_labels(self.tokenizer.sp)

    def compute_forward(self, batch, stage):
        """Log-probabilities of the CTC heads and decoders of every exit.

        Arguments
        ---------
        batch : PaddedBatch
            With ``sig`` and ``tokens``.
        stage : Stage
            Waveforms are augmented in training.

        Returns
        -------
        log_probs : torch.Tensor
            Of CTC, of shape (exits, batch, time, vocabulary).
        frames : torch.Tensor
            Real frames of each utterance, int64 of shape (batch,).
        teacher_log_probs : torch.Tensor
            Shape (batch, time, vocabulary); None without a teacher.
        token_log_probs : torch.Tensor
            Of the decoders, given the targets, of shape (exits, batch,
            tokens + 1, vocabulary).
        """
        states, frames, teacher_log_probs = self.encode(batch, stage)
        tokens, _ = self.targets(batch, stage)
        started = pad(tokens, (1, 0), value=self.exits.bos_index)
        log_probs, token_log_probs = self.modules.exits(states, frames, started)
        return log_probs, frames, teacher_log_probs, token_log_probs

    def seen(self, predictions, batch, stage):
        """See ``EarlyExitCTC.seen``."""
        *predictions, token_log_probs = predictions
        return replace(
            super().seen(predictions, batch, stage),
            token_log_probs=token_log_probs,
            eos_index=self.exits.eos_index,
            ctc_weight=self.ctc_weight,
            label_smoothing=self.label_smoothing,
        )

    def on_stage_start(self, stage, epoch=None):
        """Fresh counts of errors and hits."""
        super().on_stage_start(stage, epoch)
        self.accuracies = {k: AccuracyStats() for k in self.exit_layers}

    def count_errors(self, seen: ExitPredictions, batch) -> None:
        """See ``EarlyExitCTC.count_errors``."""
        super().count_errors(seen, batch)
        targets = with_end(seen.tokens, seen.token_counts, seen.eos_index)
        # A quarter less than the count with the end: whatever rounding does
        # to the product, it stays within the last label.
        lengths = (seen.token_counts + 0.75) / targets.shape[1]
        for stats, log_probs in zip(
            self.accuracies.values(), seen.token_log_probs, strict=True
        ):
            stats.append(log_probs, targets, lengths)

    def figures(self, loss):
        """Also the share of labels that each decoder gets right.

        The labels before are given.
        """
        accuracies = {
            f"ACC_exit{k}": stats.summarize()
            for k, stats in self.accuracies.items()
        }
        return {**super().figures(loss), **accuracies}
