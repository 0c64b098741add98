"""A synthetic corpus of short commands, for tasks that label an utterance.

Authors
 * SpeechBrain-EE contributors 2026
"""

import csv
import itertools
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from joblib import Parallel, delayed
from speechbrain.dataio import audio_io

from speechbrain_ee.analysis.verification import draw_trials
from speechbrain_ee.corpora.espeak import SAMPLE_RATE, Synthesizer
from speechbrain_ee.corpora.librispeech import VARIANTS
from speechbrain_ee.corpora.noise import soften

COLUMNS = ("ID", "wav", "action", "object", "language", "speaker")
ACTIONS = {
    "open": {"en": "open", "de": "öffne", "fr": "ouvre"},
    "close": {"en": "close", "de": "schließe", "fr": "ferme"},
}
OBJECTS = {
    "door": {"en": "the door", "de": "die tür", "fr": "la porte"},
    "window": {"en": "the window", "de": "das fenster", "fr": "la fenêtre"},
    "gate": {"en": "the gate", "de": "das tor", "fr": "le portail"},
}
VOICES = {"en": "en-us", "de": "de", "fr": "fr"}
DEFAULT_TAKES = {"train": 2, "valid": 1, "test": 1}
UNSEEN = "unseen"
TRIALS = 200


@dataclass(frozen=True)
class _Speaker:
    """Who says what, how often in each split."""

    name: str
    language: str
    variant: str
    takes: dict[str, int]
    seed: int


def make_utterances(
    folder,
    takes=None,
    speakers_per_language=2,
    unseen_per_language=1,
    languages=("en", "de", "fr"),
    seed=0,
    jobs=1,
):
    """Makes a corpus of commands, with a CSV per split and lists of trials.

    Each speaker says each of six commands (two actions, three objects) in one
    language, some times at different rates. The columns of ``SPLIT.csv`` are
    ``ID``, ``wav``, ``action``, ``object``, ``language`` and ``speaker``; paths
    start with ``$data_root``. The speakers of ``train`` are those of ``valid``
    and ``test`` too; ``unseen.csv`` has others. Beside each split but ``train``
    stands ``trials_SPLIT.txt``, where there is more than one speaker, with
    trials of speaker verification as VoxCeleb has them:
    ``1 SPEAKER/SPLIT/NNNNN.wav SPEAKER/SPLIT/NNNNN.wav``.

    The same arguments give the same corpus, whatever ``jobs`` is.

    Arguments
    ---------
    folder : str or Path
        Where to make it.
    takes : dict, optional
        How often each command is said in a split: by default 2 times in
        "train", once in "valid" and "test".
    speakers_per_language : int
        Speakers in all splits but "unseen".
    unseen_per_language : int
        Speakers in "unseen".
    languages : sequence of str
        Some of ``VOICES``.
    seed : int
        Seed of voices, rates and pauses, 0 or more.
    jobs : int
        How many processes to work with; -1 is as many as there are cores.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    FileExistsError
        If there is a split already.
    ValueError
        If there are no voices of a language, or not enough.

    Example
    -------
    >>> folder = make_utterances(
    ...     getfixture("tmp_path"), {"train": 1}, 1, 1, ["en"]
    ... )
    >>> sorted(file.name for file in folder.iterdir())
    ['train.csv', 'unseen.csv', 'wav']
    >>> print((folder / "train.csv").read_text().splitlines()[1])
    en0-train-00000,$data_root/wav/en0/train/00000.wav,open,door,en,en0
    """
    folder = Path(folder)
    takes = DEFAULT_TAKES if takes is None else takes
    per_language = speakers_per_language + unseen_per_language
    for language in languages:
        if language not in VOICES:
            raise ValueError(
                f"There are no commands in '{language}': choose languages "
                f"among {', '.join(VOICES)}."
            )
    if per_language > len(VARIANTS):
        raise ValueError(
            f"{per_language} speakers of a language: there are only "
            f"{len(VARIANTS)} voices."
        )
    for split in (*takes, UNSEEN):
        if (folder / f"{split}.csv").exists():
            raise FileExistsError(
                f"{folder / split}.csv is already there: delete it, or choose "
                "another folder."
            )
    rng = random.Random(seed)
    speakers = [
        _Speaker(
            f"{language}{k}",
            language,
            variant,
            dict(takes) if k < speakers_per_language else {UNSEEN: 1},
            seed,
        )
        for language in languages
        for k, variant in enumerate(rng.sample(VARIANTS, per_language))
    ]
    # Processes, since eSpeak NG speaks with one voice at a time in each.
    rows = Parallel(n_jobs=jobs)(
        delayed(_record)(folder, speaker) for speaker in speakers
    )
    for split in (*takes, UNSEEN):
        own = [row for row in itertools.chain(*rows) if _split(row) == split]
        if own:
            _write(folder, split, own, seed)
    return folder


def _split(row):
    """Of an utterance."""
    return row["ID"].split("-")[1]


def _record(folder, speaker):
    """Writes what one speaker says. Returns the rows."""
    rng = random.Random(f"{speaker.seed} {speaker.name}")
    voice = f"{VOICES[speaker.language]}+{speaker.variant}"
    pitch = rng.randint(25, 75)
    rows = []
    for split, takes in speaker.takes.items():
        target = folder / "wav" / speaker.name / split
        target.mkdir(parents=True)
        said = itertools.product(range(takes), ACTIONS, OBJECTS)
        for index, (_, action, thing) in enumerate(said):
            words = (ACTIONS[action], OBJECTS[thing])
            text = " ".join(word[speaker.language] for word in words)
            synthesizer = Synthesizer(voice, rng.randint(130, 190), pitch)
            pauses = [rng.randint(1600, 4800) for _ in range(2)]
            wave = np.pad(synthesizer(text).numpy(), pauses)
            file = target / f"{index:05d}.wav"
            audio_io.save(file, soften(wave), SAMPLE_RATE, subtype="PCM_16")
            path = file.relative_to(folder).as_posix()
            values = (
                f"{speaker.name}-{split}-{index:05d}",
                f"$data_root/{path}",
                *(action, thing, speaker.language, speaker.name),
            )
            rows.append(dict(zip(COLUMNS, values, strict=True)))
    return rows


def _write(folder, split, rows, seed):
    """Writes the table of a split, and trials where they are asked for."""
    with open(
        folder / f"{split}.csv", "w", newline="", encoding="utf-8"
    ) as stream:
        writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    if split == "train":
        return
    paths = [row["wav"].removeprefix("$data_root/wav/") for row in rows]
    speakers = [row["speaker"] for row in rows]
    if len(set(speakers)) == 1:
        return
    trials = draw_trials(paths, speakers, TRIALS, seed)
    lines = [f"{int(t.same)} {t.enrol} {t.test}\n" for t in trials]
    (folder / f"trials_{split}.txt").write_text("".join(lines))
