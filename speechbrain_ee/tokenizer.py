"""SpeechBrain's SentencePiece tokenizer, with errors that say what to do.

Authors
 * SpeechBrain-EE contributors 2026
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from sentencepiece import SentencePieceProcessor
from speechbrain.tokenizers.SentencePiece import SentencePiece
from speechbrain.utils.distributed import run_on_main
from speechbrain.utils.fetching import LocalStrategy, fetch
from speechbrain.utils.logger import get_logger

from speechbrain_ee.checkpoints import PARTIAL, flush_to_disk
from speechbrain_ee.files import replacing

logger = get_logger(__name__)

# What SentencePiece says of sizes that the text does not allow.
_TOO_LARGE = re.compile(r"size too high \(\d+\)\D*(\d+)")
_TOO_SMALL = re.compile(r"smaller than required_chars\. \d+ vs (\d+)")


def train_tokenizer(
    model_dir: str | Path,
    vocab_size: int,
    annotation_train: str | Path,
    annotation_read: str,
    model_type: str = "unigram",
    pretrained: str | Path | None = None,
    **options,
) -> SentencePiece:
    r"""Train a tokenizer, or take the one that an earlier run has trained.

    It is put into the folder when it is complete, with a note of the text that
    it comes from, so that the run may be killed at any moment and no tokenizer
    of another text is taken by mistake.

    Arguments
    ---------
    model_dir : str or Path
        Gets ``<vocab_size>_<model_type>.model``, its ``.vocab``, the training
        text, and ``<vocab_size>_<model_type>.json``.
    vocab_size : int
        Number of labels, ``output_neurons`` in recipes. A model of characters
        has as many as it finds, and this is the most that there may be.
    annotation_train : str or Path
        CSV file with the training text.
    annotation_read : str
        Its column.
    model_type : str
        unigram, bpe or char; ``token_type`` in recipes.
    pretrained : str or Path, optional
        A SentencePiece model to take instead of training one, such as that of
        a published language model; ``<folder>/<file>``, here or on the Hub.
    **options
        More of ``speechbrain.tokenizers.SentencePiece``, e.g. ``pad_id``.

    Returns
    -------
    SentencePiece
        SpeechBrain's.

    Raises
    ------
    FileNotFoundError
        If the CSV file is missing.
    ValueError
        If there is no text, if it does not allow so many or so few labels, or
        if the tokenizer in the folder is another one.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> _ = (folder / "train.csv").write_text("ID,wrd\na,ONE TWO\nb,TWO\n")
    >>> tokenizer = train_tokenizer(
    ...     folder, 10, folder / "train.csv", "wrd", "char", pad_id=0, unk_id=1
    ... )
    >>> tokenizer.sp.decode_ids(tokenizer.sp.encode_as_ids("TWO ONE"))
    'TWO ONE'
    >>> tokenizer.sp.vocab_size()  # with padding, unknown and space
    8
    """
    settings = {
        "vocab_size": vocab_size,
        "annotation_train": str(annotation_train),
        "annotation_read": annotation_read,
        "model_type": model_type,
        **options,
    }
    if pretrained is None:
        run_on_main(_train_once, [Path(model_dir), settings])
    else:
        run_on_main(_take_once, [Path(model_dir), settings, str(pretrained)])
    model = Path(model_dir) / f"{vocab_size}_{model_type}.model"
    try:
        tokenizer = SentencePiece(model_dir=str(model_dir), **settings)
    except RuntimeError as error:
        raise ValueError(
            f"{model} is no tokenizer that SentencePiece can read: delete it, "
            "and it is trained again."
        ) from error
    _check_size(tokenizer.sp.vocab_size(), model, settings)
    return tokenizer


def decode_labels(
    processor: SentencePieceProcessor, hypotheses: Sequence[Sequence[int]]
) -> list[str]:
    """Transcripts of label sequences.

    Arguments
    ---------
    processor : SentencePieceProcessor
        Of the tokenizer.
    hypotheses : sequence of sequence of int
        Labels without blanks. Those that the tokenizer does not have are left
        out: exits may have more than a tokenizer of characters has found.

    Returns
    -------
    list of str
        Words, separated by spaces.
    """
    labels = processor.vocab_size()
    return [
        processor.decode_ids([k for k in one if k < labels])
        for one in hypotheses
    ]


def labels_of(processor: SentencePieceProcessor) -> list[str]:
    """What each label of a tokenizer stands for.

    Arguments
    ---------
    processor : SentencePieceProcessor
        The tokenizer.

    Returns
    -------
    list of str
        The pieces, by label.
    """
    return [processor.id_to_piece(k) for k in range(processor.vocab_size())]


def first_difference(ours: Sequence[str], theirs: Sequence[str]) -> int | None:
    """The first label that two models read differently.

    Arguments
    ---------
    ours : sequence of str
        As ``labels_of`` gives them.
    theirs : sequence of str
        Those of the other.

    Returns
    -------
    int
        The label; the number of labels of the shorter list, if that is where
        they differ; None if they do not.

    Example
    -------
    >>> first_difference(["<pad>", "A"], ["<pad>", "B"])
    1
    >>> first_difference(["<pad>", "A"], ["<pad>", "A"]) is None
    True
    """
    for label, (own, other) in enumerate(zip(ours, theirs)):
        if own != other:
            return label
    shorter, longer = sorted((len(ours), len(theirs)))
    return None if shorter == longer else shorter


def _check_size(labels, model, settings):
    """Raises if a tokenizer has another number of labels than it should."""
    asked = settings["vocab_size"]
    if settings["model_type"] != "char" and labels != asked:
        raise ValueError(
            f"{model} has {labels} labels and not {asked} (output_neurons): "
            "delete it, and it is trained again."
        )
    if labels > asked:
        raise ValueError(
            f"output_neurons: {asked} is less than the {labels} labels of the "
            f"characters in {settings['annotation_train']}: set it to {labels} "
            "or more."
        )


def _train_once(model_dir, settings):
    """Trains the tokenizer if it is not there; main process only."""
    text = _read_text(settings["annotation_train"], settings["annotation_read"])
    note = {
        **settings,
        "text": hashlib.sha256("\n".join(sorted(text)).encode()).hexdigest(),
    }
    del note["annotation_train"]  # the same text may lie elsewhere
    name = f"{settings['vocab_size']}_{settings['model_type']}"
    if (model_dir / f"{name}.model").is_file():
        _check_note(model_dir / f"{name}.json", note, settings)
        return
    model_dir.mkdir(parents=True, exist_ok=True)
    prefix = f"{PARTIAL}tokenizer-"
    for leftover in model_dir.glob(f"{prefix}*"):
        shutil.rmtree(leftover)
    with TemporaryDirectory(prefix=prefix, dir=model_dir) as folder:
        try:
            SentencePiece(model_dir=folder, **settings)
        except RuntimeError as error:
            _explain(error, settings)
            raise
        (Path(folder) / f"{name}.json").write_text(json.dumps(note, indent=2))
        flush_to_disk(folder)
        files = Path(folder).iterdir()
        # The model last, as it says that all is there.
        for file in sorted(files, key=lambda file: file.suffix == ".model"):
            os.replace(file, model_dir / file.name)


def _take_once(model_dir, settings, pretrained):
    """Copies a tokenizer if it is not there; main process only."""
    model = (
        model_dir / f"{settings['vocab_size']}_{settings['model_type']}.model"
    )
    folder, _, name = pretrained.rpartition("/")
    try:
        # Its default is to link to local files, which may go.
        taken = fetch(name, folder or ".", local_strategy=LocalStrategy.NO_LINK)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"pretrained: {pretrained} is no file, and the Hub did not give it "
            "(offline?): name the SentencePiece model as FOLDER/FILE."
        ) from error
    content = Path(taken).read_bytes()
    if model.is_file() and model.read_bytes() != content:
        raise ValueError(
            f"{model} is another tokenizer than {pretrained}, and what was "
            "trained with it needs it: choose another output_folder."
        )
    model_dir.mkdir(parents=True, exist_ok=True)
    with replacing(model) as file:
        file.write_bytes(content)


def _read_text(annotation, column):
    """The training text, a sentence per utterance."""
    if not Path(annotation).is_file():
        raise FileNotFoundError(
            f"The training text of the tokenizer, {annotation}, is missing: "
            "prepare the data first (skip_prep: False)."
        )
    with open(annotation, newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        columns = rows.fieldnames or []
        if column not in columns:
            raise ValueError(
                f"{annotation} has no column {column!r} for the tokenizer to "
                f"read, only {', '.join(columns) or 'an empty line'}: prepare "
                "the data again, or change annotation_read."
            )
        text = [row[column] for row in rows]
    if None in text:
        raise ValueError(
            f"Row {text.index(None) + 1} of {annotation} is cut: delete the "
            "file, and prepare the data again."
        )
    if not any(sentence.strip() for sentence in text):
        raise ValueError(
            f"There is no text in the column {column!r} of {annotation}, so no "
            "tokenizer can be trained: prepare the data again, with "
            "transcripts."
        )
    return text


def _explain(error, settings):
    """Raises an error of its own if SentencePiece names a limit."""
    asked, kind = settings["vocab_size"], settings["model_type"]
    text = settings["annotation_train"]
    largest = _TOO_LARGE.search(str(error))
    if largest:
        raise ValueError(
            f"output_neurons: {asked} is more than the text in {text} allows: "
            f"set it to {largest[1]} or less for token_type {kind}, or train "
            "on more text."
        ) from error
    smallest = _TOO_SMALL.search(str(error))
    if smallest:
        raise ValueError(
            f"output_neurons: {asked} is less than the text in {text} needs, "
            f"which has more characters: set it to {smallest[1]} or more for "
            f"token_type {kind}."
        ) from error


def _check_note(path, note, settings):
    """Raises if the tokenizer that is there is not the one asked for."""
    model = path.with_suffix(".model")
    if not path.is_file():
        logger.warning(
            f"{model} is used as it is: without {path.name} nobody knows what "
            "text it comes from."
        )
        return
    known = json.loads(path.read_text())
    differing = sorted(
        key for key in known.keys() | note if known.get(key) != note.get(key)
    )
    if differing:
        raise ValueError(
            f"{model} was trained otherwise than it would be now from "
            f"{settings['annotation_train']} (other {', '.join(differing)}), "
            "and what was trained with it needs it. Choose another "
            "output_folder, or delete it to start anew."
        )
