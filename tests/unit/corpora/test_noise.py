"""Tests of noise: its colours, its level, and what is left of the speech."""

import numpy as np
import pytest

from speechbrain_ee.corpora.noise import (
    COLORS,
    active_level,
    babble,
    colored_noise,
    mix,
    plain_level,
    soften,
)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def decibel(ratio):
    return 20 * np.log10(ratio)


def rms(wave):
    return np.sqrt((wave**2).mean())


@pytest.fixture
def speech(rng):
    """A second of sound in two seconds of silence."""
    return np.pad(0.05 * rng.standard_normal(16000), 16000)


def test_pauses_do_not_count(speech):
    assert active_level(speech) == pytest.approx(0.05, rel=0.01)
    assert active_level(speech[16000:32000]) == active_level(speech)
    # Nor does what can hardly be heard.
    assert active_level(speech + 1e-4) == pytest.approx(0.05, rel=0.01)


def test_frames_have_20_ms_at_any_sample_rate():
    wave = np.concatenate([np.ones(160), np.zeros(160)])
    assert active_level(wave, sample_rate=8000) == 1
    assert active_level(wave) == np.sqrt(0.5)


@pytest.mark.parametrize("wave", [np.zeros(16000), np.ones(300), np.ones(0)])
def test_silence_has_no_level(wave):
    with pytest.raises(ValueError, match=f"{len(wave)} samples"):
        active_level(wave)


@pytest.mark.parametrize("color", COLORS)
@pytest.mark.parametrize("sample_rate", [8000, 16000])
def test_the_slope_of_each_color(rng, color, sample_rate):
    noise = colored_noise(color, 20 * sample_rate, rng, sample_rate)
    power = np.abs(np.fft.rfft(noise)) ** 2
    frequencies = np.fft.rfftfreq(len(noise), 1 / sample_rate)

    def band(low, high):
        inside = (frequencies >= low) & (frequencies < high)
        return power[inside].mean()

    falls = 10 * np.log10(band(200, 220) / band(3200, 3520)) / 4  # per octave
    assert falls == pytest.approx(3.01 * COLORS[color], abs=0.3)
    assert band(0, 49) < 1e-9 * band(50, 100)


def test_noise_is_another_each_time_but_not_with_the_same_seed(rng):
    first, second = (colored_noise("white", 999, rng) for _ in range(2))
    assert len(first) == 999
    assert np.corrcoef(first, second)[0, 1] < 0.2
    again = colored_noise("white", 999, np.random.default_rng(0))
    assert np.array_equal(again, first)


def test_talkers_are_equally_loud(rng):
    tones = [
        np.sin(2 * np.pi * f / 16000 * np.arange(8000)) for f in (200, 900)
    ]
    crowd = babble([5 * tones[0], 0.1 * tones[1]], 16000, rng)
    low, high = np.abs(np.fft.rfft(crowd))[[200, 900]]
    assert len(crowd) == 16000
    assert low == pytest.approx(high, rel=0.05)


def test_talkers_begin_anywhere(rng):
    wave = rng.standard_normal(8000)
    first, second = (babble([wave], 4000, rng) for _ in range(2))
    assert not np.allclose(first, second)


@pytest.mark.parametrize("snr", [-5, 0, 20])
def test_the_ratio_is_that_of_speech_without_pauses(rng, speech, snr):
    noise = 7 * colored_noise("pink", len(speech), rng)
    added = mix(speech, noise, snr) - speech
    assert decibel(0.05 / rms(added)) == pytest.approx(snr, abs=0.1)
    assert np.allclose(added / noise, added[0] / noise[0])


def test_the_ratio_may_count_pauses(rng, speech):
    assert plain_level(speech) == pytest.approx(0.05 / np.sqrt(3), rel=0.01)
    noise = colored_noise("white", len(speech), rng)
    added = mix(speech, noise, 10, level="plain") - speech
    assert decibel(rms(speech) / rms(added)) == pytest.approx(10)
    for silence in (np.zeros(5), np.zeros(0)):
        with pytest.raises(ValueError, match=f"{len(silence)} samples are"):
            plain_level(silence)


def test_loud_waves_are_softened_and_not_clipped(rng):
    wave = rng.standard_normal(999)
    softened = soften(wave)
    assert np.abs(softened).max() == pytest.approx(0.95)
    assert np.allclose(softened / wave, (softened / wave)[0])
    assert np.array_equal(soften(0.01 * wave), 0.01 * wave)
