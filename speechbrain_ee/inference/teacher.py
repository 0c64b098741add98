"""A finished run that teaches another one, or that another one starts from.

Authors
 * SpeechBrain-EE contributors 2026
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from speechbrain_ee.encoders import LayerwiseEncoder
from speechbrain_ee.heads import CTCHeads
from speechbrain_ee.inference.asr import EarlyExitASR
from speechbrain_ee.inference.export import set_statistics, statistics_of
from speechbrain_ee.tokenizer import first_difference, labels_of


class FrozenTeacher:
    """The last exit of a trained model, for students that learn from it.

    It is no part of the student: never trained, wrapped or saved with it.

    Arguments
    ---------
    modules : Mapping
        ``encoder`` and ``exits``, and what else must be on their device. They
        are frozen and put into evaluation mode.
    tokenizer : SentencePieceProcessor
        Of the model.
    sample_rate : int
        Of the model, in Hz.
    name : str
        What errors call it.
    key : str
        The setting that named it, for errors.

    Example
    -------
    >>> from speechbrain_ee.encoders.huggingface import HuggingFaceEncoder
    >>> small = {"num_hidden_layers": 2, "hidden_size": 48, "conv_dim": [8] * 7}
    >>> encoder = HuggingFaceEncoder("hubert", pretrained=False, config=small)
    >>> exits = CTCHeads([1, 2], input_size=48, vocab_size=8)
    >>> modules = {"encoder": encoder, "exits": exits}
    >>> teacher = FrozenTeacher(modules, tokenizer=None, sample_rate=16000)
    >>> teacher(torch.randn(2, 8000), torch.tensor([1.0, 0.5])).shape
    torch.Size([2, 24, 8])
    """

    def __init__(
        self,
        modules: Mapping[str, torch.nn.Module],
        tokenizer,
        sample_rate: int,
        name: str = "the model",
        key: str = "teacher",
    ):
        self.modules = dict(modules)
        self.encoder = self.modules["encoder"]
        self.exits = self.modules["exits"]
        self.tokenizer = tokenizer
        self.sample_rate = sample_rate
        self.name = name
        self.key = key
        for module in self.modules.values():
            module.eval().requires_grad_(False)

    def to(self, device: str | torch.device) -> FrozenTeacher:
        """Move it.

        Arguments
        ---------
        device : str or torch.device
            Where to.

        Returns
        -------
        FrozenTeacher
            Itself.
        """
        for module in self.modules.values():
            module.to(device)
        return self

    @torch.no_grad()
    def __call__(
        self, wavs: torch.Tensor, wav_lens: torch.Tensor | None = None
    ) -> torch.Tensor:
        """What it hears.

        Arguments
        ---------
        wavs : torch.Tensor
            Waveforms of shape (batch, samples).
        wav_lens : torch.Tensor, optional
            Lengths relative to the longest, of shape (batch,).

        Returns
        -------
        torch.Tensor
            Log-probabilities of shape (batch, time, vocabulary).
        """
        last = self.exits.exit_layers[-1]
        (hidden,), frames = self.encoder(
            wavs, wav_lens, layers=[last], normed=self.exits.normed_layers
        )
        return self.exits.read(hidden, frames, last).log_probs

    def check_student(
        self,
        encoder: LayerwiseEncoder,
        exits: CTCHeads,
        tokenizer,
        sample_rate: int,
    ) -> None:
        """Raise unless both say the same labels for the same frames.

        Arguments
        ---------
        encoder : LayerwiseEncoder
            The student's.
        exits : CTCHeads
            The student's.
        tokenizer : SentencePieceProcessor
            The student's.
        sample_rate : int
            The student's, in Hz.

        Raises
        ------
        ValueError
            With what differs, and what can be done.
        """
        figures = {
            "sample_rate": (self.sample_rate, sample_rate),
            "output_neurons": (self.exits.vocab_size, exits.vocab_size),
            "blank_index": (self.exits.blank_index, exits.blank_index),
        }
        for key, (own, other) in figures.items():
            if own != other:
                raise ValueError(
                    f"{self.key}: {self.name} has {key} {own}, this model "
                    f"{other}: set {key} to {own}, or take another run."
                )
        own, other = labels_of(self.tokenizer), labels_of(tokenizer)
        at = first_difference(own, other)
        if at is not None:
            told = f"{len(own)} labels, this model {len(other)}"
            if at < min(len(own), len(other)):
                told = f"{own[at]!r} as label {at}, this model {other[at]!r}"
            raise ValueError(
                f"{self.key}: {self.name} has {told}. Train both on the same "
                "text with the same token_type and output_neurons, or take "
                "another run."
            )
        # All the ways in which a second may be cut into frames.
        samples = torch.arange(sample_rate, 2 * sample_rate)
        own, other = (one.frames_of(samples) for one in (self.encoder, encoder))
        if not torch.equal(own, other):
            at = int((own != other).nonzero()[0])
            raise ValueError(
                f"{self.key}: {self.name} makes {int(own[at])} frames of "
                f"{int(samples[at])} samples, this model {int(other[at])}: "
                "take a run with the same front end and sub-sampling."
            )

    def give_weights(self, encoder: LayerwiseEncoder, exits: CTCHeads) -> None:
        """Let another model start as this one has ended, but for its gate.

        Arguments
        ---------
        encoder : LayerwiseEncoder
            Takes the weights of the encoder, and the statistics of its
            normaliser; a gate that it has stays as it is.
        exits : CTCHeads
            Takes those of the exits.

        Raises
        ------
        ValueError
            If they are built otherwise.
        """
        try:
            encoder.load_backbone(self.encoder.state_dict())
            exits.load_state_dict(self.exits.state_dict())
        except (RuntimeError, ValueError) as error:
            raise ValueError(
                f"{self.key}: {self.name} is built otherwise than this model: "
                f"{error} Set the same sizes and exit_layers, or take another "
                "run."
            ) from error
        seen = statistics_of(self.encoder)
        if seen is not None:
            set_statistics(encoder.normalize, seen)


def load_teacher(
    source: str | Path | None, key: str = "teacher"
) -> FrozenTeacher | None:
    """A teacher, or what to start from, of the folder of a finished run.

    Arguments
    ---------
    source : str or Path, optional
        As for ``EarlyExitASR.from_hparams``; None gives none.
    key : str
        The setting that named it, for errors.

    Returns
    -------
    FrozenTeacher
        On the CPU; None without a source.

    Raises
    ------
    FileNotFoundError
        If there is no finished run.
    """
    if source is None:
        return None
    try:
        asr = EarlyExitASR.from_hparams(source, run_opts={"device": "cpu"})
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{key}: {error}") from error
    return FrozenTeacher(
        asr.mods,
        asr.hparams.tokenizer,
        asr.hparams.sample_rate,
        name=str(source),
        key=key,
    )
