"""Tests of task models that say one thing of an utterance."""

import pytest
import torch
from speechbrain.nnet.losses import AngularMargin, LogSoftmaxWrapper
from torch.nn.functional import normalize

from speechbrain_ee.downstreams.frames import LinearCTC
from speechbrain_ee.downstreams.utterance import (
    POOLINGS,
    SpeakerEmbedder,
    UtteranceClassifier,
)

FRAMES = torch.tensor([40, 17, 29])


@pytest.fixture
def features():
    """A padded batch, with something large where nothing should be."""
    torch.manual_seed(0)
    batch = torch.randn(3, 40, 6)
    for row, count in enumerate(FRAMES):
        batch[row, count:] = 1000.0
    return batch


MODELS = {
    **{
        name: lambda name=name: UtteranceClassifier(6, [3, 2], 8, name)
        for name in POOLINGS
    },
    "embedder": lambda: SpeakerEmbedder(6, 4, channels=8, pooled_channels=10),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("training", [True, False])
def test_padding_changes_nothing(name, training, features):
    model = MODELS[name]().train(training)
    batched = model(features, FRAMES)
    for row, count in enumerate(FRAMES.tolist()):
        alone = model(features[row : row + 1, :count], FRAMES[row : row + 1])
        for part, expected in zip(batched, alone, strict=True):
            assert torch.allclose(part[row], expected[0], atol=1e-5)


def test_poolings_are_those_of_each_utterance(features):
    mean, statistics = (
        POOLINGS[name](6)(features, FRAMES) for name in ("mean", "statistics")
    )
    for row, count in enumerate(FRAMES):
        real = features[row, :count]
        assert torch.allclose(mean[row], real.mean(0), atol=1e-6)
        spread = real.std(0, correction=0)
        assert torch.allclose(statistics[row, 6:], spread, atol=1e-6)


def test_statistics_of_a_constant_have_a_gradient():
    features = torch.ones(1, 5, 6, requires_grad=True)
    POOLINGS["statistics"](6)(features, torch.tensor([5])).sum().backward()
    assert features.grad.isfinite().all()


def test_a_classifier_is_linear_but_for_its_slots(features):
    model = UtteranceClassifier(6, [3, 2], proj_size=8)
    with torch.no_grad():
        first, second = model(features, FRAMES)
        pooled = torch.stack(
            [x[:n].mean(0) for x, n in zip(features, FRAMES, strict=True)]
        )
        weight = model.output.weight @ model.projection.weight
        bias = model.output.weight @ model.projection.bias + model.output.bias
        expected = pooled @ weight.T + bias
    both = torch.cat([first, second], dim=1)
    assert torch.allclose(both, expected, atol=1e-4)


def test_the_sizes_are_those_of_superb():
    def count(model):
        return sum(p.numel() for p in model.parameters())

    assert count(UtteranceClassifier(768, [12])) == 769 * 256 + 257 * 12
    layers = 512 * (5 + 3 + 3 + 1) * 512 + 4 * 512 + 513 * 1500
    linear = 769 * 512 + 3001 * 512 + 513 * 512 + 1211 * 512
    assert count(SpeakerEmbedder(768, 1211)) == layers + linear
    assert count(LinearCTC(768, 71)) == 769 * 256 + 257 * 71


def test_an_embedding_needs_fifteen_frames():
    model = SpeakerEmbedder(6, num_speakers=4, channels=8)
    assert model.least_frames == 15
    embeddings, _ = model(torch.randn(1, 15, 6), torch.tensor([15]))
    assert embeddings.isfinite().all()
    with pytest.raises(ValueError, match="14 frames, and .* needs 15"):
        model(torch.randn(2, 20, 6), torch.tensor([20, 14]))


def test_the_loss_is_am_softmax(features):
    model = SpeakerEmbedder(6, num_speakers=4, channels=8).eval()
    speakers = torch.tensor([0, 3, 3])
    with torch.no_grad():
        embeddings, cosines = model(features, FRAMES)
        hidden = normalize(model.hidden(embeddings).relu())
        weights = normalize(model.classifier.weight)
    expected = []
    for vector, speaker in zip(hidden, speakers.tolist(), strict=True):
        logits = [30 * float(vector @ w) for w in weights]
        logits[speaker] -= 30 * 0.4
        logits = torch.tensor(logits)
        expected.append(logits.logsumexp(0) - logits[speaker])
    objective = LogSoftmaxWrapper(AngularMargin(margin=0.4, scale=30))
    loss = objective(cosines[:, None], speakers[:, None])
    assert float(loss) == pytest.approx(float(sum(expected) / 3), rel=1e-4)


def test_linear_ctc_gives_every_frame_a_distribution(features):
    model = LinearCTC(6, labels=5, proj_size=8)
    log_probs, frames = model(features, FRAMES)
    assert torch.allclose(log_probs.exp().sum(-1), torch.ones(3, 40))
    assert torch.equal(frames, FRAMES)
    alone, _ = model(features[1:2, 3:4], torch.tensor([1]))
    assert torch.allclose(log_probs[1, 3], alone[0, 0], atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_classes": [3], "pooling": "max"}, "none of mean, statistics"),
        ({"num_classes": [3, 1]}, "num_classes: .*two classes or more"),
        ({"num_classes": []}, "num_classes: .*two classes or more"),
    ],
)
def test_settings_that_make_no_sense_are_told(settings, message):
    with pytest.raises(ValueError, match=message):
        UtteranceClassifier(6, **settings)
