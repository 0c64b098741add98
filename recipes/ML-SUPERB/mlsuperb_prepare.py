"""Data preparation of ML-SUPERB (Shi et al., 2023).

Download: https://huggingface.co/datasets/ftshijt/mlsuperb_8th

Authors
 * SpeechBrain-EE contributors 2026
"""

import csv
import re
import string
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from speechbrain.utils.logger import get_logger

from speechbrain_ee.preparation import prepare_split

logger = get_logger(__name__)
TRACKS = ("monolingual", "multilingual", "lid", "asr_lid")
DURATIONS = ("10min", "1h")
SPLITS = ("train", "dev", "test")
# The 13 settings of the monolingual track, and what each is trained on.
MONOLINGUAL = {
    "eng1": "mls/eng",
    "eng2": "nchlt/eng",
    "eng3": "voxpopuli/eng",
    "fra1": "voxforge/fra",
    "fra2": "voxpopuli/fra",
    "deu1": "swc/deu",
    "deu2": "voxpopuli/deu",
    "rus": "M-AILABS/rus",
    "swa": "ALFFA/swa",
    "swe": "NST/swe",
    "jpn": "commonvoice/jpn",
    "cmn": "fleurs/cmn",
    "xty": "mexico-el/xty",
}
# The utterances of the few-shot languages that the benchmark trains on.
FEW_SHOT = {
    "bos": "fleurs 67 78 80 88 90",
    "ceb": "fleurs 54 64 69 71 80",
    "dan": "NST 7 72 cv 158 fleurs 58 71",
    "epo": "cv 6 39 63 66 76",
    "frr": "cv 23 86 95 102 104",
    "ful": "fleurs 55 59 67 76 81",
    "kaz": "cv 80 97 111 fleurs 36 66",
    "kea": "fleurs 52 70 78 83 85",
    "lit": "cv 26 105 fleurs 97 mls 40 voxpopuli 1707",
    "luo": "fleurs 56 62 67 73 77",
    "srp": "cv 78 145 fleurs 68 93 105",
    "sun": "googlei18n-asr 1 7 41 99 106",
    "tok": "cv 4 11 30 84 101",
    "tos": "mexico-el 6 122 152 496 563",
    "tsn": "googlei18n-tts 26 44 108 nchlt 1 32",
    "tso": "nchlt 35 40 89 104 125",
    "tur": "cv 95 101 fleurs 60 69 95",
    "umb": "fleurs 28 29 33 40 47",
    "vie": "cv 105 128 fleurs 67 68 77",
    "zul": "fleurs 49 57 nchlt 27 90 104",
}
LABEL_FIXES = MappingProxyType({"org_jpn": "jpn"})
BRACKETED = re.compile(r"\[[^()]*\]")
PUNCTUATION = str.maketrans("", "", string.punctuation)
REMEDY = "unpack the data package again"
SOURCE = (
    "the data package is on Hugging Face, ftshijt/mlsuperb_8th: unpack it, and "
    "set data_folder to the folder that holds mls, fleurs and the others"
)


class Track(NamedTuple):
    """What a track makes of a transcript.

    Arguments
    ---------
    language : bool
        Whether the target starts with the token of the language.
    text : bool
        Whether it has the text.
    """

    language: bool
    text: bool


TARGETS = {
    "monolingual": Track(language=False, text=True),
    "multilingual": Track(language=False, text=True),
    "lid": Track(language=True, text=False),
    "asr_lid": Track(language=True, text=True),
}


def prepare_mlsuperb(
    data_folder,
    save_folder,
    track,
    duration="1h",
    language="eng1",
    label_fixes=LABEL_FIXES,
    min_duration=None,
    max_duration=20.0,
    missing_audio="skip",
    unseen_languages="refuse",
    skip_prep=False,
    check_audio=True,
):
    """Writes ``train.csv``, ``dev.csv`` and ``test.csv`` of a track.

    The paths in them start with ``$data_root``: read them with
    ``replacements={"data_root": data_folder}``. Their columns are ``ID``,
    ``duration``, ``wav``, ``dataset``, ``language``, ``few_shot``, ``unit``
    ("character" or "phone") and ``wrd``, which is the target: the text, the
    token of the language as "[eng]", or both. A file is left alone if it was
    written from the same lines with the same options.

    The monolingual track trains on one language of one dataset and tests on
    that language in all of them. The others take every language there is; of
    the few-shot languages they train on five fixed utterances each.

    Arguments
    ---------
    data_folder : str
        Folder that holds ``DATASET/LANGUAGE/transcript_10min_train.txt``,
        ``transcript_1h_train.txt``, ``transcript_10min_dev.txt``,
        ``transcript_10min_test.txt`` and ``wav/ID.wav``.
    save_folder : str
        Where to write the CSV files.
    track : str
        "monolingual", "multilingual", "lid" or "asr_lid".
    duration : str
        How much of each language and dataset to train on: "10min" or "1h".
    language : str
        Of the monolingual track: one of MONOLINGUAL, such as "eng1", or another
        DATASET/LANGUAGE.
    label_fixes : mapping
        Names of folders to the languages that they are.
    min_duration : float, optional
        Leave out utterances shorter than this, in seconds.
    max_duration : float, optional
        Leave out utterances of "train" longer than this, in seconds.
    missing_audio : str
        What becomes of lines without audio: "skip" leaves them out with a
        warning, "refuse" raises.
    unseen_languages : str
        What becomes of languages in dev or test that train lacks: "skip" or
        "refuse", as above.
    skip_prep : bool
        If True, do nothing.
    check_audio : bool
        If True, decode all audio once, to find files that are cut off or
        damaged. If False, read only their heads.

    Raises
    ------
    FileNotFoundError
        If the data folder, the dataset of the setting, a transcript, or most of
        the audio is missing.
    ValueError
        If an option is none of those above, if a set has no utterance, if an
        audio file is not sampled at 16 kHz, or as the options say.

    Example
    -------
    >>> from speechbrain_ee.corpora.mlsuperb import make_mlsuperb
    >>> folder = getfixture("tmp_path")
    >>> sizes = {"train": 1, "dev": 1, "test": 1}
    >>> data_folder = make_mlsuperb(folder / "data", sizes, ["mls"])
    >>> prepare_mlsuperb(data_folder, folder, "asr_lid", "10min")
    >>> rows = (folder / "dev.csv").read_text().splitlines()
    >>> rows[0]
    'ID,duration,wav,dataset,language,few_shot,unit,wrd'
    >>> rows[1].split(",")[2:-1]
    ['$data_root/mls/eng/wav/mls_eng_000002.wav', 'mls', 'eng', 'False', \
'character']
    """
    if skip_prep:
        return
    _check_option("track", track, TRACKS)
    _check_option("duration", duration, DURATIONS)
    for name, value in (
        ("missing_audio", missing_audio),
        ("unseen_languages", unseen_languages),
    ):
        _check_option(name, value, ("skip", "refuse"))
    data_folder, save_folder = Path(data_folder), Path(save_folder)
    trained, tested = find_folders(data_folder, track, language)
    spell = make_speller(track, {_fixed(x, label_fixes) for x in trained})
    save_folder.mkdir(parents=True, exist_ok=True)
    seen = None
    for split in SPLITS:
        part = duration if split == "train" else "10min"
        kept = {}
        for folder in tested if split == "test" else trained:
            kept |= choose_lines(
                folder / f"transcript_{part}_{split}.txt",
                _fixed(folder, label_fixes),
                spell,
                few_shot=split == "train" and track != "monolingual",
                refuse=missing_audio == "refuse",
            )
        if seen is not None:
            kept = leave_unseen(kept, seen, split, unseen_languages == "refuse")
        if not kept:
            raise ValueError(
                f"{data_folder}: no utterance is left for {split}: see the "
                "warnings above."
            )
        prepare_split(
            save_folder / f"{split}.csv",
            data_folder,
            {
                path.relative_to(data_folder).as_posix(): columns
                for path, columns in kept.items()
            },
            REMEDY,
            min_duration=min_duration,
            max_duration=max_duration if split == "train" else None,
            check_audio=check_audio,
        )
        if split == "train":
            # After what has no readable audio, or too much of it.
            with open(save_folder / "train.csv", encoding="utf-8") as file:
                seen = {row["language"] for row in csv.DictReader(file)}


def _check_option(name, value, known):
    if value not in known:
        raise ValueError(
            f"{name}: {value!r} is none of {', '.join(map(str, known))}."
        )


def _fixed(folder, label_fixes):
    """The language of a folder."""
    return label_fixes.get(folder.name, folder.name)


def find_folders(data_folder, track, language):
    """Finds the folders of languages.

    Arguments
    ---------
    data_folder : Path
        Holds the datasets.
    track : str
        One of TRACKS.
    language : str
        Of the monolingual track.

    Returns
    -------
    trained : list of Path
        ``DATASET/LANGUAGE`` to train on, and to choose checkpoints by.
    tested : list of Path
        Those to test on.
    """
    if not data_folder.is_dir():
        raise FileNotFoundError(
            f"The data folder {data_folder} does not exist: {SOURCE}."
        )
    folders = sorted(path.parent for path in data_folder.glob("*/*/wav"))
    if not folders:
        raise FileNotFoundError(
            f"There is no DATASET/LANGUAGE/wav in {data_folder}: {SOURCE}."
        )
    if track != "monolingual":
        return folders, folders
    wanted = data_folder / MONOLINGUAL.get(language, language)
    if wanted not in folders:
        present = [f"{x.parent.name}/{x.name}" for x in folders]
        raise FileNotFoundError(
            f"language: there is no {wanted} with audio. It is one of "
            f"{', '.join(MONOLINGUAL)}, or DATASET/LANGUAGE; in the data "
            f"folder are {', '.join(present[:20])}."
        )
    return [wanted], [path for path in folders if path.name == wanted.name]


def read_transcript(file):
    """Reads a transcript.

    Arguments
    ---------
    file : Path
        Its lines are an ID, a field that is not read, and the text.

    Returns
    -------
    lines : list of tuple
        ID and text of each.
    malformed : list of str
        The lines with fewer fields.
    """
    if not file.is_file():
        raise FileNotFoundError(f"There is no {file}: {REMEDY}.")
    try:
        content = file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{file} is damaged, or no text in UTF-8 ({error}): {REMEDY}."
        ) from error
    lines, malformed = [], []
    for number, line in enumerate(content, start=1):
        fields = line.split(maxsplit=2)
        if len(fields) == 3:
            lines.append((fields[0], fields[2]))
        elif fields:
            malformed.append(f"line {number}")
    return lines, malformed


def choose_lines(file, language, spell, few_shot=False, refuse=False):
    """Picks the lines of a transcript that can be used, and reports the others.

    Arguments
    ---------
    file : Path
        The transcript.
    language : str
        Of it.
    spell : callable
        From text and language to target and unit.
    few_shot : bool
        Whether to take the chosen utterances only, of few-shot languages.
    refuse : bool
        Whether a line without audio is an error.

    Returns
    -------
    dict
        The columns of each, by the path of its audio.
    """
    lines, malformed = read_transcript(file)
    audio = file.parent / "wav"
    found = {path.name for path in audio.iterdir()}
    chosen = few_shot_ids(language) if few_shot else None
    if chosen is not None:
        lines = [line for line in lines if line[0] in chosen]
    kept, missing, empty, repeated = {}, [], [], []
    for name, text in lines:
        path = audio / f"{name}.wav"
        target, unit = spell(text, language)
        if path in kept:
            repeated.append(name)
        elif path.name not in found:
            missing.append(name)
        elif not target:
            empty.append(name)
        else:
            kept[path] = {
                "ID": name,
                "dataset": file.parents[1].name,
                "language": language,
                "few_shot": language in FEW_SHOT,
                "unit": unit,
                "wrd": target,
            }
    if missing and (refuse or len(missing) > len(kept)):
        raise FileNotFoundError(
            f"{file}: {len(missing)} of {len(lines)} lines have no audio, such "
            f"as {audio / missing[0]}.wav: {REMEDY}, or set missing_audio: "
            "skip where that is a few."
        )
    for fault, names in (
        ("lines are malformed", malformed),
        ("lines have an ID that comes again", repeated),
        ("lines have no text", empty),
        ("lines have no audio", missing),
    ):
        if names:
            first = ", ".join(names[:3])
            logger.warning(
                f"{file}: {len(names)} {fault} and are left out, such as "
                f"{first}."
            )
    return kept


def few_shot_ids(language):
    """The utterances of a few-shot language that the benchmark trains on.

    Arguments
    ---------
    language : str
        Of three letters.

    Returns
    -------
    set of str
        Their IDs; None if the language is none of those.

    Example
    -------
    >>> sorted(few_shot_ids("tsn"))[1:4]
    ['googlei18n-tts_tsn_000044', 'googlei18n-tts_tsn_000108', \
'nchlt_tsn_000001']
    """
    if language not in FEW_SHOT:
        return None
    ids, prefix = set(), ""
    for word in FEW_SHOT[language].split():
        if word.isdigit():
            ids.add(f"{prefix}_{language}_{int(word):06d}")
        else:
            prefix = word
    return ids


def leave_unseen(kept, seen, split, refuse):
    """Takes out languages that nothing was trained on.

    Arguments
    ---------
    kept : dict
        The columns of each utterance, by the path of its audio.
    seen : set of str
        The languages of train.
    split : str
        What the set is called.
    refuse : bool
        Whether such a language is an error.

    Returns
    -------
    dict
        The utterances in languages that were seen.
    """
    unseen = {row["language"] for row in kept.values()} - seen
    if not unseen:
        return kept
    left = {p: row for p, row in kept.items() if row["language"] in seen}
    fault = (
        f"{len(unseen)} languages of {split} have no utterance in train "
        f"({', '.join(sorted(unseen))}), which are {len(kept) - len(left)} of "
        f"its {len(kept)} utterances"
    )
    if refuse:
        raise ValueError(
            f"{fault}: {REMEDY}, or set unseen_languages: skip to leave them "
            "out."
        )
    logger.warning(f"{fault}: they are left out.")
    return left


def make_speller(track, languages) -> Callable:
    """How texts become targets.

    Arguments
    ---------
    track : str
        One of TRACKS.
    languages : set of str
        Those that are trained on.

    Returns
    -------
    callable
        From text and language to target and unit ("character" or "phone").

    Example
    -------
    >>> make_speller("asr_lid", {"eng"})("It's [noise] me.", "eng")
    ('[eng] ITS ME', 'character')
    >>> make_speller("monolingual", {"eng"})("It's [noise] me.", "eng")
    ('ITS NOISE ME', 'character')
    """
    phones = None
    if track == "monolingual":
        (language,) = languages
        phones = find_phones(language)
    token, has_text = TARGETS[track]

    def spell(text, language):
        """The target and its unit."""
        if track != "monolingual":
            text = BRACKETED.sub("", text)
        text = normalize_text(text)
        if phones is not None:
            return " ".join(phones(text)), "phone"
        parts = [f"[{language}]"] if token else []
        if has_text:
            if not text:
                return "", "character"
            parts.append(text)
        return " ".join(parts), "character"

    return spell


def normalize_text(text):
    """As the benchmark does it: no ASCII punctuation, all in capitals.

    Arguments
    ---------
    text : str
        The text.

    Returns
    -------
    str
        Words with one space between them.

    Example
    -------
    >>> normalize_text("Über  20% – it's so.")
    'ÜBER 20 – ITS SO'
    """
    return " ".join(text.translate(PUNCTUATION).upper().split())


def find_phones(language):
    """How a text becomes phones, of the languages that are scored by them.

    Arguments
    ---------
    language : str
        Of three letters.

    Returns
    -------
    callable
        From text to a list of phones; None for all but Japanese and Mandarin,
        and where the package that they need is not installed, with a warning.
    """
    backends = {"jpn": _japanese_phones, "cmn": _mandarin_phones}
    if language not in backends:
        return None
    try:
        return backends[language]()
    except ModuleNotFoundError as error:
        logger.warning(
            f"{language} is scored by phones, and {error.name} is not "
            f"installed (pip install {error.name}): characters are taken "
            "instead, whose error rate is no PER."
        )
        return None


def _japanese_phones():
    g2p = import_module("pyopenjtalk").g2p
    return lambda text: g2p(text).split()


def _mandarin_phones():
    """Initials, and finals with their tone, as ``n i3 h ao3``."""
    pypinyin = import_module("pypinyin")
    convert = import_module("pypinyin.contrib.tone_convert")

    def phones(text):
        """What is not written in Chinese characters stays as it is."""
        syllables = pypinyin.lazy_pinyin(
            text.replace(" ", ""), style=pypinyin.Style.TONE3
        )
        found = []
        for one in syllables:
            parts = convert.to_initials(one), convert.to_finals_tone3(one)
            found += [part for part in parts if part] or [one]
        return found

    return phones


if __name__ == "__main__":
    prepare_mlsuperb(*sys.argv[1:6])
