"""Task models that read what was run: exits of a frozen upstream."""

import json

import pandas as pd
import pytest
import speechbrain as sb
import torch

from speechbrain_ee.brains import DownstreamClassifier
from speechbrain_ee.checkpoints import SafeCheckpointer
from speechbrain_ee.downstreams import UtteranceClassifier, make_class_encoder
from speechbrain_ee.encoders import FilterbankEncoder
from speechbrain_ee.exits import BranchExits, FixedLayer, RandomExit, get_score
from speechbrain_ee.experiment import (
    evaluate_downstream,
    fit_downstream_parts,
)
from speechbrain_ee.interfaces import PerExitWeightedSum, WeightedSum
from tests.unit.brains.noises import (
    RUN,
    SAMPLES,
    batch_of,
    dataset,
    make_noises,
)
from tests.unit.encoders.backbones import build
from tests.unit.interfaces.test_interfaces import INTERFACES, make


@pytest.fixture(scope="module")
def upstream():
    return build("hubert-base").encoder.requires_grad_(False)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_noises(tmp_path_factory.mktemp("data"))


def make_brain(data, upstream, exits, interface=None, folder=None, **options):
    torch.manual_seed(0)
    interface = interface or WeightedSum(upstream.state_sizes)
    downstream = UtteranceClassifier(interface.output_size, [3])
    parts = {"interface": interface, "downstream": downstream}
    return DownstreamClassifier(
        {"speaker": make_class_encoder(data / "labels_speaker.txt", "xyz")},
        exits=exits,
        branches=data / "branches",
        modules={"upstream": upstream, **parts},
        hparams={},
        run_opts=RUN | options,
        checkpointer=folder and SafeCheckpointer(folder, parts),
        opt_class=lambda parameters: torch.optim.Adam(parameters, 0.01),
    )


def mixed(data, upstream, folder, **settings):
    """Exits that have seen the data, which leaves at several."""
    exits = BranchExits(**{"scale": 1.0, "of": "layer", **settings})
    brain = make_brain(data, upstream, exits)
    brain.fit_exits(dataset(data), folder / "exits.json", {"batch_size": 4})
    counts = exits.statistics["training_exits"]
    assert sum(count > 0 for count in counts.values()) >= 3
    return exits


@pytest.mark.parametrize("kind", INTERFACES, ids=lambda k: k.__name__)
@torch.no_grad()
def test_each_utterance_is_read_as_it_would_be_alone(
    kind, data, upstream, tmp_path
):
    exits = mixed(data, upstream, tmp_path)
    brain = make_brain(data, upstream, exits, make(kind, layers=5))
    brain.modules.eval()
    alone = {}
    for name in SAMPLES:
        found, frames = brain.features(batch_of(data, [name]), sb.Stage.TEST)
        assert found.shape[:2] == (1, frames[0])
        alone[name] = found[0], brain.departures[name]
    assert len({left["exit_layer"] for _, left in alone.values()}) >= 3
    # The loop, and states that are all there.
    batch = batch_of(data)
    looped = brain.features(batch, sb.Stage.TEST)
    left = dict(brain.departures)
    trained = brain.features(batch, sb.Stage.TRAIN)
    for features, frames in (looped, trained):
        for row, name in enumerate(batch.id):
            expected, departure = alone[name]
            count = int(frames[row])
            assert features.shape[1] == frames.max()
            assert torch.allclose(
                features[row, :count], expected, atol=1e-5, rtol=1e-4
            )
            assert not features[row, count:].any()
            assert left[name] == pytest.approx(departure, abs=1e-5)


@torch.no_grad()
def test_the_interface_reads_the_prefix_of_each(data, upstream, tmp_path):
    exits = mixed(data, upstream, tmp_path)
    brain = make_brain(data, upstream, exits)
    torch.nn.init.normal_(brain.unwrapped["interface"].weights)
    brain.modules.eval()
    batch = batch_of(data)
    features, frames = brain.features(batch, sb.Stage.TEST)
    states, _ = upstream(*batch.sig)
    weights = brain.unwrapped["interface"].weights
    for row, name in enumerate(batch.id):
        ran = brain.departures[name]["exit_layer"] + 1
        shares = weights[:ran].softmax(0)
        expected = sum(w * x[row] for w, x in zip(shares, states[:ran]))
        count = int(frames[row])
        assert torch.allclose(
            features[row, :count], expected[:count], atol=1e-5
        )


def layers_that_run(upstream, run):
    ran = []
    hooks = [
        layer.register_forward_hook(
            lambda m, args, out, k=k: ran.append((k, len(args[0])))
        )
        for k, layer in enumerate(upstream.layers, start=1)
    ]
    run()
    for hook in hooks:
        hook.remove()
    return ran


@pytest.mark.parametrize(
    ("exits", "evaluated", "trained"),
    [
        (None, 4, 4),
        ("never", 4, 4),
        (FixedLayer(2), 2, 2),
        (FixedLayer(0), 0, 0),
        (BranchExits(threshold=99.0), 1, 4),
        (BranchExits(threshold=99.0, layers=[2, 3]), 2, 3),
        (BranchExits(threshold=0.0, layers=[2, 3]), 3, 3),
        (BranchExits(threshold=99.0, in_training=False, layers=[2]), 2, 4),
    ],
)
@torch.no_grad()
def test_no_layer_runs_that_nobody_needs(
    exits, evaluated, trained, data, upstream
):
    brain = make_brain(data, upstream, exits)
    brain.modules.eval()
    batch = batch_of(data)
    brain.features(batch, sb.Stage.TEST)  # what costs are counted for
    for stage, depth in (
        (sb.Stage.TEST, evaluated),
        (sb.Stage.VALID, evaluated),
        (sb.Stage.TRAIN, trained),
    ):
        ran = layers_that_run(
            upstream, lambda s=stage: brain.features(batch, s)
        )
        assert ran == [(k, 6) for k in range(1, depth + 1)]
    left = {one["exit_layer"] for one in brain.departures.values()}
    assert left == {evaluated}


def test_a_window_reads_few_branches(data, upstream, tmp_path):
    exits = mixed(data, upstream, tmp_path, window="average")
    lowest, highest = exits.statistics["window"]
    brain = make_brain(data, upstream, exits)
    brain.fit_exits(dataset(data), tmp_path / "exits.json")
    brain.modules.eval()
    with torch.no_grad():
        brain.features(batch_of(data), sb.Stage.TEST)
        read, seen = brain.branches.read, []
        brain.branches.read = lambda *args: seen.append(args[2]) or read(*args)
        brain.features(batch_of(data), sb.Stage.TEST)
    assert seen == sorted({lowest, highest})
    left = {one["exit_layer"] for one in brain.departures.values()}
    assert left <= {lowest, highest}


def test_training_from_a_cache_reads_branches_once(data, upstream, tmp_path):
    exits = mixed(data, upstream, tmp_path)
    brain = make_brain(data, upstream, exits)
    expected, _ = brain.features(batch_of(data), sb.Stage.TRAIN)
    brain.use_cache(tmp_path / "cache", {"train": dataset(data)})
    read, seen = brain.branches.read, []
    brain.branches.read = lambda *args: seen.append(args[2]) or read(*args)
    for names in (SAMPLES, SAMPLES, reversed(SAMPLES)):
        batch = batch_of(data, names)
        found, _ = brain.features(batch, sb.Stage.TRAIN)
        place = [batch.id.index(name) for name in SAMPLES]
        assert torch.allclose(found[place], expected, atol=1e-5)
    assert seen == exits.exit_layers(training=True)


@pytest.mark.parametrize("exits", ["mixed", "random", "fixed"])
def test_a_cache_changes_nothing(exits, data, upstream, tmp_path):
    made = {
        "mixed": lambda: mixed(data, upstream, tmp_path),
        "random": lambda: RandomExit(2.5),
        "fixed": lambda: FixedLayer(3),
    }[exits]()
    brain = make_brain(data, upstream, made)
    sets = {"test": dataset(data)}
    options = {"batch_size": 4}
    before = brain.judge_set(sets["test"], options), dict(brain.departures)
    brain.use_cache(tmp_path / "cache", sets)
    after = brain.judge_set(sets["test"], options), dict(brain.departures)
    assert [row["hyp"] for row in before[0]] == [row["hyp"] for row in after[0]]
    assert before[1].keys() == after[1].keys() == SAMPLES.keys()
    for name, left in before[1].items():
        assert left == pytest.approx(after[1][name], abs=1e-5)
    depths = {left["exit_layer"] for left in before[1].values()}
    assert len(depths) > 1 or exits == "fixed"


def test_a_run_tells_where_it_left(data, upstream, tmp_path):
    exits = BranchExits(scale=1.0, of="layer")
    brain = make_brain(data, upstream, exits, folder=tmp_path / "save")
    sets, options = dataset(data), {"batch_size": 4}
    fit_downstream_parts(brain, sets, tmp_path, options)
    before = {k: x.clone() for k, x in brain.branches.state_dict().items()}
    brain.fit([1, 2], sets, sets, options, options)
    assert brain.branches.state_dict().keys() == before.keys()
    for key, value in brain.branches.state_dict().items():
        assert torch.equal(value, before[key])
    names = {path.stem for path in tmp_path.glob("save/CKPT*/*.ckpt")}
    assert "exits" in names and not names & {"upstream", "branches"}

    sets = {"test": sets}
    evaluate_downstream(
        brain, ("dev", sets["test"]), sets, tmp_path, {}, options
    )
    traces = pd.read_csv(tmp_path / "traces_test.csv")
    assert (traces["exit_layer"] == traces["layers_run"]).all()
    told = json.loads((tmp_path / "exits.json").read_text())
    counts = traces["exit_layer"].value_counts()
    for layer, count in told["training_exits"].items():  # the same utterances
        assert counts.get(int(layer), 0) == count
    scores = pd.read_csv(tmp_path / "branch_scores_test.csv")
    assert len(scores) == 4 * len(SAMPLES)
    for row in traces.itertuples():
        own = scores[scores["id"] == row.id].set_index("exit_layer").entropy
        thresholds = {int(k): t for k, t in told["thresholds"].items()}
        confident = [k for k in (1, 2, 3) if own[k] <= thresholds[k]]
        assert row.exit_layer == (confident or [4])[0]
        assert row.branch_entropy == pytest.approx(
            own[row.exit_layer], abs=1e-5
        )
    results = pd.read_csv(tmp_path / "results_test.csv")
    mean = results[results["metric"] == "mean exit layer"].iloc[0]
    assert mean["value"] == pytest.approx(traces["exit_layer"].mean())
    assert mean["low"] <= mean["value"] <= mean["high"]
    shares = results[results["metric"] == "left at layer (%)"]
    assert shares["value"].sum() == pytest.approx(100)
    report = (tmp_path / "report.md").read_text()
    assert f"| test | mean exit layer | all | {mean['value']:.2f} |" in report
    assert "![Exits of test](exits_test.png)" in report
    assert (tmp_path / "exits_test.png").is_file()


def test_statistics_of_a_checkpoint_are_not_found_again(
    data, upstream, tmp_path
):
    save, path = tmp_path / "save", tmp_path / "exits.json"
    sets = dataset(data)
    first = make_brain(data, upstream, BranchExits(scale=1.0), folder=save)
    first.fit_exits(sets, path)
    first.checkpointer.save_checkpoint()
    path.unlink()
    for scale, learns in ((1.0, False), (0.5, True)):
        exits = BranchExits(scale=scale)
        again = make_brain(data, upstream, exits, folder=save)
        read, seen = again.branches.read, []
        again.branches.read = lambda *args, r=read, s=seen: (
            s.append(args) or r(*args)
        )
        again.fit_exits(sets, path)
        assert bool(seen) == learns
        assert exits.read(path)
        again.checkpointer.recover_if_possible()
        same = first.exits.statistics == exits.statistics
        assert same != learns


def test_what_was_trained_at_full_depth_can_be_given_exits(
    data, upstream, tmp_path
):
    sets, options = dataset(data), {"batch_size": 3}
    full = make_brain(data, upstream, None, folder=tmp_path / "save")
    full.fit([1], sets, sets, options, options)
    exits = BranchExits(scale=1.0, of="layer")
    later = make_brain(data, upstream, exits, folder=tmp_path / "save")
    later.fit_exits(sets, tmp_path / "exits.json", options)
    traces = later.evaluate_set(sets, "test", tmp_path, options)
    assert traces["exit_layer"].nunique() > 1
    before = full.unwrapped["downstream"].state_dict()
    for key, value in later.unwrapped["downstream"].state_dict().items():
        assert torch.equal(value, before[key])


def test_every_row_of_weights_that_is_used_gets_a_gradient(
    data, upstream, tmp_path
):
    exits = mixed(data, upstream, tmp_path)
    interface = PerExitWeightedSum(upstream.state_sizes)
    brain = make_brain(data, upstream, exits, interface)
    features, _ = brain.features(batch_of(data), sb.Stage.TRAIN)
    features.square().sum().backward()
    used = interface.weights.grad.abs().sum(dim=1) > 0
    counts = exits.statistics["training_exits"]
    assert used.tolist() == [False, *(counts[k] > 0 for k in (1, 2, 3, 4))]
    assert all(x.grad is None for x in brain.branches.parameters())


def test_scores_of_a_batch_are_those_of_one(data, upstream):
    brain = make_brain(data, upstream, None)
    kl = get_score("kl_to_previous")
    scores = [get_score("entropy"), get_score("margin"), kl]
    tables = [
        brain.branch_scores(dataset(data), {"batch_size": n}, scores=scores)
        for n in (1, 6)
    ]
    assert tables[0]["id"].tolist() == [x for x in SAMPLES for _ in range(4)]
    assert tables[0]["kl_to_previous"].isna().sum() == len(SAMPLES)
    pd.testing.assert_frame_equal(*tables, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("exits", "told"),
    [
        (BranchExits(scale=1.0), "reads branches, and there are none"),
        ({"selector": "patience"}, "reads branches, and there are none"),
        (FixedLayer(5), r"no exit after layer 5; exits are \[0, 1, 2, 3, 4\]"),
        ({"scale": 1.0, "thresholds": 2}, "thresholds.*hparams/exits"),
    ],
)
def test_exits_that_cannot_be_taken(exits, told, data, upstream):
    with pytest.raises(ValueError, match=f"exits: .*{told}"):
        DownstreamClassifier(
            {"speaker": make_class_encoder(data / "labels", "xyz")},
            exits=exits,
            modules={
                "upstream": upstream,
                "interface": WeightedSum(upstream.state_sizes),
                "downstream": UtteranceClassifier(32, [3]),
            },
            hparams={},
            run_opts=RUN,
        )


def test_features_have_no_layer_to_leave(data):
    upstream = FilterbankEncoder(n_mels=4, deltas=False)
    interface = WeightedSum(upstream.state_sizes)
    with pytest.raises(ValueError, match="upstream of 0 layers.*after layer 2"):
        DownstreamClassifier(
            {"speaker": make_class_encoder(data / "labels", "xyz")},
            exits=FixedLayer(2),
            modules={
                "upstream": upstream,
                "interface": interface,
                "downstream": UtteranceClassifier(4, [3]),
            },
            hparams={},
            run_opts=RUN,
        )
