"""Attention heads: at each exit a CTC layer and a Transformer decoder.

Authors
 * SpeechBrain-EE contributors 2026
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from speechbrain.lobes.models.transformer.Transformer import (
    NormalizedEmbedding,
    PositionalEncoding,
    TransformerDecoder,
    get_lookahead_mask,
)
from speechbrain.nnet.containers import ModuleList
from speechbrain.nnet.linear import Linear

from speechbrain_ee.encoders.base import is_padded, padding_mask
from speechbrain_ee.heads.ctc import CTCHeads, check_same_keys, part
from speechbrain_ee.heads.output import AttentionOutput
from speechbrain_ee.heads.search import BeamSearch


class AttentionDecoder(torch.nn.Module):
    """The decoder of SpeechBrain's TransformerASR with its output layer.

    Its parts bear the names that they have there and in SpeechBrain's recipes,
    and start as they do there.

    Arguments
    ---------
    vocab_size : int
        Labels, begin and end of the sentence included.
    d_model : int
        Channels, those of the encoder.
    nhead : int
        Attention heads.
    num_layers : int
        Layers.
    d_ffn : int
        Channels inside the feed-forward blocks.
    dropout : float
        Everywhere.
    activation : type
        Of the feed-forward blocks.
    normalize_before : bool
        Whether norms stand before the blocks.
    max_length : int
        The most labels.

    Example
    -------
    >>> decoder = AttentionDecoder(10, 8, nhead=2, num_layers=1, d_ffn=16)
    >>> states, frames = torch.randn(2, 7, 8), torch.tensor([7, 4])
    >>> tokens = torch.tensor([[1, 5, 6], [1, 7, 0]])
    >>> decoder(tokens, states, frames).shape
    torch.Size([2, 3, 10])
    """

    def __init__(
        self,
        vocab_size: int,
        d_model: int,
        nhead: int = 4,
        num_layers: int = 4,
        d_ffn: int = 1024,
        dropout: float = 0.1,
        activation: type = torch.nn.GELU,
        normalize_before: bool = True,
        max_length: int = 2500,
    ):
        super().__init__()
        self.custom_tgt_module = ModuleList(
            NormalizedEmbedding(d_model, vocab_size)
        )
        self.positional_encoding = PositionalEncoding(d_model, max_length)
        self.decoder = TransformerDecoder(
            num_layers=num_layers,
            nhead=nhead,
            d_ffn=d_ffn,
            d_model=d_model,
            dropout=dropout,
            activation=activation,
            normalize_before=normalize_before,
            causal=True,
        )
        for parameter in self.parameters():
            if parameter.dim() > 1:
                torch.nn.init.xavier_normal_(parameter)
        self.seq_lin = Linear(input_size=d_model, n_neurons=vocab_size)

    def forward(
        self, tokens: torch.Tensor, states: torch.Tensor, frames: torch.Tensor
    ) -> torch.Tensor:
        """What follows each label of known transcripts.

        Arguments
        ---------
        tokens : torch.Tensor
            Labels behind a sentence's begin, of shape (batch, tokens). What
            follows the real ones is seen by none of them.
        states : torch.Tensor
            Normed encoder states of shape (batch, time, channel).
        frames : torch.Tensor
            Real frames of each utterance, int64 of shape (batch,), on the CPU.

        Returns
        -------
        torch.Tensor
            Log-probabilities of shape (batch, tokens, vocabulary), float32.
        """
        padding = None
        if is_padded(states, frames):
            padding = padding_mask(states, frames)
        decoded, _ = self._decode(tokens, states, padding)
        return self.seq_lin(decoded).float().log_softmax(dim=-1)

    def decode(
        self, tgt: torch.Tensor, encoder_out: torch.Tensor, enc_len=None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As that of TransformerASR, for SpeechBrain's searchers.

        Arguments
        ---------
        tgt : torch.Tensor
            Labels so far, of shape (batch, tokens).
        encoder_out : torch.Tensor
            Normed encoder states of shape (batch, time, channel).
        enc_len : torch.Tensor, optional
            Real frames of each utterance, of shape (batch,).

        Returns
        -------
        decoded : torch.Tensor
            Shape (batch, tokens, channel), before the output layer.
        attention : torch.Tensor
            Of the last layer, of shape (batch, tokens, time).
        """
        padding = None
        if enc_len is not None:
            padding = padding_mask(encoder_out, enc_len)
        return self._decode(tgt, encoder_out, padding)

    def _decode(self, tokens, states, padding):
        # No mask for padded labels: they come last, where nobody looks.
        embedded = self.custom_tgt_module(tokens)
        embedded = embedded + self.positional_encoding(embedded)
        decoded, _, attention = self.decoder(
            embedded,
            states,
            tgt_mask=get_lookahead_mask(tokens),
            memory_key_padding_mask=padding,
        )
        return decoded, attention[-1]


class AttentionHeads(CTCHeads):
    """CTC layers and Transformer decoders behind chosen encoder layers.

    The Conformer-AED of Wright et al. (arXiv 2309.09546), where all exits share
    both (``tied`` and ``tied_decoder``). CTC and decoder share the vocabulary.

    Arguments
    ---------
    exit_layers : sequence of int
        The layers read out, rising (k = after layer k).
    input_size : int
        Channels of the encoder.
    vocab_size : int
        Labels including blank, begin and end.
    decoder : callable
        From ``vocab_size`` and ``d_model`` to an AttentionDecoder, as
        ``!name:speechbrain_ee.heads.AttentionDecoder``; called once, or once
        per exit.
    search : callable, optional
        Finds transcripts, as :class:`BeamSearch`, which is the default.
    blank_index : int
        Index of the blank.
    bos_index : int
        Index of the sentence's begin.
    eos_index : int
        Index of its end.
    tied : bool
        Whether all exits share one CTC layer.
    tied_decoder : bool
        Whether they share one decoder with its output layer.
    exit_norm : str
        As for CTCHeads; decoders read what the CTC layers read.
    final_norm : bool
        As for CTCHeads.

    Example
    -------
    >>> from functools import partial
    >>> decoder = partial(AttentionDecoder, nhead=2, num_layers=1, d_ffn=16)
    >>> heads = AttentionHeads([2, 4], 8, vocab_size=5, decoder=decoder).eval()
    >>> states = [torch.randn(3, 7, 8), torch.randn(3, 7, 8)]
    >>> frames, tokens = torch.tensor([7, 7, 4]), torch.tensor([[1, 3]] * 3)
    >>> ctc, attention = heads(states, frames, tokens)
    >>> ctc.shape, attention.shape
    (torch.Size([2, 3, 7, 5]), torch.Size([2, 3, 2, 5]))
    >>> output = heads.read(states[0], frames, exit_layer=2)
    >>> len(output.hypotheses)  # searched only when asked for
    3
    """

    has_decoder = True

    def __init__(
        self,
        exit_layers: Sequence[int],
        input_size: int,
        vocab_size: int,
        decoder: Callable[..., AttentionDecoder],
        search: Callable | None = None,
        blank_index: int = 0,
        bos_index: int = 1,
        eos_index: int = 2,
        tied: bool = False,
        tied_decoder: bool = True,
        exit_norm: str = "shared",
        final_norm: bool = True,
    ):
        super().__init__(
            exit_layers,
            input_size,
            vocab_size,
            blank_index=blank_index,
            tied=tied,
            exit_norm=exit_norm,
            final_norm=final_norm,
        )
        marks = {
            "blank_index": blank_index,
            "bos_index": bos_index,
            "eos_index": eos_index,
        }
        if len(set(marks.values())) < 3 or not all(
            0 <= index < vocab_size for index in marks.values()
        ):
            raise ValueError(
                f"{marks}: these must differ, and lie inside a vocabulary of "
                f"{vocab_size}."
            )
        self.bos_index = bos_index
        self.eos_index = eos_index
        self.search = search or BeamSearch()
        keys = ["tied"] if tied_decoder else [str(k) for k in self.exit_layers]
        self.decoder = torch.nn.ModuleDict(
            {
                key: decoder(vocab_size=vocab_size, d_model=input_size)
                for key in keys
            }
        )
        self.register_load_state_dict_pre_hook(_check_same_decoders)

    @property
    def per_exit(self) -> list[torch.nn.ModuleDict]:
        """See ``CTCHeads.per_exit``."""
        return [*super().per_exit, self.decoder]

    def forward(
        self,
        states: Sequence[torch.Tensor],
        frames: torch.Tensor,
        tokens: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """All exits at once, for training.

        Arguments
        ---------
        states : sequence of torch.Tensor
            One state of shape (batch, time, channel) per exit.
        frames : torch.Tensor
            Real frames of each utterance, int64 of shape (batch,), on the CPU.
        tokens : torch.Tensor
            Targets behind a sentence's begin, int64 of shape (batch, tokens).

        Returns
        -------
        ctc : torch.Tensor
            Log-probabilities of shape (exits, batch, time, vocabulary),
            float32.
        attention : torch.Tensor
            Log-probabilities of the label that follows each of ``tokens``, of
            shape (exits, batch, tokens, vocabulary), float32.
        """
        states = [
            self.normed(hidden, k)
            for k, hidden in zip(self.exit_layers, states, strict=True)
        ]
        ctc = torch.stack(
            [
                part(self.linear, k)(hidden)
                for k, hidden in zip(self.exit_layers, states)
            ]
        )
        if "tied" in self.decoder:
            exits = len(states)
            attention = self.decoder["tied"](
                tokens.repeat(exits, 1), torch.cat(states), frames.repeat(exits)
            ).unflatten(0, (exits, -1))
        else:
            attention = torch.stack(
                [
                    self.decoder[str(k)](tokens, hidden, frames)
                    for k, hidden in zip(self.exit_layers, states)
                ]
            )
        return ctc.float().log_softmax(dim=-1), attention

    def read(
        self, hidden: torch.Tensor, frames: torch.Tensor, exit_layer: int
    ) -> AttentionOutput:
        """See ``CTCHeads.read``; transcripts are searched when asked for."""
        states = self.normed(hidden, exit_layer)
        logits = part(self.linear, exit_layer)(states)
        return AttentionOutput(
            logits.float().log_softmax(dim=-1),
            frames,
            exit_layer=exit_layer,
            blank_index=self.blank_index,
            states=states,
            heads=self,
        )

    def find(
        self, states: torch.Tensor, frames: torch.Tensor, exit_layer: int
    ) -> list[list[tuple[tuple[int, ...], float]]]:
        """The best transcripts of an exit; see :class:`BeamSearch`.

        Arguments
        ---------
        states : torch.Tensor
            What the exit's layers read, of shape (batch, time, channel).
        frames : torch.Tensor
            Real frames of each utterance, int64 of shape (batch,), on the CPU.
        exit_layer : int
            Which exit.

        Returns
        -------
        list of list of tuple
            For each utterance (labels, log-probability), best first.
        """
        return self.search(
            part(self.decoder, exit_layer),
            part(self.linear, exit_layer),
            states,
            frames,
            blank_index=self.blank_index,
            bos_index=self.bos_index,
            eos_index=self.eos_index,
        )

    def spell(
        self,
        states: torch.Tensor,
        frames: torch.Tensor,
        exit_layer: int,
        hypotheses: Sequence[Sequence[int]],
    ) -> torch.Tensor:
        """What the decoder says along given transcripts.

        Arguments
        ---------
        states : torch.Tensor
            As for ``find``.
        frames : torch.Tensor
            As for ``find``.
        exit_layer : int
            Which exit.
        hypotheses : sequence of sequence of int
            A transcript per utterance.

        Returns
        -------
        torch.Tensor
            Log-probabilities of shape (batch, labels + 1, vocabulary), float32:
            of each label, and behind the last.
        """
        rows = [
            torch.tensor([self.bos_index, *one], device=states.device)
            for one in hypotheses
        ]
        tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        return part(self.decoder, exit_layer)(tokens, states, frames)


def _check_same_decoders(heads, state_dict, prefix, *_):
    """Say which decoders differ, before torch lists missing keys."""
    check_same_keys(
        heads.decoder, state_dict, f"{prefix}decoder.", "tied_decoder"
    )
