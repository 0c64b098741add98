"""A synthetic corpus in the layout of ESC-50.

Authors
 * SpeechBrain-EE contributors 2026
"""

import csv
from pathlib import Path

import numpy as np
from speechbrain.dataio import audio_io

from speechbrain_ee.corpora.noise import soften

COLUMNS = (
    *("filename", "fold", "target", "category", "esc10", "src_file", "take"),
)
# Number of each in ESC-50, and whether ESC-10 has it.
CATEGORIES = {
    "rain": (10, True),
    "clock_tick": (38, True),
    "siren": (42, False),
    "engine": (44, False),
}
FOLDS = 5


def make_esc(
    folder, clips=2, folds=FOLDS, seconds=1.0, sample_rate=44100, seed=0
):
    """Makes a corpus of synthetic sounds in the layout of ESC-50.

    That is ``audio/FOLD-CLIP-TAKE-TARGET.wav`` and ``meta/esc50.csv``. The same
    arguments give the same corpus.

    Arguments
    ---------
    folder : str or Path
        Where to make it.
    clips : int
        Of each category in each fold, one or more.
    folds : int
        How many; the original has 5.
    seconds : float
        Of each clip; those of the original last 5.
    sample_rate : int
        In Hz.
    seed : int
        Of the sounds, 0 or more.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    FileExistsError
        If there is such a corpus already.

    Example
    -------
    >>> folder = make_esc(getfixture("tmp_path"), clips=1, folds=3)
    >>> sorted(path.name for path in (folder / "audio").iterdir())[:2]
    ['1-100000-A-10.wav', '1-100001-A-38.wav']
    >>> print((folder / "meta" / "esc50.csv").read_text().splitlines()[1])
    1-100000-A-10.wav,1,10,rain,True,100000,A
    """
    folder = Path(folder)
    for name in ("audio", "meta"):
        if (folder / name).exists():
            raise FileExistsError(
                f"{folder / name} is already there: delete it, or choose "
                "another folder."
            )
        (folder / name).mkdir(parents=True)
    rows = []
    for fold in range(1, folds + 1):
        for _ in range(clips):
            for category, (target, esc10) in CATEGORIES.items():
                source = 100000 + len(rows)
                name = f"{fold}-{source}-A-{target}.wav"
                rng = np.random.default_rng([seed, source])
                time = np.arange(round(seconds * sample_rate)) / sample_rate
                wave = soften(_SOUNDS[category](time, rng))
                path = folder / "audio" / name
                audio_io.save(path, wave, sample_rate, subtype="PCM_16")
                values = (name, fold, target, category, esc10, source, "A")
                rows.append(dict(zip(COLUMNS, values, strict=True)))
    with open(
        folder / "meta" / "esc50.csv", "w", newline="", encoding="utf-8"
    ) as stream:
        writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return folder


def _rain(time, rng):
    """White noise."""
    return rng.uniform(0.05, 0.2) * rng.standard_normal(len(time))


def _clock_tick(time, rng):
    """Short clicks, some in a second."""
    since = (time + rng.uniform(0, 1)) % rng.uniform(0.2, 0.4)
    noise = rng.standard_normal(len(time))
    return 0.5 * noise * np.exp(-since / 0.005) + 0.001 * noise


def _siren(time, rng):
    """A tone that rises and falls."""
    middle, speed = rng.uniform(700, 1100), rng.uniform(2, 4)
    phase = 2 * np.pi * middle * time - 300 / speed * np.cos(
        2 * np.pi * speed * time
    )
    return rng.uniform(0.2, 0.5) * np.sin(phase)


def _engine(time, rng):
    """Harmonics of a low hum, and some noise."""
    pitch = rng.uniform(40, 90)
    hum = sum(np.sin(2 * np.pi * k * pitch * time) / k for k in range(1, 9))
    return 0.2 * hum + 0.02 * rng.standard_normal(len(time))


_SOUNDS = {
    "rain": _rain,
    "clock_tick": _clock_tick,
    "siren": _siren,
    "engine": _engine,
}
