"""Exits that start from a plain CTC model: exactly it, or refused."""

import json

import pytest
import torch

from speechbrain_ee.encoders.huggingface import HuggingFaceEncoder
from speechbrain_ee.heads import CTCHeads
from speechbrain_ee.heads.pretrained import start_from_ctc
from tests.unit.encoders.backbones import SMALL, build, save_pretrained

KINDS = ["wav2vec2", "hubert", "wavlm"]
VOCAB = ["<pad>", "<s>", "</s>", "<unk>", "|", "E", "T", "A"]
OURS = ["<pad>", "<unk>", "\u2581", "A", "E", "T"]


def build_exits(exit_layers=(1, 2), vocab_size=8, **settings):
    return CTCHeads(exit_layers, SMALL["hidden_size"], vocab_size, **settings)


def build_encoder(model_type, **settings):
    config = {**SMALL, **settings.pop("config", {})}
    return HuggingFaceEncoder(
        model_type, pretrained=False, config=config, **settings
    )


def normalized(wavs):
    centred = wavs - wavs.mean()
    return centred / (centred.square().mean() + 1e-7).sqrt()


def log_probs(encoder, exits, wavs):
    """Of every exit, as training reads them."""
    encoder.eval(), exits.eval()
    states, _ = encoder(
        wavs, layers=exits.exit_layers, normed=exits.normed_layers
    )
    return exits(states)


@pytest.mark.parametrize("stable", [False, True])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("model_type", KINDS)
@torch.no_grad()
def test_the_last_exit_is_the_plain_model(tmp_path, model_type, tied, stable):
    large = {"do_stable_layer_norm": True, "feat_extract_norm": "layer"}
    config = large if stable else {}
    model = save_pretrained(tmp_path, model_type, VOCAB, **config)
    encoder = build_encoder(model_type, config=config)
    exits = build_exits(tied=tied)
    wavs = torch.randn(1, 8000)
    expected = model(normalized(wavs)).logits.log_softmax(-1)
    assert not torch.allclose(log_probs(encoder, exits, wavs)[-1], expected)
    start_from_ctc(encoder, exits, str(tmp_path))
    assert torch.allclose(
        log_probs(encoder, exits, wavs)[-1], expected, rtol=0, atol=1e-5
    )
    for linear in exits.linear.values():
        assert torch.equal(linear.weight, model.lm_head.weight)
        assert torch.equal(linear.bias, model.lm_head.bias)
    ours, theirs = encoder.model.state_dict(), model.base_model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize("lower", [False, True])
@torch.no_grad()
def test_labels_are_brought_into_the_order_of_the_tokenizer(tmp_path, lower):
    model = save_pretrained(tmp_path, "wav2vec2", VOCAB)
    encoder, exits = build_encoder("wav2vec2"), build_exits()
    labels = [x.lower() for x in OURS] if lower else OURS
    start_from_ctc(encoder, exits, str(tmp_path), labels)
    wavs = torch.randn(1, 8000)
    theirs = model(normalized(wavs)).logits.log_softmax(-1)
    ours = log_probs(encoder, exits, wavs)[-1]
    order = [VOCAB.index(x) for x in ["<pad>", "<unk>", "|", "A", "E", "T"]]
    order += [VOCAB.index("<s>"), VOCAB.index("</s>")]
    assert torch.allclose(ours, theirs[..., order], rtol=0, atol=1e-5)


@torch.no_grad()
def test_the_blank_may_stand_elsewhere(tmp_path):
    model = save_pretrained(tmp_path, "hubert", VOCAB)
    exits = build_exits(blank_index=5)
    labels = ["A", "T", "\u2581", "E", "<unk>", "anything"]
    start_from_ctc(build_encoder("hubert"), exits, str(tmp_path), labels)
    weight = exits.linear["1"].weight
    assert torch.equal(weight[5], model.lm_head.weight[0])
    assert torch.equal(weight[0], model.lm_head.weight[VOCAB.index("A")])
    with pytest.raises(ValueError, match="blank_index: 0, or give labels"):
        start_from_ctc(build_encoder("hubert"), exits, str(tmp_path))


def test_a_shorter_encoder_takes_the_first_layers(tmp_path):
    model = save_pretrained(tmp_path, "wavlm", VOCAB)
    encoder = build_encoder("wavlm", num_layers=1)
    start_from_ctc(encoder, build_exits([1]), str(tmp_path))
    ours = encoder.layers[0].feed_forward.output_dense.weight
    theirs = model.wavlm.encoder.layers[0].feed_forward.output_dense.weight
    assert torch.equal(ours, theirs)


def test_what_is_frozen_stays_frozen(tmp_path):
    save_pretrained(tmp_path, "wav2vec2", VOCAB)
    encoder = build_encoder("wav2vec2")
    before = {n for n, p in encoder.named_parameters() if p.requires_grad}
    start_from_ctc(encoder, build_exits(), str(tmp_path))
    after = {n for n, p in encoder.named_parameters() if p.requires_grad}
    assert before == after


@pytest.mark.parametrize(
    ("ours", "told"),
    [
        ({"vocab_size": 9}, "8 labels, the exits 9: set output_neurons: 8"),
        ({"model_type": "hubert"}, "is a wav2vec2 model, the encoder hubert"),
        ({"hidden_size": 32}, "hidden_size: 16, the encoder 32"),
        ({"hidden_act": "relu"}, "hidden_act: gelu, the encoder relu"),
        ({"num_hidden_layers": 3}, "has 2 layers, the encoder 3"),
        ({"normalize_wav": False}, "normalize_wav: True, the encoder has Fal"),
        ({"labels": [*OURS, "Z", "\u00e9"]}, "lacks 2 labels .*: Z \u00e9"),
        ({"labels": ["<pad>", "<unk>", "\u2581THE"]}, "token_type: char"),
        ({"labels": ["<pad>", "A", "a"]}, "'a' and another label.*one case"),
    ],
)
def test_what_does_not_fit_is_refused_and_named(tmp_path, ours, told):
    save_pretrained(tmp_path, "wav2vec2", VOCAB)
    ours, own = dict(ours), {}
    exits = build_exits(vocab_size=ours.pop("vocab_size", len(VOCAB)))
    labels = ours.pop("labels", None)
    if "normalize_wav" in ours:
        own["normalize_wav"] = ours.pop("normalize_wav")
    encoder = build_encoder(
        ours.pop("model_type", "wav2vec2"), config=ours, **own
    )
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    with pytest.raises(ValueError, match=told):
        start_from_ctc(encoder, exits, str(tmp_path), labels)
    after = encoder.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_a_model_without_a_ctc_head_is_refused(tmp_path):
    save_pretrained(tmp_path, "hubert", vocab=None)
    with pytest.raises(ValueError, match="fine-tuned with CTC.*lm_head"):
        start_from_ctc(build_encoder("hubert"), build_exits(), str(tmp_path))


def test_a_folder_that_is_none_is_refused():
    with pytest.raises(FileNotFoundError, match="ctc_source: '/no/such"):
        start_from_ctc(build_encoder("hubert"), build_exits(), "/no/such")


def test_labels_without_a_vocabulary_are_refused(tmp_path):
    save_pretrained(tmp_path, "wavlm", VOCAB)
    (tmp_path / "vocab.json").unlink()
    encoder, exits = build_encoder("wavlm"), build_exits()
    with pytest.raises(FileNotFoundError, match="no vocab.json"):
        start_from_ctc(encoder, exits, str(tmp_path), OURS)
    start_from_ctc(encoder, exits, str(tmp_path))


def test_without_a_preprocessor_it_says_what_it_takes_for_granted(
    tmp_path, caplog
):
    save_pretrained(tmp_path, "wavlm", VOCAB, do_normalize=False)
    (tmp_path / "preprocessor_config.json").unlink()
    with caplog.at_level("WARNING"):
        start_from_ctc(build_encoder("wavlm"), build_exits(), str(tmp_path))
    assert "normalize_wav: True" in caplog.text


def test_a_vocabulary_of_many_languages_is_refused(tmp_path):
    save_pretrained(tmp_path, "wav2vec2", VOCAB)
    rows = json.loads((tmp_path / "vocab.json").read_text())
    (tmp_path / "vocab.json").write_text(json.dumps({"eng": rows}))
    with pytest.raises(ValueError, match="no table of labels and rows"):
        start_from_ctc(
            build_encoder("wav2vec2"), build_exits(), str(tmp_path), OURS
        )


@torch.no_grad()
def test_other_names_of_boundary_and_unknown_are_known(tmp_path):
    theirs = [{"|": " ", "<unk>": "[UNK]"}.get(x, x) for x in VOCAB]
    model = save_pretrained(tmp_path, "wav2vec2", theirs)
    exits = build_exits()
    start_from_ctc(build_encoder("wav2vec2"), exits, str(tmp_path), OURS)
    weight = exits.linear["2"].weight
    assert torch.equal(weight[:3], model.lm_head.weight[[0, 3, 4]])


def test_only_hugging_face_encoders_take_such_weights(tmp_path):
    encoder = build("conformer-RoPEMHA").encoder
    exits = CTCHeads([2, 4], encoder.output_size, vocab_size=8)
    with pytest.raises(ValueError, match="only a HuggingFaceEncoder"):
        start_from_ctc(encoder, exits, str(tmp_path))
