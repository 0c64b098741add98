"""Language models for beam search: their text, their files, their labels.

A language model is a folder, here or on the Hub, with ``hyperparams.yaml``,
``lm.ckpt`` and ``tokenizer.ckpt``, as those that SpeechBrain has published.

Authors
 * SpeechBrain-EE contributors 2026
"""

from __future__ import annotations

import csv
import os
import shutil
from io import StringIO
from pathlib import Path

import numpy as np
import torch
from hyperpyyaml import load_hyperpyyaml, resolve_references
from ruamel.yaml import YAML
from sentencepiece import SentencePieceProcessor
from speechbrain.lobes.models.transformer.TransformerLM import TransformerLM
from speechbrain.utils.fetching import LocalStrategy, fetch

from speechbrain_ee.files import replacing
from speechbrain_ee.tokenizer import first_difference, labels_of

_KEY = "lm_model"
_TAG = f"!new:{TransformerLM.__module__}.TransformerLM"
_FILES = ("hyperparams.yaml", "lm.ckpt", "tokenizer.ckpt")


class LanguageModel(torch.nn.Module):
    """A Transformer language model that knows its labels and its own YAML.

    Arguments
    ---------
    model : TransformerLM
        SpeechBrain's.
    tokenizer : SentencePieceProcessor
        Turns words into its labels.
    source : str
        Where it comes from.
    description : str
        YAML from which ``model`` can be built.
    """

    def __init__(
        self,
        model: TransformerLM,
        tokenizer: SentencePieceProcessor,
        source: str,
        description: str,
    ):
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.source = source
        self.description = description

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """What follows each label.

        Arguments
        ---------
        tokens : torch.Tensor
            Labels behind a sentence's begin, of shape (batch, tokens).

        Returns
        -------
        torch.Tensor
            Logits of shape (batch, tokens, vocabulary).
        """
        return self.model(tokens)

    def check_labels(self, tokenizer: SentencePieceProcessor) -> None:
        """Raise unless a recogniser has the same labels.

        Arguments
        ---------
        tokenizer : SentencePieceProcessor
            Of the recogniser.

        Raises
        ------
        ValueError
            With the first label that differs.
        """
        ours, theirs = labels_of(tokenizer), labels_of(self.tokenizer)
        at = first_difference(ours, theirs)
        if at is None:
            return
        first = f"{len(ours)} labels here, {len(theirs)} there"
        if at < min(len(ours), len(theirs)):
            first = f"label {at} is {ours[at]!r} here and {theirs[at]!r} there"
        raise ValueError(
            f"lm: {self.source} has other labels than the recogniser: {first}. "
            "Train one with train_lm.py on the same text with the same "
            "output_neurons, token_type and tokenizer_opts, or train the "
            "recogniser with the language model's own (pretrained_tokenizer: "
            f"{self.source}/tokenizer.ckpt)."
        )


def load_lm(source: str | Path | None) -> LanguageModel | None:
    """Load what ``save_lm`` or SpeechBrain's recipes have written.

    Arguments
    ---------
    source : str or Path, optional
        A folder or a name on the Hub; None for no language model.

    Returns
    -------
    LanguageModel or None
        In evaluation mode, frozen, on the CPU.

    Raises
    ------
    FileNotFoundError
        If a file is missing.
    ValueError
        If one holds something else.

    Example
    -------
    >>> load_lm(None) is None
    True
    """
    if source is None:
        return None
    description_file, weights_file, tokenizer_file = _fetched(str(source))
    description = _description(description_file)
    model = load_hyperpyyaml(description)[_KEY]
    try:
        weights = torch.load(
            weights_file, map_location="cpu", weights_only=True
        )
        model.load_state_dict(weights)
    except Exception as error:  # whatever a broken file brings about
        raise ValueError(
            f"lm: {weights_file} does not hold the model that "
            f"{description_file} describes ({_KEY}): take both from the same "
            "training."
        ) from error
    return LanguageModel(
        model, read_tokenizer(tokenizer_file), str(source), description
    )


def save_lm(
    folder: str | Path, model: TransformerLM, tokenizer_model: str | Path
) -> None:
    """Write the weights and labels of a language model beside its YAML.

    Arguments
    ---------
    folder : str or Path
        Of the run, with its ``hyperparams.yaml``.
    model : TransformerLM
        Trained, unwrapped; ``lm_model`` in the YAML.
    tokenizer_model : str or Path
        The SentencePiece model.
    """
    with replacing(Path(folder) / "tokenizer.ckpt") as file:
        shutil.copyfile(tokenizer_model, file)
    with replacing(Path(folder) / "lm.ckpt") as file:
        torch.save(model.state_dict(), file)


def read_tokenizer(path: str | Path) -> SentencePieceProcessor:
    """Read a SentencePiece model, whatever its name ends in.

    Arguments
    ---------
    path : str or Path
        The model.

    Returns
    -------
    SentencePieceProcessor
        Ready to use.

    Raises
    ------
    ValueError
        If the file is something else.
    """
    tokenizer = SentencePieceProcessor()
    try:
        tokenizer.load_from_serialized_proto(Path(path).read_bytes())
    except RuntimeError as error:
        raise ValueError(f"{path} is no SentencePiece model.") from error
    return tokenizer


class Sentences(torch.utils.data.Dataset):
    """Sentences of a CSV's column or of a text file, as labels.

    A text file has a sentence per line. It is read from disk as it is needed,
    so that LibriSpeech's text of 4 GB needs no more memory than the places of
    its lines.

    Arguments
    ---------
    tokenizer : SentencePieceProcessor
        Turns words into labels.
    path : str or Path
        A CSV, or a text file in UTF-8.
    column : str
        Of the CSV.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If there is no text in it.
    """

    def __init__(
        self,
        tokenizer: SentencePieceProcessor,
        path: str | Path,
        column: str = "wrd",
    ):
        self.tokenizer = tokenizer
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(
                f"{path}: there is no such text. Unpack it, or prepare the "
                "data first (skip_prep: False)."
            )
        self.text = None
        if self.path.suffix == ".csv":
            with open(path, newline="", encoding="utf-8") as file:
                self.text = [row[column] for row in csv.DictReader(file)]
        else:
            self.starts = _line_starts(self.path)
        if len(self) == 0:
            raise ValueError(f"{path} holds no text.")

    def __len__(self) -> int:
        """The number of sentences."""
        return len(self.starts if self.text is None else self.text)

    def __getitem__(self, index: int) -> dict:
        """One sentence: ``id`` and ``tokens``, labels without marks."""
        if self.text is None:
            with open(self.path, "rb") as file:
                file.seek(int(self.starts[index]))
                sentence = file.readline().decode("utf-8").strip()
        else:
            sentence = self.text[index]
        labels = self.tokenizer.encode_as_ids(sentence)
        return {"id": str(index), "tokens": torch.tensor(labels).long()}


def _line_starts(path) -> np.ndarray:
    """Where the lines that are not empty start, int64."""
    starts, place = [], 0
    with open(path, "rb") as file:
        for line in file:
            if line.strip():
                starts.append(place)
            place += len(line)
    return np.array(starts, dtype=np.int64)


def _fetched(source):
    """The files of a language model, here."""
    if os.path.isdir(source):
        missing = [x for x in _FILES if not (Path(source) / x).is_file()]
        if missing:
            raise FileNotFoundError(
                f"lm: {source} has no {', '.join(missing)}: give the folder of "
                "a finished run of train_lm.py, or one with the files of a "
                "SpeechBrain model that has a language model."
            )
        return [Path(source) / name for name in _FILES]
    try:
        return [
            fetch(name, source, local_strategy=LocalStrategy.NO_LINK)
            for name in _FILES
        ]
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"lm: {source!r} cannot be loaded: there is no such folder, and "
            "the Hub did not give it (offline?). Download it where there is a "
            "network, and give that folder."
        ) from error


def _description(path) -> str:
    """What the YAML of a model says of its language model, and no more."""
    yaml = YAML()
    with open(path, encoding="utf-8") as file:
        tree = yaml.load(resolve_references(file))
    node = tree.get(_KEY)
    if node is None or node.tag.value != _TAG:
        raise ValueError(
            f"lm: {path} describes no {_KEY} of the kind {_TAG}: give a model "
            "that has a Transformer language model."
        )
    text = StringIO()
    yaml.dump({_KEY: node}, text)
    return text.getvalue()
