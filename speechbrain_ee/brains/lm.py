"""A Brain that trains a language model.

Authors
 * SpeechBrain-EE contributors 2026
"""

from __future__ import annotations

import math

from torch.nn.functional import cross_entropy, pad

from speechbrain_ee.brains.base import RecipeBrain
from speechbrain_ee.objectives import with_end


class LanguageModelBrain(RecipeBrain):
    """Training with the mean cross-entropy of labels and sentences' ends.

    Batches have ``tokens``; the module is ``lm_model``, a TransformerLM.

    Arguments
    ---------
    bos_index : int
        Index of a sentence's begin.
    eos_index : int
        Index of its end.
    **kwargs
        Those of ``RecipeBrain``.
    """

    def __init__(self, bos_index: int = 1, eos_index: int = 2, **kwargs):
        super().__init__(**kwargs)
        self.bos_index = bos_index
        self.eos_index = eos_index

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

    def figures(self, loss):
        """Perplexity per label."""
        return {"perplexity": math.exp(loss)}
