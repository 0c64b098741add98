"""Beam search for the transcript that an attention decoder finds best.

Authors
 * SpeechBrain-EE contributors 2026
"""

from __future__ import annotations

import torch
from speechbrain.decoders.scorer import (
    CTCScorer,
    ScorerBuilder,
    TransformerLMScorer,
)
from speechbrain.decoders.seq2seq import S2STransformerBeamSearcher


class BeamSearch:
    """SpeechBrain's beam search, with a language model and CTC if wanted.

    Wright et al. (arXiv 2309.09546) search with the decoder and a Transformer
    language model, without CTC.

    Arguments
    ---------
    beam_size : int
        Hypotheses kept at each step, and length of the N-best list. 1 is a
        greedy search.
    max_decode_ratio : float
        The most labels per encoder frame.
    temperature : float
        Of the decoder's softmax.
    length_normalization : bool
        Whether hypotheses are compared by their score per label.
    lm : torch.nn.Module, optional
        As ``speechbrain.lobes.models.transformer.TransformerLM.TransformerLM``,
        over the same labels.
    lm_weight : float
        Of its log-probabilities.
    lm_temperature : float
        Of its softmax.
    ctc_weight : float
        Of the exit's CTC head, whose prefix scores join the decoder's
        log-probabilities, which then weigh one less that; below 1.

    Example
    -------
    >>> BeamSearch(beam_size=4, ctc_weight=0.3).beam_size
    4
    """

    def __init__(
        self,
        beam_size: int = 10,
        max_decode_ratio: float = 1.0,
        temperature: float = 1.0,
        length_normalization: bool = True,
        lm: torch.nn.Module | None = None,
        lm_weight: float = 0.6,
        lm_temperature: float = 1.0,
        ctc_weight: float = 0.0,
    ):
        if beam_size < 1:
            raise ValueError(f"beam_size: {beam_size} must be at least 1.")
        if max_decode_ratio <= 0:
            raise ValueError(
                f"max_decode_ratio: {max_decode_ratio} must be positive."
            )
        if not 0 <= ctc_weight < 1:
            raise ValueError(
                f"ctc_weight: {ctc_weight} of the search must be from 0 to "
                "below 1: CTC alone is what CTCHeads reads."
            )
        self.beam_size = beam_size
        self.max_decode_ratio = max_decode_ratio
        self.temperature = temperature
        self.length_normalization = length_normalization
        self.lm = lm
        self.lm_weight = lm_weight
        self.lm_temperature = lm_temperature
        self.ctc_weight = ctc_weight

    @torch.no_grad()
    def __call__(
        self,
        decoder: torch.nn.Module,
        ctc_lin: torch.nn.Module,
        states: torch.Tensor,
        frames: torch.Tensor,
        blank_index: int,
        bos_index: int,
        eos_index: int,
    ) -> list[list[tuple[tuple[int, ...], float]]]:
        """The best transcripts of each utterance.

        Arguments
        ---------
        decoder : AttentionDecoder
            Of the exit.
        ctc_lin : torch.nn.Module
            The CTC layer of the exit, read if ``ctc_weight`` says so.
        states : torch.Tensor
            Normed encoder states of shape (batch, time, channel).
        frames : torch.Tensor
            Real frames of each utterance, int64 of shape (batch,), on the CPU.
        blank_index : int
            Index of the CTC blank.
        bos_index : int
            Index of the sentence's begin.
        eos_index : int
            Index of its end.

        Returns
        -------
        list of list of tuple
            For each utterance up to ``beam_size`` transcripts, best first, each
            as (labels, sum of the decoder's log-probabilities in nats, the
            sentence's end included).
        """
        lengths = frames / states.shape[1]
        searcher = _Searcher(
            modules=[decoder, decoder.seq_lin],
            bos_index=bos_index,
            eos_index=eos_index,
            min_decode_ratio=0.0,
            max_decode_ratio=self.max_decode_ratio,
            beam_size=self.beam_size,
            scorer=self._scorer(ctc_lin, blank_index, eos_index),
            return_topk=True,
            topk=self.beam_size,
            using_eos_threshold=False,
            length_normalization=self.length_normalization,
            temperature=self.temperature,
        )
        searcher.most_steps = [
            max(1, int(count * self.max_decode_ratio))
            for count in frames.tolist()
        ]
        labels, _, _, log_probs = searcher(states, lengths.to(states.device))
        log_probs = log_probs.sum(dim=-1) / searcher.attn_weight
        return [
            _distinct(*one, blank_index, eos_index)
            for one in zip(labels.tolist(), log_probs.tolist(), strict=True)
        ]

    def _scorer(self, ctc_lin, blank_index, eos_index):
        """What else is asked about each label; None if nothing is."""
        full, partial, weights = [], [], {}
        if self.lm is not None and self.lm_weight > 0:
            full.append(TransformerLMScorer(self.lm, self.lm_temperature))
            weights["transformerlm"] = self.lm_weight
        if self.ctc_weight > 0:
            partial.append(CTCScorer(ctc_lin, blank_index, eos_index))
            weights["ctc"] = self.ctc_weight
        if not weights:
            return None
        return ScorerBuilder(weights, full, partial)


class _Searcher(S2STransformerBeamSearcher):
    """SpeechBrain's, ending each utterance where it would end alone.

    There, the longest utterance of the batch says how many labels all of them
    may have.
    """

    most_steps: list[int]  # of each utterance

    def change_max_decoding_length(self, min_decode_steps, max_decode_steps):
        """At least one step, also for an utterance of one frame."""
        return min_decode_steps, max(1, max_decode_steps)

    def search_step(self, *args):
        """One label more; then those are closed that may have no more."""
        found = super().search_step(*args)
        step, finished, scores = args[-1], found[3], found[-1]
        over = [most <= step + 1 for most in self.most_steps]
        over = torch.tensor(over, device=self.device)
        closing = torch.where(over, self.eos_index, -1)
        closing = closing.repeat_interleave(self.beam_size)
        self._update_hyps_and_scores_if_eos_token(
            closing, found[0], finished, scores
        )
        return found


def _distinct(rows, log_probs, blank_index, eos_index):
    """Transcripts without marks and padding; equal ones once."""
    best = {}
    for labels, log_prob in zip(rows, log_probs, strict=True):
        if eos_index in labels:
            labels = labels[: labels.index(eos_index)]
        # Padding is 0, as SpeechBrain's blank.
        spoken = tuple(k for k in labels if k not in (0, blank_index))
        best.setdefault(spoken, log_prob)
    return list(best.items())
