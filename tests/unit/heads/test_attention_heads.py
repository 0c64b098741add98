"""Attention heads: the stock decoder, padded batches, searches when needed."""

from functools import partial

import pytest
import torch
from speechbrain.lobes.models.transformer.TransformerASR import TransformerASR
from speechbrain.lobes.models.transformer.TransformerLM import TransformerLM

from speechbrain_ee.heads import (
    AttentionDecoder,
    AttentionHeads,
    BeamSearch,
)

CHANNELS, LABELS = 16, 12
FRAMES = torch.tensor([9, 4, 7])
DECODER = partial(AttentionDecoder, nhead=2, num_layers=2, d_ffn=32)


def make_heads(exit_layers=(2, 4), decoder=DECODER, **settings):
    torch.manual_seed(0)
    heads = AttentionHeads(
        exit_layers, CHANNELS, LABELS, decoder=decoder, **settings
    )
    return heads.eval()


def states(frames=FRAMES, seed=1):
    generator = torch.Generator().manual_seed(seed)
    shape = len(frames), int(frames.max()), CHANNELS
    return torch.randn(shape, generator=generator)


def make_lm():
    torch.manual_seed(2)
    return TransformerLM(
        LABELS, d_model=8, nhead=2, num_encoder_layers=1, d_ffn=16
    ).eval()


@torch.no_grad()
def test_the_decoder_is_that_of_the_stock_model():
    torch.manual_seed(0)
    stock = TransformerASR(
        tgt_vocab=LABELS,
        input_size=8,
        d_model=CHANNELS,
        nhead=2,
        num_encoder_layers=1,
        num_decoder_layers=2,
        d_ffn=32,
        activation=torch.nn.GELU,
        normalize_before=True,
        causal=False,
    ).eval()
    heads = make_heads(exit_layers=[2])
    decoder = heads.decoder["tied"]
    ours = {
        key: value
        for key, value in stock.state_dict().items()
        if not key.startswith(("encoder.", "custom_src_module."))
    }
    missing = decoder.load_state_dict(ours, strict=False)
    assert missing.unexpected_keys == []
    assert all(key.startswith("seq_lin.") for key in missing.missing_keys)

    lengths = FRAMES / FRAMES.max()
    tokens = torch.tensor([[1, 5, 6, 7], [1, 4, 0, 0], [1, 8, 9, 0]])
    source = torch.randn(3, 9, 8)
    encoded, decoded = stock(source, tokens, lengths, pad_idx=0)
    expected = decoder.seq_lin(decoded).log_softmax(dim=-1)
    _, found = heads([encoded], FRAMES, tokens)
    real = tokens != 0
    assert torch.allclose(found[0][real], expected[real], atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("tied_decoder", [False, True])
def test_all_exits_at_once_equal_each_decoder_alone(tied_decoder):
    heads = make_heads(tied_decoder=tied_decoder)
    hidden = [states(), states(seed=3)]
    tokens = torch.tensor([[1, 5, 6], [1, 4, 4], [1, 8, 9]])
    ctc, attention = heads(hidden, FRAMES, tokens)
    for k, one, log_probs, along in zip([2, 4], hidden, ctc, attention):
        output = heads.read(one, FRAMES, exit_layer=k)
        assert torch.allclose(output.log_probs, log_probs, atol=1e-6)
        spelled = heads.spell(one, FRAMES, k, tokens[:, 1:].tolist())
        assert torch.allclose(spelled, along, atol=1e-5)


def test_one_step_trains_every_parameter():
    for tied in (False, True):
        heads = make_heads(tied=tied, tied_decoder=tied, exit_norm="own")
        tokens = torch.tensor([[1, 5], [1, 4], [1, 8]])
        ctc, attention = heads([states(), states()], FRAMES, tokens)
        (ctc[..., 3].sum() + attention[..., 3].sum()).backward()
        assert all(p.grad is not None for p in heads.parameters())


@torch.no_grad()
@pytest.mark.parametrize(
    "search",
    [
        {},
        {"beam_size": 1},
        {"max_decode_ratio": 0.4},
        {"ctc_weight": 0.4},
        {"lm": make_lm(), "lm_weight": 0.5, "ctc_weight": 0.3},
        {"length_normalization": False, "temperature": 1.2},
    ],
    ids=lambda search: "+".join(search) or "plain",
)
def test_in_a_padded_batch_each_utterance_gets_what_it_gets_alone(search):
    heads = make_heads(search=BeamSearch(**{"beam_size": 4, **search}))
    hidden = states()
    together = heads.find(hidden, FRAMES, exit_layer=2)
    for row, count in enumerate(FRAMES.tolist()):
        (alone,) = heads.find(
            hidden[row : row + 1, :count], FRAMES[row : row + 1], 2
        )
        assert [one for one, _ in alone] == [one for one, _ in together[row]]
        assert [p for _, p in alone] == pytest.approx(
            [p for _, p in together[row]], abs=1e-4
        )


@torch.no_grad()
def test_lists_hold_the_decoders_own_log_probabilities():
    search = BeamSearch(beam_size=4, lm=make_lm(), ctc_weight=0.3)
    heads = make_heads(search=search)
    with torch.no_grad():  # so that sentences end by themselves
        heads.decoder["tied"].seq_lin.w.bias[2] = 2.0
    hidden = states()
    checked = 0
    for row, found in enumerate(heads.find(hidden, FRAMES, 2)):
        assert len({one for one, _ in found}) == len(found)
        for one, log_prob in found:
            if len(one) + 1 >= FRAMES[row]:
                continue  # cut at the end of its time
            row_of = slice(row, row + 1)
            log_probs = heads.spell(hidden[row_of], FRAMES[row_of], 2, [one])[0]
            steps = zip(log_probs, [*one, heads.eos_index], strict=True)
            expected = sum(float(step[k]) for step, k in steps)
            assert log_prob == pytest.approx(expected, abs=1e-4)
            checked += 1
    assert checked > 3


@torch.no_grad()
def test_a_language_model_and_ctc_change_what_is_found():
    plain = make_heads(search=BeamSearch(4))
    hidden = states()
    found = plain.find(hidden, FRAMES, 2)
    for search in (
        BeamSearch(4, lm=make_lm(), lm_weight=5.0),
        BeamSearch(4, ctc_weight=0.9),
    ):
        assert make_heads(search=search).find(hidden, FRAMES, 2) != found
    silent = BeamSearch(4, lm=make_lm(), lm_weight=0.0)
    assert make_heads(search=silent).find(hidden, FRAMES, 2) == found


def test_nothing_of_the_search_is_saved_or_trained():
    heads = make_heads(search=BeamSearch(lm=make_lm()))
    assert heads.state_dict().keys() == make_heads().state_dict().keys()


class CountedSearch(BeamSearch):
    """Notes how many utterances were searched."""

    searched = 0

    def __call__(self, decoder, ctc_lin, states, frames, **marks):
        self.searched += len(frames)
        return super().__call__(decoder, ctc_lin, states, frames, **marks)


@torch.no_grad()
def test_it_is_searched_once_and_only_when_asked_for():
    search = CountedSearch(beam_size=2)
    output = make_heads(search=search).read(states(), FRAMES, 2)
    assert output.greedy and output.log_probs is not None
    kept = output.keep([2, 0], history=1)
    assert search.searched == 0
    assert len(kept.hypotheses) == 2 and search.searched == 2
    again = kept.keep([1])
    assert again.hypotheses == kept.hypotheses[1:]
    assert again.states.shape[1] == 9 and search.searched == 2
    assert output.hypotheses[0] == kept.hypotheses[1]


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"eos_index": 1}, "must differ"),
        ({"bos_index": 12}, "inside a vocabulary of 12"),
        ({"exit_norm": "batch"}, "none of shared"),
    ],
)
def test_bad_settings_are_refused(settings, fault):
    with pytest.raises(ValueError, match=fault):
        make_heads(**settings)


@pytest.mark.parametrize(
    "settings",
    [{"beam_size": 0}, {"ctc_weight": 1.0}, {"max_decode_ratio": 0}],
)
def test_a_search_that_cannot_be_is_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        BeamSearch(**settings)


def test_a_checkpoint_with_other_decoders_is_refused():
    weights = make_heads(tied_decoder=False).state_dict()
    with pytest.raises(
        ValueError, match="exits 2, 4, the model at tied.*tied_decoder"
    ):
        make_heads().load_state_dict(weights)
