"""Tests of the voice behind the synthetic corpora."""

import pytest
import torch
from torchaudio.functional import detect_pitch_frequency

from speechbrain_ee.corpora.espeak import Synthesizer
from speechbrain_ee.corpora.librispeech import VOICES


def test_each_voice_is_another():
    words = "the tall doctor lost her coat"
    waves = {Synthesizer(voice)(words).numpy().tobytes() for voice in VOICES}
    assert len(waves) == len(VOICES)


def test_speech_does_not_depend_on_what_was_said_before():
    # This variant has breath noise and flutter.
    speaker = Synthesizer("en-us+f2")
    before = speaker("a red boat")
    Synthesizer("en-gb-scotland+m3", rate=300, pitch=90)("something else")
    assert torch.equal(speaker("a red boat"), before)


def test_rate_and_pitch_are_heard():
    normal, fast, high = (
        Synthesizer(rate=rate, pitch=pitch)("the little horse")
        for rate, pitch in [(150, 50), (300, 50), (150, 90)]
    )
    assert len(fast) < 0.7 * len(normal)
    normal, high = (
        detect_pitch_frequency(wave[None], 16000).median()
        for wave in (normal, high)
    )
    assert high > 1.2 * normal


def test_what_cannot_be_said():
    with pytest.raises(ValueError, match="no voice 'xx'"):
        Synthesizer("xx")("hello")
    with pytest.raises(ValueError, match="empty"):
        Synthesizer()(" ")
