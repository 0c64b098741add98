"""Where utterances leave an upstream by what branches say of them."""

import json
import logging
import math
import re

import pytest
import torch
from speechbrain.utils.checkpoints import Checkpointer

from speechbrain_ee.exits import (
    BranchExits,
    DepthWindow,
    NeverLeave,
    Patience,
    Threshold,
    exits_taken,
    get_exits,
    get_score,
)
from speechbrain_ee.heads import ClusterBranches

# Entropies of six utterances at four branches; their means are 2, 1.5, 1, 0.5.
VALUES = torch.tensor(
    [
        [1.2, 1.0, 0.9, 0.4],
        [2.8, 2.0, 1.1, 0.6],
        [1.6, 1.1, 0.8, 0.5],
        [2.4, 1.9, 1.2, 0.5],
        [1.9, 1.4, 1.0, 0.5],
        [2.1, 1.6, 1.0, 0.5],
    ]
)


@pytest.fixture
def branches():
    torch.manual_seed(0)
    return ClusterBranches([1, 2, 3, 4], input_size=8, num_clusters=5)


def learnt(branches, values=VALUES, **settings):
    exits = BranchExits(**settings)
    exits.prepare(branches)
    exits.learn(values)
    return exits


@pytest.mark.parametrize(
    ("settings", "thresholds", "counts"),
    [
        # 1.25 is the mean of all means.
        ({"scale": 1.0}, [1.25] * 4, [1, 1, 4, 0]),
        ({"scale": 0.8}, [1.0] * 4, [0, 1, 3, 2]),
        (
            {"scale": 1.0, "of": "layer"},
            [2.0, 1.5, 1.0, 0.5],
            [3, 0, 1, 2],
        ),
        ({"threshold": 1.5}, [1.5] * 4, [1, 2, 3, 0]),
        (
            {"threshold": [1.2, 1.1, 1.0, 9.0]},
            [1.2, 1.1, 1.0, 9.0],
            [1, 1, 2, 2],
        ),
        (
            {"threshold": {2: 1.1, 3: 1.1}},
            [None, 1.1, 1.1, None],
            [0, 2, 3, 1],
        ),
    ],
)
def test_thresholds_by_hand(branches, settings, thresholds, counts):
    exits = learnt(branches, **settings)
    expected = {k: t for k, t in enumerate(thresholds, 1) if t is not None}
    assert exits.thresholds == pytest.approx(expected)
    found = exits.statistics
    assert list(found["training_exits"].values()) == counts
    assert found["mean_scores"] == pytest.approx({1: 2, 2: 1.5, 3: 1, 4: 0.5})
    assert found["lowest_score"] == pytest.approx(0.4)
    assert found["highest_score"] == pytest.approx(2.8)
    mean = sum(k * n for k, n in zip([1, 2, 3, 4], counts)) / 6
    assert found["mean_training_exit"] == pytest.approx(mean)


@pytest.mark.parametrize(
    ("settings", "read", "kind"),
    [
        ({"scale": 1.0}, [1, 2, 3, 4], Threshold),
        # The exits are 1 2 3 3 3 3: mean 2.5.
        ({"scale": 1.0, "window": "average"}, [2, 3], DepthWindow),
        ({"scale": 1.0, "window": "min_max"}, [1, 2, 3], DepthWindow),
        # 3 3 3 3 3 4 is at least 3 on average.
        ({"threshold": {3: 1.1}, "window": "average"}, [3, 4], DepthWindow),
        ({"threshold": {3: 2.0}, "window": "average"}, [3], DepthWindow),
        (
            {"scale": 1.0, "window": "average", "layers": [1, 4]},
            [1, 4],
            Threshold,
        ),
        ({"scale": 1.0, "layers": [2, 4]}, [2, 4], Threshold),
    ],
)
def test_windows_are_of_evaluation(branches, settings, read, kind):
    exits = learnt(branches, **settings)
    layers = settings.get("layers", [1, 2, 3, 4])
    columns = [k - 1 for k in layers]
    if layers != [1, 2, 3, 4]:
        exits.learn(VALUES[:, columns])
    assert exits.exit_layers(training=True) == layers
    assert isinstance(exits.selector(training=True), Threshold)
    assert exits.exit_layers(training=False) == read
    selector = exits.selector(training=False)
    assert type(selector) is kind and selector.exit_layers == read


def test_exits_between_two_of_the_chosen_layers(branches):
    exits = BranchExits(threshold=1.0, window="average", layers=[1, 3, 4])
    exits.prepare(branches)
    # They leave at 1 1 1 3 3 3: the mean, 2, is no exit.
    exits.learn(torch.tensor([[0.5, 0, 0]] * 3 + [[2.0, 0.5, 0]] * 3))
    assert exits.exit_layers(training=False) == [1, 3]


def readings(branches, batch=5, time=7, padding=0.0):
    """What branches of large weights say, the last utterance shorter."""
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in branches.parameters():
            weight.normal_()
    frames = torch.tensor([time] * (batch - 1) + [time - 3])
    states = torch.randn(4, batch, time, 8)
    states[:, -1, time - 3 :] = padding
    return [
        branches.read(state, frames, k) for k, state in enumerate(states, 1)
    ]


@pytest.mark.parametrize("name", ["entropy", "max_probability", "margin"])
def test_exits_are_those_of_the_statistics(branches, name):
    outputs = readings(branches, batch=20)
    score = get_score(name)
    values = torch.stack([score(output) for output in outputs], dim=1)
    exits = learnt(branches, values, score=name, scale=1.0)
    taken = exits_taken(exits.selector(training=True), outputs)
    counts = [int((taken == k).sum()) for k in (1, 2, 3, 4)]
    assert list(exits.statistics["training_exits"].values()) == counts
    assert sum(c > 0 for c in counts) >= 2
    for row in range(20):
        first = next(
            (
                k
                for k, value in enumerate(values[row].tolist(), 1)
                if score.is_confident(torch.tensor(value), exits.thresholds[k])
            ),
            4,
        )
        assert taken[row] == first


@pytest.mark.parametrize("name", ["entropy", "max_probability", "margin"])
@pytest.mark.parametrize("padding", [math.nan, 1e6])
def test_padding_never_enters(branches, name, padding):
    score, found = get_score(name), []
    for behind in (0.0, padding):
        outputs = readings(branches, padding=behind)
        values = torch.stack([score(output) for output in outputs], dim=1)
        exits = learnt(branches, values, score=name, scale=1.0)
        taken = exits_taken(exits.selector(training=True), outputs)
        found.append((values, taken))
    assert found[0][0].isfinite().all()
    assert torch.allclose(found[0][0], found[1][0], atol=1e-5)
    assert torch.equal(found[0][1], found[1][1])


def test_a_cluster_of_no_probability_leaves_the_entropy_finite(branches):
    with torch.no_grad():
        branches.linear["2"].bias[0] = -math.inf
        output = branches.read(torch.randn(2, 3, 8), torch.tensor([3, 2]), 2)
    assert (output.log_probs[..., 0] == -math.inf).all()
    values = get_score("entropy")(output)
    assert (values > 0).all() and (values < math.log(4) + 1e-6).all()
    assert exits_taken(
        learnt(branches, threshold=2.0).selector(training=True), [output] * 2
    ).tolist() == [2, 2]


def test_an_utterance_without_a_score_goes_to_the_end(branches):
    values = VALUES.clone()
    values[0] = math.nan
    exits = learnt(branches, values, threshold=9.0)
    counts = exits.statistics["training_exits"]
    assert counts == {1: 5, 2: 0, 3: 0, 4: 1}
    with pytest.raises(ValueError, match="No entropy of the 6 utterances"):
        learnt(branches, values * math.nan, threshold=9.0)


def test_a_score_that_the_first_exit_lacks(branches):
    values = VALUES.clone()
    values[:, 0] = math.nan
    exits = learnt(branches, values, score="kl_to_previous", scale=1.0)
    assert exits.thresholds == pytest.approx({2: 1.0, 3: 1.0, 4: 1.0})
    assert exits.statistics["training_exits"][1] == 0
    assert exits.selector(training=True).history == 1


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"threshold": 0.1}, "never fire: .* layer 4.*0.4 and 2.8.*Raise thre"),
        ({"scale": 9.0}, "always fire: .* layer 1.*0.4 and 2.8.*Lower scale"),
        (
            {"score": "margin", "threshold": 3},
            "never fire.* margin lies .* Lower threshold",
        ),
    ],
)
def test_thresholds_that_tell_nothing_apart_are_warned_of(
    branches, settings, told, caplog
):
    with caplog.at_level(logging.WARNING):
        learnt(branches, **settings)
    (record,) = caplog.records
    assert re.search(told, record.getMessage())
    caplog.clear()
    learnt(branches, scale=1.0)
    learnt(branches, VALUES[:, :1], scale=1.0, layers=[3])
    assert not caplog.records


def test_statistics_stand_in_checkpoints_and_in_a_file(branches, tmp_path):
    exits = learnt(branches, scale=0.8, window="average")
    exits.write(tmp_path / "exits.json")
    told = json.loads((tmp_path / "exits.json").read_text())
    assert told["settings"]["score"]["normalization"] == "nats"
    assert told["thresholds"] == pytest.approx(dict.fromkeys("1234", 1.0))
    assert told["window"] == [3, 4]

    Checkpointer(tmp_path, {"exits": exits}).save_checkpoint()
    other = BranchExits(scale=0.8, window="average")
    other.prepare(branches)
    with pytest.raises(RuntimeError, match="know no statistics"):
        other.selector(training=True)
    Checkpointer(tmp_path, {"exits": other}).recover_if_possible()
    assert other.statistics == exits.statistics
    assert other.exit_layers(training=False) == [3, 4]
    assert other.read(tmp_path / "exits.json")


@pytest.mark.parametrize("change", ["scale", "branches"])
def test_statistics_of_other_settings_are_not_taken(
    branches, tmp_path, change, caplog
):
    exits = learnt(branches, scale=0.8)
    Checkpointer(tmp_path, {"exits": exits}).save_checkpoint()
    if change == "branches":
        torch.nn.init.zeros_(branches.linear["2"].weight)
    other = learnt(branches, scale=0.8 if change == "branches" else 1.0)
    before = other.statistics
    with caplog.at_level(logging.WARNING):
        Checkpointer(tmp_path, {"exits": other}).recover_if_possible()
    assert other.statistics is before
    assert "made with other exits, or other branches" in caplog.text


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({}, "either threshold .* or scale .* not neither"),
        ({"threshold": 1, "scale": 1}, "not both"),
        ({"scale": 0.0}, "scale: 0.0 must be a number above 0"),
        ({"scale": math.inf}, "scale: inf"),
        ({"scale": 1, "of": "task"}, "of: 'task' is none of all, layer"),
        ({"scale": 1, "window": "avg"}, "window: 'avg' is none of average"),
        ({"scale": 1, "score": "entropie"}, "Did you mean 'entropy'"),
        ({"scale": 1, "score": "hypothesis_posterior"}, "transcribe nothing"),
        ({"scale": 1, "score": "sentence_confidence"}, "transcribe nothing"),
        ({"scale": 1, "score": "beam_confidence"}, "transcribe nothing"),
        ({"scale": 1, "layers": [0, 2]}, "0 outside 1 to 4"),
        ({"scale": 1, "layers": [4, 2]}, "each must be deeper"),
        ({"threshold": [1.0, 2.0]}, "2 thresholds for 4 exits"),
        ({"threshold": {7: 1.0}}, r"no exit after layer 7; exits are \[1, 2"),
    ],
)
def test_settings_that_mean_nothing(branches, settings, told):
    with pytest.raises(ValueError, match=told):
        BranchExits(**settings).prepare(branches)


def test_layers_without_a_branch():
    branches = ClusterBranches([2, 4], input_size=8, num_clusters=5)
    with pytest.raises(ValueError, match=r"layers: 3 without .* at \[2, 4\]"):
        BranchExits(scale=1, layers=[2, 3]).prepare(branches)


def test_what_the_key_exits_takes():
    made = BranchExits(threshold=0.5)
    assert get_exits(made) is made
    assert get_exits(None) is None and get_exits({}) is None
    assert isinstance(get_exits("never"), NeverLeave)
    assert get_exits({"threshold": 0.5}).threshold == 0.5
    assert get_exits({"selector": "patience"}).patience == 2
    assert isinstance(get_exits(Patience()), Patience)
    for wrong, told in (
        ({"treshold": 0.5}, "treshold"),
        ({"selector": "fixt"}, "Did you mean 'fixed'"),
        (6, "unknown selector 6"),
    ):
        with pytest.raises(ValueError, match=f"exits: .*{told}.*hparams/exits"):
            get_exits(wrong)
