"""Tests of masks on spectra, and of their loss."""

import pytest
import torch

from speechbrain_ee.downstreams import MaskEstimator, MaskLoss

SAMPLES = torch.tensor([4000, 2345, 3199])
FRAMES = torch.tensor([12, 7, 9])  # HuBERT's, 20 ms apart


@pytest.fixture
def features():
    """A padded batch, with something large where nothing should be."""
    torch.manual_seed(0)
    batch = torch.randn(3, 12, 6)
    for row, count in enumerate(FRAMES):
        batch[row, count:] = 1000.0
    return batch


@pytest.fixture
def waves():
    torch.manual_seed(1)
    batch = torch.randn(3, 4000, 2)
    for row, count in enumerate(SAMPLES):
        batch[row, count:] = 0.0
    return batch


def estimator(sources=1, hop_length=160, **more):
    torch.manual_seed(0)
    settings = {"n_fft": 512, "win_length": 400, "hidden_size": 8, **more}
    return MaskEstimator(
        *(6, 320), num_sources=sources, hop_length=hop_length, **settings
    ).eval()


@pytest.mark.parametrize("hop_length", [160, 320, None])
@pytest.mark.parametrize("sources", [1, 2])
def test_padding_changes_nothing(features, waves, sources, hop_length):
    model = estimator(sources, hop_length)
    masks = model(features, FRAMES, SAMPLES)
    spectra = model.spectra(waves.sum(-1))
    counts = model.frames_of(SAMPLES)
    assert masks.shape == (*spectra.shape, sources)
    assert ((masks > 0) & (masks < 1)).all()
    for row, (count, frames) in enumerate(zip(SAMPLES, FRAMES)):
        one = slice(row, row + 1)
        alone = model(features[one, :frames], FRAMES[one], SAMPLES[one])
        assert alone.shape[1] == counts[row]
        assert torch.allclose(masks[row, : counts[row]], alone[0], atol=1e-6)
        spectrum = model.spectra(waves[one, :count].sum(-1))
        assert torch.allclose(
            spectra[row, : counts[row]], spectrum[0], atol=1e-4
        )


def test_features_are_repeated_and_zeros_follow(features):
    model = estimator()
    seen = []
    model.lstm.register_forward_pre_hook(lambda _, given: seen.append(given))
    model(features, FRAMES, SAMPLES)
    ((x, frames),) = seen
    assert frames.tolist() == [26, 15, 20]
    for row, count in enumerate(FRAMES.tolist()):
        for k in range(int(frames[row])):
            expected = features[row, k // 2] if k < 2 * count else 0.0
            assert (x[row, k] == expected).all()
    # As many as the features; then some are cut.
    seen.clear()
    model(features[1:2], FRAMES[1:2], torch.tensor([1000]))
    assert seen[0][0].shape == (1, 7, 6)


def test_open_masks_give_the_mixture_back(waves):
    for model in (estimator(), estimator(n_fft=1024, win_length=None)):
        mixture = waves.sum(-1)
        spectra = model.spectra(mixture)
        for row, count in enumerate(SAMPLES.tolist()):
            frames = model.frames_of(torch.tensor(count))
            spectrum = spectra[row, :frames]
            masks = torch.ones(*spectrum.shape, 1)
            heard = model.waveforms(masks, spectrum, count)
            assert heard.shape == (count, 1)
            error = (heard[:, 0] - mixture[row, :count]).abs().max()
            assert error < 1e-4
            assert not model.waveforms(0 * masks, spectrum, count).any()


def test_hops_must_fit_the_upstream():
    with pytest.raises(ValueError, match="320 samples .* multiple of 128"):
        estimator(hop_length=128)
    with pytest.raises(ValueError, match="320 samples .* multiple of 640"):
        estimator(hop_length=640)


def spectrum(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.cfloat, generator=generator)


def test_the_loss_is_the_sum_over_frequencies():
    mixture, clean = spectrum(2, 9, 5), spectrum(2, 9, 5, 1, seed=1)
    masks = torch.rand(2, 9, 5, 1)
    frames = torch.tensor([9, 4])
    found = masks * torch.log(1 + mixture.abs())[..., None]
    distance = (found - torch.log(1 + clean.abs())).abs().sum((2, 3))
    expected = [distance[0].mean(), distance[1, :4].mean()]
    loss = MaskLoss("l1")(masks, mixture, clean, frames)
    assert torch.allclose(loss, torch.stack(expected))


def test_the_order_of_sources_does_not_matter():
    mixture, sources = spectrum(2, 9, 5), spectrum(2, 9, 5, 2, seed=1)
    masks, frames = torch.rand(2, 9, 5, 2), torch.tensor([9, 4])
    objective = MaskLoss("mse", phase_sensitive=True)
    loss = objective(masks, mixture, sources, frames)
    # One utterance the other way round.
    turned = torch.stack([masks[0], masks[1].flip(-1)])
    assert torch.allclose(objective(turned, mixture, sources, frames), loss)
    turn = mixture.angle()[..., None] - sources.angle()
    wanted = (sources.abs() * turn.cos().clamp_min(0)).log1p()
    both = []
    for one in (masks, masks.flip(-1)):
        square = (one * mixture.abs().log1p()[..., None] - wanted) ** 2
        square = square.sum(2).mean(-1)
        both.append(torch.stack([square[0].mean(), square[1, :4].mean()]))
    assert torch.allclose(loss, torch.stack(both).amin(0))


def test_masks_learn():
    torch.manual_seed(0)
    model = estimator(2, 320, dropout=0.0).train()
    features, samples = torch.randn(1, 12, 6), torch.tensor([4000])
    mixture, sources = spectrum(1, 13, 257), spectrum(1, 13, 257, 2, seed=1)
    objective = MaskLoss("mse", phase_sensitive=True)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    losses = []
    for _ in range(8):
        masks = model(features, FRAMES[:1], samples)
        loss = objective(masks, mixture, sources, torch.tensor([13])).mean()
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad.isfinite().all() for p in model.parameters())
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]


def test_another_distance_is_refused():
    with pytest.raises(ValueError, match="distance: 'l2' is none of l1, mse"):
        MaskLoss("l2")
