"""What the recipes' data preparations have in common: audio files are looked
at once, and a split is written once.

Authors
 * SpeechBrain-EE contributors 2026
"""

from __future__ import annotations

import csv
import json
import math
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import soundfile
from speechbrain.utils.logger import get_logger
from speechbrain.utils.parallel import parallel_map

from speechbrain_ee.encoders.base import SAMPLE_RATE
from speechbrain_ee.files import replacing

logger = get_logger(__name__)

# Of Ogg pages: RFC 3533, section 6.
_PAGE_MARK = b"OggS"
_PAGE_HEAD = 27  # bytes, before the table of segments
_LONGEST_PAGE = _PAGE_HEAD + 255 + 255 * 255
_END_OF_STREAM = 4


def prepare_split(
    csv_file: str | Path,
    data_folder: str | Path,
    utterances: Mapping[str, Mapping[str, str]],
    remedy: str,
    min_duration: float | None = None,
    max_duration: float | None = None,
    max_characters_per_second: float | None = None,
    check_audio: bool = True,
    partners: Sequence[str] = (),
) -> None:
    """Write the CSV file of a split whose utterances have a file each.

    Or several of one length, such as noisy and clean speech: ``partners`` names
    the columns of the others. The paths in it start with ``$data_root``. It is
    left alone if it was written from the same utterances with the same options,
    which stand beside it in ``<split>.options.json``. Audio files that cannot
    be read to their end are left out with a warning.

    Arguments
    ---------
    csv_file : str or Path
        The file to write.
    data_folder : str or Path
        What ``$data_root`` stands for.
    utterances : mapping
        For each audio file, by its path in the data folder, ``ID`` and any
        columns more, such as ``spk_id`` and ``wrd``, the same for all.
    remedy : str
        What to do if most audio files cannot be read.
    min_duration : float, optional
        Leave out utterances shorter than this, in seconds.
    max_duration : float, optional
        Leave out utterances longer than this, in seconds.
    max_characters_per_second : float, optional
        Leave out utterances with more characters of text, ``wrd``, per second.
    check_audio : bool
        If True, decode all audio once. If False, read only the files' heads.
    partners : sequence of str
        Columns that hold paths in the data folder too.

    Raises
    ------
    ValueError
        If an audio file is not sampled at 16 kHz, if most of them cannot be
        read, if partners are not of one length, or if no utterance is left.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> soundfile.write(folder / "a.flac", [0.0] * 8000, 16000)
    >>> row = {"ID": "a", "spk_id": "anna", "wrd": "yes"}
    >>> prepare_split(folder / "train.csv", folder, {"a.flac": row}, "")
    >>> print((folder / "train.csv").read_text().split()[1])
    a,0.5,$data_root/a.flac,anna,yes
    """
    csv_file, data_folder = Path(csv_file), Path(data_folder)
    options_file = csv_file.with_suffix(".options.json")
    content = sorted((p, sorted(row.items())) for p, row in utterances.items())
    options = {
        "min_duration": min_duration,
        "max_duration": max_duration,
        "max_characters_per_second": max_characters_per_second,
        "check_audio": check_audio,
        "utterances": len(utterances),
        "checksum": zlib.crc32(repr(content).encode()),
    }
    files = len(utterances) * (1 + len(partners))
    if csv_file.is_file() and options_file.is_file():
        before = json.loads(options_file.read_text())
        # A file may have been repaired since.
        faults = find_faults(
            data_folder, before.get("unreadable", ()), check_audio
        )
        if before == {**options, "unreadable": faults}:
            report_faults(data_folder, faults, files, remedy)
            logger.info(f"Skipping {csv_file}: it is up to date.")
            return
    rows, faults = _make_rows(
        csv_file.stem, data_folder, utterances, check_audio, partners
    )
    report_faults(data_folder, faults, files, remedy)
    # A run cut short here must not leave options of another file.
    options_file.unlink(missing_ok=True)
    write_csv(
        csv_file, rows, min_duration, max_duration, max_characters_per_second
    )
    with replacing(options_file) as file:
        record = {**options, "unreadable": faults}
        file.write_text(json.dumps(record, indent=2))


def read_transcripts(folder: Path) -> dict[str, str]:
    """Read transcripts in LibriSpeech's layout, and see that audio is there.

    Arguments
    ---------
    folder : Path
        Of a split, with ``SPEAKER/CHAPTER/SPEAKER-CHAPTER-NNNN.flac`` and
        ``SPEAKER-CHAPTER.trans.txt`` beside it.

    Returns
    -------
    dict
        For each audio file, by its path relative to ``folder`` (str), the
        words spoken in it.

    Raises
    ------
    FileNotFoundError
        If there are no transcripts, or an audio file is missing.
    ValueError
        If a transcript is damaged.

    Example
    -------
    >>> folder = getfixture("tmp_path") / "19" / "198"
    >>> folder.mkdir(parents=True)
    >>> _ = (folder / "19-198.trans.txt").write_text("19-198-0000 WELL\\n")
    >>> (folder / "19-198-0000.flac").touch()
    >>> read_transcripts(folder.parents[1])
    {'19/198/19-198-0000.flac': 'WELL'}
    """
    transcripts, empty = {}, []
    for file in sorted(folder.glob("*/*/*.trans.txt")):
        try:
            lines = file.read_text(encoding="utf-8").split("\n")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{file} is damaged, or not encoded in UTF-8 ({error}): "
                "extract the archive again, or convert it."
            ) from error
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


def look_at_audio(
    file: str | Path, decode: bool = True
) -> tuple[int, int, str]:
    """Find out how long an audio file is, and whether it can be read.

    Arguments
    ---------
    file : str or Path
        The file.
    decode : bool
        If True, read all of it, and not only its head.

    Returns
    -------
    frames : int
        Its number of samples.
    sample_rate : int
        Their rate in Hz.
    fault : str
        Why it cannot be read, or "".

    Example
    -------
    >>> file = getfixture("tmp_path") / "speech.ogg"
    >>> soundfile.write(file, [k**2 % 89 / 89 for k in range(8000)], 16000)
    >>> look_at_audio(file)
    (8000, 16000, '')
    >>> _ = file.write_bytes(file.read_bytes()[:-99])
    >>> "cut off" in look_at_audio(file)[2]
    True
    """
    try:
        with soundfile.SoundFile(file) as audio:
            promised, rate = audio.frames, audio.samplerate
            frames = len(audio.read(dtype="int16")) if decode else promised
            ogg = audio.format == "OGG"
    except soundfile.LibsndfileError as error:
        return 0, 0, error.error_string.rstrip(".") or "no audio"
    except MemoryError:
        return 0, 0, "its head promises more samples than fit into memory"
    if audio.channels > 1:
        return 0, 0, f"{audio.channels} channels, not one"
    if ogg and decode:
        # libsndfile takes what is left of a file for the whole.
        promised = _samples_of_ogg(file)
        if promised is None:
            return 0, 0, f"cut off after {frames} samples"
    if frames < promised:
        return 0, 0, f"cut off after {frames} of {promised} samples"
    return frames, rate, "" if frames else "no samples"


def _samples_of_ogg(file: str | Path) -> int | None:
    """Samples up to the end of an Ogg stream; None if its end is missing."""
    with open(file, "rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, size - _LONGEST_PAGE))
        tail = stream.read()
    page = tail[max(0, tail.rfind(_PAGE_MARK)) :]
    head, segments = page[:_PAGE_HEAD], page[_PAGE_HEAD:]
    if len(head) < _PAGE_HEAD or not head[5] & _END_OF_STREAM:
        return None
    count = head[-1]
    if len(segments) < count + sum(segments[:count]):
        return None
    return int.from_bytes(head[6:14], "little")


def find_faults(
    data_folder: str | Path, paths: Iterable[str], check_audio: bool = True
) -> dict:
    """Look for audio files that cannot be read.

    Arguments
    ---------
    data_folder : str or Path
        Folder of the corpus.
    paths : iterable of str
        The files in it.
    check_audio : bool
        If True, decode them.

    Returns
    -------
    dict
        What is wrong with each file that cannot be read, by its path.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> (folder / "empty.flac").touch()
    >>> list(find_faults(folder, ["empty.flac"]))
    ['empty.flac']
    """
    faults = {
        path: look_at_audio(Path(data_folder) / path, check_audio)[2]
        for path in paths
    }
    return {path: fault for path, fault in faults.items() if fault}


def report_faults(
    data_folder: str | Path, faults: Mapping[str, str], files: int, remedy: str
) -> None:
    """Say which audio files are left out since they cannot be read.

    Arguments
    ---------
    data_folder : str or Path
        Folder of the corpus.
    faults : mapping
        What is wrong with each of them, by its path in the folder.
    files : int
        How many files the split has, with these.
    remedy : str
        What to do if that is most of them.

    Raises
    ------
    ValueError
        If more than half of them are left out.

    Example
    -------
    >>> report_faults("data", {"a.flac": "no samples"}, 1, "extract it")
    Traceback (most recent call last):
    ...
    ValueError: data: 1 of 1 audio files cannot be read, such as a.flac \
(no samples): extract it.
    """
    if not faults:
        return
    first = [f"{path} ({fault})" for path, fault in list(faults.items())[:3]]
    names = ", ".join(first)
    if 2 * len(faults) > files:
        raise ValueError(
            f"{data_folder}: {len(faults)} of {files} audio files cannot be "
            f"read, such as {names}: {remedy}."
        )
    logger.warning(
        f"{data_folder}: {len(faults)} of {files} audio files cannot be read "
        f"and are left out, such as {names}: extract or make them again to "
        "have them."
    )


def look_at_all(
    name: str, paths: Iterable[str | Path], check_audio: bool = True
) -> dict:
    """Look at audio files in parallel.

    Arguments
    ---------
    name : str
        Of the set, for the progress bar.
    paths : iterable of str or Path
        The files.
    check_audio : bool
        If True, decode them.

    Returns
    -------
    dict
        Samples, sampling rate and fault of each, as of ``look_at_audio``, by
        its path.

    Raises
    ------
    ValueError
        If one of them is not sampled at 16 kHz.

    Example
    -------
    >>> file = getfixture("tmp_path") / "a.flac"
    >>> soundfile.write(file, [0.0] * 8000, 16000)
    >>> look_at_all("train", [file])[file]
    (8000, 16000, '')
    """

    def look(path):
        """At one of them."""
        return path, look_at_audio(path, check_audio)

    looked = {}
    # Threads: soundfile lets others run while it reads and decodes.
    with ThreadPoolExecutor() as executor:
        for path, found in parallel_map(
            look,
            sorted(paths),
            executor=executor,
            progress_bar_kwargs={"desc": name},
        ):
            _, rate, fault = looked[path] = found
            if not fault and rate != SAMPLE_RATE:
                raise ValueError(
                    f"{path} is sampled at {rate} Hz: resample the audio of "
                    f"this split to {SAMPLE_RATE} Hz."
                )
    return looked


def _make_rows(split, data_folder, utterances, check_audio, partners):
    """Looks into audio files.

    Returns a row for each utterance whose files can be read, in the order of
    their paths, and what is wrong with each of the other files.
    """
    files = {
        path: [path, *(row[column] for column in partners)]
        for path, row in utterances.items()
    }
    paths = {data_folder / file for own in files.values() for file in own}
    looked = look_at_all(split, paths, check_audio)
    rows, faults, uneven = [], {}, []
    for path in sorted(utterances):
        found = {file: looked[data_folder / file] for file in files[path]}
        wrong = {file: fault for file, (*_, fault) in found.items() if fault}
        if wrong:
            faults |= wrong
            continue
        frames = [samples for samples, *_ in found.values()]
        if len(set(frames)) > 1:
            pairs = ", ".join(f"{f} {n}" for f, n in zip(found, frames))
            uneven.append(f"({pairs})")
        given = dict(utterances[path])
        given |= {column: f"$data_root/{given[column]}" for column in partners}
        rows.append(
            {
                "ID": given.pop("ID"),
                "duration": frames[0] / SAMPLE_RATE,
                "wav": f"$data_root/{path}",
                **given,
            }
        )
    if uneven:
        raise ValueError(
            f"{data_folder}: the files of {len(uneven)} of {len(utterances)} "
            "utterances differ in their number of samples, such as "
            f"{', '.join(uneven[:3])}: extract or make them again."
        )
    return rows, faults


def write_csv(
    csv_file: str | Path,
    rows: Sequence[Mapping],
    min_duration: float | None = None,
    max_duration: float | None = None,
    max_characters_per_second: float | None = None,
) -> None:
    """Write the utterances of the wanted duration.

    Arguments
    ---------
    csv_file : str or Path
        The file to write.
    rows : sequence of mapping
        The values of the columns for each utterance, ``duration`` (s) among
        them.
    min_duration : float, optional
        Leave out utterances shorter than this, in seconds.
    max_duration : float, optional
        Leave out utterances longer than this, in seconds.
    max_characters_per_second : float, optional
        Leave out utterances with more characters of text, ``wrd``, per second.

    Raises
    ------
    ValueError
        If none is left.

    Example
    -------
    >>> file = getfixture("tmp_path") / "train.csv"
    >>> row = {"ID": "a", "duration": 0.5, "wrd": "yes"}
    >>> write_csv(
    ...     file, [row, {**row, "duration": 0.1}], max_characters_per_second=20
    ... )
    >>> file.read_text().split()
    ['ID,duration,wrd', 'a,0.5,yes']
    """
    shortest, longest = min_duration or 0, max_duration or math.inf
    lasting = [r for r in rows if shortest <= r["duration"] <= longest]
    if not lasting:
        raise ValueError(
            f"None of the {len(rows)} utterances for {Path(csv_file).name} "
            f"lasts between {shortest} and {longest} seconds: change "
            "min_duration or max_duration."
        )
    kept, fastest = lasting, max_characters_per_second
    if fastest:
        kept = [r for r in lasting if len(r["wrd"]) <= fastest * r["duration"]]
    if len(kept) < len(lasting):
        logger.warning(
            f"{csv_file}: {len(lasting) - len(kept)} of {len(rows)} utterances "
            f"have more than {fastest} characters of text per second and are "
            "left out."
        )
    if not kept:
        raise ValueError(
            f"No utterance for {Path(csv_file).name} has {fastest} characters "
            "of text per second or less: change max_characters_per_second."
        )
    with (
        replacing(csv_file) as file,
        open(file, "w", newline="", encoding="utf-8") as stream,
    ):
        writer = csv.DictWriter(stream, list(kept[0]))
        writer.writeheader()
        writer.writerows(kept)
    minutes = sum(row["duration"] for row in kept) / 60
    logger.info(
        f"{csv_file}: {len(kept)} of {len(rows)} utterances, "
        f"{minutes:.2f} minutes."
    )
