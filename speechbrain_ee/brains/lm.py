"""A Brain that trains a language model.

Authors
 * SpeechBrain-EE contributors 2026
"""

from __future__ import annotations

import math

import speechbrain as sb
from speechbrain.utils.distributed import run_on_main
from torch.nn.functional import cross_entropy, pad

from speechbrain_ee.objectives import with_end


class LanguageModelBrain(sb.Brain):
    """Training with the mean cross-entropy of labels and sentences' ends.

    Batches have ``tokens``; the module is ``lm_model``, a TransformerLM.

    Arguments
    ---------
    bos_index : int
        Index of a sentence's begin.
    eos_index : int
        Index of its end.
    lr_annealing : callable, optional
        As ``speechbrain.nnet.schedulers.NoamScheduler``; called every update.
    train_logger : TrainLogger, optional
        As ``speechbrain.utils.train_logger.FileTrainLogger``.
    **kwargs
        Those of ``speechbrain.Brain``.
    """

    def __init__(
        self,
        bos_index: int = 1,
        eos_index: int = 2,
        lr_annealing=None,
        train_logger=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.bos_index = bos_index
        self.eos_index = eos_index
        self.lr_annealing = lr_annealing
        self.train_logger = train_logger
        self.model = self.modules.lm_model  # before DDP wraps it

    def compute_forward(self, batch, stage):
        """Logits of what follows each label, and behind a sentence's begin.

        Arguments
        ---------
        batch : PaddedBatch
            With ``tokens``.
        stage : Stage
            Of the experiment.

        Returns
        -------
        torch.Tensor
            Shape (batch, tokens + 1, vocabulary).
        """
        tokens, _ = batch.to(self.device).tokens
        return self.modules.lm_model(pad(tokens, (1, 0), value=self.bos_index))

    def compute_objectives(self, predictions, batch, stage):
        """Mean over labels and ends of −log p, in nats.

        Arguments
        ---------
        predictions : torch.Tensor
            From ``compute_forward``.
        batch : PaddedBatch
            With ``tokens``.
        stage : Stage
            Of the experiment.

        Returns
        -------
        torch.Tensor
            A scalar.
        """
        tokens, lengths = batch.tokens
        counts = (lengths * tokens.shape[1]).round().long()
        targets = with_end(tokens, counts, self.eos_index)
        return cross_entropy(predictions.float().transpose(1, 2), targets)

    def on_fit_batch_start(self, batch, should_step):
        """Set the learning rate, also that of the first step."""
        if should_step and self.lr_annealing is not None:
            self.lr_annealing(self.optimizer)

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Log loss and perplexity per label, and keep the best checkpoint."""
        if stage == sb.Stage.TRAIN:
            self.train_loss = stage_loss
            return
        stats = {"loss": stage_loss, "perplexity": math.exp(stage_loss)}
        if self.train_logger is not None:
            meta = {"epoch": epoch, "lr": self.optimizer.param_groups[0]["lr"]}
            run_on_main(
                self.train_logger.log_stats,
                [meta],
                {
                    "train_stats": {"loss": self.train_loss},
                    "valid_stats": stats,
                },
            )
        if self.checkpointer is not None:
            self.checkpointer.save_and_keep_only(meta=stats, min_keys=["loss"])
