"""Data preparation of TED-LIUM, release 3.

Download: http://www.openslr.org/51

Authors
 * SpeechBrain-EE contributors 2026
"""

import json
import math
import re
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import soundfile
from speechbrain.utils.logger import get_logger

from speechbrain_ee.files import replacing
from speechbrain_ee.preparation import SAMPLE_RATE, write_csv

logger = get_logger(__name__)

# Where the release has its splits; legacy/train links to what is in data.
FOLDERS = {
    "tedlium-train": "data",
    "tedlium-dev": "legacy/dev",
    "tedlium-test": "legacy/test",
    "tedlium-adaptation-train": "speaker-adaptation/train",
    "tedlium-adaptation-dev": "speaker-adaptation/dev",
    "tedlium-adaptation-test": "speaker-adaptation/test",
}

GAP = "inter_segment_gap"
IGNORED = "ignore_time_segment_in_scoring"
FIELDS = "recording channel speaker start stop <label> words"
NO_WORDS = re.compile(r"<sil>|\([^\s()]*\)|\{[^\s{}]*\}", re.IGNORECASE)
TAG = re.compile(r"<[^\s<>]*>")

LONGEST_OVERSHOOT = 0.5  # s behind the recording's end, as Kaldi allows
LONGEST_OVERLAP = 0.1  # s; times are those of an alignment


@dataclass(frozen=True)
class Segment:
    """A line of an STM file.

    Arguments
    ---------
    recording : str
        Name of the recording, which is that of the file.
    line : int
        Its number in the file, from 1.
    speaker : str
        Who speaks.
    start : float
        Where it starts in the recording, in seconds.
    stop : float
        Where it stops, in seconds.
    words : str
        What is said, as given by ``clean_text``.
    """

    recording: str
    line: int
    speaker: str
    start: float
    stop: float
    words: str


def prepare_tedlium(
    data_folder,
    save_folder,
    train_split,
    test_splits,
    min_duration=None,
    max_duration=None,
    max_characters_per_second=None,
    skip_prep=False,
):
    """Writes one CSV file for each split, with a row for each segment.

    A row has the recording (``wav``, which starts with ``$data_root``: read it
    with ``replacements={"data_root": data_folder}``) and the samples from
    ``start`` up to ``stop``; no audio is copied. What is to be ignored in
    scoring, such as the gaps between segments, has no row.

    Segments are left out, with a warning, that have no words or no duration,
    that end more than 0.5 s behind their recording (what ends less behind it is
    cut there), or that start more than 0.1 s before the end of another one of
    their speaker.

    A split is left alone if its file was written from the same transcripts and
    recordings with the same options.

    Arguments
    ---------
    data_folder : str
        Folder of the release, with ``data``, ``legacy`` and
        ``speaker-adaptation`` in it.
    save_folder : str
        Where to write the CSV files.
    train_split : str
        Split to train on, a key of ``FOLDERS``: ``tedlium-train`` (452 h), or
        ``tedlium-adaptation-train``.
    test_splits : list of str
        Splits to choose checkpoints with and to score, such as
        ["tedlium-dev", "tedlium-test"].
    min_duration : float, optional
        Leave out segments shorter than this, in seconds.
    max_duration : float, optional
        Leave out longer segments of the training split. The others are scored
        whole.
    max_characters_per_second : float, optional
        Leave out segments of the training split with more characters in a
        second: their text belongs to other speech, and may not fit into their
        frames.
    skip_prep : bool
        If True, do nothing.

    Raises
    ------
    FileNotFoundError
        If the data folder, a split, a recording or its transcripts are missing.
    ValueError
        If a line of an STM file is malformed, if a recording cannot be read or
        is not of one channel at 16 kHz, if most segments of a split are at
        fault, if none is left, or if there is no split of that name.

    Example
    -------
    >>> from speechbrain_ee.corpora.tedlium import make_tedlium
    >>> folder = getfixture("tmp_path")
    >>> data_folder = make_tedlium(folder / "data", {"train": 2, "dev": 1})
    >>> prepare_tedlium(data_folder, folder, "tedlium-train", ["tedlium-dev"])
    >>> rows = (folder / "tedlium-train.csv").read_text().splitlines()
    >>> rows[1].split(",")[2]
    '$data_root/data/sph/Speaker1_2018.sph'
    """
    if skip_prep:
        return
    data_folder, save_folder = Path(data_folder), Path(save_folder)
    check_folders(data_folder, [train_split, *test_splits])
    save_folder.mkdir(parents=True, exist_ok=True)
    for split in [train_split, *test_splits]:
        training = split == train_split
        limits = {
            "min_duration": min_duration,
            "max_duration": max_duration if training else None,
            "max_characters_per_second": (
                max_characters_per_second if training else None
            ),
        }
        prepare_split(data_folder, save_folder, split, limits)


def prepare_split(data_folder, save_folder, split, limits):
    """Writes the CSV file of a split, unless it is up to date.

    Arguments
    ---------
    data_folder : Path
        Folder of the release.
    save_folder : Path
        Where to write.
    split : str
        A key of ``FOLDERS``.
    limits : dict
        Those of ``write_csv``.
    """
    folder = data_folder / FOLDERS[split]
    csv_file = save_folder / f"{split}.csv"
    options_file = save_folder / f"{split}.options.json"
    recordings = find_recordings(folder)
    segments = [s for stm in recordings for s in read_stm(stm)]
    if not segments:
        raise ValueError(
            f"The STM files of {folder} have no segments to score: extract the "
            "archive again."
        )
    sizes = [(sph.name, sph.stat().st_size) for sph in recordings.values()]
    checksum = zlib.crc32(repr((segments, sizes)).encode())
    options = {**limits, "checksum": checksum}
    if csv_file.is_file() and options_file.is_file():
        before = json.loads(options_file.read_text())
        faults = before.pop("faults", None)
        if before == options:
            report_faults(folder, faults, len(segments))
            logger.info(f"Skipping {split}: {csv_file} is up to date.")
            return
    with ThreadPoolExecutor() as executor:
        frames = executor.map(count_frames, recordings.values())
        frames = dict(zip((stm.stem for stm in recordings), frames))
    rows, faults = make_rows(segments, frames, FOLDERS[split])
    report_faults(folder, faults, len(segments))
    # A run cut short here must not leave options of another file.
    options_file.unlink(missing_ok=True)
    write_csv(csv_file, rows, **limits)
    with replacing(options_file) as file:
        file.write_text(json.dumps({**options, "faults": faults}, indent=2))


def check_folders(data_folder, splits):
    """Raises an error if a split is not in the data folder.

    Arguments
    ---------
    data_folder : Path
        Folder of the release.
    splits : list of str
        Names of splits.
    """
    if not data_folder.is_dir():
        raise FileNotFoundError(
            f"The data folder {data_folder} does not exist: set data_folder to "
            "the folder TEDLIUM_release-3 of the extracted archive."
        )
    for split in splits:
        if split not in FOLDERS:
            raise ValueError(
                f"TED-LIUM has no split '{split}': choose from "
                f"{', '.join(FOLDERS)}."
            )
        if (data_folder / FOLDERS[split]).is_dir():
            continue
        inner = data_folder / "TEDLIUM_release-3"
        if inner.is_dir():
            remedy = f"Did you mean data_folder {inner}?"
        else:
            found = sorted(p.name for p in data_folder.iterdir() if p.is_dir())
            remedy = f"The folders there: {', '.join(found) or 'none'}."
        raise FileNotFoundError(
            f"There is no folder {FOLDERS[split]} in {data_folder}, where "
            f"{split} should be. {remedy}"
        )


def find_recordings(folder):
    """Finds the recordings of a split and their transcripts.

    Arguments
    ---------
    folder : Path
        Folder of the split.

    Returns
    -------
    dict
        The SPH file of each STM file (Path), in the order of their names.
    """
    stms = {file.stem: file for file in sorted(folder.glob("stm/*.stm"))}
    sphs = {file.stem: file for file in folder.glob("sph/*.sph")}
    if not stms and not sphs:
        raise FileNotFoundError(
            f"There are no recordings in {folder}: expected files sph/TALK.sph "
            "and stm/TALK.stm."
        )
    for some, others, missing in [
        (stms, sphs, "sph/{}.sph"),
        (sphs, stms, "stm/{}.stm"),
    ]:
        alone = sorted(some.keys() - others.keys())
        if alone:
            raise FileNotFoundError(
                f"{folder / missing.format(alone[0])} is missing (and "
                f"{len(alone) - 1} more of its kind), but there is "
                f"{some[alone[0]].name}: extract the archive again, or remove "
                "that file."
            )
    return {file: sphs[name] for name, file in stms.items()}


def read_stm(file):
    """Reads the segments of a recording that are not to be ignored.

    Arguments
    ---------
    file : Path
        STM file, with a comment (``;;``) or a segment in each line.

    Returns
    -------
    list of Segment
        In the order of the file.
    """
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{file} is damaged, or not encoded in UTF-8 ({error}): extract "
            "the archive again, or convert it."
        ) from error
    segments = []
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.lstrip().startswith(";;"):
            continue
        fields = line.split(maxsplit=6)
        fault = fault_of_fields(fields, file.stem)
        if fault:
            raise ValueError(
                f"Line {number} of {file} {fault}: correct it to '{FIELDS}', "
                "or extract the archive again."
            )
        _, _, speaker, start, stop, _, *text = fields
        text = "".join(text).strip()
        if speaker == GAP or text.lower() == IGNORED:
            continue
        times = float(start), float(stop)
        segments.append(
            Segment(file.stem, number, speaker, *times, clean_text(text))
        )
    return segments


def fault_of_fields(fields, recording):
    """Says what is wrong with the fields of a line.

    Arguments
    ---------
    fields : list of str
        The fields.
    recording : str
        Whose they should be.

    Returns
    -------
    str
        What is wrong, or "".
    """
    if len(fields) < 6:
        return f"has {len(fields)} fields and not 6 before the words"
    name, channel, _, *times, label = fields[:6]
    if name != recording:
        return f"is of another recording, {name}"
    if channel not in ("1", "A"):
        return f"is of channel {channel}, but recordings have one channel"
    for time in times:
        try:
            finite = math.isfinite(float(time))
        except ValueError:
            finite = False
        if not finite:
            return f"has '{time}' where a time in seconds should be"
    if not TAG.fullmatch(label):
        return f"has '{label}' where a label should be"
    return ""


def clean_text(text):
    """Makes the words of a transcript those that a model shall write.

    - Marks that are no words are removed: ``<sil>``, ``{NOISE}`` and others in
      braces, numbers of pronunciations as in ``read(2)``, and the segment's
      name in parentheses at the end of lines of earlier releases.
    - What starts with an apostrophe is joined to the word before it, as in
      Kaldi's recipe: ``it 's`` becomes IT'S.
    - ``<unk>``, a word that the transcriber or the aligner did not know, is
      removed together with what was joined to it. It is spoken, but there is
      nothing to learn from it; in test sets, what a model writes there counts
      as an insertion.
    - All is in upper case, as in LibriSpeech.

    Arguments
    ---------
    text : str
        As the STM file has it.

    Returns
    -------
    str
        Words, separated by spaces.

    Example
    -------
    >>> clean_text("{NOISE} it 's the <unk> 's book i read(2) <sil> didn 't i")
    "IT'S THE BOOK I READ DIDN'T I"
    """
    text = NO_WORDS.sub(" ", text)
    words = re.sub(r"\s+'", "'", text.strip()).upper().split()
    return " ".join(word for word in words if not TAG.search(word))


def count_frames(file):
    """Finds out how long a recording is.

    Arguments
    ---------
    file : Path
        The recording: SPHERE, or what else libsndfile knows by its content.

    Returns
    -------
    int
        Its number of samples.
    """
    try:
        audio = soundfile.info(file)
    except soundfile.LibsndfileError as error:
        with open(file, "rb") as stream:
            compressed = b"shorten" in stream.read(1024)
        if compressed:
            new = file.with_suffix(".new")
            raise ValueError(
                f"{file} is compressed with shorten, which libsndfile cannot "
                f"read. Convert it with 'sph2pipe -f wav -p {file} {new}' or "
                f"'ffmpeg -i {file} -f wav {new}', and rename {new.name} to "
                f"{file.name}: what is in a file counts, not its name."
            ) from error
        raise ValueError(
            f"{file} cannot be read ({error.error_string.rstrip('.')}): "
            "extract the archive again."
        ) from error
    if audio.samplerate != SAMPLE_RATE:
        raise ValueError(
            f"{file} is sampled at {audio.samplerate} Hz: extract the archive "
            f"again, or resample it to {SAMPLE_RATE} Hz."
        )
    if audio.channels != 1:
        raise ValueError(
            f"{file} has {audio.channels} channels: extract the archive again, "
            "or keep one of them."
        )
    return audio.frames


def make_rows(segments, frames, folder):
    """Looks for faults of segments.

    Arguments
    ---------
    segments : list of Segment
        Those of a split.
    frames : dict
        Number of samples by recording.
    folder : str
        Of the split, relative to the data folder.

    Returns
    -------
    rows : list of dict
        The columns of each segment without a fault, in the order of the
        segments.
    faults : dict
        What is wrong with each of the others, by its file and line.
    """
    rows, faults = {}, {}
    last = {}  # that of each speaker of each recording
    for segment in sorted(segments, key=lambda s: (s.recording, s.start)):
        name = segment.recording
        before = last.get((name, segment.speaker))
        fault = fault_of_segment(segment, frames[name], before)
        if fault:
            faults[f"stm/{name}.stm, line {segment.line}"] = fault
            continue
        last[name, segment.speaker] = segment
        start = round(segment.start * SAMPLE_RATE)
        stop = min(round(segment.stop * SAMPLE_RATE), frames[name])
        rows[segment] = {
            "ID": f"{name}-{segment.line:04d}",
            "duration": (stop - start) / SAMPLE_RATE,
            "wav": f"$data_root/{folder}/sph/{name}.sph",
            "start": start,
            "stop": stop,
            "spk_id": segment.speaker,
            "wrd": segment.words,
        }
    return [rows[s] for s in segments if s in rows], faults


def fault_of_segment(segment, frames, before=None):
    """Says what is wrong with a segment.

    Arguments
    ---------
    segment : Segment
        The segment.
    frames : int
        How many samples its recording has.
    before : Segment, optional
        The one before it of the same speaker.

    Returns
    -------
    str
        What is wrong, or "".
    """
    end = frames / SAMPLE_RATE
    if not segment.words:
        return "no words"
    if segment.start < 0:
        return f"starts at {segment.start:g} s"
    if segment.stop <= segment.start:
        return f"lasts {segment.stop - segment.start:g} s"
    if segment.start >= end or segment.stop > end + LONGEST_OVERSHOOT:
        return f"ends at {segment.stop:g} s, its recording at {end:g} s"
    if before and segment.start < before.stop - LONGEST_OVERLAP:
        return f"starts at {segment.start:g} s, within line {before.line}"
    return ""


def report_faults(folder, faults, segments):
    """Says which segments are left out since something is wrong with them.

    Arguments
    ---------
    folder : Path
        Folder of the split.
    faults : dict
        What is wrong with each of them, by its place.
    segments : int
        How many segments the split has.

    Raises
    ------
    ValueError
        If more than half of them are left out.
    """
    if not faults:
        return
    first = [f"{place} ({fault})" for place, fault in list(faults.items())[:3]]
    message = (
        f"{folder}: {len(faults)} of {segments} segments are left out, such as "
        f"{'; '.join(first)}"
    )
    if 2 * len(faults) > segments:
        raise ValueError(f"{message}: extract the archive again.")
    logger.warning(f"{message}.")


if __name__ == "__main__":
    prepare_tedlium(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:])
