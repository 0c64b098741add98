"""Masked prediction: what is masked, what is lost, what is saved."""

import json

import numpy as np
import pytest
import speechbrain as sb
import torch
import transformers
from safetensors.torch import load_file
from speechbrain.dataio.batch import PaddedBatch

from speechbrain_ee.brains.hubert import (
    HubertBrain,
    MaskedPrediction,
    draw_masks,
    save_hubert,
)
from speechbrain_ee.clusters import Clusters, ClusterTargets
from speechbrain_ee.encoders import FilterbankEncoder
from speechbrain_ee.encoders.huggingface import HuggingFaceEncoder
from speechbrain_ee.heads import ClusterHead
from tests.unit.encoders.backbones import SMALL

QUIET = {"hidden_dropout": 0, "activation_dropout": 0, "attention_dropout": 0}
QUIET |= {"feat_proj_dropout": 0, "mask_time_prob": 0.8}


def make_model(clusters=7, **config):
    torch.manual_seed(0)
    encoder = HuggingFaceEncoder(
        "hubert",
        pretrained=False,
        freeze_feature_extractor=False,
        apply_spec_augment=True,
        config={**SMALL, **QUIET, **config},
    )
    return MaskedPrediction(encoder, ClusterHead(16, clusters, proj_size=8))


def make_brain(model=None, **settings):
    upstream = FilterbankEncoder("mfcc", 23, n_mfcc=13, normalize=False)
    noise = 0.1 * torch.randn(1, 16000, generator=torch.manual_seed(1))
    (frames,), _ = upstream(noise)
    clusters = Clusters(frames[0, 10:80:10])
    return HubertBrain(
        targets=ClusterTargets(upstream, 0, clusters, 2),
        modules={"model": model or make_model()},
        run_opts={"device": "cpu", "noprogressbar": True},
        **settings,
    )


@pytest.fixture
def batch():
    generator = torch.manual_seed(2)
    waves = [0.1 * torch.randn(n, generator=generator) for n in (16000, 9000)]
    return PaddedBatch([{"id": str(i), "sig": x} for i, x in enumerate(waves)])


def test_spans_cover_what_they_should_and_never_padding():
    np.random.seed(0)
    frames = torch.tensor([400, 150, 40, 9, 3])
    share = torch.zeros(5)
    for _ in range(100):
        masked = draw_masks(frames, 0.8, 10)
        for row, count in zip(masked, frames.tolist()):
            assert not row[count:].any()
            edges = row.int().diff(
                prepend=torch.zeros(1), append=torch.zeros(1)
            )
            starts = (edges == 1).nonzero()
            assert ((edges == -1).nonzero() - starts >= 10).all()
        share += masked.sum(dim=1) / frames / 100
    # Starts with probability 0.08 where a span fits: 1 − 0.92^10 overall.
    assert share[:2] == pytest.approx([0.56, 0.56], abs=0.03)
    assert share[3:].tolist() == [0, 0]
    assert not draw_masks(torch.tensor([5]), 0.8, 10).any()


@torch.no_grad()
def test_what_stands_under_a_mask_is_not_seen(batch):
    # Layer norm: group norm over time would carry it to the other frames.
    model = make_model(feat_extract_norm="layer").eval()
    model.encoder.normalize_wav = False
    wavs, wav_lens = batch.sig
    masked = torch.zeros(2, 49, dtype=torch.bool)
    masked[0, 10:30] = True
    heard = model(wavs, wav_lens, masked)
    wavs[0, 320 * 11 : 320 * 29] *= 3  # frames 10 to 28
    assert torch.equal(model(wavs, wav_lens, masked), heard)
    masked[0, 28] = False
    assert not torch.allclose(model(wavs, wav_lens, masked)[0], heard[0])


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_the_loss_is_that_of_masked_frames(batch, weight):
    brain = make_brain(unmasked_weight=weight)
    brain.on_stage_start(sb.Stage.VALID)
    brain.modules.eval()
    with torch.no_grad():
        predictions = brain.compute_forward(batch, sb.Stage.VALID)
        loss = brain.compute_objectives(predictions, batch, sb.Stage.VALID)
    logits, labels, masked, real = predictions
    sums, right = {True: [], False: []}, 0
    for b, frames in enumerate((49, 27)):
        for t in range(frames):
            p = logits[b, t].softmax(dim=0)
            sums[bool(masked[b, t])].append(-p[labels[b, t]].log())
            right += bool(masked[b, t] and p.argmax() == labels[b, t])
    means = {k: torch.stack(v).mean() for k, v in sums.items()}
    assert loss == pytest.approx(float(means[True] + weight * means[False]))
    stats = brain.figures(0.0)
    assert stats["loss"] == pytest.approx(float(means[True]))
    assert stats["accuracy"] == pytest.approx(100 * right / len(sums[True]))
    assert labels.unique().numel() > 3


def test_valid_masks_are_the_same_every_time_and_leave_training_alone(batch):
    brain = make_brain()
    np.random.seed(5)
    expected = np.random.rand()
    np.random.seed(5)
    drawn = []
    for _ in range(2):
        brain.on_stage_start(sb.Stage.VALID)
        drawn.append(brain.compute_forward(batch, sb.Stage.VALID)[2])
        brain.on_stage_end(sb.Stage.TEST, 0.0)
    assert torch.equal(*drawn)
    assert np.random.rand() == expected


def test_every_parameter_gets_a_gradient_even_without_a_mask(batch):
    brain = make_brain()
    short = PaddedBatch([{"id": "x", "sig": torch.randn(1200)}])
    for one in (batch, short):
        brain.on_stage_start(sb.Stage.TRAIN)
        brain.modules.zero_grad()
        predictions = brain.compute_forward(one, sb.Stage.TRAIN)
        loss = brain.compute_objectives(predictions, one, sb.Stage.TRAIN)
        assert bool(predictions[2].any()) == (one is batch)
        loss.backward()
        without = [
            name
            for name, p in brain.unwrapped["model"].named_parameters()
            if p.requires_grad and p.grad is None
        ]
        assert without == [] and torch.isfinite(loss)


def test_training_learns_a_batch(batch):
    brain = make_brain(opt_class=lambda x: torch.optim.Adam(x, lr=0.01))
    loader = torch.utils.data.DataLoader([batch], batch_size=None)
    brain.fit(range(20), loader, loader)
    first = make_brain()
    first.evaluate(loader)
    assert brain.valid_figures["loss"] < 0.8 * first.valid_figures["loss"]


def test_the_saved_folder_is_loaded_by_transformers_and_by_the_encoder(
    tmp_path, batch
):
    model = make_model().eval()
    clusters = Clusters(torch.randn(7, 39), 3.0, "MFCCs")
    save_hubert(tmp_path, model, clusters, {"hours": 1.5})
    stock, report = transformers.HubertModel.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    # For fine-tuning; pre-training goes on with its own.
    shares = [x.config.mask_time_prob for x in (stock, model.encoder.model)]
    assert shares == [0.05, QUIET["mask_time_prob"]]
    encoder = HuggingFaceEncoder(str(tmp_path), freeze=True)
    assert encoder.normalize_wav
    wav = batch.sig.data[:1]
    with torch.no_grad():
        ours, _ = encoder(wav)
        masked = torch.zeros(1, 49, dtype=torch.bool)
        logits = model(wav, None, masked)
        normal = (wav - wav.mean()) / (wav.var(correction=0) + 1e-7).sqrt()
        theirs = stock.eval()(normal).last_hidden_state
    assert (ours[-1] - theirs).abs().max() <= 1e-5
    head = ClusterHead(16, 7, proj_size=8)
    head.load_state_dict(load_file(tmp_path / "cluster_head.safetensors"))
    assert (head(ours[-1]) - logits).abs().max() <= 1e-4
    assert Clusters.load(tmp_path / "clusters.npz").source == "MFCCs"
    facts = json.loads((tmp_path / "pretraining.json").read_text())
    assert facts == {"hours": 1.5}


def test_a_mask_embedding_that_is_not_trained_is_refused():
    encoder = HuggingFaceEncoder("hubert", False, config=SMALL)
    with pytest.raises(ValueError, match="apply_spec_augment: True"):
        MaskedPrediction(encoder, ClusterHead(16, 7))


def test_another_number_of_clusters_is_refused():
    with pytest.raises(ValueError, match="head has 8 clusters, the targets 7"):
        make_brain(make_model(clusters=8))
