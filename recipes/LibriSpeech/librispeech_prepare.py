"""Data preparation of LibriSpeech, and of any corpus in its layout.

Download: http://www.openslr.org/12

Authors
 * SpeechBrain-EE contributors 2026
"""

import csv
import json
import math
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from speechbrain.dataio import audio_io
from speechbrain.dataio.dataio import merge_csvs
from speechbrain.utils.logger import get_logger
from speechbrain.utils.parallel import parallel_map

logger = get_logger(__name__)
SAMPLE_RATE = 16000
COLUMNS = ("ID", "duration", "wav", "spk_id", "wrd")


def prepare_librispeech(
    data_folder,
    save_folder,
    splits,
    merge_lst=(),
    merge_name=None,
    min_duration=None,
    max_duration=None,
    skip_prep=False,
):
    """Writes one CSV file for each split.

    The paths in it start with ``$data_root``: read it with
    ``replacements={"data_root": data_folder}``. A split is left alone if its
    file was written from the same transcripts with the same options.

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
        Leave out utterances longer than this, in seconds.
    skip_prep : bool
        If True, do nothing.

    Raises
    ------
    FileNotFoundError
        If the data folder, a split, its transcripts or an audio file is
        missing.
    ValueError
        If an audio file is not sampled at 16 kHz, if no utterance of a split
        is left, or if the merged file has the name of a split.

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
    for split in splits:
        transcripts = read_transcripts(data_folder / split)
        csv_file = save_folder / f"{split}.csv"
        options_file = save_folder / f"{split}.options.json"
        options = {
            "min_duration": min_duration,
            "max_duration": max_duration,
            "utterances": len(transcripts),
            "checksum": zlib.crc32(repr(sorted(transcripts.items())).encode()),
        }
        if (
            csv_file.is_file()
            and options_file.is_file()
            and json.loads(options_file.read_text()) == options
        ):
            logger.info(f"Skipping {split}: {csv_file} is up to date.")
            continue
        rows = make_rows(data_folder, split, transcripts)
        write_csv(csv_file, rows, min_duration, max_duration)
        options_file.write_text(json.dumps(options, indent=2))
    if merge_lst:
        csv_files = [f"{split}.csv" for split in merge_lst]
        merge_csvs(str(save_folder), csv_files, merge_name)


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


def read_transcripts(folder):
    """Reads the transcripts of a split and checks them against its audio.

    Arguments
    ---------
    folder : Path
        Folder of the split.

    Returns
    -------
    dict
        For each audio file, by its path relative to ``folder`` (str), the
        words spoken in it.
    """
    transcripts, empty = {}, []
    for file in sorted(folder.glob("*/*/*.trans.txt")):
        with open(file, encoding="utf-8") as lines:
            for line in filter(None, map(str.strip, lines)):
                name, _, words = line.partition(" ")
                audio = file.with_name(f"{name}.flac")
                if not audio.is_file():
                    raise FileNotFoundError(
                        f"{audio} is missing, but {file.name} has a transcript "
                        "of it: extract the archive again, or remove that line."
                    )
                if words:
                    key = audio.relative_to(folder).as_posix()
                    transcripts[key] = words
                else:
                    empty.append(name)
    if not transcripts:
        raise FileNotFoundError(
            f"There are no transcripts in {folder}: expected files "
            "SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt with lines "
            "'UTTERANCE-ID WORDS'."
        )
    audio = {file.stem for file in folder.glob("*/*/*.flac")}
    unknown = audio - {Path(key).stem for key in transcripts} - set(empty)
    for names, fault in [
        (empty, "an empty transcript"),
        (sorted(unknown), "no transcript"),
    ]:
        if names:
            logger.warning(
                f"{folder}: {len(names)} utterances with {fault} are left out, "
                f"such as {names[0]}."
            )
    return transcripts


def make_rows(data_folder, split, transcripts):
    """Looks into the audio files of a split, in parallel.

    Arguments
    ---------
    data_folder : Path
        Folder that holds the splits.
    split : str
        Name of the split.
    transcripts : dict
        Words by path, as given by ``read_transcripts``.

    Returns
    -------
    list of tuple
        The values of ``COLUMNS`` for each utterance, in the order of the
        utterances' paths.
    """

    def make_row(path):
        file = data_folder / split / path
        info = audio_io.info(str(file))
        if info.sample_rate != SAMPLE_RATE:
            raise ValueError(
                f"{file} is sampled at {info.sample_rate} Hz: resample the "
                f"audio of this split to {SAMPLE_RATE} Hz."
            )
        return (
            file.stem,
            info.duration,
            f"$data_root/{split}/{path}",
            file.stem.split("-")[0],
            transcripts[path],
        )

    # Threads, since the work is reading the heads of many small files.
    with ThreadPoolExecutor() as executor:
        return list(
            parallel_map(
                make_row,
                sorted(transcripts),
                executor=executor,
                progress_bar_kwargs={"desc": split},
            )
        )


def write_csv(csv_file, rows, min_duration=None, max_duration=None):
    """Writes the utterances of the wanted duration.

    Arguments
    ---------
    csv_file : Path
        The file to write.
    rows : list of tuple
        The values of ``COLUMNS`` for each utterance.
    min_duration : float, optional
        Leave out utterances shorter than this, in seconds.
    max_duration : float, optional
        Leave out utterances longer than this, in seconds.
    """
    shortest, longest = min_duration or 0, max_duration or math.inf
    kept = [row for row in rows if shortest <= row[1] <= longest]
    if not kept:
        raise ValueError(
            f"None of the {len(rows)} utterances for {csv_file.name} lasts "
            f"between {shortest} and {longest} seconds: change min_duration or "
            "max_duration."
        )
    with open(csv_file, "w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([COLUMNS, *kept])
    minutes = sum(row[1] for row in kept) / 60
    logger.info(
        f"{csv_file}: {len(kept)} of {len(rows)} utterances, "
        f"{minutes:.2f} minutes."
    )


if __name__ == "__main__":
    prepare_librispeech(sys.argv[1], sys.argv[2], sys.argv[3:])
