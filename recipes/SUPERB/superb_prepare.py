"""Data preparation of tasks that label utterances, from one CSV per split.

Authors
 * SpeechBrain-EE contributors 2026
"""

import csv
import json
import sys
import zlib
from collections import Counter
from pathlib import Path, PurePosixPath

import pandas as pd
from speechbrain.utils.logger import get_logger

from speechbrain_ee.analysis.verification import (
    Trial,
    draw_trials,
    read_trials,
)
from speechbrain_ee.files import replacing
from speechbrain_ee.phones import Pronunciations
from speechbrain_ee.preparation import (
    SAMPLE_RATE,
    look_at_all,
    report_faults,
)

logger = get_logger(__name__)
DATA_ROOT = "$data_root"
REMEDY = "make them again, or take their rows out"


def prepare_superb(
    train_csv,
    valid_csv,
    test_csvs,
    save_folder,
    data_folder="",
    label_columns=("label",),
    unseen_labels=False,
    min_duration=None,
    skip_prep=False,
    check_audio=True,
):
    """Writes ``<name>.csv`` for each of the given CSVs, once it is checked.

    The given ones have the columns ``ID``, ``wav`` and those of the labels. An
    utterance that is a piece of a recording has ``start`` and ``stop``
    (samples) too. What else there is goes along. The ones written have
    ``duration`` (s) as well, which is read from the files.

    A file is left alone if it was written from the same rows with the same
    options. Audio that cannot be read to its end is left out with a warning.

    Arguments
    ---------
    train_csv : str
        The CSV to train on.
    valid_csv : str
        The CSV that chooses checkpoints.
    test_csvs : sequence of str
        CSVs to test on. Sets are called after the files.
    save_folder : str
        Where to write.
    data_folder : str
        What ``$data_root`` stands for in ``wav``.
    label_columns : sequence of str
        The columns of the labels, one for each slot.
    unseen_labels : bool
        Whether the test sets may have other labels than train, or none, as in
        speaker verification.
    min_duration : float, optional
        Leave out utterances of train shorter than this, in seconds.
    skip_prep : bool
        If True, do nothing.
    check_audio : bool
        If True, decode all audio once, to find files that are cut off or
        damaged. If False, read only their heads.

    Raises
    ------
    FileNotFoundError
        If a CSV or an audio file is missing.
    ValueError
        If a CSV has no rows, lacks a column or a label, names an utterance
        twice, or has a label that train has not; if train has a single class;
        if audio is not sampled at 16 kHz, or most of it cannot be read.

    Example
    -------
    >>> from speechbrain_ee.corpora.utterances import make_utterances
    >>> folder = getfixture("tmp_path")
    >>> data = make_utterances(folder / "data", languages=["en"])
    >>> splits = [data / f"{split}.csv" for split in ("train", "valid", "test")]
    >>> prepare_superb(
    ...     *splits[:2], splits[2:], folder, data, label_columns=["object"]
    ... )
    >>> (folder / "test.csv").read_text().split(",")[:3]
    ['ID', 'duration', 'wav']
    """
    if skip_prep:
        return
    save_folder = Path(save_folder)
    files = [Path(file) for file in (train_csv, valid_csv, *test_csvs)]
    check_names(files, save_folder)
    tables = {}
    for number, file in enumerate(files):
        labelled = number < 2 or not unseen_labels
        tables[file] = read_table(file, label_columns if labelled else ())
        if 0 < number and labelled:
            check_labels(file, tables[file], files[0], tables, label_columns)
    check_classes(files[0], tables[files[0]], label_columns)
    save_folder.mkdir(parents=True, exist_ok=True)
    for file, rows in tables.items():
        prepare_table(
            save_folder / file.name,
            file,
            rows,
            str(data_folder),
            min_duration if file == files[0] else None,
            check_audio,
        )


def check_names(files, save_folder):
    """Raises an error if two sets would be written to one file.

    Arguments
    ---------
    files : list of Path
        The CSVs that are given.
    save_folder : Path
        Where those are written that are prepared.
    """
    names = Counter(file.name for file in files)
    for file in files:
        if names[file.name] > 1:
            raise ValueError(
                f"{names[file.name]} sets are called {file.stem}: give each "
                "CSV a name of its own, as sets are called after their files."
            )
        if file.resolve().parent == save_folder.resolve():
            raise ValueError(
                f"{file} would be overwritten by what is prepared: choose "
                "another output_folder."
            )


def read_table(file, label_columns):
    """Reads a CSV and checks what it says.

    Arguments
    ---------
    file : Path
        The CSV.
    label_columns : sequence of str
        Columns that it must have beside ``ID`` and ``wav``.

    Returns
    -------
    list of dict
        Its rows, all values as text.
    """
    wanted = ("ID", "wav", *label_columns)
    if not file.is_file():
        raise FileNotFoundError(
            f"There is no {file}: give a CSV with the columns "
            f"{', '.join(wanted)}."
        )
    try:
        with open(file, newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream, skipinitialspace=True)
            rows, columns = list(reader), list(reader.fieldnames or ())
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{file} is not encoded in UTF-8 ({error}): convert it."
        ) from error
    for column in wanted:
        if column not in columns:
            raise ValueError(
                f"{file} has no column '{column}', only "
                f"{', '.join(columns) or 'an empty line'}: add it, or name "
                "the columns of the labels in label_columns."
            )
    if not rows:
        raise ValueError(f"{file} has no rows: add utterances to it.")
    for number, row in enumerate(rows, 2):
        if None in row or None in row.values():
            raise ValueError(
                f"{file}, line {number} or later, has not as many fields as "
                "the first line: quote texts that have commas in them."
            )
        empty = [column for column in wanted if not row[column].strip()]
        if empty:
            raise ValueError(
                f"{file}: {empty[0]} of {row['ID'] or f'row {number}'} is "
                "empty: fill it in, or take the row out."
            )
    twice = [
        name for name, n in Counter(r["ID"] for r in rows).items() if n > 1
    ]
    if twice:
        raise ValueError(
            f"{file} has {len(twice)} IDs more than once, such as {twice[0]}: "
            "give each utterance an ID of its own."
        )
    return rows


def check_labels(file, rows, train_csv, tables, label_columns):
    """Raises an error if a set has labels that cannot be learnt.

    Arguments
    ---------
    file : Path
        The CSV of the set.
    rows : list of dict
        Its rows.
    train_csv : Path
        The CSV to train on.
    tables : dict
        Its rows, by the CSV.
    label_columns : sequence of str
        The columns of the labels.
    """
    for column in label_columns:
        known = {row[column] for row in tables[train_csv]}
        unknown = Counter(r[column] for r in rows if r[column] not in known)
        if unknown:
            raise ValueError(
                f"{file}: {len(unknown)} values of {column} are not in "
                f"{train_csv}, such as {', '.join(sorted(unknown)[:5])} "
                f"({sum(unknown.values())} utterances): add utterances of "
                f"them to {train_csv.name}, or take these out."
            )


def check_classes(train_csv, rows, label_columns):
    """Raises an error if there is nothing to tell apart.

    Arguments
    ---------
    train_csv : Path
        The CSV to train on.
    rows : list of dict
        Its rows.
    label_columns : sequence of str
        The columns of the labels.
    """
    for column in label_columns:
        counts = Counter(row[column] for row in rows)
        if len(counts) < 2:
            raise ValueError(
                f"{train_csv}: all utterances have the {column} "
                f"'{rows[0][column]}', so that there is nothing to learn: add "
                "others, or name other columns in label_columns."
            )
        single = sorted(label for label, n in counts.items() if n == 1)
        if single:
            logger.warning(
                f"{train_csv}: {len(single)} values of {column} have a single "
                f"utterance each, such as {single[0]}: they will hardly be "
                "learnt."
            )


def prepare_table(
    csv_file, source, rows, data_folder, min_duration, check_audio
):
    """Looks at the audio of a set, and writes its CSV.

    Arguments
    ---------
    csv_file : Path
        The file to write.
    source : Path
        The CSV that was given.
    rows : list of dict
        Its rows.
    data_folder : str
        What ``$data_root`` stands for.
    min_duration : float
        Leave out utterances shorter than this, in seconds; None for none.
    check_audio : bool
        Whether to decode it.
    """
    options_file = csv_file.with_suffix(".options.json")
    options = {
        "min_duration": min_duration,
        "check_audio": check_audio,
        "data_folder": data_folder,
        "checksum": zlib.crc32(repr(rows).encode()),
    }
    if csv_file.is_file() and options_file.is_file():
        if json.loads(options_file.read_text()) == options:
            logger.info(f"Skipping {csv_file}: it is up to date.")
            return
    paths = {
        row["ID"]: Path(row["wav"].replace(DATA_ROOT, data_folder))
        for row in rows
    }
    missing = sorted({str(p) for p in paths.values() if not p.is_file()})
    if missing:
        raise FileNotFoundError(
            f"{source}: {len(missing)} audio files are missing, such as "
            f"{missing[0]}: set data_folder to what {DATA_ROOT} stands for, or "
            "take their rows out."
        )
    looked = look_at_all(csv_file.stem, set(paths.values()), check_audio)
    faults = {str(p): fault for p, (*_, fault) in looked.items() if fault}
    report_faults(source, faults, len(looked), REMEDY)
    kept = []
    for row in rows:
        samples, _, fault = looked[paths[row["ID"]]]
        if fault:
            continue
        duration = duration_of(source, row, samples) / SAMPLE_RATE
        if duration >= (min_duration or 0):
            given = {k: v for k, v in row.items() if k != "duration"}
            kept.append({"ID": given.pop("ID"), "duration": duration, **given})
    short = len(rows) - len(faults) - len(kept)
    if not kept:
        raise ValueError(
            f"None of the {len(rows)} utterances of {source} lasts "
            f"{min_duration} seconds: change min_duration."
        )
    if short > 0 and min_duration:
        logger.warning(
            f"{source}: {short} utterances are shorter than {min_duration} "
            "seconds and are left out."
        )
    options_file.unlink(missing_ok=True)
    with (
        replacing(csv_file) as file,
        open(file, "w", newline="", encoding="utf-8") as stream,
    ):
        writer = csv.DictWriter(stream, list(kept[0]))
        writer.writeheader()
        writer.writerows(kept)
    if not faults:  # which may be repaired
        with replacing(options_file) as file:
            file.write_text(json.dumps(options, indent=2))
    minutes = sum(row["duration"] for row in kept) / 60
    logger.info(f"{csv_file}: {len(kept)} utterances, {minutes:.2f} minutes.")


def duration_of(source, row, samples):
    """How long an utterance is.

    Arguments
    ---------
    source : Path
        The CSV that was given.
    row : dict
        Its row.
    samples : int
        Of its file.

    Returns
    -------
    int
        In samples.
    """
    if not row.get("start") and not row.get("stop"):
        return samples
    try:
        start, stop = int(row["start"]), int(row["stop"])
    except (KeyError, ValueError):
        start, stop = 0, -1
    if not 0 <= start < stop <= samples:
        raise ValueError(
            f"{source}: {row['ID']} goes from {row.get('start')!r} to "
            f"{row.get('stop')!r}, which are no samples of its file's "
            f"{samples}: give both as whole numbers."
        )
    return stop - start


def prepare_trials(
    save_folder,
    valid_csv,
    test_csvs,
    valid_trials,
    test_trials,
    speaker_column="speaker",
    num_valid_trials=10000,
    skip_prep=False,
):
    """Writes ``trials_<name>.txt`` for each set, with the IDs of its CSV.

    A list is in VoxCeleb's format: ``1 UTTERANCE UTTERANCE`` for one speaker,
    0 for two. Utterances are named by their ID or by the end of their path,
    such as ``id10270/5r0dWxy17C8/00001.wav``.

    Arguments
    ---------
    save_folder : str
        Where ``prepare_superb`` has written the CSVs of the sets.
    valid_csv : str
        The CSV that chooses checkpoints.
    test_csvs : sequence of str
        CSVs to test on.
    valid_trials : str, optional
        The list of the first; drawn from it if there is none.
    test_trials : sequence of str
        The list of each of the others.
    speaker_column : str
        The column that says who speaks.
    num_valid_trials : int
        How many trials are drawn, half of them of one speaker.
    skip_prep : bool
        If True, do nothing.

    Raises
    ------
    FileNotFoundError
        If a list is missing.
    ValueError
        If a trial names something else than one utterance of its set, or there
        are not as many lists as sets.
    """
    if skip_prep:
        return
    if len(test_trials) != len(test_csvs):
        raise ValueError(
            f"test_trials names {len(test_trials)} lists of trials, test_csvs "
            f"{len(test_csvs)} sets: name one for each, in the same order."
        )
    save_folder = Path(save_folder)
    lists = [valid_trials, *test_trials]
    for source, given in zip((valid_csv, *test_csvs), lists):
        name = Path(source).stem
        with open(
            save_folder / f"{name}.csv", newline="", encoding="utf-8"
        ) as stream:
            rows = list(csv.DictReader(stream))
        ids = [row["ID"] for row in rows]
        if given is None:
            speakers = [row[speaker_column] for row in rows]
            trials = draw_trials(ids, speakers, num_valid_trials)
        else:
            trials = read_trials(given)
            found = find_utterances(given, trials, rows)
            trials = [
                Trial(t.same, found[t.enrol], found[t.test]) for t in trials
            ]
        lines = (f"{int(t.same)} {t.enrol} {t.test}\n" for t in trials)
        with replacing(save_folder / f"trials_{name}.txt") as file:
            file.write_text("".join(lines), encoding="utf-8")
        logger.info(f"{name}: {len(trials)} trials, {len(rows)} utterances.")


def find_utterances(file, trials, rows):
    """Finds out what utterances trials name.

    Arguments
    ---------
    file : str
        The list of the trials.
    trials : list of Trial
        What it says.
    rows : list of dict
        The set.

    Returns
    -------
    dict
        ID by name.
    """
    ids = {row["ID"]: row["ID"] for row in rows}
    paths = [(PurePosixPath(row["wav"]).parts, row["ID"]) for row in rows]
    by_end = {}  # for each number of parts that a name may have
    named = {name for t in trials for name in (t.enrol, t.test)} - set(ids)
    unknown = []
    for name in sorted(named):
        length = len(PurePosixPath(name).parts)
        if length not in by_end:
            ends = by_end[length] = {}
            for parts, one in paths:
                ends.setdefault(parts[-length:], []).append(one)
        found = by_end[length].get(PurePosixPath(name).parts, [])
        if len(found) > 1:
            raise ValueError(
                f"{file}: {name} may be {found[0]} or {found[1]}: name it by "
                "its ID, or with more of its path."
            )
        if found:
            ids[name] = found[0]
        else:
            unknown.append(name)
    if unknown:
        raise ValueError(
            f"{file}: {len(unknown)} utterances are not in the CSV of the set, "
            f"such as {unknown[0]}: add them to it, or take their trials out. "
            f"They are named by ID or by the end of wav, here {rows[0]['ID']} "
            f"or {rows[0]['wav'].removeprefix(DATA_ROOT + '/')}."
        )
    return ids


def prepare_phones(
    save_folder, splits, lexicon, stress=True, g2p=False, skip_prep=False
):
    """Writes ``phones_<split>.csv`` with phones instead of words.

    In it, ``wrd`` holds phones with spaces between them, ``words`` the words,
    and ``unit`` is "phone".

    Arguments
    ---------
    save_folder : str
        Where the CSV of each split is, with words in ``wrd``.
    splits : sequence of str
        Their names.
    lexicon : sequence of str
        As in ``speechbrain_ee.phones.Pronunciations``.
    stress : bool
        As there.
    g2p : bool
        As there.
    skip_prep : bool
        If True, do nothing.

    Raises
    ------
    FileNotFoundError
        If a lexicon is missing.
    ValueError
        If there are words without phones.
    """
    if skip_prep:
        return
    pronunciations = Pronunciations(lexicon, stress, g2p)
    save_folder = Path(save_folder)
    tables = {
        split: pd.read_csv(
            save_folder / f"{split}.csv", dtype=str, keep_default_na=False
        )
        for split in splits
    }
    pronunciations.learn(text for t in tables.values() for text in t["wrd"])
    for split, table in tables.items():
        phones = [" ".join(pronunciations(text)) for text in table["wrd"]]
        table = table.assign(words=table["wrd"], wrd=phones, unit="phone")
        with replacing(save_folder / f"phones_{split}.csv") as file:
            table.to_csv(file, index=False)


if __name__ == "__main__":
    prepare_superb(sys.argv[1], sys.argv[2], sys.argv[4:], sys.argv[3])
