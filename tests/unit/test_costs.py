"""MACs: counted ones equal those of a real run at any length."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from speechbrain_ee.costs import ExitCosts
from speechbrain_ee.heads import CTCHeads
from tests.unit.encoders.backbones import BACKBONES, NUM_LAYERS, build


@pytest.mark.parametrize("name", BACKBONES)
@torch.no_grad()
def test_costs_equal_a_count_of_the_real_run(name):
    encoder = build(name).encoder
    heads = CTCHeads([1, NUM_LAYERS], encoder.output_size, 7).eval()
    costs = ExitCosts(encoder, heads)
    state = encoder.begin(torch.randn(1, 20000))
    with (
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):
        state = encoder.step(state)
        heads.logits(state.hidden, 1)
        first = counter.get_total_flops() / 2
        while state.layer < NUM_LAYERS:
            state = encoder.step(state)
        heads.logits(state.hidden, NUM_LAYERS)
    assert costs(1, state.frames).tolist() == [first]
    assert costs(NUM_LAYERS, state.frames).tolist() == [
        counter.get_total_flops() / 2
    ]


def test_modules_are_left_in_the_mode_they_had():
    encoder = build("conformer-RoPEMHA").encoder.train()
    heads = CTCHeads([NUM_LAYERS], encoder.output_size, 7).eval()
    ExitCosts(encoder, heads)
    assert encoder.training and not heads.training
