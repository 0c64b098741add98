"""A synthetic corpus in the layout of ML-SUPERB's data package.

Authors
 * SpeechBrain-EE contributors 2026
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from joblib import Parallel, delayed
from speechbrain.dataio import audio_io

from speechbrain_ee.corpora.espeak import SAMPLE_RATE, Synthesizer
from speechbrain_ee.corpora.librispeech import VARIANTS, VOICES
from speechbrain_ee.corpora.noise import soften
from speechbrain_ee.corpora.sentences import GERMAN, random_sentence

JAPANESE = (
    "きょうは いい てんきです",
    "あした えきで あいましょう",
    "あかい りんごを みっつ ください",
    "いぬが にわで ねています",
    "わたしの ほんは どこですか",
    "まどを あけて ください",
)
MANDARIN = (
    "今天天气很好",
    "我们明天去北京",
    "请给我三个苹果",
    "他在花园里看书",
    "你的船在哪里",
    "请把窗户打开",
)
DANISH = (
    "det er en god dag i dag",
    "min søster har købt en blå båd",
    "hvor er nøglen til huset",
    "vi ses på torvet om tirsdagen",
    "den gamle mand sidder ved åen",
    "luk venligst vinduet op",
)


@dataclass(frozen=True)
class Language:
    """Who speaks a language, and what.

    Arguments
    ---------
    voices : tuple of str
        Names of eSpeak NG's voices.
    sentence : callable
        Draws one with a ``random.Random``.
    """

    voices: tuple[str, ...]
    sentence: Callable[[random.Random], str]


def _voices(name):
    return tuple(f"{name}+{variant}" for variant in VARIANTS)


def _one_of(sentences: Sequence[str], rng: random.Random) -> str:
    return rng.choice(sentences)


LANGUAGES = {
    "eng": Language(VOICES, random_sentence),
    "deu": Language(_voices("de"), partial(_one_of, GERMAN)),
    "jpn": Language(_voices("ja"), partial(_one_of, JAPANESE)),
    "cmn": Language(_voices("cmn"), partial(_one_of, MANDARIN)),
    # Few-shot: of its utterances five are for training.
    "dan": Language(_voices("da"), partial(_one_of, DANISH)),
}
# Folder of a dataset, what its utterances are called after, its languages.
DATASETS = {
    "mls": ("mls", ("eng",)),
    "nchlt": ("nchlt", ("eng",)),
    "voxpopuli": ("voxpopuli", ("eng", "deu")),
    "commonvoice": ("cv", ("jpn",)),
    "fleurs": ("fleurs", ("cmn", "dan")),
}
# Those of Danish that the benchmark trains on stand in this dataset.
_FEW_SHOT = {("fleurs", "dan"): (58, 71)}
_SETS = ("10min_train", "1h_train", "10min_dev", "10min_test")


@dataclass(frozen=True)
class _Utterance:
    """One file, and the transcripts that list it."""

    name: str
    speaker: Synthesizer
    text: str
    sets: tuple[str, ...]
    seed: tuple[int, ...]


def make_mlsuperb(folder, utterances=None, datasets=None, seed=0, jobs=1):
    """Makes a corpus of synthetic speech in the layout of ML-SUPERB.

    That is ``DATASET/LANGUAGE/wav/ID.wav`` (16 kHz) and, beside ``wav``,
    ``transcript_10min_train.txt``, ``transcript_1h_train.txt`` (which has what
    the other one has, and as much again), ``transcript_10min_dev.txt`` and
    ``transcript_10min_test.txt``, whose lines are an ID, a field that is not
    read, and a text with capitals and punctuation.

    English stands in three datasets, so that the pooled test of the monolingual
    track is one; Japanese and Mandarin are those that it scores by phones;
    Danish is a few-shot language.

    Arguments
    ---------
    folder : str or Path
        Where to make it.
    utterances : dict, optional
        Of each dataset and language, the number of utterances in "train"
        (10 minutes), "dev" and "test"; by default 6, 2 and 2.
    datasets : sequence of str, optional
        Some of ``DATASETS``; all by default.
    seed : int
        Seed of sentences, voices and pauses, 0 or more.
    jobs : int
        How many processes to work with; -1 is as many as there are cores.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    FileExistsError
        If a dataset is already there.
    ValueError
        If a dataset is not one of ``DATASETS``, or a set has no utterance.

    Example
    -------
    >>> folder = make_mlsuperb(
    ...     getfixture("tmp_path"), {"train": 1, "dev": 1, "test": 1}, ["mls"]
    ... )
    >>> for file in sorted(folder.glob("**/*.*")):
    ...     print(file.relative_to(folder).as_posix())
    mls/eng/transcript_10min_dev.txt
    mls/eng/transcript_10min_test.txt
    mls/eng/transcript_10min_train.txt
    mls/eng/transcript_1h_train.txt
    mls/eng/wav/mls_eng_000000.wav
    mls/eng/wav/mls_eng_000001.wav
    mls/eng/wav/mls_eng_000002.wav
    mls/eng/wav/mls_eng_000003.wav
    """
    folder = Path(folder)
    utterances = utterances or {"train": 6, "dev": 2, "test": 2}
    datasets = DATASETS if datasets is None else datasets
    if min(utterances.values()) < 1:
        raise ValueError(f"Each set needs an utterance or more: {utterances}.")
    for dataset in datasets:
        if dataset not in DATASETS:
            raise ValueError(
                f"There is no dataset '{dataset}': choose among "
                f"{', '.join(DATASETS)}."
            )
        if (folder / dataset).exists():
            raise FileExistsError(
                f"{folder / dataset} is already there: delete it, or choose "
                "another folder."
            )
    recordings = []
    for dataset in datasets:
        prefix, languages = DATASETS[dataset]
        for language in languages:
            target = folder / dataset / language
            (target / "wav").mkdir(parents=True)
            planned = _plan(dataset, prefix, language, utterances, seed)
            recordings += [(target / "wav", one) for one in planned]
            for name in _SETS:
                lines = [
                    f"{one.name} {one.name} {one.text}\n"
                    for one in planned
                    if name in one.sets
                ]
                file = target / f"transcript_{name}.txt"
                file.write_text("".join(lines), encoding="utf-8")
    # Processes, since eSpeak NG speaks with one voice at a time in each.
    Parallel(n_jobs=jobs)(delayed(_record)(*one) for one in recordings)
    return folder


def _plan(dataset, prefix, language, utterances, seed):
    """Draws who says what: a list of utterances."""
    spoken = LANGUAGES[language]
    rng = random.Random(f"{seed} {dataset} {language}")
    train, dev, test = (utterances[name] for name in ("train", "dev", "test"))
    sets = [("10min_train", "1h_train"), ("1h_train",)]
    sets = [one for one in sets for _ in range(train)]
    sets += [("10min_dev",)] * dev + [("10min_test",)] * test
    numbers = list(range(len(sets)))
    numbers[: len(_FEW_SHOT.get((dataset, language), ()))] = _FEW_SHOT.get(
        (dataset, language), ()
    )[: len(sets)]
    planned = []
    for number, names in zip(numbers, sets, strict=True):
        speaker = Synthesizer(
            rng.choice(spoken.voices),
            rate=rng.randint(115, 175),
            pitch=rng.randint(35, 65),
        )
        # eSpeak NG may spell words in capitals.
        words = spoken.sentence(rng).lower()
        planned.append(
            _Utterance(
                name=f"{prefix}_{language}_{number:06d}",
                speaker=speaker,
                text=f"{words.capitalize()}.",
                sets=names,
                seed=(seed, *map(ord, f"{dataset}{language}"), number),
            )
        )
    return planned


def _record(folder, utterance):
    """Writes one audio file."""
    rng = np.random.default_rng(utterance.seed)
    pauses = rng.uniform(0.1, 0.3, 2) * SAMPLE_RATE
    words = utterance.text[:-1].lower()
    wave = np.pad(utterance.speaker(words).numpy(), pauses.astype(int))
    audio_io.save(folder / f"{utterance.name}.wav", soften(wave), SAMPLE_RATE)
