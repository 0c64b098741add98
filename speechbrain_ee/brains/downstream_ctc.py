"""A Brain that trains a CTC recogniser behind a frozen upstream.

Authors
 * SpeechBrain-EE contributors 2026
"""

from __future__ import annotations

import torch
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.utils.edit_distance import wer_details_for_batch
from speechbrain.utils.logger import get_logger

from speechbrain_ee.analysis.languages import language_results
from speechbrain_ee.brains.downstream import DownstreamBrain
from speechbrain_ee.downstreams.labels import (
    is_token,
    join_labels,
    split_labels,
)
from speechbrain_ee.encoders.base import samples_of
from speechbrain_ee.heads import ExitOutput
from speechbrain_ee.objectives import ctc_exit_losses, frames_needed

logger = get_logger(__name__)


class DownstreamCTC(DownstreamBrain):
    """Recognition of characters, phones and the language, by greedy CTC.

    Batches have ``id``, ``sig``, ``tokens``, ``wrd`` and ``unit``; see
    ``speechbrain_ee.downstreams.labels``. The module ``downstream`` gives
    log-probabilities of shape (batch, time', labels) and numbers of frames.

    An utterance is judged by its characters or phones, or by its words; the
    token of its language is judged apart, and alone where the reference has
    nothing else.

    Arguments
    ---------
    label_encoder : CTCTextEncoder
        From ``make_label_encoder``.
    count_words : bool
        Whether errors are those of words, which characters spell.
    **kwargs
        Those of ``DownstreamBrain``.

    Raises
    ------
    ValueError
        If the downstream was made for another number of labels.
    """

    def __init__(self, label_encoder, count_words: bool = False, **kwargs):
        super().__init__(**kwargs)
        self.label_encoder = label_encoder
        self.count_words = count_words
        self.downstream = self.unwrapped["downstream"]
        if self.downstream.labels != len(label_encoder):
            raise ValueError(
                f"The downstream is made for {self.downstream.labels} labels, "
                f"the data has {len(label_encoder)}."
            )

    def loss(self, predictions, batch):
        """Mean CTC loss of the utterances, in nats.

        Arguments
        ---------
        predictions : tuple
            Log-probabilities and frames.
        batch : PaddedBatch
            With ``tokens``.

        Returns
        -------
        torch.Tensor
            A scalar.
        """
        log_probs, frames = predictions
        tokens, token_lens = batch.tokens
        counts = (token_lens * tokens.shape[1]).round().long()
        blank = self.label_encoder.get_blank_index()
        return ctc_exit_losses(
            log_probs[None], frames, tokens, counts, blank
        ).mean()

    def judge(self, predictions, batch):
        """Edits of each utterance, and whether its language was found.

        Arguments
        ---------
        predictions : tuple
            Log-probabilities and frames.
        batch : PaddedBatch
            With ``id``, ``wrd`` and ``unit``.

        Returns
        -------
        list of dict
            ``id``, ``hyp``, ``ref``, ``errors`` and ``ref_len``; where the
            reference names a language, ``hyp_language`` (the first token in
            brackets, or empty) and ``language_errors`` (0 or 1) too.
        """
        log_probs, frames = predictions
        output = ExitOutput(
            log_probs,
            frames,
            exit_layer=self.upstream.num_layers,
            blank_index=self.label_encoder.get_blank_index(),
        )
        return [
            self._judge_one(*row)
            for row in zip(
                *(batch.id, output.hypotheses, batch.wrd, batch.unit),
                strict=True,
            )
        ]

    def _judge_one(self, name, hypothesis, text, unit):
        hyp = self.label_encoder.decode_ndim(hypothesis)
        ref = split_labels(text, unit)
        spoken, said = (
            [label for label in labels if not is_token(label)]
            for labels in (hyp, ref)
        )
        row = {"id": name, "hyp": join_labels(hyp, unit), "ref": text}
        if self.count_words:
            said, spoken = (
                join_labels(labels, unit).split() for labels in (said, spoken)
            )
        if said:
            (found,) = wer_details_for_batch([name], [said], [spoken])
            row |= {"errors": found["num_edits"], "ref_len": len(said)}
        languages = [label for label in ref if is_token(label)]
        if languages:
            first = next(filter(is_token, hyp), "[]")
            wrong = int(first != languages[0])
            row |= {"hyp_language": first[1:-1], "language_errors": wrong}
            row = {"errors": wrong, "ref_len": 1} | row
        return row

    def results(self, traces):
        """Error rates with their intervals, over languages if these are known.

        Arguments
        ---------
        traces : pandas.DataFrame
            From ``evaluate_set``.

        Returns
        -------
        pandas.DataFrame
            As of ``DownstreamBrain``; where there are the columns ``language``,
            ``few_shot`` and ``unit``, as from
            ``speechbrain_ee.analysis.languages.language_results``.
        """
        if not {"language", "few_shot", "unit"} <= set(traces):
            return super().results(traces)
        return language_results(traces)

    def figures(self, loss):
        """Error rate of the set, and of its languages where they are named."""
        figures = super().figures(loss)
        wrong = [
            row["language_errors"]
            for row in self.judged
            if "language_errors" in row
        ]
        if wrong:
            figures["language_error_rate"] = 100 * sum(wrong) / len(wrong)
        return figures

    def check_lengths(self, dataset: DynamicItemDataset) -> None:
        """Raise, before hours are spent, if an utterance is too short or long.

        Arguments
        ---------
        dataset : DynamicItemDataset
            With the items ``id``, ``duration`` (s) and ``tokens``.

        Raises
        ------
        ValueError
            Naming the utterances and what can be done.
        """
        most = self.downstream.max_frames
        wrong = [
            f"{name} ({frames} frames)"
            for name, frames, _ in self._lengths(dataset)
            if not 1 <= frames <= most
        ]
        if wrong:
            raise ValueError(
                f"{len(wrong)} utterances are too short or too long for the "
                f"downstream, which takes 1 to {most} frames after "
                f"sub-sampling: {', '.join(wrong[:5])}. Leave them out when "
                "the data is prepared (min_duration, max_duration), or raise "
                "max_frames."
            )

    def spellable(self, dataset: DynamicItemDataset) -> DynamicItemDataset:
        """The utterances whose target CTC can spell in their frames.

        The others would have no loss. They are counted and named.

        Arguments
        ---------
        dataset : DynamicItemDataset
            To train on, with the items ``id``, ``duration`` (s) and
            ``tokens``.

        Returns
        -------
        FilteredSortedDynamicItemDataset
            In the same order.

        Raises
        ------
        ValueError
            If that is less than half of them.
        """
        lengths = self._lengths(dataset)
        long = {
            name: f"{name} ({frames} frames, {needed} needed)"
            for name, frames, needed in lengths
            if needed > frames
        }
        fault = (
            f"{len(long)} of {len(lengths)} targets are longer than CTC can "
            "spell in the frames of their utterances, such as "
            f"{', '.join(list(long.values())[:5])}"
        )
        if 2 * len(long) > len(lengths):
            raise ValueError(
                f"{fault}: this upstream has too few frames for these labels, "
                "or these are not the transcripts of this audio."
            )
        if long:
            logger.warning(f"{fault}: they are left out of training.")
        return dataset.filtered_sorted(
            key_test={"id": lambda name: name not in long}
        )

    def _lengths(self, dataset) -> list[tuple[str, int, int]]:
        """Id, frames after sub-sampling, and frames needed, of each."""
        with dataset.output_keys_as(["id", "duration", "tokens"]):
            items = list(dataset)
        samples = samples_of(item["duration"] for item in items)
        frames = self.downstream.frames_after(self.upstream.frames_of(samples))
        needed = [
            frames_needed(x["tokens"][None], torch.tensor([len(x["tokens"])]))
            for x in items
        ]
        return [
            (item["id"], given, int(least))
            for item, given, least in zip(
                items, frames.tolist(), needed, strict=True
            )
        ]
