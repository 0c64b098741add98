"""A synthetic corpus in the layout of VoxCeleb1, split for identification.

Authors
 * SpeechBrain-EE contributors 2026
"""

import random
import string
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from joblib import Parallel, delayed
from speechbrain.dataio import audio_io

from speechbrain_ee.corpora.espeak import SAMPLE_RATE, Synthesizer
from speechbrain_ee.corpora.librispeech import VOICES, speak
from speechbrain_ee.corpora.noise import soften
from speechbrain_ee.corpora.sentences import random_sentence

SPLIT_FILE = "iden_split.txt"
SPLITS = {"train": 1, "dev": 2, "test": 3}  # their numbers in that file
DEFAULT_TAKES = {"train": 3, "dev": 1, "test": 1}
# Speakers of the trials of verification stand in a folder of their own.
FIRST_SPEAKER, FIRST_OF_TRIALS = 10001, 10270
VIDEO = string.ascii_letters + string.digits + "-_"


@dataclass(frozen=True)
class _Speaker:
    """Who says how much in each split."""

    number: int
    voice: str
    takes: dict[str, int]
    seed: int

    @property
    def folder(self):
        """Where the recordings are."""
        part = "dev" if self.number < FIRST_OF_TRIALS else "test"
        return f"{part}/wav/id{self.number}"


def make_voxceleb(folder, speakers=4, takes=None, seed=0, jobs=1):
    """Makes a corpus of synthetic speech in the layout of VoxCeleb1.

    That is ``{dev,test}/wav/id1NNNN/VIDEO/NNNNN.wav`` (16 kHz, 16 bit) and
    ``iden_split.txt``, whose lines have 1, 2 or 3 for train, dev or test, and a
    file, as ``1 id10001/1zcIwhmdeo4/00001.wav``. Each speaker is in all three;
    the last of them stands in the folder ``test``.

    The same arguments give the same corpus, whatever ``jobs`` is.

    Arguments
    ---------
    folder : str or Path
        Where to make it.
    speakers : int
        How many there are.
    takes : dict, optional
        Utterances of each speaker in a split: by default 3 in "train", one in
        "dev" and "test".
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
        If there is such a corpus already.
    ValueError
        If there are not as many voices as speakers.

    Example
    -------
    >>> folder = make_voxceleb(getfixture("tmp_path"), 2, {"train": 1})
    >>> (folder / "iden_split.txt").read_text()[:10]
    '1 id10001/'
    """
    folder = Path(folder)
    if speakers > len(VOICES):
        raise ValueError(
            f"{speakers} speakers: there are only {len(VOICES)} voices."
        )
    if (folder / SPLIT_FILE).exists():
        raise FileExistsError(
            f"{folder / SPLIT_FILE} is already there: delete the corpus, or "
            "choose another folder."
        )
    takes = DEFAULT_TAKES if takes is None else takes
    voices = random.Random(seed).sample(VOICES, speakers)
    numbers = [*range(FIRST_SPEAKER, FIRST_SPEAKER + speakers - 1)]
    numbers.append(FIRST_OF_TRIALS)
    # Processes, since eSpeak NG speaks with one voice at a time in each.
    lines = Parallel(n_jobs=jobs)(
        delayed(_record)(folder, _Speaker(number, voice, takes, seed))
        for number, voice in zip(numbers, voices, strict=True)
    )
    (folder / SPLIT_FILE).write_text("".join(sum(lines, [])))
    return folder


def _record(folder, speaker):
    """Writes what one speaker says. Returns the lines of the list."""
    rng = random.Random(f"{speaker.seed} {speaker.number}")
    synthesizer = Synthesizer(
        speaker.voice, rate=rng.randint(130, 190), pitch=rng.randint(25, 75)
    )
    lines = []
    for split, takes in speaker.takes.items():
        video = "".join(rng.choices(VIDEO, k=11))
        target = folder / speaker.folder / video
        target.mkdir(parents=True)
        for index in range(1, takes + 1):
            wave = speak(synthesizer, random_sentence(rng))
            wave = np.pad(wave, [rng.randint(1600, 4800) for _ in range(2)])
            file = target / f"{index:05d}.wav"
            audio_io.save(file, soften(wave), SAMPLE_RATE, subtype="PCM_16")
            path = file.relative_to(target.parents[1]).as_posix()
            lines.append(f"{SPLITS[split]} {path}\n")
    return lines
