"""Tests of the Brains that clean speech or take it apart."""

import logging
import math
import sys

import numpy as np
import pandas as pd
import pytest
import soundfile
import speechbrain as sb
import torch
from speechbrain.dataio.batch import PaddedBatch
from speechbrain.dataio.dataset import DynamicItemDataset

from speechbrain_ee.analysis import quality
from speechbrain_ee.brains import DownstreamEnhancer, DownstreamSeparator
from speechbrain_ee.checkpoints import SafeCheckpointer
from speechbrain_ee.downstreams import MaskEstimator, MaskLoss
from speechbrain_ee.encoders import FilterbankEncoder
from speechbrain_ee.experiment import make_source_datasets
from speechbrain_ee.interfaces import WeightedSum

KINDS = {
    "enhancer": (DownstreamEnhancer, 1, MaskLoss("l1")),
    "separator": (DownstreamSeparator, 2, MaskLoss("mse", True)),
}
SAMPLES = {"a": 8000, "b": 9600, "c": 6400}


def make_brain(kind, **settings):
    torch.manual_seed(0)
    brain, sources, objective = KINDS[kind]
    upstream = FilterbankEncoder(n_mels=4, deltas=False)
    return brain(
        objective=objective,
        modules={
            "upstream": upstream,
            "interface": WeightedSum(upstream.state_sizes),
            "downstream": MaskEstimator(
                *(4, upstream.frame_shift, 256),
                num_sources=sources,
                hidden_size=4,
            ),
        },
        run_opts={"device": "cpu", "noprogressbar": True},
        **{"hparams": {}, **settings},
    )


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def data(tmp_path):
    """Two tones that come and go, and both at once."""
    lines = ["ID,duration,wav,s1,s2"]
    for name, samples in SAMPLES.items():
        time = np.arange(samples) / 16000
        waves = {
            "s1": np.sin(2 * np.pi * 300 * time) * (np.sin(20 * time) > 0),
            "s2": 0.5 * np.sin(2 * np.pi * 900 * time),
        }
        waves["mix"] = waves["s1"] + waves["s2"]
        for part, wave in waves.items():
            soundfile.write(tmp_path / f"{name}_{part}.wav", 0.3 * wave, 16000)
        paths = [
            f"$data_root/{name}_{part}.wav" for part in ("mix", "s1", "s2")
        ]
        lines.append(",".join([name, str(samples / 16000), *paths]))
    (tmp_path / "data.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def datasets(data, kind):
    columns = ["s1", "s2"][: KINDS[kind][1]]
    file = data / "data.csv"
    return make_source_datasets(columns, data, file, file, {"test": file})


def a_batch(data, kind):
    train, _, _ = datasets(data, kind)
    return PaddedBatch([train[k] for k in range(3)])


def test_sources_stand_beside_each_other(data, kind):
    train, valid, tests = datasets(data, kind)
    assert [item["id"] for item in train] == ["a", "b", "c"]
    assert [item["id"] for item in valid] == ["c", "a", "b"]
    assert set(tests) == {"test"}
    for item in train:
        assert item["sources"].shape == (len(item["sig"]), KINDS[kind][1])
        assert torch.equal(item["mixture"], item["sig"])
    if kind == "separator":
        total = train[0]["sources"].sum(1)
        assert torch.allclose(total, train[0]["mixture"], atol=1e-4)


@torch.no_grad()
def test_padding_changes_neither_loss_nor_figures(data, kind):
    brain = make_brain(kind)
    brain.modules.eval()
    train, _, _ = datasets(data, kind)
    given = a_batch(data, kind)
    predictions = brain.compute_forward(given, sb.Stage.TEST)
    rows = brain.judge(predictions, given)
    loss = brain.loss(predictions, given)
    assert float(loss) == pytest.approx(np.mean([r["errors"] for r in rows]))
    for k, row in enumerate(rows):
        alone = PaddedBatch([train[k]])
        (one,) = brain.judge(brain.compute_forward(alone, sb.Stage.TEST), alone)
        assert one.pop("id") == row["id"] and row["ref_len"] == 1
        for name, value in one.items():
            assert value == pytest.approx(row[name], abs=2e-3), name


def test_good_masks_are_worth_more_than_open_ones(data, kind):
    brain = make_brain(kind)
    given = a_batch(data, kind)
    model = brain.downstream
    mixture = model.spectra(given.mixture.data)
    sources = given.sources.data.transpose(1, 2)
    parts = [model.spectra(sources[:, k]) for k in range(sources.shape[1])]
    magnitude = torch.stack(parts, -1).abs().log1p()
    good = (magnitude / mixture.abs().log1p()[..., None].clamp_min(1e-9)).clamp(
        0, 1
    )
    # In the order in which nobody asked for them.
    good = good.flip(-1)
    first, second = (
        brain.judge(masks, given) for masks in (good, torch.ones_like(good))
    )
    for better, worse in zip(first, second):
        assert better["si_sdri"] > 5 > abs(worse["si_sdri"])
        assert better["errors"] < worse["errors"]
        if kind == "enhancer":
            assert better["pesq"] > worse["pesq"]


def test_a_silent_estimate_is_counted(data, caplog):
    brain = make_brain("enhancer")
    given = a_batch(data, "enhancer")
    masks = torch.zeros(3, 9600 // 160 + 1, 129, 1)
    rows = brain.judge(masks, given)
    for row in rows:
        assert row["pesq"] == quality.LOWEST_PESQ and row["pesq_failed"] == 100
        assert math.isfinite(row["si_sdri"]) and row["stoi"] < 1
    brain.downstream.output.bias.data.fill_(-1e4)  # silence from now on
    _, valid, _ = datasets(data, "enhancer")
    with caplog.at_level(logging.WARNING):
        brain.judge_set(valid, {"batch_size": 2}, "valid")
    assert "valid: PESQ has no value for 3 of 3 utterances, such as c, a" in (
        caplog.text
    )


def test_silent_clean_speech_is_left_out_of_the_mean():
    brain = make_brain("enhancer")
    rows = [
        {"pesq": pesq, "stoi": 90.0, "si_sdri": 1.0, "pesq_failed": failed}
        for pesq, failed in ((2.0, 0), (3.0, 0), (math.nan, 100), (1.0, 100))
    ]
    assert brain.summary(rows) == {
        "pesq": 2,
        "stoi": 90,
        "si_sdri": 1,
        "pesq_failed": 50,
    }
    found = brain.results(pd.DataFrame(rows)).set_index("metric")
    assert found.loc["PESQ", "value"] == 2
    assert found.loc["PESQ", "utterances"] == 3
    assert found.loc["PESQ", "low"] < 2 < found.loc["PESQ", "high"]
    assert found.loc["PESQ_failed", "value"] == 50
    nothing = brain.results(pd.DataFrame(rows[2:3])).set_index("metric")
    assert math.isnan(nothing.loc["PESQ", "value"])
    assert nothing.loc["PESQ", "utterances"] == 0


@pytest.mark.parametrize("cached", [False, True])
def test_the_best_by_a_rising_figure_is_evaluated(kind, data, cached):
    checkpointer = SafeCheckpointer(data / "save")
    figure = {"enhancer": "stoi", "separator": "si_sdri"}[kind]
    brain = make_brain(
        kind,
        checkpointer=checkpointer,
        select_by=figure,
        opt_class=lambda p: torch.optim.Adam(p, 0.01),
    )
    for name in ("interface", "downstream"):
        checkpointer.add_recoverable(name, brain.unwrapped[name])
    train, valid, tests = datasets(data, kind)
    if cached:
        sets = {"train": train, "valid": valid, **tests}
        brain.use_cache(data / "cache", sets)
        assert "sig" not in valid[0] and "mixture" in valid[0]
    loader = {"batch_size": 2, "num_workers": 0}
    brain.fit(range(1, 3), train, valid, loader, loader)
    kept = checkpointer.list_checkpoints()
    # A better one, and a later one that is worse.
    for value in (1000.0, -1000.0):
        brain.downstream.output.bias.data.fill_(value / 1000)
        checkpointer.save_and_keep_only(
            meta={figure: value}, max_keys=[figure], num_to_keep=1
        )
    assert len(kept) == 1
    traces = brain.evaluate_set(tests["test"], "test", data, loader)
    assert (brain.downstream.output.bias == 1.0).all()
    assert traces["id"].tolist() == ["a", "b", "c"]
    assert set(brain.figure_names) <= set(pd.read_csv(data / "traces_test.csv"))
    results = brain.results(traces)
    assert results["metric"].tolist() == list(brain.figure_names.values())
    assert brain.error_rate(valid, loader) == pytest.approx(
        traces["errors"].mean(), rel=1e-5
    )


def test_a_falling_figure_keeps_the_lowest(kind):
    brain = make_brain(kind, select_by="loss")
    assert brain.best == {"min_key": "loss"}
    assert make_brain(kind, select_by="si_sdri").best == {"max_key": "si_sdri"}


def test_what_is_too_short_for_pesq_is_told():
    items = {n: {"duration": s} for n, s in (("a", 0.25), ("b", 0.24))}
    dataset = DynamicItemDataset(items, output_keys=["id", "duration"])
    with pytest.raises(
        ValueError, match="1 utterances .* PESQ needs: b. Leave"
    ):
        make_brain("enhancer").check_lengths(dataset)
    make_brain("separator").check_lengths(dataset)


def test_missing_libraries_are_told_before_anything_is_trained(monkeypatch):
    monkeypatch.setitem(sys.modules, "pesq", None)
    with pytest.raises(ImportError, match="pip install"):
        make_brain("enhancer")
    make_brain("separator")
