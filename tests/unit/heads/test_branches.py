"""Branches: their readings against definitions, and what they belong to."""

import json
import math

import pytest
import torch

from speechbrain_ee.encoders import FilterbankEncoder
from speechbrain_ee.encoders.huggingface import HuggingFaceEncoder
from speechbrain_ee.exits import Threshold, get_score
from speechbrain_ee.feature_cache import describe_upstream
from speechbrain_ee.heads import (
    BranchOutput,
    ClusterBranches,
    ExitOutput,
    load_branches,
    save_branches,
)
from speechbrain_ee.runtime import EarlyExitLoop
from tests.unit.encoders.backbones import SMALL


def make_branches(exit_layers=(1, 2), width=16, clusters=7):
    torch.manual_seed(0)
    branches = ClusterBranches(exit_layers, width, clusters)
    for weight in branches.parameters():
        torch.nn.init.normal_(weight)
    return branches


def make_upstream(seed=1, **config):
    torch.manual_seed(seed)
    return HuggingFaceEncoder(
        "hubert", False, freeze=True, config={**SMALL, **config}
    )


def entropy(log_probs):
    """By the definition, in double precision, of one frame."""
    probs = log_probs.double().exp()
    return -sum(p * p.log() for p in probs if p > 0)


def test_each_branch_reads_its_own_state():
    branches = make_branches([1, 3])
    states = list(torch.randn(2, 3, 5, 16))
    logits = branches(states)
    assert logits.shape == (2, 3, 5, 7)
    for row, k in enumerate((1, 3)):
        linear = branches.linear[str(k)]
        expected = states[row] @ linear.weight.T + linear.bias
        torch.testing.assert_close(logits[row], expected)
        output = branches.read(states[row], torch.tensor([5, 4, 1]), k)
        torch.testing.assert_close(
            output.log_probs, expected.log_softmax(dim=-1)
        )
        assert output.exit_layer == k and not output.log_probs.requires_grad
        assert output.hypotheses == [(), (), ()]
    with pytest.raises(ValueError):
        branches(states[:1])


@pytest.mark.parametrize("scale", [0.1, 1, 100])
@pytest.mark.parametrize("shift", [0, 15, -50, 300])
def test_entropy_is_that_of_the_definition(scale, shift):
    hidden = scale * torch.randn(2, 6, 16, generator=torch.manual_seed(5))
    frames = torch.tensor([6, 3])
    output = make_branches().read(hidden, frames, 1)
    output.logits += shift
    expected = [
        torch.stack([entropy(x) for x in row[:n]]).mean()
        for row, n in zip(output.log_probs, frames)
    ]
    found = get_score("entropy")(output)
    expected = torch.stack(expected).float()
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert (output.frame_entropies >= -1e-5).all()


@pytest.mark.parametrize("ruled_out", [-1e4, -1e30, -math.inf])
def test_a_cluster_of_no_probability_adds_nothing(ruled_out):
    logits = torch.tensor([[[1.0, 2.0, ruled_out], [ruled_out, ruled_out, 3]]])
    output = BranchOutput(logits.clone(), torch.tensor([2]), 1)
    two = torch.tensor([1.0, 2.0]).log_softmax(dim=0)
    expected = torch.tensor([[float(entropy(two)), 0.0]])
    torch.testing.assert_close(output.frame_entropies, expected)
    plain = ExitOutput(logits.log_softmax(dim=-1), torch.tensor([2]), 1)
    torch.testing.assert_close(plain.frame_entropies, expected)


def test_what_is_no_number_is_never_confident():
    logits = torch.zeros(2, 3, 4)
    logits[0, 1, 2] = math.nan
    score = get_score("entropy")
    values = score(BranchOutput(logits, torch.tensor([3, 3]), 1))
    assert values.isnan().tolist() == [True, False]
    assert score.is_confident(values, 99.0).tolist() == [False, True]
    none = BranchOutput(torch.zeros(1, 0, 4), torch.tensor([0]), 1)
    assert score(none).isnan().all()


@pytest.mark.parametrize(
    "spec",
    [
        "entropy",
        {"score": "entropy", "normalization": "vocabulary"},
        {"score": "entropy", "normalization": "unit"},
        "max_probability",
        "margin",
        "kl_to_previous",
    ],
)
def test_scores_are_those_of_any_head(spec):
    logits, before = torch.randn(2, 2, 5, 7).unbind()
    frames = torch.tensor([5, 2])
    score = get_score(spec)
    ours = BranchOutput(logits.clone(), frames, 2)
    ours.previous = BranchOutput(before.clone(), frames, 1)
    plain = ExitOutput(logits.log_softmax(dim=-1), frames, 2)
    plain.previous = ExitOutput(before.log_softmax(dim=-1), frames, 1)
    expected = score(plain)
    torch.testing.assert_close(score(ours), expected)
    torch.testing.assert_close(score(ours), expected)  # asked again
    kept = ours.keep([1], history=1)
    assert kept.logits.shape == (1, 2, 7)
    torch.testing.assert_close(score(kept), expected[1:])


def test_the_entropy_makes_no_log_probabilities():
    output = BranchOutput(torch.randn(1, 5, 7), torch.tensor([5]), 1)
    get_score("entropy")(output)
    assert "log_probs" not in vars(output)


def test_padding_and_neighbours_change_nothing():
    branches, score = make_branches(), get_score("entropy")
    hidden, frames = torch.randn(3, 9, 16), torch.tensor([9, 4, 6])
    together = score(branches.read(hidden, frames, 2))
    hidden[1, 4:], hidden[2, 6:] = math.nan, 1e4
    torch.testing.assert_close(
        score(branches.read(hidden, frames, 2)), together
    )
    for row, n in enumerate(frames.tolist()):
        alone = branches.read(hidden[row : row + 1, :n], frames[row, None], 2)
        torch.testing.assert_close(score(alone), together[row, None])


def test_utterances_leave_the_loop_by_their_branches():
    upstream, branches = make_upstream(), make_branches().eval()
    wavs = 0.1 * torch.randn(4, 8000)
    with torch.no_grad():
        states, frames = upstream(wavs)
    values = [
        get_score("entropy")(branches.read(states[k], frames, k))
        for k in (1, 2)
    ]
    threshold = float(values[0].median())
    left = EarlyExitLoop(upstream, branches, Threshold("entropy", threshold))(
        wavs
    )
    early = values[0] <= threshold
    assert left.exit_layer.tolist() == [1 if x else 2 for x in early]
    assert left.hypotheses == [()] * 4


def test_what_cannot_be_built_is_refused():
    with pytest.raises(ValueError, match="deeper than the one before"):
        ClusterBranches([2, 1], 8, 5)
    with pytest.raises(ValueError, match="At least one layer"):
        ClusterBranches([], 8, 5)
    with pytest.raises(ValueError, match="num_clusters: 1"):
        ClusterBranches([1], 8, 1)


@pytest.fixture
def saved(tmp_path):
    """Branches of a known upstream in a folder."""
    facts = {"upstream": describe_upstream(make_upstream()), "steps": 3}
    save_branches(tmp_path / "branches", make_branches(), facts)
    return tmp_path / "branches"


def test_saved_branches_are_the_same_and_frozen(saved):
    branches = load_branches(saved, make_upstream())
    hidden, frames = torch.randn(1, 4, 16), torch.tensor([4])
    torch.testing.assert_close(
        branches.read(hidden, frames, 2).logits,
        make_branches().read(hidden, frames, 2).logits,
    )
    assert not branches.training
    assert not any(x.requires_grad for x in branches.parameters())
    facts = json.loads((saved / "branches.json").read_text())
    assert facts["exit_layers"] == [1, 2] and facts["steps"] == 3
    assert facts["input_size"] == 16 and facts["num_clusters"] == 7


def test_in_half_precision_entropies_are_nearly_the_same(saved):
    torch.manual_seed(0)
    hidden, frames = torch.randn(2, 9, 16), torch.tensor([9, 5])
    found = {}
    for dtype in ("float32", "bfloat16"):
        branches = load_branches(saved, dtype=dtype)
        output = branches.read(hidden, frames, 1)
        assert output.logits.dtype == torch.float32
        found[dtype] = get_score("entropy")(output)
    exact, near = found.values()
    assert torch.allclose(near, exact, atol=0.02)
    assert not torch.equal(near, exact)
    with pytest.raises(ValueError, match="dtype: 'half' is none of float32"):
        load_branches(saved, dtype="half")


def test_branches_of_another_upstream_are_refused(saved):
    wide = make_upstream(hidden_size=32)
    with pytest.raises(
        ValueError, match="16 channels, and the upstream has 32"
    ):
        load_branches(saved, wide)
    deep = make_upstream(num_hidden_layers=3)
    with pytest.raises(ValueError, match="of 2 layers, and this one has 3"):
        load_branches(saved, deep)
    with pytest.raises(ValueError, match="upstream's weights differ"):
        load_branches(saved, make_upstream(seed=2))


def test_branches_of_an_upstream_with_other_settings_are_refused(tmp_path):
    # Group norm would undo the scale of waveforms.
    upstream = make_upstream(feat_extract_norm="layer")
    facts = {"upstream": describe_upstream(upstream)}
    save_branches(tmp_path, make_branches(), facts)
    assert load_branches(tmp_path, upstream).exit_layers == [1, 2]
    upstream.normalize_wav = False
    with pytest.raises(ValueError, match="settings differ"):
        load_branches(tmp_path, upstream)


def test_without_facts_width_and_depth_are_still_checked(tmp_path):
    save_branches(tmp_path, make_branches([1, 3]), {})
    with pytest.raises(ValueError, match="of 3 layers, and this one has 2"):
        load_branches(tmp_path, make_upstream())
    with pytest.raises(ValueError, match="of 3 layers, and this one has 0"):
        load_branches(tmp_path, FilterbankEncoder())
    deeper = make_upstream(num_hidden_layers=4)
    assert load_branches(tmp_path, deeper).exit_layers == [1, 3]


def test_a_folder_without_branches_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="train_branches.py"):
        load_branches(tmp_path)
