"""Scores of attention decoders against their definitions."""

from functools import partial

import pytest
import torch

from speechbrain_ee.exits import get_score
from speechbrain_ee.heads import (
    AttentionDecoder,
    AttentionHeads,
    BeamSearch,
    CTCHeads,
)

FRAMES = torch.tensor([9, 4, 7])
NAMES = ("token_entropy", "beam_confidence")


def read(beam_size=4, row=None):
    torch.manual_seed(0)
    heads = AttentionHeads(
        [2, 4],
        16,
        12,
        decoder=partial(AttentionDecoder, nhead=2, num_layers=1, d_ffn=32),
        search=BeamSearch(beam_size),
    ).eval()
    with torch.no_grad():
        heads.decoder["tied"].seq_lin.w.weight.mul_(3.0)  # less of a guess
    states = torch.randn(3, 9, 16, generator=torch.Generator().manual_seed(1))
    frames = FRAMES
    if row is not None:
        frames = FRAMES[row : row + 1]
        states = states[row : row + 1, : int(frames)]
    with torch.no_grad():
        return heads.read(states, frames, exit_layer=2)


@torch.no_grad()
def test_token_entropy_is_the_mean_along_the_best_transcript():
    output = read()
    values = get_score("token_entropy")(output)
    for row, labels in enumerate(output.hypotheses):
        log_probs = output.token_log_probs[row, : len(labels) + 1]
        entropies = torch.distributions.Categorical(logits=log_probs).entropy()
        assert values[row].item() == pytest.approx(entropies.mean().item())


@torch.no_grad()
def test_beam_confidence_is_the_share_of_the_best():
    output = read()
    values = get_score("beam_confidence")(output)
    for row, found in enumerate(output.nbest):
        probabilities = torch.tensor([p for _, p in found]).double().exp()
        expected = probabilities[0] / probabilities.sum()
        assert values[row].item() == pytest.approx(expected.item(), abs=1e-5)
    assert (values > 0).all() and (values < 1).all()


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_each_utterance_gets_what_it_gets_alone(name):
    together = get_score(name)(read())
    for row in range(3):
        alone = get_score(name)(read(row=row))
        assert together[row].item() == pytest.approx(alone.item(), abs=1e-4)


@torch.no_grad()
def test_a_list_of_one_is_no_evidence():
    assert get_score("beam_confidence")(read(beam_size=1)).isnan().all()


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_exits_without_a_decoder_are_told_apart(name):
    output = CTCHeads([2], 16, 12).read(torch.randn(1, 4, 16), FRAMES[1:2], 2)
    with pytest.raises(ValueError, match=f"{name} reads an attention decoder"):
        get_score(name)(output)
