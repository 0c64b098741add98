"""A synthetic corpus in the layout of VoxPopuli's transcribed data.

Authors
 * SpeechBrain-EE contributors 2026
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from joblib import Parallel, delayed
from speechbrain.dataio import audio_io

from speechbrain_ee.corpora.espeak import SAMPLE_RATE, Synthesizer
from speechbrain_ee.corpora.librispeech import VARIANTS, VOICES
from speechbrain_ee.corpora.noise import soften
from speechbrain_ee.corpora.sentences import GERMAN, random_sentence

COLUMNS = (
    "id",
    "raw_text",
    "normalized_text",
    "speaker_id",
    "split",
    "gender",
    "is_gold_transcript",
    "accent",
)
YEARS = tuple(range(2009, 2021))
DEFAULT_SPLITS = {"train": 32, "dev": 8, "test": 8}


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


def _german_sentence(rng):
    return rng.choice(GERMAN)


LANGUAGES = {
    "en": Language(VOICES, random_sentence),
    "de": Language(tuple(f"de+{name}" for name in VARIANTS), _german_sentence),
}


@dataclass(frozen=True)
class _Session:
    """What one member says on one day."""

    language: str
    split: str
    year: int
    number: int
    speaker: Synthesizer
    sentences: tuple[str, ...]
    seed: int

    @property
    def speaker_id(self):
        """As the release has them: a number."""
        return str(100000 + self.number)

    @property
    def gender(self):
        """Of the voice."""
        return "female" if "+f" in self.speaker.voice else "male"

    def name(self, index):
        """Of an utterance and its file."""
        day = f"{self.year}{self.number % 12 + 1:02d}14"
        time = f"{9 + self.number % 12:02d}:{index // 60:02d}:{index % 60:02d}"
        return (
            f"{day}-0900-PLENARY-{self.number}-{self.language}_{day}-{time}_"
            f"{index}"
        )


def make_voxpopuli(
    folder,
    splits=None,
    languages=("en", "de"),
    seed=0,
    speakers_per_split=4,
    jobs=1,
):
    """Makes a corpus of synthetic speech in the layout of VoxPopuli.

    For each language that is ``transcribed_data/LANGUAGE/asr_SPLIT.tsv``, with
    a row per utterance, and ``transcribed_data/LANGUAGE/YEAR/ID.ogg`` (Ogg
    Vorbis, 16 kHz), as the script ``get_asr_data`` of the release writes them.

    As there, texts are not quoted, so that a quotation mark may open a text and
    never be closed: one does in each split. ``normalized_text`` is in lower
    case, with a space for every apostrophe. In each split the first transcript
    is not gold, and the last row has no text though it has audio.

    The same arguments give the same text and the same speech, whatever ``jobs``
    is; the files differ, since each Ogg stream has a random number. No speaker
    is in two splits.

    Arguments
    ---------
    folder : str or Path
        Where to make it.
    splits : dict, optional
        Number of utterances with text in each split; by default 32 in "train",
        8 in "dev" and 8 in "test".
    languages : sequence of str
        Some of ``LANGUAGES``.
    seed : int
        Seed of sentences, voices and pauses, 0 or more.
    speakers_per_split : int
        Among how many speakers the utterances of a split are divided, each in a
        year of their own up to 12.
    jobs : int
        How many processes to work with; -1 is as many as there are cores.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    FileExistsError
        If a language is already there.
    ValueError
        If a language is not one of ``LANGUAGES``, or a split has no utterance.

    Example
    -------
    >>> folder = make_voxpopuli(getfixture("tmp_path"), {"train": 1}, ["en"])
    >>> for file in sorted(folder.glob("**/*.*")):
    ...     print(file.relative_to(folder).as_posix())
    transcribed_data/en/2009/20090114-0900-PLENARY-0-en_20090114-09:00:00_0.ogg
    transcribed_data/en/2009/20090114-0900-PLENARY-0-en_20090114-09:00:01_1.ogg
    transcribed_data/en/asr_train.tsv
    """
    folder = Path(folder)
    splits = DEFAULT_SPLITS if splits is None else splits
    if min(splits.values(), default=0) < 1:
        raise ValueError(f"Each split needs an utterance or more: {splits}.")
    for language in languages:
        if language not in LANGUAGES:
            raise ValueError(
                f"There are no sentences in '{language}': choose languages "
                f"among {', '.join(LANGUAGES)}."
            )
        target = folder / "transcribed_data" / language
        if target.exists():
            raise FileExistsError(
                f"{target} is already there: delete it, or choose another "
                "folder."
            )
    for language in languages:
        target = folder / "transcribed_data" / language
        target.mkdir(parents=True)
        sessions = _plan(language, splits, seed, speakers_per_split)
        # Processes, since eSpeak NG speaks with one voice at a time in each.
        recorded = Parallel(n_jobs=jobs)(
            delayed(_record)(target, session) for session in sessions
        )
        for split in splits:
            rows = [
                row
                for session, own in zip(sessions, recorded, strict=True)
                for row in own
                if session.split == split
            ]
            _write_table(target / f"asr_{split}.tsv", rows)
    return folder


def _plan(language, splits, seed, speakers_per_split):
    """Draws who says what: a list of sessions, one for each speaker."""
    spoken = LANGUAGES[language]
    rng = random.Random(f"{seed} {language}")
    voices = rng.sample(spoken.voices, len(spoken.voices))
    sessions = []
    for split, utterances in splits.items():
        count = min(speakers_per_split, utterances)
        # One more, whose text is then left empty.
        given = [spoken.sentence(rng) for _ in range(utterances + 1)]
        for first in range(count):
            last = given[utterances:] if first == count - 1 else []
            number = len(sessions)
            sessions.append(
                _Session(
                    language=language,
                    split=split,
                    year=YEARS[number % len(YEARS)],
                    number=number,
                    speaker=Synthesizer(
                        voices[number % len(voices)],
                        rate=rng.randint(115, 175),
                        pitch=rng.randint(35, 65),
                        pitch_range=rng.randint(30, 70),
                    ),
                    sentences=(*given[first:utterances:count], *last),
                    seed=seed,
                )
            )
    return sessions


def _record(folder, session):
    """Writes the audio files of one session. Returns its rows."""
    folder = folder / str(session.year)
    folder.mkdir(exist_ok=True)
    rows = []
    for index, sentence in enumerate(session.sentences):
        # eSpeak NG may spell words in capitals.
        words = sentence.lower()
        rng = np.random.default_rng([session.seed, session.number, index])
        pauses = rng.uniform(0.1, 0.3, 2) * SAMPLE_RATE
        wave = np.pad(session.speaker(words).numpy(), pauses.astype(int))
        name = session.name(index)
        audio_io.save(
            folder / f"{name}.ogg", soften(wave), SAMPLE_RATE, subtype="VORBIS"
        )
        rows.append(
            {
                "id": name,
                "raw_text": f"{words.capitalize()}.",
                "normalized_text": words.replace("'", " "),
                "speaker_id": session.speaker_id,
                "split": session.split,
                "gender": session.gender,
                "is_gold_transcript": "True",
                "accent": "None",
            }
        )
    return rows


def _write_table(file, rows):
    """Writes the table of a split, with what makes real ones hard to read."""
    rows[0]["is_gold_transcript"] = "False"
    rows[0]["raw_text"] = '"' + rows[0]["raw_text"]
    rows[-1]["normalized_text"] = ""
    lines = [COLUMNS, *(row.values() for row in rows)]
    text = "".join("\t".join(line) + "\n" for line in lines)
    file.write_text(text, encoding="utf-8")
