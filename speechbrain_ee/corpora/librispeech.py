"""A synthetic corpus in the layout of LibriSpeech, clean or in noise.

With it a recipe runs, from data preparation to the report, with no download.

Authors
 * SpeechBrain-EE contributors 2026
"""

import csv
import itertools
import json
import random
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from joblib import Parallel, delayed
from speechbrain.dataio import audio_io
from speechbrain.utils.logger import get_logger

from speechbrain_ee.corpora.espeak import SAMPLE_RATE, Synthesizer
from speechbrain_ee.corpora.noise import (
    COLORS,
    babble,
    colored_noise,
    mix,
    soften,
)
from speechbrain_ee.corpora.sentences import random_sentence

logger = get_logger(__name__)

ACCENTS = ("en-us", "en-us-nyc", "en", "en-gb-x-rp")  # en is British
VARIANTS = "f1 f2 f3 f4 f5 m1 m2 m3 m4 m5 m6 m7 m8".split()
VOICES = tuple(f"{accent}+{name}" for accent in ACCENTS for name in VARIANTS)
# No speaker has one of these: they only babble.
CROWD = tuple(
    f"{x}+{name}" for x in ("en-029", "en-gb-scotland") for name in VARIANTS
)

NOISES = (*COLORS, "babble")
TALKERS = 4  # in a babble
TABLE = "UTTERANCES.tsv"
COLUMNS = ("id", "split", "voice", "snr", "noise")

SETTINGS = "corpus.json"
DEMO_SPLITS = {"train": 1800, "dev": 96, "test": 192}
DEMO_SPEAKERS = {"train": 32, "dev": 8, "test": 12}
DEMO_SNRS = (None, 25, 15)


@dataclass(frozen=True)
class _Chapter:
    """What one speaker says, and in which noise."""

    split: str
    number: int
    speaker: Synthesizer
    transcripts: tuple[str, ...]
    snrs: tuple[float | None, ...]
    seed: int

    @property
    def name(self):
        """Of the files."""
        return f"{self.number}-1"


def make_librispeech(
    folder,
    splits=None,
    seed=0,
    speakers_per_split=4,
    sentences=None,
    snrs=(None,),
    jobs=1,
):
    """Makes a corpus of synthetic speech in the layout of LibriSpeech.

    That is ``SPLIT/SPEAKER/CHAPTER/SPEAKER-CHAPTER-NNNN.flac`` (16 kHz, 16 bit)
    with ``SPEAKER-CHAPTER.trans.txt`` beside it. Beside the splits,
    ``UTTERANCES.tsv`` has a row per utterance: ``id``, ``split``, ``voice``,
    ``snr`` (in dB, empty for clean speech) and ``noise`` (white, pink, brown or
    babble, which is four people talking at once in voices that no speaker has).

    The same arguments give the same corpus, whatever ``jobs`` is. No speaker is
    in two splits, and no voice while there are as many as speakers (52).
    Sentences of the built-in grammar come once in a corpus.

    Arguments
    ---------
    folder : str or Path
        Where to make it.
    splits : dict, optional
        Number of utterances of each split; by default 32 in "train", 8 in "dev"
        and 8 in "test".
    seed : int
        Seed of sentences, voices, pauses and noise, 0 or more.
    speakers_per_split : int or dict
        Among how many speakers the utterances of a split are divided; by the
        split's name if they differ.
    sentences : list of str, optional
        Transcripts to draw from, instead of the built-in grammar.
    snrs : sequence of float or None
        Signal-to-noise ratios in dB, of the speech without its pauses; None is
        clean speech. Each speaker's utterances get them in turn, in random
        order.
    jobs : int
        How many processes to work with; -1 is as many as there are cores.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    FileExistsError
        If a split or the table is already there.
    ValueError
        If there are no ``snrs``.

    Example
    -------
    >>> folder = make_librispeech(getfixture("tmp_path"), splits={"train": 3})
    >>> for file in sorted(folder.glob("train/1000/**/*.*")):
    ...     print(file.relative_to(folder).as_posix())
    train/1000/1/1000-1-0000.flac
    train/1000/1/1000-1.trans.txt
    >>> print((folder / "UTTERANCES.tsv").read_text().splitlines()[0].split())
    ['id', 'split', 'voice', 'snr', 'noise']
    """
    folder = Path(folder)
    if splits is None:
        splits = {"train": 32, "dev": 8, "test": 8}
    chapters = _plan(splits, seed, speakers_per_split, snrs, sentences)
    for name in [*splits, TABLE]:
        if (folder / name).exists():
            raise FileExistsError(
                f"{folder / name} is already there: delete it, or choose "
                "another folder."
            )
    folder.mkdir(parents=True, exist_ok=True)
    # Processes, since eSpeak NG speaks with one voice at a time in each.
    rows = Parallel(n_jobs=jobs)(
        delayed(_record)(folder, chapter) for chapter in chapters
    )
    with open(folder / TABLE, "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, delimiter="\t", lineterminator="\n")
        writer.writerows([COLUMNS, *itertools.chain(*rows)])
    return folder


def make_demo_corpus(
    folder, seed=0, splits=None, speakers_per_split=None, snrs=None, jobs=-1
):
    """Makes the corpus of the demo, unless it is there already.

    By default that is 90 minutes of 32 speakers to train on, 5 minutes of 8 for
    model selection and 9 minutes of 12 for tests, all with sentences and voices
    of their own: a third each is clean and with noise at 25 and 15 dB. It takes
    about a minute of one core.

    The corpus is made in a folder beside, which gets its name at the end: a run
    cut short leaves no half corpus. Its settings are kept in ``corpus.json``.

    Arguments
    ---------
    folder : str or Path
        Where to make it.
    seed : int
        Seed of sentences, voices, pauses and noise, 0 or more.
    splits : dict, optional
        Number of utterances of each split, if not the demo's.
    speakers_per_split : int or dict, optional
        Number of speakers, if not the demo's.
    snrs : sequence of float or None, optional
        Signal-to-noise ratios in dB, if not the demo's; None is clean speech.
    jobs : int
        How many processes to work with; -1 is as many as there are cores.

    Returns
    -------
    Path
        The folder, laid out as ``make_librispeech`` does.

    Raises
    ------
    FileExistsError
        If the folder holds something else, or such a corpus made with other
        settings.

    Example
    -------
    >>> folder = getfixture("tmp_path") / "demo"
    >>> made = make_demo_corpus(folder, splits={"train": 2}, jobs=1)
    >>> sorted(file.name for file in made.iterdir())
    ['UTTERANCES.tsv', 'corpus.json', 'train']
    """
    folder = Path(folder)
    settings = {
        "seed": seed,
        "splits": splits or DEMO_SPLITS,
        "speakers_per_split": speakers_per_split or DEMO_SPEAKERS,
        "snrs": list(snrs or DEMO_SNRS),
    }
    # The checksum tells a corpus of another version of this module.
    plan = _plan(**settings)
    record = settings | {"checksum": zlib.crc32(repr(plan).encode())}
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        _check_finished(folder, record)
        logger.info(f"The corpus in {folder} is up to date.")
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        prefix=f".{folder.name}.", dir=folder.parent
    ) as beside:
        made = make_librispeech(Path(beside) / "made", **settings, jobs=jobs)
        (made / SETTINGS).write_text(json.dumps(record, indent=2) + "\n")
        made.rename(folder)
    return folder


def _check_finished(folder, record):
    """Raises an error unless the folder holds what the record describes."""
    file = folder / SETTINGS
    if not file.is_file():
        raise FileExistsError(
            f"{folder} holds something that is no finished corpus (there is no "
            f"{SETTINGS}): delete it, or choose another folder."
        )
    found = json.loads(file.read_text())
    if found == record:
        return
    other = [key for key in record if found.get(key) != record[key]]
    raise FileExistsError(
        f"{folder} holds a corpus made with other settings ({file.name} "
        f"differs in {', '.join(other)}): delete it, or choose another folder."
    )


def _plan(splits, seed, speakers_per_split, snrs, sentences=None):
    """Draws who says what: a list of chapters, one for each speaker."""
    if not snrs:
        raise ValueError("snrs is empty: give (None,) for clean speech only.")
    speakers = {
        split: min(_of_split(speakers_per_split, split), utterances)
        for split, utterances in splits.items()
    }
    count = sum(speakers.values())
    if count > len(VOICES):
        logger.warning(
            f"{count} speakers share {len(VOICES)} voices: splits may have "
            "voices in common, which differ in rate and pitch only."
        )

    rng = random.Random(seed)
    voices = rng.sample(VOICES, len(VOICES))
    numbers = itertools.count()
    said = set()
    chapters = []
    for split, utterances in splits.items():
        own = list(itertools.islice(numbers, speakers[split]))
        for first, number in enumerate(own):
            speaker = Synthesizer(
                voices[number % len(voices)],
                rate=rng.randint(115, 175),
                pitch=rng.randint(35, 65),
                pitch_range=rng.randint(30, 70),
            )
            transcripts = tuple(
                rng.choice(sentences) if sentences else _new(said, rng)
                for _ in range(first, utterances, len(own))
            )
            chapters.append(
                _Chapter(
                    split=split,
                    number=1000 + number,
                    speaker=speaker,
                    transcripts=transcripts,
                    snrs=tuple(snrs),
                    seed=seed,
                )
            )
    return chapters


def _of_split(speakers_per_split, split):
    """The number of speakers of a split."""
    if not isinstance(speakers_per_split, dict):
        return speakers_per_split
    if split not in speakers_per_split:
        raise ValueError(f"speakers_per_split has no number for '{split}'.")
    return speakers_per_split[split]


def _new(said, rng):
    """Draws a sentence that nobody has said, and notes it."""
    while (words := random_sentence(rng)) in said:
        pass
    said.add(words)
    return words


def _record(folder, chapter):
    """Writes the audio files of one chapter and their transcripts.

    Returns the chapter's rows of the table.
    """
    folder = folder / chapter.split / str(chapter.number) / "1"
    folder.mkdir(parents=True)
    rng = np.random.default_rng([chapter.seed, chapter.number])
    order = rng.permutation(len(chapter.snrs))
    lines, rows = [], []
    for index, words in enumerate(chapter.transcripts):
        name = f"{chapter.name}-{index:04d}"
        snr = chapter.snrs[order[index % len(order)]]
        # Of its own, so that the speech does not depend on the noise.
        rng = np.random.default_rng([chapter.seed, chapter.number, index])
        wave = speak(chapter.speaker, words)
        pauses = rng.uniform(0.1, 0.3, 2) * SAMPLE_RATE
        wave = np.pad(wave, pauses.astype(int))
        noise = ""
        if snr is not None:
            noise = str(rng.choice(NOISES))
            wave = mix(wave, draw_noise(noise, len(wave), rng), snr)
        file = folder / f"{name}.flac"
        audio_io.save(file, soften(wave), SAMPLE_RATE, subtype="PCM_16")
        lines.append(f"{name} {words}\n")
        level = "" if snr is None else f"{snr:g}"
        rows.append((name, chapter.split, chapter.speaker.voice, level, noise))
    transcripts = folder / f"{chapter.name}.trans.txt"
    transcripts.write_text("".join(lines), encoding="utf-8")
    return rows


def speak(speaker, words):
    """Speaks words in capitals, which eSpeak NG alone may spell.

    Arguments
    ---------
    speaker : Synthesizer
        Who speaks.
    words : str
        What to say.

    Returns
    -------
    numpy.ndarray
        The waveform at 16 kHz, float32 of shape (samples,).

    Example
    -------
    >>> speak(Synthesizer("en-us"), "HELLO").ndim
    1
    """
    return speaker(words.lower()).numpy()


def draw_noise(noise, samples, rng):
    """Draws noise of one kind.

    Arguments
    ---------
    noise : str
        One of ``NOISES``: white, pink, brown, or babble, which is four people
        talking at once in voices that no speaker has.
    samples : int
        How much of it.
    rng : numpy.random.Generator
        The source of randomness.

    Returns
    -------
    numpy.ndarray
        The noise, of shape (samples,) and of any level.

    Example
    -------
    >>> draw_noise("babble", 16000, np.random.default_rng(0)).shape
    (16000,)
    """
    if noise in COLORS:
        return colored_noise(noise, samples, rng)
    words = random.Random(int(rng.integers(2**32)))
    talkers = [
        speak(Synthesizer(str(voice)), random_sentence(words))
        for voice in rng.choice(CROWD, TALKERS, replace=False)
    ]
    return babble(talkers, samples, rng)
