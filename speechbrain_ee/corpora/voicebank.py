"""A synthetic corpus in the layout of VoiceBank-DEMAND.

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
from speechbrain_ee.corpora.librispeech import NOISES, VOICES, draw_noise, speak
from speechbrain_ee.corpora.noise import mix, soften
from speechbrain_ee.corpora.sentences import random_sentence

# Those to choose checkpoints by first, as they are in every corpus.
TRAIN_SPEAKERS = tuple(
    f"p{number}"
    for number in (
        *(226, 287, 227, 228, 230, 231, 233, 236, 239, 243, 244, 250, 254, 256),
        *(258, 259, 267, 268, 269, 270, 273, 274, 276, 277, 278, 279, 282, 286),
    )
)
TEST_SPEAKERS = ("p232", "p257")
# Of the corpus itself, in dB.
SNRS = {"trainset_28spk": (15, 10, 5, 0), "testset": (17.5, 12.5, 7.5, 2.5)}


@dataclass(frozen=True)
class _Speaker:
    """Who says how much in which set."""

    name: str
    voice: str
    part: str
    utterances: int
    seed: int


def make_voicebank(
    folder, utterances=2, speakers=4, seed=0, jobs=1, sample_rate=SAMPLE_RATE
):
    """Makes a corpus of synthetic speech in the layout of VoiceBank-DEMAND.

    That is ``clean_trainset_28spk_wav/pNNN_NNN.wav`` and
    ``clean_testset_wav/pNNN_NNN.wav``, and the same in noise under the same
    names in ``noisy_trainset_28spk_wav`` and ``noisy_testset_wav``. Noise is
    white, pink, brown or babble, at the signal-to-noise ratios of the corpus:
    15, 10, 5 and 0 dB to train, 17.5, 12.5, 7.5 and 2.5 dB to test.

    The same arguments give the same corpus, whatever ``jobs`` is.

    Arguments
    ---------
    folder : str or Path
        Where to make it.
    utterances : int
        Of each speaker.
    speakers : int
        Speakers to train on, 3 to 28: p226 and p287, who choose checkpoints,
        and others. Two more are tested on.
    seed : int
        Seed of sentences, voices and noise, 0 or more.
    jobs : int
        How many processes to work with; -1 is as many as there are cores.
    sample_rate : int
        What the files say in Hz, with the same samples: the originals have
        48000.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    FileExistsError
        If there is such a corpus already.
    ValueError
        If there are too few or too many speakers.

    Example
    -------
    >>> folder = make_voicebank(getfixture("tmp_path"), 1, speakers=3)
    >>> for path in sorted(folder.glob("*/p2[38]*")):
    ...     print(path.relative_to(folder).as_posix())
    clean_testset_wav/p232_001.wav
    clean_trainset_28spk_wav/p287_001.wav
    noisy_testset_wav/p232_001.wav
    noisy_trainset_28spk_wav/p287_001.wav
    """
    folder = Path(folder)
    if not 3 <= speakers <= len(TRAIN_SPEAKERS):
        raise ValueError(
            f"speakers: {speakers} is not among 3 to {len(TRAIN_SPEAKERS)}."
        )
    for part in SNRS:
        for kind in ("clean", "noisy"):
            target = folder / f"{kind}_{part}_wav"
            if target.exists():
                raise FileExistsError(
                    f"{target} is already there: delete it, or choose another "
                    "folder."
                )
            target.mkdir(parents=True)
    named = [(name, "trainset_28spk") for name in TRAIN_SPEAKERS[:speakers]]
    named += [(name, "testset") for name in TEST_SPEAKERS]
    voices = random.Random(seed).sample(VOICES, len(named))
    # Processes, since eSpeak NG speaks with one voice at a time in each.
    Parallel(n_jobs=jobs)(
        delayed(_record)(
            folder, _Speaker(name, voice, part, utterances, seed), sample_rate
        )
        for (name, part), voice in zip(named, voices, strict=True)
    )
    return folder


def _record(folder, speaker, sample_rate):
    """Writes what one speaker says, clean and in noise."""
    words = random.Random(f"{speaker.seed} {speaker.name}")
    rng = np.random.default_rng([speaker.seed, int(speaker.name[1:])])
    synthesizer = Synthesizer(speaker.voice, pitch=words.randint(25, 75))
    for index in range(1, speaker.utterances + 1):
        clean = speak(synthesizer, random_sentence(words))
        clean = np.pad(clean, rng.integers(1600, 4800, 2))
        noise = draw_noise(str(rng.choice(NOISES)), len(clean), rng)
        snrs = SNRS[speaker.part]
        noisy = mix(clean, noise, snrs[index % len(snrs)])
        # Both by the same factor.
        both = soften(np.stack([clean, noisy]))
        for kind, wave in zip(("clean", "noisy"), both, strict=True):
            target = folder / f"{kind}_{speaker.part}_wav"
            file = target / f"{speaker.name}_{index:03d}.wav"
            audio_io.save(file, wave, sample_rate, subtype="PCM_16")
