"""How good waveforms are, also where libraries have no answer."""

import math
import sys

import numpy as np
import pytest
import torch

from speechbrain_ee.analysis import quality


@pytest.fixture(scope="module")
def speech():
    """A tone that comes and goes, at 16 kHz."""
    time = np.arange(16000) / 16000
    tone = np.sin(2 * np.pi * 300 * time) * (np.sin(6 * np.pi * time) > 0)
    noise = np.random.default_rng(0).standard_normal(16000)
    return (tone + 0.01 * noise).astype("float32")


def test_noise_lowers_pesq_and_stoi(speech):
    noise = np.random.default_rng(1).standard_normal(16000).astype("float32")
    clean, noisy = quality.pesq(speech, speech), quality.pesq(speech, noise)
    assert clean == (pytest.approx(4.64, abs=0.01), False)
    assert 1 <= noisy[0] < 1.5 and not noisy[1]
    assert quality.stoi(speech, speech) == pytest.approx(100)
    assert quality.stoi(speech, speech + noise) < 80


def test_silence_is_the_worst_estimate_and_no_reference(speech):
    silence = np.zeros_like(speech)
    assert quality.pesq(speech, silence) == (quality.LOWEST_PESQ, True)
    for reference, estimate in [
        (silence, speech),
        (silence, silence),
        (speech[:1000], speech[:1000]),
        (speech[:1000], silence[:1000]),
    ]:
        value, failed = quality.pesq(reference, estimate)
        assert math.isnan(value) and failed
    assert quality.stoi(speech, silence) == pytest.approx(0, abs=1e-6)


def test_si_sdr_knows_no_scale_and_no_order():
    torch.manual_seed(0)
    sources = torch.randn(4000, 2)
    noise = torch.randn(4000, 2)
    # Nothing of the noise lies along its source, nor in the mean.
    sources = sources - sources.mean(0)
    noise = noise - noise.mean(0)
    noise = noise - sources * (noise * sources).sum(0) / sources.square().sum(0)
    noise *= 0.1 * sources.norm(dim=0) / noise.norm(dim=0)
    for factor in (1.0, 0.2):
        for order in ([0, 1], [1, 0]):
            found = quality.si_sdr(
                sources, factor * (sources + noise)[:, order]
            )
            assert found == pytest.approx(20, abs=1e-3)
    assert quality.si_sdr(sources[:, :1], 0 * noise[:, :1]) == pytest.approx(
        -80
    )


@pytest.mark.parametrize("name", ["pesq", "pystoi"])
def test_a_missing_library_is_told(name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=rf"{name} .*speechbrain-ee\[quality"):
        quality.check_libraries()
