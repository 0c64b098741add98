"""Contributions of layers: weights where learnt, else what ablation tells."""

import pandas as pd
import pytest
import torch

from speechbrain_ee.analysis.contributions import (
    ablation_contributions,
    layer_contributions,
    write_contributions,
)
from speechbrain_ee.analysis.plots import draw_contributions
from speechbrain_ee.interfaces import (
    ConcatProjection,
    GroupedWeightedSum,
    WeightedSum,
)

STATES = list(torch.randn(3, 2, 5, 4, generator=torch.manual_seed(0)))


@pytest.fixture
def concat():
    """A projection that reads the first channel of each state."""
    interface = ConcatProjection([4] * 3, output_size=1)
    with torch.no_grad():
        interface.projection.bias.fill_(1.0)
        interface.projection.weight.zero_()
        interface.projection.weight[0, ::4] = torch.tensor([2.0, 0.0, -1.0])
    return interface


@torch.no_grad()
def mean_of(interface):
    return interface(STATES).mean().item()


def test_ablations_by_hand(concat):
    table = ablation_contributions(concat, lambda: mean_of(concat))
    first = [state[..., 0].mean().item() for state in STATES]
    full = 1 + 2 * first[0] - first[2]
    expected = pd.DataFrame(
        {
            "layer": [0, 1, 2],
            "full": full,
            "without": [full - 2 * first[0], full, full + first[2]],
            "contribution": [-2 * first[0], 0.0, first[2]],
        }
    )
    pd.testing.assert_frame_equal(table, expected, atol=1e-5)
    assert mean_of(concat) == pytest.approx(full)  # nothing is left ablated


def test_a_failing_evaluation_leaves_the_interface_whole(concat):
    full, calls = mean_of(concat), []

    def evaluate():
        calls.append(mean_of(concat))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return calls[-1]

    with pytest.raises(KeyboardInterrupt):
        ablation_contributions(concat, evaluate)
    assert calls[1] != full and mean_of(concat) == full


def test_weights_are_told_where_they_are_learnt(concat):
    interface = WeightedSum([4] * 3)
    with torch.no_grad():
        interface.weights.copy_(torch.tensor([1.0, 2.0, 1.0]).log())

    def evaluate():
        raise AssertionError("nothing need be evaluated")

    table = layer_contributions(interface, evaluate)
    assert table["contribution"].tolist() == pytest.approx([0.25, 0.5, 0.25])
    grouped = layer_contributions(GroupedWeightedSum([4] * 3), evaluate)
    assert grouped["contribution"].tolist() == pytest.approx([0.5, 0.5, 1.0])
    ablated = layer_contributions(concat, lambda: mean_of(concat))
    assert list(ablated) == ["layer", "full", "without", "contribution"]


def test_what_is_written_is_what_is_drawn(concat, tmp_path):
    table = layer_contributions(concat, lambda: mean_of(concat))
    write_contributions(tmp_path, table, metric="CER")
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "layers.csv"), table)
    assert (tmp_path / "layers.png").read_bytes().startswith(b"\x89PNG")
    axes = draw_contributions(table, metric="CER").axes[0]
    heights = [bar.get_height() for bar in axes.patches]
    assert heights == table["contribution"].tolist()
    assert axes.get_ylabel() == "CER without the layer − with all"
