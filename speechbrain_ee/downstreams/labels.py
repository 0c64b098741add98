"""Labels of CTC: characters or phones, and tokens in brackets.

Authors
 * SpeechBrain-EE contributors 2026
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from speechbrain.dataio.encoder import CategoricalEncoder, CTCTextEncoder
from speechbrain.utils.distributed import run_on_main

UNITS = ("character", "phone")
_CHARACTERS = re.compile(r"\[\w+\] ?|.")
_TOKEN = re.compile(r"\[\w+\]")


def split_labels(text: str, unit: str = "character") -> list[str]:
    """The labels of a text.

    A token in brackets, such as that of a language, is one label; the space
    behind it is none. Between words the space is a label.

    Arguments
    ---------
    text : str
        As the column ``wrd`` of a prepared CSV.
    unit : str
        ``character``, or ``phone`` where spaces stand between phones.

    Returns
    -------
    list of str

    Example
    -------
    >>> split_labels("[eng] I SEE")
    ['[eng]', 'I', ' ', 'S', 'E', 'E']
    >>> split_labels("k o N n i", "phone")
    ['k', 'o', 'N', 'n', 'i']
    """
    if unit not in UNITS:
        raise ValueError(f"unit: {unit!r} is none of {', '.join(UNITS)}.")
    if unit == "phone":
        return text.split()
    found = _CHARACTERS.findall(text)
    return [x.rstrip() if is_token(x.rstrip()) else x for x in found]


def join_labels(labels: Sequence[str], unit: str = "character") -> str:
    """The text of labels.

    Arguments
    ---------
    labels : sequence of str
        As from ``split_labels``.
    unit : str
        ``character`` or ``phone``.

    Returns
    -------
    str

    Example
    -------
    >>> join_labels(["[eng]", "I", " ", "S", "E", "E"])
    '[eng] I SEE'
    """
    if unit == "phone":
        return " ".join(labels)
    return "".join(f"{x} " if is_token(x) else x for x in labels).rstrip()


def is_token(label: str) -> bool:
    """Whether a label is a token in brackets.

    Arguments
    ---------
    label : str
        One label.

    Returns
    -------
    bool

    Example
    -------
    >>> is_token("[eng]"), is_token("[")
    (True, False)
    """
    return _TOKEN.fullmatch(label) is not None


def make_label_encoder(
    file: str | Path, targets: Iterable[Sequence[str]]
) -> CTCTextEncoder:
    """Number the labels of the training data, and write down how.

    The blank is 0, and 1 is for labels that are not among them.

    Arguments
    ---------
    file : str or Path
        Where the numbers stand.
    targets : iterable of sequence of str
        The labels of each utterance.

    Returns
    -------
    CTCTextEncoder

    Raises
    ------
    ValueError
        If the file is that of other labels: those of a run that was started on
        other data.

    Example
    -------
    >>> file = getfixture("tmp_path") / "labels.txt"
    >>> encoder = make_label_encoder(file, ["NO", "ON"])
    >>> encoder.encode_sequence(["N", "O", "X"])
    [2, 3, 1]
    """
    labels = sorted({label for target in targets for label in target})
    encoder = CTCTextEncoder()
    encoder.add_blank()
    encoder.add_unk()
    encoder.update_from_iterable(labels, sequence_input=False)
    encoder.expect_len(len(encoder))
    _write_down(file, encoder)
    return encoder


def make_class_encoder(
    file: str | Path, labels: Iterable[str]
) -> CategoricalEncoder:
    """Number the classes of the training data, and write down how.

    Arguments
    ---------
    file : str or Path
        Where the numbers stand.
    labels : iterable of str
        The class of each utterance.

    Returns
    -------
    CategoricalEncoder

    Raises
    ------
    ValueError
        If the file is that of other classes: those of a run that was started
        on other data.

    Example
    -------
    >>> file = getfixture("tmp_path") / "emotions.txt"
    >>> encoder = make_class_encoder(file, ["sad", "happy", "sad"])
    >>> encoder.encode_label("sad")
    1
    """
    encoder = CategoricalEncoder()
    encoder.update_from_iterable(sorted(set(labels)), sequence_input=False)
    encoder.expect_len(len(encoder))
    _write_down(file, encoder)
    return encoder


def _write_down(file, encoder):
    """Save an encoder, unless the file holds another."""
    if Path(file).is_file():
        before = type(encoder)()
        before.load(file)
        if before.lab2ind != encoder.lab2ind:
            raise ValueError(
                f"{file} numbers {len(before.lab2ind)} labels, and not the "
                f"{len(encoder.lab2ind)} of this training data: the run was "
                "started on other data. Choose another output_folder."
            )
    run_on_main(encoder.save, [file])
