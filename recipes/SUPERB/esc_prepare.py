"""Data preparation of ESC-50 and ESC-10, or any corpus in their layout.

Authors
 * SpeechBrain-EE contributors 2026
"""

import csv
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import soundfile
from scipy.signal import resample_poly
from speechbrain.utils.logger import get_logger

from speechbrain_ee.files import replacing
from speechbrain_ee.preparation import SAMPLE_RATE

logger = get_logger(__name__)
META = Path("meta") / "esc50.csv"
COLUMNS = (
    *("filename", "fold", "target", "category", "esc10", "src_file", "take"),
)


def prepare_esc(data_folder, save_folder, fold, esc10=False, skip_prep=False):
    """Writes ``train.csv``, ``valid.csv`` and ``test.csv`` of one fold.

    These are what ``prepare_superb`` takes: ``ID``, ``wav``, ``label`` (the
    category), ``fold``, ``src_file`` and ``take``. Tested is on the fold that
    is named, checkpoints are chosen by the next one (after the last, the
    first), and all others are trained on.

    Audio of another rate than 16 kHz, such as the original's, is resampled
    into ``save_folder/audio``; channels are averaged.

    Arguments
    ---------
    data_folder : str
        With ``audio/FOLD-CLIP-TAKE-TARGET.wav`` and ``meta/esc50.csv``.
    save_folder : str
        Where to write.
    fold : int
        The fold to test on.
    esc10 : bool
        Whether only the ten categories of ESC-10 are taken.
    skip_prep : bool
        If True, do nothing.

    Returns
    -------
    dict
        ``train_csv``, ``valid_csv`` and ``test_csvs``, the files.

    Raises
    ------
    FileNotFoundError
        If the table or a clip is missing.
    ValueError
        If the table lacks a column, contradicts itself or the names of files,
        or has no such fold.

    Example
    -------
    >>> from speechbrain_ee.corpora.esc import make_esc
    >>> data = make_esc(getfixture("tmp_path") / "data", clips=1, folds=3)
    >>> files = prepare_esc(data, getfixture("tmp_path") / "save", fold=3)
    >>> Path(files["valid_csv"]).read_text().splitlines()[1][-15:]
    'rain,1,100000,A'
    """
    data_folder, save_folder = Path(data_folder), Path(save_folder)
    files = {
        name: save_folder / f"{name}.csv" for name in ("train", "valid", "test")
    }
    made = {
        "train_csv": str(files["train"]),
        "valid_csv": str(files["valid"]),
        "test_csvs": [str(files["test"])],
    }
    if skip_prep:
        return made
    rows = _read(data_folder / META)
    if esc10:
        rows = [row for row in rows if row["esc10"] == "True"]
        if not rows:
            raise ValueError(
                f"{data_folder / META}: no row has esc10 True. Set esc10: "
                "False."
            )
    folds = sorted({row["fold"] for row in rows})
    if fold not in folds:
        raise ValueError(
            f"fold: {fold!r} is none of {', '.join(map(str, folds))}, the "
            f"folds of {data_folder / META}. Name one of these."
        )
    if len(folds) < 3:
        raise ValueError(
            f"{data_folder / META}, column fold: {len(folds)} folds are too "
            "few for train, valid and test. Make three or more."
        )
    valid = folds[(folds.index(fold) + 1) % len(folds)]
    names = {fold: "test", valid: "valid"}
    save_folder.mkdir(parents=True, exist_ok=True)
    wavs = _find_audio(data_folder, save_folder, rows)
    for name, file in files.items():
        own = [row for row in rows if names.get(row["fold"], "train") == name]
        with (
            replacing(file) as path,
            open(path, "w", newline="", encoding="utf-8") as stream,
        ):
            given = ["fold", "src_file", "take"]
            columns = ["ID", "wav", "label", *given]
            writer = csv.DictWriter(stream, columns, lineterminator="\n")
            writer.writeheader()
            for row in own:
                writer.writerow(
                    {
                        "ID": Path(row["filename"]).stem,
                        "wav": wavs[row["filename"]],
                        "label": row["category"],
                        **{column: row[column] for column in given},
                    }
                )
        logger.info(f"{file}: {len(own)} clips.")
    return made


def _read(file):
    """The rows of the table, whose columns agree."""
    if not file.is_file():
        raise FileNotFoundError(
            f"There is no {file}: set data_folder to the folder that holds "
            "audio and meta, as ESC-50 has them."
        )
    with open(file, newline="", encoding="utf-8-sig") as stream:
        reader = csv.DictReader(stream)
        rows, found = list(reader), reader.fieldnames or ()
    missing = [column for column in COLUMNS if column not in found]
    if missing:
        raise ValueError(
            f"{file} has no column '{missing[0]}', only {', '.join(found)}: "
            f"ESC-50's has {', '.join(COLUMNS)}. Add it."
        )
    if not rows:
        raise ValueError(f"{file} has no rows: add clips to it.")
    targets, sources, names = {}, {}, set()
    for number, row in enumerate(rows, 2):
        where = f"{file}, line {number}"
        name = row["filename"]
        said = Path(name or "").stem.split("-")
        told = (row["fold"], row["src_file"], row["take"], row["target"])
        if None in told or tuple(said) != told:
            raise ValueError(
                f"{where}, column filename: {name} is not "
                "FOLD-CLIP-TAKE-TARGET as the columns fold, src_file, take and "
                f"target have them, {'-'.join(map(str, told))}. Correct the "
                "one or the other."
            )
        if name in names:
            raise ValueError(
                f"{where}, column filename: {name} stands there twice. Take "
                "one of the rows out."
            )
        names.add(name)
        if not row["fold"].isdecimal():
            raise ValueError(
                f"{where}, column fold: {row['fold']!r} is no whole number. "
                "Correct it."
            )
        if row["esc10"] not in ("True", "False"):
            raise ValueError(
                f"{where}, column esc10: {row['esc10']!r} is neither True nor "
                "False. Correct it."
            )
        row["fold"] = int(row["fold"])
        first = targets.setdefault(row["target"], row["category"])
        if not row["category"] or first != row["category"]:
            raise ValueError(
                f"{where}, column category: target {row['target']} is "
                f"{row['category']!r} here and {first!r} above. Correct one."
            )
        first = sources.setdefault(row["src_file"], row["fold"])
        if first != row["fold"]:
            raise ValueError(
                f"{where}, column src_file: pieces of {row['src_file']} stand "
                f"in the folds {first} and {row['fold']}, so that a model "
                "would know what it is tested on. Put them into one."
            )
    return rows


def _find_audio(data_folder, save_folder, rows):
    """Where each clip is at 16 kHz, by its name."""
    paths = {
        row["filename"]: data_folder / "audio" / row["filename"] for row in rows
    }
    missing = [path for path in paths.values() if not path.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{data_folder / META}, column filename: {len(missing)} files are "
            f"missing, such as {missing[0]}: extract them again, or take their "
            "rows out."
        )
    with ThreadPoolExecutor() as executor:
        found = executor.map(
            lambda name: _at_16_khz(paths[name], save_folder / "audio"), paths
        )
        return dict(zip(paths, found))


def _at_16_khz(path, folder):
    """A clip, or its copy at 16 kHz."""
    try:
        rate = soundfile.info(path).samplerate
    except soundfile.LibsndfileError:
        rate = SAMPLE_RATE  # prepare_superb leaves it out, and says so
    if rate == SAMPLE_RATE:
        return f"$data_root/audio/{path.name}"
    copy = folder / path.name
    if not copy.is_file() or copy.stat().st_mtime < path.stat().st_mtime:
        wave, rate = soundfile.read(path, always_2d=True)
        divisor = math.gcd(SAMPLE_RATE, rate)
        wave = resample_poly(
            wave.mean(axis=1), SAMPLE_RATE // divisor, rate // divisor
        ).clip(-1, 1)
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(copy) as file:
            soundfile.write(file, wave, SAMPLE_RATE, "PCM_16", format="WAV")
    return str(copy.resolve())
