"""Features by name."""

import pytest
import torch

from speechbrain_ee.encoders.features import FEATURES, make_features

WAVS = torch.randn(2, 8000, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", FEATURES)
def test_every_kind_has_a_frame_per_hop_and_as_many_channels_as_asked(kind):
    features = make_features(kind, n_mels=24, sample_rate=16000, n_fft=512)
    assert features(WAVS).shape == (2, 51, 24)
    assert features.compute_STFT.hop_length == 160


def test_power_mel_is_fbank_without_its_logarithm():
    power = make_features("power_mel", n_mels=24)(WAVS)
    decibel = make_features("fbank", n_mels=24)(WAVS)
    expected = 10 * power.clamp(min=1e-10).log10()
    floor = expected.amax(dim=(-2, -1), keepdim=True) - 80
    assert torch.allclose(expected.maximum(floor), decibel, atol=1e-3)


def test_unknown_features_are_refused():
    with pytest.raises(ValueError, match="'mel'.*fbank, mfcc, power_mel"):
        make_features("mel")
