"""Tests of the Brains for classes of utterances and for speakers."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import soundfile
import speechbrain as sb
import torch
from speechbrain.dataio.batch import PaddedBatch
from speechbrain.dataio.sampler import ReproducibleRandomSampler

from speechbrain_ee.analysis.verification import Trial
from speechbrain_ee.brains import DownstreamClassifier, DownstreamVerifier
from speechbrain_ee.downstreams import (
    SpeakerEmbedder,
    UtteranceClassifier,
    make_class_encoder,
)
from speechbrain_ee.encoders import FilterbankEncoder
from speechbrain_ee.experiment import make_utterance_datasets
from speechbrain_ee.interfaces import WeightedSum

SLOTS = {"action": ["open", "close"], "object": ["door", "gate", "lid"]}
RUN = {"device": "cpu", "noprogressbar": True}


def modules(downstream):
    upstream = FilterbankEncoder(n_mels=4, deltas=False)
    return {
        "upstream": upstream,
        "interface": WeightedSum(upstream.state_sizes),
        "downstream": downstream,
    }


@pytest.fixture
def classifier(tmp_path):
    encoders = {
        name: make_class_encoder(tmp_path / name, labels)
        for name, labels in SLOTS.items()
    }
    return DownstreamClassifier(
        encoders,
        modules=modules(UtteranceClassifier(4, [2, 3])),
        hparams={},
        run_opts=RUN,
    )


@pytest.fixture
def verifier(tmp_path):
    trials = [Trial(True, "a", "c"), Trial(False, "a", "b")]
    return DownstreamVerifier(
        {"speaker": make_class_encoder(tmp_path / "speakers", ["x", "y"])},
        {"valid": trials, "test": trials},
        "valid",
        modules=modules(SpeakerEmbedder(4, 2, channels=8, pooled_channels=8)),
        hparams={},
        run_opts=RUN,
    )


def batch(ids, labels):
    labels = SimpleNamespace(data=torch.tensor(labels))
    return SimpleNamespace(id=ids, labels=labels)


def test_an_utterance_is_right_when_all_slots_are(classifier):
    # Labels are in alphabetical order.
    logits = (
        torch.tensor([[0.9, 0.1], [0.5, 0.5001]]).log(),
        torch.tensor([[0.1, 0.6, 0.3], [0.05, 0.1, 0.85]]).log(),
    )
    given = batch(["a", "b"], [[0, 1], [0, 2]])
    first, second = classifier.judge(logits, given)
    assert first["hyp"] == first["ref"] == "close | gate"
    assert first["errors"] == 0 and first["ref_len"] == 1
    assert first["max_probability"] == pytest.approx(0.9 * 0.6)
    assert first["margin"] == pytest.approx(0.6 - 0.3)
    assert (second["hyp"], second["ref"]) == ("open | lid", "close | lid")
    assert second["errors"] == second["errors_action"] == 1
    assert second["errors_object"] == 0
    losses = -np.log([0.9 * 0.6, 0.5 / 1.0001 * 0.85])
    assert float(classifier.loss(logits, given)) == pytest.approx(
        losses.mean(), rel=1e-3
    )


def test_accuracy_is_told_of_the_whole_and_of_slots(classifier):
    traces = pd.DataFrame(
        {
            "errors": [1, 0, 1, 0] * 25,
            "errors_action": [1, 0, 0, 0] * 25,
            "errors_object": [1, 0, 1, 0] * 25,
        }
    )
    found = classifier.results(traces).set_index("metric")
    assert found["value"].to_dict() == {
        "accuracy": 50,
        "accuracy_action": 75,
        "accuracy_object": 50,
    }
    assert 38 < found.loc["accuracy", "low"] < 46
    assert (found["utterances"] == 100).all()


def test_a_trial_is_scored_by_the_cosine(verifier):
    predictions = (
        torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]]),
        torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9]]),
    )
    verifier.on_stage_start(sb.Stage.VALID)
    given = batch(["a", "b", "c"], [[0], [1], [1]])
    verifier.judged = verifier.judge(predictions, given)
    assert [row["errors"] for row in verifier.judged] == [0, 1, 0]
    figures = verifier.figures(0.0)
    assert figures["error_rate"] == pytest.approx(100 / 3)
    assert figures["EER"] == 0  # cosines 0.71 and 0

    table = pd.DataFrame({"label": [1, 0] * 20, "score": [0.7, 0.0] * 20})
    table.loc[:3, "score"] = 0.0, 0.7, 0.0, 0.7
    found = verifier.results(table).set_index("metric")
    assert found.loc["EER", "value"] == 10
    assert found.loc["EER", "low"] < 10 < found.loc["EER", "high"]
    assert found.loc["minDCF", "value"] == 1


@pytest.fixture
def data(tmp_path):
    """Tones of two heights, by two 'speakers', and their CSV."""
    lines = ["ID,duration,wav,action,object,speaker"]
    for k, (name, samples) in enumerate(
        {"a": 8000, "b": 12000, "c": 6400}.items()
    ):
        time = np.arange(samples) / 16000
        wave = 0.3 * np.sin(2 * np.pi * (300 + 500 * k) * time)
        soundfile.write(tmp_path / f"{name}.wav", wave, 16000)
        labels = ("open,door,x", "close,gate,y", "open,lid,x")[k]
        lines.append(f"{name},{samples / 16000},$data_root/{name}.wav,{labels}")
    (tmp_path / "data.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def datasets(data, *columns, **options):
    file = data / "data.csv"
    sets = (file, file, {"test": file})
    return make_utterance_datasets(data, columns, data, *sets, **options)


def test_training_sees_pieces_and_labels(data):
    _, train, valid, tests = datasets(
        data, "action", "object", unseen_labels=True, max_seconds=0.5
    )
    assert [len(item["sig"]) for item in train] == [8000, 8000, 6400]
    assert [item["labels"].tolist() for item in train] == [
        [1, 0],
        [0, 1],
        [1, 2],
    ]
    assert [item["id"] for item in valid] == ["c", "a", "b"]
    assert len(valid[2]["sig"]) == 12000
    assert set(tests["test"][0]) == {"id", "sig"}


@pytest.mark.parametrize("cached", [False, True])
def test_a_set_is_judged_and_written(classifier, data, cached):
    _, _, valid, tests = datasets(data, *SLOTS)
    options = {"batch_size": 2}
    rate = classifier.error_rate(valid, options)
    if cached:
        classifier.use_cache(data / "cache", {"valid": valid, **tests})
        assert set(valid[0]) == {"id", "labels"}
    assert classifier.error_rate(valid, options) == rate
    traces = classifier.evaluate_set(tests["test"], "test", data, options)
    assert traces["id"].tolist() == ["a", "b", "c"]
    assert 100 * traces["errors"].mean() == pytest.approx(rate)
    written = pd.read_csv(data / "traces_test.csv")
    assert written["hyp"].tolist() == traces["hyp"].tolist()


def test_the_trials_of_a_set_are_scored_and_written(verifier, data):
    _, _, _, tests = datasets(data, "speaker", unseen_labels=True)
    table = verifier.evaluate_set(tests["test"], "test", data)
    written = pd.read_csv(data / "trials_test.csv")
    assert list(written) == ["label", "enrol", "test", "score"]
    assert written["label"].tolist() == [1, 0]
    embeddings = verifier.embed(tests["test"])
    expected = torch.cosine_similarity(*(embeddings[k] for k in "ac"), dim=0)
    assert written["score"][0] == pytest.approx(float(expected), abs=1e-5)
    assert table["score"].between(-1, 1).all()


def test_short_utterances_are_told(verifier, classifier, data):
    _, train, _, _ = datasets(data, "speaker")
    for brain in (verifier, classifier):
        brain.check_lengths(train)
    verifier.downstream.kernel_sizes = (49, 3, 3, 1, 1)
    with pytest.raises(ValueError, match=r"2 .*needs 59 frames: a \(51 frames"):
        verifier.check_lengths(train)


def test_the_downstream_must_fit_the_data(verifier, classifier, tmp_path):
    few = make_class_encoder(tmp_path / "few", ["x", "y", "z"])
    settings = {"run_opts": RUN, "hparams": {}}
    with pytest.raises(ValueError, match="made for 2 speakers, the data has 3"):
        DownstreamVerifier(
            {"speaker": few}, {}, "", modules=verifier.unwrapped, **settings
        )
    with pytest.raises(ValueError, match=r"made for \[2, 3\] .* has \[3\]"):
        DownstreamClassifier(
            {"speaker": few}, modules=classifier.unwrapped, **settings
        )


def test_every_epoch_has_an_order_of_its_own(classifier, data):
    _, train, _, _ = datasets(data, *SLOTS)
    sampler = ReproducibleRandomSampler(train, num_samples=30)
    loader = classifier.make_dataloader(
        train, sb.Stage.TRAIN, sampler=sampler, collate_fn=PaddedBatch
    )
    assert classifier.train_sampler is sampler
    orders = []
    for epoch in (1, 2, 1):
        classifier.train_sampler.set_epoch(epoch)
        orders.append([name for given in loader for name in given.id])
    assert len(orders[0]) == 30 and orders[0] == orders[2] != orders[1]
