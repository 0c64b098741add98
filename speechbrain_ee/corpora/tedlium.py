"""A synthetic corpus in the layout of TED-LIUM, release 3.

With it the recipe runs, from data preparation to the report, with no download.

Authors
 * SpeechBrain-EE contributors 2026
"""

import itertools
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from joblib import Parallel, delayed

from speechbrain_ee.corpora.espeak import SAMPLE_RATE, Synthesizer
from speechbrain_ee.corpora.librispeech import VOICES
from speechbrain_ee.corpora.noise import colored_noise, soften
from speechbrain_ee.corpora.sentences import random_sentence

FOLDERS = {"train": "data", "dev": "legacy/dev", "test": "legacy/test"}
STEP = SAMPLE_RATE // 100  # the times of an STM file have two decimals
HEAD = (
    ";;",
    ';; LABEL "o" "Overall" "Overall results"',
    ';; LABEL "f0" "f0" "Wideband channel"',
    ';; LABEL "male" "Male" "Male Talkers"',
    ';; LABEL "female" "Female" "Female Talkers"',
    ";;",
)


@dataclass(frozen=True)
class _Talk:
    """What one speaker says."""

    split: str
    number: int
    speaker: Synthesizer
    sentences: tuple[str, ...]
    seed: int

    @property
    def name(self):
        """Of its files, and of its speaker."""
        return f"Speaker{self.number}_2018"

    @property
    def label(self):
        """Its condition and the speaker's gender, as STM files have them."""
        female = "+f" in self.speaker.voice
        return f"<o,f0,{'female' if female else 'male'}>"


def make_tedlium(
    folder, splits=None, seed=0, talks_per_split=2, sentences=None, jobs=1
):
    """Makes a corpus of synthetic speech in the layout of TED-LIUM 3.

    That is ``sph/TALK.sph`` (NIST SPHERE, 16 kHz, 16 bit) and
    ``stm/TALK.stm`` in the folders ``data`` (to train on), ``legacy/dev`` and
    ``legacy/test``. As in the release, ``legacy/train`` has links to what is in
    ``data``.

    Transcripts are in lower case, with a space before an apostrophe. In the
    first segment of each talk, one word is ``<unk>``. Every second pause is a
    segment to be ignored, in which there is noise.

    The same arguments give the same corpus, whatever ``jobs`` is. Each talk has
    a speaker of its own, with a voice of its own while there are as many (52).
    Sentences of the built-in grammar come once in a corpus.

    Arguments
    ---------
    folder : str or Path
        Where to make it; called ``TEDLIUM_release-3`` in the release.
    splits : dict, optional
        Number of segments of the splits "train", "dev" and "test"; by default
        32, 8 and 8.
    seed : int
        Seed of sentences, voices, pauses and noise, 0 or more.
    talks_per_split : int
        Among how many talks the segments of a split are divided.
    sentences : list of str, optional
        Sentences to draw from, instead of the built-in grammar.
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
    ValueError
        If there is no such split.

    Example
    -------
    >>> folder = make_tedlium(getfixture("tmp_path"), splits={"dev": 3})
    >>> for file in sorted(folder.glob("legacy/*/*/*.*")):
    ...     print(file.relative_to(folder).as_posix())
    legacy/dev/sph/Speaker1_2018.sph
    legacy/dev/sph/Speaker2_2018.sph
    legacy/dev/stm/Speaker1_2018.stm
    legacy/dev/stm/Speaker2_2018.stm
    """
    folder = Path(folder)
    if splits is None:
        splits = {"train": 32, "dev": 8, "test": 8}
    for split in splits:
        if split not in FOLDERS:
            raise ValueError(
                f"TED-LIUM has no split '{split}': choose from "
                f"{', '.join(FOLDERS)}."
            )
        if (folder / FOLDERS[split]).exists():
            raise FileExistsError(
                f"{folder / FOLDERS[split]} is already there: delete it, or "
                "choose another folder."
            )
    for split, kind in itertools.product(splits, ("sph", "stm")):
        (folder / FOLDERS[split] / kind).mkdir(parents=True)
    talks = _plan(splits, seed, talks_per_split, sentences)
    # Processes, since eSpeak NG speaks with one voice at a time in each.
    Parallel(n_jobs=jobs)(delayed(_record)(folder, talk) for talk in talks)
    for file in sorted(folder.glob("data/*/*.*")):
        kind = file.parent.name
        link = folder / "legacy" / "train" / kind / file.name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(f"../../../data/{kind}/{file.name}")
    return folder


def _plan(splits, seed, talks_per_split, sentences):
    """Draws who says what: a list of talks."""
    rng = random.Random(seed)
    voices = itertools.cycle(rng.sample(VOICES, len(VOICES)))
    numbers = itertools.count(1)
    said = set()
    talks = []
    for split, segments in splits.items():
        count = min(talks_per_split, segments)
        for first in range(count):
            speaker = Synthesizer(
                next(voices),
                rate=rng.randint(115, 175),
                pitch=rng.randint(35, 65),
                pitch_range=rng.randint(30, 70),
            )
            own = tuple(
                rng.choice(sentences) if sentences else _new(said, rng)
                for _ in range(first, segments, count)
            )
            talks.append(_Talk(split, next(numbers), speaker, own, seed))
    return talks


def _new(said, rng):
    """Draws a sentence that nobody has said, and notes it."""
    while (words := random_sentence(rng)) in said:
        pass
    said.add(words)
    return words


def _record(folder, talk):
    """Writes the recording of one talk and its transcripts."""
    rng = np.random.default_rng([talk.seed, talk.number])
    waves, lines, steps = [], [*HEAD], 0
    for index, sentence in enumerate(talk.sentences):
        pause = STEP * int(rng.integers(30, 80))
        if index % 2:
            waves.append(np.zeros(pause))
            steps += pause // STEP
        else:
            waves.append(soften(colored_noise("pink", pause, rng), 0.05))
            steps = _write_line(
                *(lines, talk.name, "inter_segment_gap", steps, pause),
                *("<o,,unknown>", "ignore_time_segment_in_scoring"),
            )
        wave = talk.speaker(sentence.lower()).numpy()
        wave = np.pad(soften(wave), (0, -len(wave) % STEP))
        words = sentence.lower().split()
        if not index and len(words) > 1:
            words[rng.integers(len(words))] = "<unk>"
        text = " ".join(words).replace("'", " '")
        waves.append(wave)
        steps = _write_line(
            lines, talk.name, talk.name, steps, len(wave), talk.label, text
        )
    folder = folder / FOLDERS[talk.split]
    soundfile.write(
        folder / "sph" / f"{talk.name}.sph",
        np.concatenate(waves),
        SAMPLE_RATE,
        format="NIST",
        subtype="PCM_16",
    )
    (folder / "stm" / f"{talk.name}.stm").write_text(
        "".join(f"{line}\n" for line in lines), encoding="utf-8"
    )


def _write_line(lines, recording, speaker, steps, samples, label, text):
    """Adds a line to a list, and returns the steps until its segment ends."""
    stop = steps + samples // STEP
    lines.append(
        f"{recording} 1 {speaker} {steps / 100:.2f} {stop / 100:.2f} "
        f"{label} {text}"
    )
    return stop
