"""The first stage of DAISY: what is frozen, what is lost, what is measured."""

import copy

import numpy as np
import pytest
import speechbrain as sb
import torch
from speechbrain.dataio.batch import PaddedBatch
from speechbrain.dataio.dataset import DynamicItemDataset

from speechbrain_ee.brains.branches import BranchBrain
from speechbrain_ee.clusters import Clusters, ClusterTargets
from speechbrain_ee.encoders import FilterbankEncoder
from speechbrain_ee.encoders.huggingface import HuggingFaceEncoder
from speechbrain_ee.heads import ClusterBranches, ClusterHead, HeadTargets
from tests.unit.encoders.backbones import SMALL

# All that could be dropped would be.
LOUD = {"hidden_dropout": 0.5, "activation_dropout": 0.5}
LOUD |= {"attention_dropout": 0.5, "feat_proj_dropout": 0.5, "layerdrop": 0.9}
LENGTHS = {"a": 16000, "b": 9000, "c": 5000}


def make_upstream(freeze=True, **config):
    torch.manual_seed(0)
    config = {**SMALL, **LOUD, **config}
    return HuggingFaceEncoder("hubert", False, freeze=freeze, config=config)


def make_brain(
    upstream=None, targets=None, clusters=7, exits=(1, 2), **settings
):
    upstream = upstream or make_upstream()
    if targets is None:
        torch.manual_seed(1)
        targets = HeadTargets(upstream, ClusterHead(16, 7, proj_size=4))
    torch.manual_seed(2)
    branches = ClusterBranches(exits, 16, clusters)
    return BranchBrain(
        targets=targets,
        modules={"upstream": upstream, "branches": branches},
        run_opts={"device": "cpu", "noprogressbar": True},
        **settings,
    )


def waves():
    generator = torch.Generator().manual_seed(3)
    return {
        name: 0.1 * torch.randn(n, generator=generator)
        for name, n in LENGTHS.items()
    }


@pytest.fixture
def batch():
    return PaddedBatch([{"id": k, "sig": x} for k, x in waves().items()])


def readings_alone(brain):
    """Logits and labels of each utterance by itself, frame by frame."""
    for wav in waves().values():
        states, _ = brain.upstream(wav[None])
        labels, _ = brain.targets(wav[None])
        exits = brain.branches.exit_layers
        logits = brain.branches([states[k] for k in exits])
        yield logits[:, 0].detach(), labels[0]


def test_the_loss_is_that_of_all_real_frames(batch):
    brain = make_brain()
    brain.on_stage_start(sb.Stage.VALID)
    predictions = brain.compute_forward(batch, sb.Stage.VALID)
    loss = brain.compute_objectives(predictions, batch, sb.Stage.VALID)
    sums, right, count = torch.zeros(2), torch.zeros(2), 0
    for logits, labels in readings_alone(brain):
        for t, label in enumerate(labels):
            sums -= logits[:, t].log_softmax(dim=-1)[:, label]
            right += logits[:, t].argmax(dim=-1) == label
            count += 1
    loss = float(loss.detach())
    assert loss == pytest.approx(float(sums.mean() / count), rel=1e-5)
    figures = brain.figures(0.0)
    assert figures["loss"] == pytest.approx(loss)
    assert figures["accuracy_layer1"] == pytest.approx(100 * right[0] / count)
    assert figures["accuracy_layer2"] == pytest.approx(100 * right[1] / count)


def test_training_changes_the_branches_and_nothing_of_the_upstream(batch):
    brain = make_brain(opt_class=lambda x: torch.optim.Adam(x, lr=0.05))
    upstream = brain.upstream
    weights = copy.deepcopy(upstream.state_dict())
    with torch.no_grad():
        before = upstream(*batch.sig)[0]
    first = make_brain()
    first.on_stage_start(sb.Stage.VALID)
    first.evaluate(torch.utils.data.DataLoader([batch], batch_size=None))
    loader = torch.utils.data.DataLoader([batch], batch_size=None)
    brain.fit(range(15), loader, loader)
    assert brain.figures(0)["loss"] < 0.8 * first.figures(0)["loss"]

    for name, x in upstream.state_dict().items():
        assert torch.equal(x, weights[name])
    assert all(p.grad is None for p in upstream.parameters())
    assert not any(p.requires_grad for p in upstream.parameters())
    pairs = zip(brain.branches.parameters(), first.branches.parameters())
    assert not any(torch.equal(one, other) for one, other in pairs)
    with torch.no_grad():
        after = upstream(*batch.sig)[0]
    for one, other in zip(before, after):
        assert torch.equal(one, other)


def test_nothing_is_dropped_while_modules_train(batch):
    brain = make_brain()
    brain.modules.train()
    assert brain.branches.training
    states, labels, frames = brain.states(*batch.sig)
    again, *_ = brain.states(*batch.sig)
    assert not any(m.training for m in brain.upstream.modules())
    stock = make_upstream().eval().model
    for one, other in zip(states, again):
        assert torch.equal(one, other) and not one.requires_grad
    for row, (wav, n) in enumerate(zip(waves().values(), frames.tolist())):
        normal = (wav - wav.mean()) / (wav.var(correction=0) + 1e-7).sqrt()
        with torch.no_grad():
            output = stock(normal[None]).last_hidden_state
        assert (states[-1][row, :n] - output[0]).abs().max() <= 1e-5

    # Also if the encoder itself would not stay in evaluation mode.
    plain = make_upstream(freeze=False).requires_grad_(False)
    brain = make_brain(plain)
    brain.modules.train()
    for one, other in zip(states, brain.states(*batch.sig)[0]):
        torch.testing.assert_close(one, other)


def test_targets_are_told_once_or_by_another_upstream(batch):
    upstream = make_upstream()
    torch.manual_seed(4)
    clusters = Clusters(torch.randn(7, 16))
    own = make_brain(upstream, ClusterTargets(upstream, 1, clusters), exits=[2])
    other = make_brain(
        upstream, ClusterTargets(make_upstream(), 1, clusters), exits=[2]
    )
    calls = []
    upstream.register_forward_hook(lambda *args: calls.append(1))
    for found, expected in zip(
        own.compute_forward(batch, sb.Stage.VALID),
        other.compute_forward(batch, sb.Stage.VALID),
    ):
        assert torch.equal(found, expected)
    assert len(calls) == 2

    mfcc = FilterbankEncoder("mfcc", 23, n_mfcc=13, normalize=False)
    targets = ClusterTargets(mfcc, 0, Clusters(torch.randn(7, 39)), 2)
    brain = make_brain(upstream, targets)
    logits, labels = brain.compute_forward(batch, sb.Stage.VALID)
    frames = upstream.frames_of(torch.tensor(list(LENGTHS.values())))
    assert logits.shape == (2, int(frames.sum()), 7)
    expected = [
        targets(wav[None])[0][0, :n] for wav, n in zip(waves().values(), frames)
    ]
    assert (labels == torch.cat(expected)).float().mean() > 0.99


def test_masked_frames_alone_count_and_are_not_seen(batch):
    # Layer norm: group norm over time would carry the speech elsewhere.
    upstream = make_upstream(feat_extract_norm="layer")
    brain = make_brain(upstream, masked_only=True, mask_length=5)
    np.random.seed(5)
    expected = np.random.rand()
    np.random.seed(5)
    first = brain.compute_forward(batch, sb.Stage.VALID)
    second = brain.compute_forward(batch, sb.Stage.VALID)
    assert np.random.rand() == expected  # training draws as it would have
    for one, other in zip(first, second):
        assert torch.equal(one, other)
    frames = upstream.frames_of(torch.tensor(list(LENGTHS.values())))
    masked = brain.draw_masks(frames, sb.Stage.VALID)
    wavs, wav_lens = batch.sig
    with torch.no_grad():
        state = upstream.begin(wavs, wav_lens, masked)
        states = []
        for _ in range(2):
            state = upstream.step(state)
            states.append(state.hidden[masked])
        logits = brain.branches(states)
    torch.testing.assert_close(first[0], logits)
    # The targets are those of speech that is not masked.
    assert torch.equal(first[1], brain.targets(wavs, wav_lens)[0][masked])
    drawn = [brain.draw_masks(frames, sb.Stage.TRAIN) for _ in range(2)]
    assert not torch.equal(*drawn)


def test_a_batch_too_short_to_mask_costs_nothing():
    brain = make_brain(masked_only=True)
    short = PaddedBatch([{"id": "x", "sig": torch.randn(1200)}])
    brain.on_stage_start(sb.Stage.TRAIN)
    predictions = brain.compute_forward(short, sb.Stage.TRAIN)
    loss = brain.compute_objectives(predictions, short, sb.Stage.TRAIN)
    loss.backward()
    assert float(loss.detach()) == 0
    for weight in brain.branches.parameters():
        assert not weight.grad.any()


@pytest.mark.parametrize("batch_size", [1, 3])
def test_what_is_measured_is_that_of_each_utterance_alone(batch_size):
    brain = make_brain()
    signals = waves()
    dataset = DynamicItemDataset(
        {name: {} for name in signals},
        [{"func": signals.get, "takes": "id", "provides": "sig"}],
        ["id", "sig"],
    )
    found = brain.measure(dataset, {"batch_size": batch_size})
    assert found.layers == [1, 2]
    for row, (logits, labels) in enumerate(readings_alone(brain)):
        log_probs = logits.log_softmax(dim=-1)
        entropies = -(log_probs.exp() * log_probs).sum(dim=-1).mean(dim=1)
        assert found.frames[row] == len(labels)
        np.testing.assert_allclose(
            found.entropies[row], entropies, rtol=1e-4, atol=1e-5
        )
        right = (logits.argmax(dim=-1) == labels).sum(dim=1)
        assert found.right[row].tolist() == right.tolist()
        losses = -log_probs[:, torch.arange(len(labels)), labels].sum(dim=1)
        np.testing.assert_allclose(found.losses[row], losses, rtol=1e-4)


def test_what_cannot_be_trained_is_refused():
    mfcc = FilterbankEncoder("mfcc", 23, n_mfcc=13, normalize=False)
    targets = ClusterTargets(mfcc, 0, Clusters(torch.randn(7, 39)), 2)
    with pytest.raises(ValueError, match="would be trained.*freeze: True"):
        make_brain(make_upstream(freeze=False), targets)
    with pytest.raises(ValueError, match="branches have 8 clusters.*targets 7"):
        make_brain(clusters=8)
    with pytest.raises(ValueError, match=r"Branches at \[1, 3\].* 2 layers"):
        make_brain(exits=[1, 3])
    unmasked = make_upstream(mask_time_prob=0.0, mask_feature_prob=0.0)
    with pytest.raises(ValueError, match="no embedding.*masked_only: False"):
        make_brain(unmasked, masked_only=True)
