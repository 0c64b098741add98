"""Data preparation of LibriSpeech, and of any corpus in its layout.

Download: http://www.openslr.org/12

Authors
 * SpeechBrain-EE contributors 2026
"""

import csv
import sys
from pathlib import Path

import pandas as pd
from speechbrain.utils.logger import get_logger

from speechbrain_ee.files import replacing
from speechbrain_ee.preparation import prepare_split, read_transcripts

logger = get_logger(__name__)
TABLE = "UTTERANCES.tsv"
REMEDY = (
    "set data_folder to the folder of a corpus in FLAC, or extract the archive "
    "again"
)


def prepare_librispeech(
    data_folder,
    save_folder,
    splits,
    merge_lst=(),
    merge_name=None,
    min_duration=None,
    max_duration=None,
    skip_prep=False,
    check_audio=True,
):
    """Writes one CSV file for each split.

    The paths in it start with ``$data_root``: read it with
    ``replacements={"data_root": data_folder}``. A split is left alone if its
    file was written from the same transcripts with the same options.

    Audio files that cannot be read to their end are left out with a warning.
    Where ``UTTERANCES.tsv`` stands in the data folder with the columns ``id``
    and ``snr``, the splits that it lists get one more column, ``snr``, which
    says "clean" where the table has nothing.

    Arguments
    ---------
    data_folder : str
        Folder that holds the splits, each laid out as
        ``SPLIT/SPEAKER/CHAPTER/SPEAKER-CHAPTER-NNNN.flac`` with
        ``SPEAKER-CHAPTER.trans.txt`` beside it.
    save_folder : str
        Where to write the CSV files.
    splits : list of str
        Splits to prepare, such as ["train-clean-100", "dev-clean"].
    merge_lst : list of str
        Splits to join in one more CSV file.
    merge_name : str
        Name of that file, such as "train.csv".
    min_duration : float, optional
        Leave out utterances shorter than this, in seconds.
    max_duration : float, optional
        Leave out utterances longer than this, in seconds, of the splits in
        ``merge_lst``, which are those to train on: a test set stays whole.
    skip_prep : bool
        If True, do nothing.
    check_audio : bool
        If True, decode all audio once, to find files that are cut off or
        damaged: some 3000 times as fast as it is spoken on each core, or 20
        minutes of one core for all of LibriSpeech. If False, read only their
        heads, in a tenth of the time; a damaged file then stops the training.

    Raises
    ------
    FileNotFoundError
        If the data folder, a split, its transcripts or an audio file is
        missing.
    ValueError
        If an audio file is not sampled at 16 kHz, if most of a split cannot be
        read, if no utterance of a split is left, if ``UTTERANCES.tsv`` lists a
        split in part, or if the merged file has the name of a split.

    Example
    -------
    >>> from speechbrain_ee.corpora.librispeech import make_librispeech
    >>> folder = getfixture("tmp_path")
    >>> data_folder = make_librispeech(folder / "data", {"train": 2})
    >>> prepare_librispeech(data_folder, folder, ["train"])
    >>> rows = (folder / "train.csv").read_text().splitlines()
    >>> rows[1].split(",")[2]
    '$data_root/train/1000/1/1000-1-0000.flac'
    """
    if skip_prep:
        return
    if merge_name in [f"{split}.csv" for split in splits]:
        raise ValueError(
            f"merge_name {merge_name} is the file of a split: choose another."
        )
    data_folder, save_folder = Path(data_folder), Path(save_folder)
    check_folders(data_folder, splits)
    save_folder.mkdir(parents=True, exist_ok=True)
    snrs = read_snrs(data_folder)
    for split in splits:
        transcripts = read_transcripts(data_folder / split)
        labels = snrs_of_split(data_folder, split, transcripts, snrs)
        prepare_split(
            save_folder / f"{split}.csv",
            data_folder,
            make_utterances(split, transcripts, labels),
            REMEDY,
            min_duration=min_duration,
            max_duration=max_duration if split in merge_lst else None,
            check_audio=check_audio,
        )
    if merge_lst:
        csv_files = [save_folder / f"{split}.csv" for split in merge_lst]
        merge_csvs(csv_files, save_folder / merge_name)


def check_folders(data_folder, splits):
    """Raises an error if a split is not in the data folder.

    Arguments
    ---------
    data_folder : Path
        Folder that holds the splits.
    splits : list of str
        Their names.
    """
    if not data_folder.is_dir():
        raise FileNotFoundError(
            f"The data folder {data_folder} does not exist: set data_folder to "
            "the folder that holds the splits of LibriSpeech."
        )
    for split in splits:
        if (data_folder / split).is_dir():
            continue
        inner = data_folder / "LibriSpeech"
        if inner.is_dir():
            remedy = f"Did you mean data_folder {inner}?"
        else:
            found = sorted(p.name for p in data_folder.iterdir() if p.is_dir())
            remedy = f"The folders there: {', '.join(found) or 'none'}."
        raise FileNotFoundError(
            f"There is no split '{split}' in {data_folder}. {remedy}"
        )


def read_snrs(data_folder):
    """Reads the signal-to-noise ratios of a corpus, if it has them.

    Arguments
    ---------
    data_folder : Path
        Folder that holds the splits.

    Returns
    -------
    dict
        For each utterance in ``UTTERANCES.tsv``, its ratio in dB (str), or
        "clean"; empty if there is no such table or no such column.
    """
    file = data_folder / TABLE
    if not file.is_file():
        return {}
    with open(file, newline="", encoding="utf-8") as stream:
        table = csv.DictReader(stream, delimiter="\t")
        if not {"id", "snr"} <= set(table.fieldnames or ()):
            return {}
        return {row["id"]: row["snr"] or "clean" for row in table}


def snrs_of_split(data_folder, split, transcripts, snrs):
    """Picks the signal-to-noise ratios of a split.

    Arguments
    ---------
    data_folder : Path
        Folder that holds the splits.
    split : str
        Name of the split.
    transcripts : dict
        Words by path, as given by ``read_transcripts``.
    snrs : dict
        Ratio by utterance, as given by ``read_snrs``.

    Returns
    -------
    dict
        Ratio by utterance; empty if none of the split is listed.
    """
    names = [Path(path).stem for path in sorted(transcripts)]
    missing = [name for name in names if name not in snrs]
    if len(missing) == len(names):
        return {}
    if missing:
        raise ValueError(
            f"{data_folder / TABLE} lists some utterances of {split}, but not "
            f"{missing[0]} (and {len(missing) - 1} others): add them, or "
            "remove the table."
        )
    return {name: snrs[name] for name in names}


def make_utterances(split, transcripts, snrs):
    """Says of each audio file what ``prepare_split`` needs.

    Arguments
    ---------
    split : str
        Name of the split.
    transcripts : dict
        Words by path, as given by ``read_transcripts``.
    snrs : dict
        Ratio by utterance, as given by ``snrs_of_split``.

    Returns
    -------
    dict
        The columns of each utterance, by its path in the data folder.
    """
    utterances = {}
    for path, words in transcripts.items():
        name = Path(path).stem
        columns = {"ID": name, "spk_id": name.split("-")[0], "wrd": words}
        if snrs:
            columns["snr"] = snrs[name]
        utterances[f"{split}/{path}"] = columns
    return utterances


def merge_csvs(csv_files, merged):
    """Joins files into one. A column that one of them lacks is empty there.

    Arguments
    ---------
    csv_files : list of Path
        The files.
    merged : Path
        The file to write.
    """
    tables = [
        pd.read_csv(file, dtype=str, keep_default_na=False)
        for file in csv_files
    ]
    with replacing(merged) as file:
        pd.concat(tables).to_csv(file, index=False)
    logger.info(f"{merged} joins {', '.join(file.name for file in csv_files)}.")


if __name__ == "__main__":
    prepare_librispeech(sys.argv[1], sys.argv[2], sys.argv[3:])
