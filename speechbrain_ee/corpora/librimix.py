"""A synthetic corpus in the layout of Libri2Mix: two people at once.

Authors
 * SpeechBrain-EE contributors 2026
"""

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from joblib import Parallel, delayed
from speechbrain.dataio import audio_io

from speechbrain_ee.corpora.espeak import SAMPLE_RATE, Synthesizer
from speechbrain_ee.corpora.librispeech import VOICES, speak
from speechbrain_ee.corpora.noise import active_level, soften
from speechbrain_ee.corpora.sentences import random_sentence

DEFAULT_MIXTURES = {"train-100": 6, "dev": 2, "test": 3}
SOURCES = ("s1", "s2")
LEVELS = (-33, -25)  # dB of full scale, as LUFS in LibriMix


@dataclass(frozen=True)
class _Mixture:
    """Who talk at once."""

    split: str
    name: str
    voices: tuple[str, str]
    seed: int


def make_librimix(folder, mixtures=None, seed=0, jobs=1):
    """Makes a corpus of synthetic speech in the layout of Libri2Mix.

    That is ``wav16k/min/SPLIT/{mix_clean,s1,s2}/ID_ID.wav`` (16 kHz, 16 bit),
    where a mixture is the sum of its two sources and as long as the shorter
    one. Each source is as loud as is drawn from -33 to -25 dB of full scale. No
    voice is in two splits.

    The same arguments give the same corpus, whatever ``jobs`` is.

    Arguments
    ---------
    folder : str or Path
        Where to make it, the real one being called ``Libri2Mix``.
    mixtures : dict, optional
        Number of mixtures of each split: by default 6 in "train-100", 2 in
        "dev" and 3 in "test".
    seed : int
        Seed of sentences, voices and levels, 0 or more.
    jobs : int
        How many processes to work with; -1 is as many as there are cores.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    FileExistsError
        If a split is already there.

    Example
    -------
    >>> folder = make_librimix(getfixture("tmp_path"), {"dev": 1})
    >>> for path in sorted(folder.rglob("*.wav")):
    ...     print(path.relative_to(folder).as_posix())
    wav16k/min/dev/mix_clean/1004-1-0000_1045-1-0000.wav
    wav16k/min/dev/s1/1004-1-0000_1045-1-0000.wav
    wav16k/min/dev/s2/1004-1-0000_1045-1-0000.wav
    """
    top = Path(folder) / "wav16k" / "min"
    mixtures = DEFAULT_MIXTURES if mixtures is None else mixtures
    for split in mixtures:
        if (top / split).exists():
            raise FileExistsError(
                f"{top / split} is already there: delete it, or choose another "
                "folder."
            )
        for kind in ("mix_clean", *SOURCES):
            (top / split / kind).mkdir(parents=True)
    rng = random.Random(seed)
    voices = rng.sample(VOICES, len(VOICES))
    share = len(voices) // max(1, len(mixtures))
    planned = []
    for first, (split, count) in zip(
        range(0, len(voices), share), mixtures.items()
    ):
        own = voices[first : first + share]
        for index in range(count):
            one, other = sorted(rng.sample(range(share), 2))
            ids = [f"{1000 + first + k}-1-{index:04d}" for k in (one, other)]
            planned.append(
                _Mixture(split, "_".join(ids), (own[one], own[other]), seed)
            )
    # Processes, since eSpeak NG speaks with one voice at a time in each.
    Parallel(n_jobs=jobs)(delayed(_record)(top, one) for one in planned)
    return Path(folder)


def _record(top, mixture):
    """Writes one mixture and its sources."""
    rng = random.Random(f"{mixture.seed} {mixture.split} {mixture.name}")
    waves = []
    for voice in mixture.voices:
        wave = speak(Synthesizer(voice), random_sentence(rng))
        level = 10 ** (rng.uniform(*LEVELS) / 20)
        waves.append(wave * level / active_level(wave))
    shorter = min(map(len, waves))
    sources = np.stack([wave[:shorter] for wave in waves])
    # All by the same factor, so that the mixture stays the sum.
    scaled = soften(np.stack([sources.sum(0), *sources]))
    for kind, wave in zip(("mix_clean", *SOURCES), scaled, strict=True):
        file = top / mixture.split / kind / f"{mixture.name}.wav"
        audio_io.save(file, wave, SAMPLE_RATE, subtype="PCM_16")
