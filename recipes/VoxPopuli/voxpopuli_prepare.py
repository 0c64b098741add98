"""Data preparation of VoxPopuli's transcribed data (Wang et al., 2021).

Download: https://github.com/facebookresearch/voxpopuli

Authors
 * SpeechBrain-EE contributors 2026
"""

import csv
import re
import sys
import unicodedata
from pathlib import Path

from speechbrain.utils.logger import get_logger

from speechbrain_ee.preparation import prepare_split

logger = get_logger(__name__)
SPLITS = ("train", "dev", "test")
COLUMNS = ("id", "normalized_text", "speaker_id")
GOLD = "is_gold_transcript"
APOSTROPHES = str.maketrans("’‘`´", "''''")
INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u2060\ufeff]")
# Accents stand alone where Unicode has no letter with them.
NOT_SPOKEN = re.compile(r"[^\w\u0300-\u036f']|_|(?<!\w)'|'(?!\w)")
REMEDY = "make them again with the release's script get_asr_data"


def prepare_voxpopuli(
    data_folder,
    save_folder,
    language="en",
    splits=SPLITS,
    gold_splits=(),
    min_duration=None,
    max_duration=None,
    max_characters_per_second=None,
    skip_prep=False,
    check_audio=True,
):
    """Writes ``voxpopuli-LANGUAGE-SPLIT.csv`` for each split.

    The paths in it start with ``$data_root``: read it with
    ``replacements={"data_root": data_folder}``. A split is left alone if its
    file was written from the same rows with the same options.

    Utterances are left out, counted and named, if their audio is missing or
    cannot be read to its end, if their row is malformed, or if
    ``normalize_text`` leaves no text. Of rows with the same id the last is
    taken, since its audio is what the release's script writes last.

    Arguments
    ---------
    data_folder : str
        Folder that holds ``transcribed_data/LANGUAGE/asr_SPLIT.tsv`` and
        ``transcribed_data/LANGUAGE/YEAR/ID.ogg``, as the release's script
        ``get_asr_data`` writes them.
    save_folder : str
        Where to write the CSV files.
    language : str
        Name of the language's folder, such as "en", "de" or "en_accented".
    splits : sequence of str
        Some of "train", "dev" and "test".
    gold_splits : sequence of str
        Those of which only transcripts are taken that were checked by a human
        (``is_gold_transcript``).
    min_duration : float, optional
        Leave out utterances shorter than this, in seconds.
    max_duration : float, optional
        Leave out utterances of "train" longer than this, in seconds: they
        decide how much memory is needed.
    max_characters_per_second : float, optional
        Leave out utterances of "train" with more characters of text per second:
        nobody speaks that fast, so that the text is of something else.
    skip_prep : bool
        If True, do nothing.
    check_audio : bool
        If True, decode all audio once, to find files that are cut off or
        damaged. If False, read only their heads.

    Raises
    ------
    FileNotFoundError
        If the data folder, the language, a table, or most of the audio is
        missing.
    ValueError
        If a table lacks a column or is no text, if no utterance of a split is
        left, if an audio file is not sampled at 16 kHz, if most of a split
        cannot be read, or if ``gold_splits`` has something else than splits.

    Example
    -------
    >>> from speechbrain_ee.corpora.voxpopuli import make_voxpopuli
    >>> folder = getfixture("tmp_path")
    >>> data_folder = make_voxpopuli(folder / "data", {"dev": 2}, ["de"])
    >>> prepare_voxpopuli(data_folder, folder, "de", ["dev"])
    >>> rows = (folder / "voxpopuli-de-dev.csv").read_text().splitlines()
    >>> rows[1].split(",")[2]
    '$data_root/transcribed_data/de/2009/\
20090114-0900-PLENARY-0-de_20090114-09:00:00_0.ogg'
    """
    if skip_prep:
        return
    unknown = [split for split in gold_splits if split not in splits]
    if unknown:
        raise ValueError(
            f"gold_splits has '{unknown[0]}', which is not one of the splits: "
            f"{', '.join(splits)}."
        )
    data_folder, save_folder = Path(data_folder), Path(save_folder)
    folder = find_language(data_folder, language)
    # All of them, since their audio lies in the same folders.
    files = {split: folder / f"asr_{split}.tsv" for split in SPLITS}
    files = {split: file for split, file in files.items() if file.is_file()}
    for split in splits:
        if split not in files:
            present = ", ".join(file.name for file in files.values())
            raise FileNotFoundError(
                f"There is no asr_{split}.tsv in {folder}, only "
                f"{present or 'no table at all'}: run the release's script "
                f"get_asr_data with --lang {language}."
            )
    tables = {split: read_table(file) for split, file in files.items()}
    found = {
        file.relative_to(folder).as_posix() for file in folder.glob("*/*.ogg")
    }
    listed = {path_of(row["id"]) for rows, _ in tables.values() for row in rows}
    strays = sorted(found - listed)
    report(folder, "audio files have no row in a table", strays)
    save_folder.mkdir(parents=True, exist_ok=True)
    for split in splits:
        kept = choose_rows(
            files[split], *tables[split], found, gold=split in gold_splits
        )
        prepare_split(
            save_folder / f"voxpopuli-{language}-{split}.csv",
            data_folder,
            {
                (folder / path).relative_to(data_folder).as_posix(): columns
                for path, columns in kept.items()
            },
            REMEDY,
            min_duration=min_duration,
            max_duration=max_duration if split == "train" else None,
            max_characters_per_second=max_characters_per_second
            if split == "train"
            else None,
            check_audio=check_audio,
        )


def find_language(data_folder, language):
    """Finds the folder of a language.

    Arguments
    ---------
    data_folder : Path
        Folder that holds ``transcribed_data``.
    language : str
        Its name there.

    Returns
    -------
    Path
        The folder.
    """
    if not data_folder.is_dir():
        raise FileNotFoundError(
            f"The data folder {data_folder} does not exist: set data_folder to "
            "the folder that holds transcribed_data of VoxPopuli."
        )
    transcribed = data_folder / "transcribed_data"
    if not transcribed.is_dir():
        for parent in data_folder.resolve().parents[:2]:
            if (parent / transcribed.name).is_dir():
                raise FileNotFoundError(
                    f"There is no {transcribed.name} in {data_folder}. Did you "
                    f"mean data_folder {parent}?"
                )
        raise FileNotFoundError(
            f"There is no {transcribed.name} in {data_folder}: make it with "
            "the release's script get_asr_data, with --root "
            f"{data_folder} --lang {language}."
        )
    if (transcribed / language).is_dir():
        return transcribed / language
    present = sorted(p.name for p in transcribed.iterdir() if p.is_dir())
    raise FileNotFoundError(
        f"There is no language '{language}' in {transcribed}. The languages "
        f"there: {', '.join(present) or 'none'}."
    )


def read_table(file):
    """Reads the table of a split.

    Arguments
    ---------
    file : Path
        ``asr_SPLIT.tsv``. Nothing in it is quoted, so that a quotation mark is
        a character as any other.

    Returns
    -------
    rows : list of dict
        The columns of each row.
    malformed : list of str
        The lines with more or fewer fields than columns, or without an id.
    """
    rows, malformed = [], []
    with open(file, newline="", encoding="utf-8") as stream:
        table = csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)
        try:
            columns = table.fieldnames or []
            for column in COLUMNS:
                if column not in columns:
                    raise ValueError(
                        f"{file} has no column '{column}', only "
                        f"{', '.join(columns) or 'an empty line'}: make it "
                        "again with the release's script get_asr_data."
                    )
            for row in table:
                whole = None not in row and None not in row.values()
                if whole and row["id"]:
                    rows.append(row)
                else:
                    malformed.append(f"line {table.line_num}")
        except (UnicodeDecodeError, csv.Error) as error:
            raise ValueError(
                f"{file} is damaged, or no text in UTF-8 ({error}): make it "
                "again with the release's script get_asr_data."
            ) from error
    return rows, malformed


def choose_rows(file, rows, malformed, found, gold=False):
    """Picks the rows of a split that can be used, and reports the others.

    Arguments
    ---------
    file : Path
        The table.
    rows : list of dict
        Its rows.
    malformed : list of str
        Its lines that are no rows.
    found : set of str
        The audio files, relative to the folder of the language.
    gold : bool
        Whether to take only rows that were checked by a human.

    Returns
    -------
    dict
        ``ID``, ``spk_id`` and ``wrd`` of each, by the path of its audio.
    """
    if gold and rows and GOLD not in rows[0]:
        raise ValueError(
            f"{file} has no column '{GOLD}': set gold_splits to [], or make "
            "the table again with the newest script get_asr_data."
        )
    kept, repeated, not_gold, empty, missing = {}, [], [], [], []
    last = {row["id"]: row for row in rows}
    for row in rows:
        name, path = row["id"], path_of(row["id"])
        words = normalize_text(row["normalized_text"])
        if row is not last[name]:
            repeated.append(name)
        elif gold and row[GOLD].lower() != "true":
            not_gold.append(name)
        elif not words:
            empty.append(name)
        elif path not in found:
            missing.append(name)
        else:
            kept[path] = {
                "ID": name,
                "spk_id": row["speaker_id"],
                "wrd": words,
            }
    if len(missing) > len(kept):
        raise FileNotFoundError(
            f"{file}: {len(missing)} of {len(missing) + len(kept)} utterances "
            f"have no audio, such as {file.parent / path_of(missing[0])}: run "
            "the release's script get_asr_data to its end, on a file system "
            "that allows colons in names."
        )
    left_out = {
        "lines are malformed": malformed,
        "rows have an id that comes again": repeated,
        "rows are not gold": not_gold,
        "rows have no text": empty,
        "rows have no audio": missing,
    }
    for fault, names in left_out.items():
        report(file, f"{fault} and are left out", names)
    if not kept:
        counts = [f"{len(x)} {fault}" for fault, x in left_out.items() if x]
        raise ValueError(
            f"{file} has no utterance that can be used "
            f"({', '.join(counts) or 'it has no rows'}): choose other splits, "
            "another language, or gold_splits: []."
        )
    return kept


def path_of(name):
    """Where the audio of an utterance lies in the folder of its language.

    Arguments
    ---------
    name : str
        The id of the utterance; it starts with the year.

    Returns
    -------
    str
        The path.

    Example
    -------
    >>> path_of("20180206-0900-PLENARY-15-hr_20180206-16:10:06_5")
    '2018/20180206-0900-PLENARY-15-hr_20180206-16:10:06_5.ogg'
    """
    return f"{name[:4]}/{name}.ogg"


def report(where, fault, names):
    """Warns of what is left out, if anything is.

    Arguments
    ---------
    where : Path
        The table or folder.
    fault : str
        What is wrong.
    names : list of str
        With what.
    """
    if names:
        first = ", ".join(names[:3])
        logger.warning(f"{where}: {len(names)} {fault}, such as {first}.")


def normalize_text(text):
    """Cleans a ``normalized_text`` of what the release has left in it.

    The release has put texts into lower case, has spelled numbers out and has
    taken punctuation away, mostly. Here

    - letters of all languages stay, in lower case and composed (NFC);
    - digits stay: how they were read is not in the text;
    - apostrophes stay within words;
    - invisible characters, such as soft hyphens, are removed;
    - all else becomes a space: punctuation, hyphens, quotation marks, signs.

    Arguments
    ---------
    text : str
        The text.

    Returns
    -------
    str
        Words with one space between them; "" if there are none.

    Example
    -------
    >>> normalize_text("It’s the 'so-called' Übermaß, 20% (in EUROPE).")
    "it's the so called übermaß 20 in europe"
    """
    text = unicodedata.normalize("NFC", text.translate(APOSTROPHES).lower())
    return " ".join(NOT_SPOKEN.sub(" ", INVISIBLE.sub("", text)).split())


if __name__ == "__main__":
    prepare_voxpopuli(*sys.argv[1:4])
