"""CTC heads: shapes, ties, norms and clear errors."""

import pytest
import torch

from speechbrain_ee.heads import CTCHeads


def states(count=3, batch=2, time=5, channels=8):
    return [torch.randn(batch, time, channels) for _ in range(count)]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("exit_norm", ["shared", "own", "none"])
def test_all_exits_at_once_equal_each_exit_read_alone(tied, exit_norm):
    heads = CTCHeads([2, 4, 6], 8, 5, tied=tied, exit_norm=exit_norm)
    hidden = states()
    log_probs = heads(hidden)
    assert log_probs.shape == (3, 2, 5, 5)
    for k, one, expected in zip([2, 4, 6], hidden, log_probs):
        output = heads.read(one, torch.tensor([5, 3]), exit_layer=k)
        assert output.exit_layer == k
        assert torch.equal(output.log_probs, expected)
    assert torch.allclose(log_probs.exp().sum(-1), torch.ones(3, 2, 5))


def test_tied_heads_are_one_and_untied_are_one_per_exit():
    assert len(CTCHeads([2, 4, 6], 8, 5, tied=True).linear) == 1
    untied = CTCHeads([2, 4, 6], 8, 5)
    assert len({id(layer) for layer in untied.linear.values()}) == 3


def test_the_last_exit_always_has_the_encoders_own_norm():
    assert CTCHeads([2, 4], 8, 5).normed_layers == [2, 4]
    for exit_norm in ("own", "none"):
        heads = CTCHeads([2, 4], 8, 5, exit_norm=exit_norm)
        assert heads.normed_layers == [4]
    own = CTCHeads([2, 4], 8, 5, exit_norm="own")
    hidden = 9 * torch.randn(1, 3, 8)
    normed = torch.nn.functional.layer_norm(hidden, (8,))
    assert torch.allclose(
        own.logits(hidden, 2), own.linear["2"](normed), atol=1e-5
    )
    assert torch.equal(own.logits(hidden, 4), own.linear["4"](hidden))


def test_without_a_final_norm_the_last_exit_is_like_an_inner_one():
    heads = {
        exit_norm: CTCHeads([2, 4], 8, 5, exit_norm=exit_norm, final_norm=False)
        for exit_norm in ("shared", "own", "none")
    }
    assert heads["shared"].normed_layers == [2, 4]
    assert heads["own"].normed_layers == heads["none"].normed_layers == []
    hidden = 9 * torch.randn(1, 3, 8)
    normed = torch.nn.functional.layer_norm(hidden, (8,))
    own = heads["own"]
    assert torch.allclose(
        own.logits(hidden, 4), own.linear["4"](normed), atol=1e-5
    )


def test_half_precision_states_give_single_precision_log_probs():
    heads = CTCHeads([2], 8, 5).bfloat16()
    assert heads([states(1)[0].bfloat16()]).dtype == torch.float32


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"exit_layers": [2, 2]}, "deeper than the one before"),
        ({"exit_layers": [4, 2]}, "deeper than the one before"),
        ({"exit_layers": [0, 2]}, "0 outside 1 to 2"),
        ({"exit_layers": []}, "At least one layer"),
        ({"exit_norm": "batch"}, "none of shared, own, none"),
        ({"blank_index": 5}, "blank_index: 5 outside a vocabulary of 5"),
    ],
)
def test_bad_settings_are_refused(settings, fault):
    settings = {"exit_layers": [2, 4], **settings}
    with pytest.raises(ValueError, match=fault):
        CTCHeads(input_size=8, vocab_size=5, **settings)


@pytest.mark.parametrize(
    "other", [{"exit_layers": [2, 4]}, {"exit_layers": [2, 4, 6], "tied": True}]
)
def test_a_checkpoint_with_other_exits_is_refused(other):
    heads = CTCHeads([2, 4, 6], 8, 5)
    weights = CTCHeads(input_size=8, vocab_size=5, **other).state_dict()
    with pytest.raises(ValueError, match="the model at 2, 4, 6"):
        heads.load_state_dict(weights)
    # also as part of a larger checkpoint
    parent = torch.nn.ModuleList([heads])
    weights = {f"0.{key}": value for key, value in weights.items()}
    with pytest.raises(ValueError, match="Set the same exit_layers"):
        parent.load_state_dict(weights)


def test_too_many_or_few_states_are_refused():
    with pytest.raises(ValueError):
        CTCHeads([2, 4], 8, 5)(states(3))
