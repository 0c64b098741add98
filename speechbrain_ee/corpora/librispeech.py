"""A small synthetic corpus in the layout of LibriSpeech.

With it a recipe runs, from data preparation to the report, with no download.

Authors
 * SpeechBrain-EE contributors 2026
"""

import itertools
import random
from pathlib import Path

from speechbrain.dataio import audio_io
from torch.nn.functional import pad

from speechbrain_ee.corpora.espeak import SAMPLE_RATE, Synthesizer

VOICES = tuple(
    f"{accent}+{variant}"
    for accent in ("en-us", "en-gb-x-rp", "en-gb-scotland")
    for variant in "f1 f2 f3 f4 f5 m1 m2 m3 m4 m5 m6 m7".split()
)

# A sentence is one choice from each row.
GRAMMAR = (
    ("", "LAST NIGHT", "TODAY", "IN THE MORNING", "AFTER THE RAIN"),
    (
        "THE OLD MAN",
        "MY SISTER",
        "A YOUNG DOCTOR",
        "THE TEACHER'S SON",
        "OUR NEIGHBOR",
        "SHE",
    ),
    ("FOUND", "LOST", "DIDN'T BUY", "SOLD", "PAINTED", "WANTED TO SEE"),
    (
        "A RED BOAT",
        "THE LITTLE HORSE",
        "SEVEN APPLES",
        "THE BROKEN LAMP",
        "AN EMPTY BOX",
        "IT",
    ),
    (
        "",
        "NEAR THE RIVER",
        "UNDER THE BRIDGE",
        "BEHIND THE HOUSE",
        "IN THE GARDEN",
        "BY THE SEA",
    ),
)


def random_sentence(rng):
    """Draws a sentence from the built-in grammar.

    Arguments
    ---------
    rng : random.Random
        The source of randomness.

    Returns
    -------
    str
        Words in upper case, with no punctuation but the apostrophe.

    Example
    -------
    >>> random_sentence(random.Random(1))
    'LAST NIGHT OUR NEIGHBOR FOUND SEVEN APPLES'
    """
    return " ".join(filter(None, map(rng.choice, GRAMMAR)))


def make_librispeech(
    folder, splits=None, seed=0, speakers_per_split=4, sentences=None
):
    """Makes a corpus of synthetic speech in the layout of LibriSpeech.

    That is ``SPLIT/SPEAKER/CHAPTER/SPEAKER-CHAPTER-NNNN.flac`` (16 kHz, 16 bit)
    with ``SPEAKER-CHAPTER.trans.txt`` beside it. The same arguments give the
    same corpus. No speaker is in two splits.

    Arguments
    ---------
    folder : str or Path
        Where to make it.
    splits : dict, optional
        Number of utterances of each split; by default 32 in "train", 8 in "dev"
        and 8 in "test".
    seed : int
        Seed of sentences, voices and pauses.
    speakers_per_split : int
        Among how many speakers the utterances of a split are divided.
    sentences : list of str, optional
        Transcripts to draw from, instead of the built-in grammar.

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
    >>> folder = make_librispeech(getfixture("tmpdir"), splits={"train": 3})
    >>> for file in sorted(folder.glob("train/1000/**/*.*")):
    ...     print(file.relative_to(folder).as_posix())
    train/1000/1/1000-1-0000.flac
    train/1000/1/1000-1.trans.txt
    """
    folder = Path(folder)
    if splits is None:
        splits = {"train": 32, "dev": 8, "test": 8}
    rng = random.Random(seed)
    voices = itertools.cycle(rng.sample(VOICES, len(VOICES)))
    numbers = itertools.count(1000)
    for split, utterances in splits.items():
        (folder / split).mkdir(parents=True)
        for first in range(min(speakers_per_split, utterances)):
            speaker = Synthesizer(
                next(voices),
                rate=rng.randint(140, 200),
                pitch=rng.randint(35, 65),
                pitch_range=rng.randint(30, 70),
            )
            transcripts = [
                rng.choice(sentences) if sentences else random_sentence(rng)
                for _ in range(first, utterances, speakers_per_split)
            ]
            number = next(numbers)
            chapter = folder / split / str(number) / "1"
            _record_chapter(chapter, f"{number}-1", speaker, transcripts, rng)
    return folder


def _record_chapter(folder, name, speaker, transcripts, rng):
    """Writes the audio files of one chapter, and their transcripts."""
    folder.mkdir(parents=True)
    lines = []
    for index, words in enumerate(transcripts):
        # eSpeak NG may spell words in capitals.
        wave = speaker(words.lower())
        pauses = [int(rng.uniform(0.1, 0.3) * SAMPLE_RATE) for _ in range(2)]
        audio_io.save(
            folder / f"{name}-{index:04d}.flac",
            pad(wave, pauses),
            SAMPLE_RATE,
            subtype="PCM_16",
        )
        lines.append(f"{name}-{index:04d} {words}\n")
    (folder / f"{name}.trans.txt").write_text("".join(lines), encoding="utf-8")
