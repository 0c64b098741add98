"""Data preparation of the four tasks of MiniSUPERB (arXiv 2305.19011).

Download:
https://dl.fbaipublicfiles.com/librilight/data/librispeech_finetuning.tgz,
http://www.openslr.org/12, https://www.robots.ox.ac.uk/~vgg/data/voxceleb/,
https://datashare.ed.ac.uk/handle/10283/2791,
https://github.com/JorisCos/LibriMix

Authors
 * SpeechBrain-EE contributors 2026
"""

import random
import sys
from collections import Counter
from pathlib import Path, PurePosixPath

import soundfile
from speechbrain.utils.logger import get_logger

from speechbrain_ee.encoders.base import SAMPLE_RATE
from speechbrain_ee.preparation import prepare_split, read_transcripts

logger = get_logger(__name__)
REMEDY = "extract the archives again, or make the files again"

# Where the utterances are of each subset of Libri-light for fine-tuning.
FINETUNING = "librispeech_finetuning"
SUBSETS = {"10min": ("1h/0",), "1h": ("1h/*",), "10h": ("1h/*", "9h")}

VOXCELEB_FOLDERS = ("dev/wav", "test/wav", "wav")
VOXCELEB_SPLITS = {"1": "train", "2": "dev", "3": "test"}

VOICEBANK_PARTS = {"train": "trainset_28spk_wav", "test": "testset_wav"}


def prepare_asr(
    data_folder,
    save_folder,
    subset="10h",
    valid_split="dev-clean",
    test_splits=("test-clean",),
    min_duration=None,
    max_duration=None,
    skip_prep=False,
    check_audio=True,
):
    """Writes ``train.csv`` and a CSV for each other split.

    Arguments
    ---------
    data_folder : str
        Holds ``librispeech_finetuning`` of Libri-light, with
        ``1h/{0..5}/{clean,other}`` and ``9h/{clean,other}``, and beside it
        splits of LibriSpeech. All are laid out as
        ``SPEAKER/CHAPTER/SPEAKER-CHAPTER-NNNN.flac`` with
        ``SPEAKER-CHAPTER.trans.txt`` beside it.
    save_folder : str
        Where to write.
    subset : str
        What to train on: ``10h``, or ``1h`` or ``10min`` of it.
    valid_split : str
        The split that chooses checkpoints.
    test_splits : sequence of str
        Splits to test on.
    min_duration : float, optional
        Leave out utterances of train shorter than this, in seconds.
    max_duration : float, optional
        Leave out utterances of train longer than this, in seconds.
    skip_prep : bool
        If True, do nothing.
    check_audio : bool
        If True, decode all audio once. If False, read only the files' heads.

    Raises
    ------
    FileNotFoundError
        If a folder, its transcripts or an audio file is missing.
    ValueError
        If there is no such subset, or an utterance stands in it twice; if an
        audio file is not sampled at 16 kHz, or most of them cannot be read.

    Example
    -------
    >>> from speechbrain_ee.corpora.librilight import make_librilight
    >>> folder = getfixture("tmp_path")
    >>> data = make_librilight(folder / "data", 1, dev=1, test=1)
    >>> prepare_asr(data, folder)
    >>> len((folder / "train.csv").read_text().splitlines())
    15
    """
    if skip_prep:
        return
    if subset not in SUBSETS:
        raise ValueError(
            f"subset: {subset!r} is none of {', '.join(SUBSETS)}, which "
            "Libri-light has for fine-tuning."
        )
    data_folder, save_folder = Path(data_folder), Path(save_folder)
    check_data_folder(data_folder)
    train = {}
    for folder in finetuning_folders(data_folder / FINETUNING, subset):
        train |= transcribed(data_folder, folder)
    check_ids(train)
    sets = {"train": train}
    for split in (valid_split, *test_splits):
        if not (data_folder / split).is_dir():
            raise FileNotFoundError(
                f"There is no split {split} of LibriSpeech in {data_folder}: "
                f"extract it, or link it, beside {FINETUNING}."
            )
        sets[split] = transcribed(data_folder, data_folder / split)
    options = {"min_duration": min_duration, "max_duration": max_duration}
    write_sets(data_folder, save_folder, sets, check_audio, **options)


def finetuning_folders(folder, subset):
    """Finds the folders of a subset of Libri-light.

    Arguments
    ---------
    folder : Path
        ``librispeech_finetuning``.
    subset : str
        One of ``SUBSETS``.

    Returns
    -------
    list of Path
        Folders of speakers.
    """
    found = []
    for pattern in SUBSETS[subset]:
        parts = sorted(p for p in folder.glob(f"{pattern}/*") if p.is_dir())
        if not parts:
            raise FileNotFoundError(
                f"There is no {folder / pattern}/{{clean,other}}, which the "
                f"subset {subset} needs: extract librispeech_finetuning.tgz "
                "again, or choose another subset."
            )
        found += parts
    return found


def transcribed(data_folder, folder):
    """Says of each utterance of a folder what ``prepare_split`` needs.

    Arguments
    ---------
    data_folder : Path
        What paths start from.
    folder : Path
        Holds speakers.

    Returns
    -------
    dict
        The columns of each utterance, by its path in the data folder.
    """
    prefix = folder.relative_to(data_folder).as_posix()
    utterances = {}
    for path, words in read_transcripts(folder).items():
        name = PurePosixPath(path).stem
        utterances[f"{prefix}/{path}"] = {
            "ID": name,
            "spk_id": name.split("-")[0],
            "wrd": words,
            "unit": "character",
        }
    return utterances


def prepare_sid(
    data_folder,
    save_folder,
    split_file="iden_split.txt",
    utterances_per_speaker=11,
    seed=8830,
    skip_prep=False,
    check_audio=True,
):
    """Writes ``train.csv``, ``dev.csv`` and ``test.csv`` of VoxCeleb1.

    Arguments
    ---------
    data_folder : str
        Holds ``dev/wav/id1NNNN/VIDEO/NNNNN.wav`` and ``test/wav/…``, or both
        together in ``wav``.
    save_folder : str
        Where to write.
    split_file : str
        The list of identification, in the data folder or elsewhere: 1, 2 or 3
        for train, dev or test, and a file, as
        ``1 id10001/1zcIwhmdeo4/00001.wav``.
    utterances_per_speaker : int, optional
        So many of each speaker are drawn to train on (None: all).
    seed : int
        Of the draw.
    skip_prep : bool
        If True, do nothing.
    check_audio : bool
        If True, decode all audio once. If False, read only the files' heads.

    Raises
    ------
    FileNotFoundError
        If the list or files that it names are missing.
    ValueError
        If the list has a line of another kind, or names a speaker in dev or
        test who is not in train; if an audio file is not sampled at 16 kHz, or
        most of them cannot be read.

    Example
    -------
    >>> from speechbrain_ee.corpora.voxceleb import make_voxceleb
    >>> folder = getfixture("tmp_path")
    >>> data = make_voxceleb(folder / "data", 2)
    >>> prepare_sid(data, folder, utterances_per_speaker=2)
    >>> len((folder / "train.csv").read_text().splitlines())
    5
    """
    if skip_prep:
        return
    data_folder, save_folder = Path(data_folder), Path(save_folder)
    check_data_folder(data_folder)
    split_file = data_folder / split_file  # itself, if it is absolute
    listed = read_identification(split_file)
    check_speakers(split_file, listed)
    if utterances_per_speaker is not None:
        listed["train"] = draw_utterances(
            listed["train"], utterances_per_speaker, seed
        )
    places = find_voxceleb(data_folder, split_file, listed)
    sets = {
        split: {
            places[path]: {
                "ID": path.removesuffix(".wav").replace("/", "-"),
                "speaker": speaker_of(path),
            }
            for path in paths
        }
        for split, paths in listed.items()
    }
    write_sets(data_folder, save_folder, sets, check_audio)


def read_identification(file):
    """Reads the list of VoxCeleb1 for identification.

    Arguments
    ---------
    file : Path
        The list.

    Returns
    -------
    dict
        The files of each split, by its name.
    """
    if not file.is_file():
        raise FileNotFoundError(
            f"There is no {file}: get iden_split.txt of VoxCeleb1, or set "
            "split_file."
        )
    listed = {split: [] for split in VOXCELEB_SPLITS.values()}
    lines = file.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        fields = line.split()
        if not fields:
            continue
        if (
            len(fields) != 2
            or fields[0] not in VOXCELEB_SPLITS
            or len(PurePosixPath(fields[1]).parts) != 3
        ):
            raise ValueError(
                f"{file}, line {number}: {line!r} is not 1, 2 or 3 and a file "
                "such as id10001/1zcIwhmdeo4/00001.wav."
            )
        listed[VOXCELEB_SPLITS[fields[0]]].append(fields[1])
    for split, paths in listed.items():
        if not paths:
            raise ValueError(f"{file} names no file for {split}: complete it.")
    return listed


def speaker_of(path):
    """Who speaks in a file of VoxCeleb1.

    Arguments
    ---------
    path : str
        As ``id10001/1zcIwhmdeo4/00001.wav``.

    Returns
    -------
    str
    """
    return path.split("/")[0]


def check_speakers(file, listed):
    """Raises an error if somebody is to be told who was not learnt.

    Arguments
    ---------
    file : Path
        The list.
    listed : dict
        The files of each split.
    """
    known = {speaker_of(path) for path in listed["train"]}
    for split, paths in listed.items():
        unknown = Counter(speaker_of(path) for path in paths)
        for speaker in known:
            unknown.pop(speaker, None)
        if unknown:
            raise ValueError(
                f"{file}: {len(unknown)} speakers of {split} are not in train, "
                f"such as {', '.join(sorted(unknown)[:5])} "
                f"({sum(unknown.values())} utterances): add utterances of them "
                "to train, or take these lines out."
            )
    if len(known) < 2:
        raise ValueError(
            f"{file} has the single speaker {known.pop()}: there is nothing to "
            "tell apart."
        )


def draw_utterances(paths, count, seed):
    """Draws as many utterances of each speaker.

    Arguments
    ---------
    paths : list of str
        Files of all speakers.
    count : int
        How many of each.
    seed : int
        Of the draw.

    Returns
    -------
    list of str
        Sorted.
    """
    speakers = {}
    for path in sorted(paths):
        speakers.setdefault(speaker_of(path), []).append(path)
    few = sorted(name for name, own in speakers.items() if len(own) < count)
    if few:
        logger.warning(
            f"{len(few)} of {len(speakers)} speakers have fewer than {count} "
            f"utterances to train on, such as {few[0]}: all of them are taken."
        )
    drawn = []
    for name, own in speakers.items():
        # Of its own, so that the draw of one does not depend on others.
        rng = random.Random(f"{seed} {name}")
        drawn += sorted(rng.sample(own, min(count, len(own))))
    return drawn


def find_voxceleb(data_folder, split_file, listed):
    """Finds out in which folder files are.

    Arguments
    ---------
    data_folder : Path
        Of the corpus.
    split_file : Path
        The list.
    listed : dict
        The files of each split.

    Returns
    -------
    dict
        Path in the data folder, by the path in the list.
    """
    places, missing = {}, []
    for path in sum(listed.values(), []):
        for folder in VOXCELEB_FOLDERS:
            if (data_folder / folder / path).is_file():
                places[path] = f"{folder}/{path}"
                break
        else:
            missing.append(path)
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of the {len(places) + len(missing)} files that "
            f"are wanted of {split_file.name} are in none of "
            f"{', '.join(VOXCELEB_FOLDERS)} of {data_folder}, such as "
            f"{', '.join(missing[:3])}: extract both archives there, the one "
            "into dev, the other into test."
        )
    return places


def prepare_se(
    data_folder,
    save_folder,
    num_train=1000,
    valid_speakers=("p226", "p287"),
    seed=8830,
    min_duration=0.25,
    skip_prep=False,
    check_audio=True,
):
    """Writes ``train.csv``, ``valid.csv`` and ``test.csv`` of VoiceBank-DEMAND.

    The column ``wav`` names noisy speech, ``clean`` clean speech.

    Arguments
    ---------
    data_folder : str
        Holds ``{clean,noisy}_trainset_28spk_wav`` and
        ``{clean,noisy}_testset_wav`` at 16 kHz, or the same with ``_16k`` at
        the end of their names, which go first.
    save_folder : str
        Where to write.
    num_train : int, optional
        So many utterances are drawn to train on (None: all).
    valid_speakers : sequence of str
        Speakers of the training set who choose checkpoints instead, with all of
        their utterances; two as in s3prl.
    seed : int
        Of the draw. With that of MiniSUPERB's script, 8830, the utterances
        are those that it draws.
    min_duration : float, optional
        Leave out utterances of train shorter than this, in seconds.
    skip_prep : bool
        If True, do nothing.
    check_audio : bool
        If True, decode all audio once. If False, read only the files' heads.

    Raises
    ------
    FileNotFoundError
        If a folder or one of a pair of files is missing.
    ValueError
        If audio is not sampled at 16 kHz, most of it cannot be read, or
        partners are not of one length; if nobody is left to train on or to
        choose by.

    Example
    -------
    >>> from speechbrain_ee.corpora.voicebank import make_voicebank
    >>> folder = getfixture("tmp_path")
    >>> data = make_voicebank(folder / "data", 1, speakers=3)
    >>> prepare_se(data, folder)
    >>> (folder / "valid.csv").read_text().splitlines()[0]
    'ID,duration,wav,clean,spk_id'
    """
    if skip_prep:
        return
    data_folder, save_folder = Path(data_folder), Path(save_folder)
    check_data_folder(data_folder)
    sets = {}
    for split, part in VOICEBANK_PARTS.items():
        folders = [
            find_voicebank(data_folder, f"{kind}_{part}")
            for kind in ("noisy", "clean")
        ]
        for folder in folders:
            check_voicebank_rate(data_folder / folder)
        names = paired_names(data_folder, folders)
        sets[split] = {
            f"{folders[0]}/{name}": {
                "ID": name.removesuffix(".wav"),
                "clean": f"{folders[1]}/{name}",
                "spk_id": name.split("_")[0],
            }
            for name in names
        }
    chosen = {
        path: row
        for path, row in sets["train"].items()
        if row["spk_id"] in valid_speakers
    }
    speakers = {row["spk_id"] for row in sets["train"].values()}
    if not chosen or not speakers - set(valid_speakers):
        raise ValueError(
            f"The training set of {data_folder} has the speakers "
            f"{', '.join(sorted(speakers))}: set valid_speakers to some of "
            "them, so that others are left to train on."
        )
    left = {k: v for k, v in sets["train"].items() if k not in chosen}
    sets = {
        "train": draw_subset(left, num_train, seed, "num_train"),
        "valid": chosen,
        "test": sets["test"],
    }
    write_sets(
        *(data_folder, save_folder, sets, check_audio),
        partners=["clean"],
        min_duration=min_duration,
    )


def find_voicebank(data_folder, name):
    """Finds a folder of VoiceBank-DEMAND.

    Arguments
    ---------
    data_folder : Path
        Of the corpus.
    name : str
        As in its archives.

    Returns
    -------
    str
        That, or the same with ``_16k``.
    """
    for one in (f"{name}_16k", name):
        if (data_folder / one).is_dir():
            return one
    found = sorted(p.name for p in data_folder.iterdir() if p.is_dir())
    raise FileNotFoundError(
        f"There is no {name} in {data_folder}: extract {name}.zip there. The "
        f"folders there: {', '.join(found) or 'none'}."
    )


def check_voicebank_rate(folder):
    """Raises an error if a folder has audio as it is published, at 48 kHz.

    Arguments
    ---------
    folder : Path
        One of the corpus.
    """
    for file in sorted(folder.glob("*.wav"))[:1]:
        try:
            rate = soundfile.info(file).samplerate
        except soundfile.LibsndfileError:
            return  # told with the others that are damaged
        if rate != SAMPLE_RATE:
            raise ValueError(
                f"{file} is sampled at {rate} Hz, and {SAMPLE_RATE} Hz are "
                f"wanted: in {folder.parent}, convert each of the four folders "
                f"by 'mkdir {folder.name}_16k; for f in {folder.name}/*.wav; "
                f'do sox "$f" -r {SAMPLE_RATE} -b 16 '
                f"{folder.name}_16k/${{f##*/}}; done'."
            )


def prepare_ss(
    data_folder,
    save_folder,
    train_split="train-100",
    num_train=1000,
    num_valid=1000,
    seed=7,
    min_duration=0.25,
    skip_prep=False,
    check_audio=True,
):
    """Writes ``train.csv``, ``valid.csv`` and ``test.csv`` of Libri2Mix.

    The column ``wav`` names mixtures, ``s1`` and ``s2`` what the two say.

    Arguments
    ---------
    data_folder : str
        Holds ``wav16k/min/{train-100,dev,test}/{mix_clean,s1,s2}``.
    save_folder : str
        Where to write.
    train_split : str
        What to train on: ``train-100`` or ``train-360``.
    num_train : int, optional
        So many mixtures are drawn to train on (None: all).
    num_valid : int, optional
        So many mixtures of dev are drawn to choose checkpoints (None: all).
    seed : int
        Of both draws. With that of MiniSUPERB's script, 7, the mixtures are
        those that it draws.
    min_duration : float, optional
        Leave out mixtures of train shorter than this, in seconds.
    skip_prep : bool
        If True, do nothing.
    check_audio : bool
        If True, decode all audio once. If False, read only the files' heads.

    Raises
    ------
    FileNotFoundError
        If a folder, or a source of a mixture or its mixture, is missing.
    ValueError
        If audio is not sampled at 16 kHz, most of it cannot be read, or a
        mixture is not as long as its sources.

    Example
    -------
    >>> from speechbrain_ee.corpora.librimix import make_librimix
    >>> folder = getfixture("tmp_path")
    >>> sizes = {"train-100": 3, "dev": 1, "test": 1}
    >>> data = make_librimix(folder / "data", sizes)
    >>> prepare_ss(data, folder, num_train=2)
    >>> len((folder / "train.csv").read_text().splitlines())
    3
    """
    if skip_prep:
        return
    data_folder, save_folder = Path(data_folder), Path(save_folder)
    check_data_folder(data_folder)
    counts = {
        "train": (train_split, num_train),
        "valid": ("dev", num_valid),
        "test": ("test", None),
    }
    sets = {}
    for name, (split, count) in counts.items():
        folders = [
            find_librimix(data_folder, f"wav16k/min/{split}/{kind}")
            for kind in ("mix_clean", "s1", "s2")
        ]
        mixtures = {
            f"{folders[0]}/{file}": {
                "ID": file.removesuffix(".wav"),
                "s1": f"{folders[1]}/{file}",
                "s2": f"{folders[2]}/{file}",
            }
            for file in paired_names(data_folder, folders)
        }
        sets[name] = draw_subset(mixtures, count, seed, f"num_{name}")
    write_sets(
        *(data_folder, save_folder, sets, check_audio),
        partners=["s1", "s2"],
        min_duration=min_duration,
    )


def find_librimix(data_folder, name):
    """Raises an error unless a folder of Libri2Mix is there.

    Arguments
    ---------
    data_folder : Path
        Of the corpus.
    name : str
        The folder in it.

    Returns
    -------
    str
        The same.
    """
    if (data_folder / name).is_dir():
        return name
    inner = data_folder / "Libri2Mix"
    remedy = (
        f"did you mean data_folder {inner}"
        if inner.is_dir()
        else "make Libri2Mix by LibriMix's scripts, at 16 kHz in mode min"
    )
    raise FileNotFoundError(f"There is no {name} in {data_folder}: {remedy}.")


def paired_names(data_folder, folders):
    """Names of the files that are in all folders.

    Arguments
    ---------
    data_folder : Path
        Of the corpus.
    folders : list of str
        In which files of one name belong together.

    Returns
    -------
    list of str
        Sorted.
    """
    names = [
        {file.name for file in (data_folder / folder).glob("*.wav")}
        for folder in folders
    ]
    everything = set().union(*names)
    if not everything:
        raise FileNotFoundError(
            f"There are no WAV files in {data_folder / folders[0]}: {REMEDY}."
        )
    for folder, own in zip(folders, names):
        missing = sorted(everything - own)
        if missing:
            raise FileNotFoundError(
                f"{len(missing)} of {len(everything)} utterances have no file "
                f"in {data_folder / folder}, such as {', '.join(missing[:3])}, "
                f"but in {', '.join(x for x in folders if x != folder)}: "
                f"{REMEDY}, or delete what is left of them."
            )
    return sorted(everything)


def draw_subset(utterances, count, seed, option):
    """Draws some of the utterances, as MiniSUPERB's scripts do.

    Arguments
    ---------
    utterances : dict
        Columns by path, in the order of their IDs.
    count : int
        How many; None for all.
    seed : int
        Of the draw.
    option : str
        What sets the number.

    Returns
    -------
    dict
        In the same order.
    """
    if count is None:
        return utterances
    if count > len(utterances):
        logger.warning(
            f"{option}: there are only {len(utterances)} utterances and not "
            f"{count}: all of them are taken."
        )
    paths = list(utterances)
    random.Random(seed).shuffle(paths)
    return {path: utterances[path] for path in sorted(paths[:count])}


def check_data_folder(folder):
    """Raises an error if there is no data folder.

    Arguments
    ---------
    folder : Path
        The folder.
    """
    if not folder.is_dir():
        raise FileNotFoundError(
            f"The data folder {folder} does not exist: set data_folder to the "
            "folder of the corpus."
        )


def check_ids(utterances):
    """Raises an error if two utterances have the same ID.

    Arguments
    ---------
    utterances : dict
        Columns by path.
    """
    counts = Counter(row["ID"] for row in utterances.values())
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        raise ValueError(
            f"{len(twice)} utterances of {FINETUNING} stand in two of its "
            f"folders, such as {twice[0]}: extract librispeech_finetuning.tgz "
            "again."
        )


def write_sets(
    data_folder,
    save_folder,
    sets,
    check_audio,
    partners=(),
    min_duration=None,
    max_duration=None,
):
    """Writes a CSV for each set.

    Arguments
    ---------
    data_folder : Path
        What ``$data_root`` stands for.
    save_folder : Path
        Where to write.
    sets : dict
        Columns by path, by the name of the set.
    check_audio : bool
        Whether to decode all audio.
    partners : sequence of str
        Columns that hold paths too.
    min_duration : float, optional
        Of train, in seconds.
    max_duration : float, optional
        Of train, in seconds.
    """
    save_folder.mkdir(parents=True, exist_ok=True)
    for name, utterances in sets.items():
        trains = name == "train"
        prepare_split(
            save_folder / f"{name}.csv",
            data_folder,
            utterances,
            REMEDY,
            min_duration=min_duration if trains else None,
            max_duration=max_duration if trains else None,
            check_audio=check_audio,
            partners=partners,
        )


TASKS = {
    "asr": prepare_asr,
    "sid": prepare_sid,
    "se": prepare_se,
    "ss": prepare_ss,
}

if __name__ == "__main__":
    TASKS[sys.argv[1]](*sys.argv[2:])
