"""Models with attention decoders: exported, loaded, truncated, searched."""

import pytest
import torch
from hyperpyyaml import load_hyperpyyaml

from speechbrain_ee.inference import EarlyExitASR, truncate_model
from speechbrain_ee.language_model import save_lm
from tests.unit.inference.models import (
    SPEECHBRAIN,
    make_run,
    make_wavs,
    read_exits,
    train_tokenizer,
)

CPU = {"device": "cpu"}
HEADS = """exits: !new:speechbrain_ee.heads.AttentionHeads
    exit_layers: !ref <exit_layers>
    input_size: 16
    vocab_size: 12
    tied: !ref <tied>
    tied_decoder: !ref <tied_decoder>
    exit_norm: !ref <exit_norm>
    decoder: !name:speechbrain_ee.heads.AttentionDecoder
        nhead: 2
        num_layers: 1
        d_ffn: 24
    search: !new:speechbrain_ee.heads.BeamSearch
        beam_size: 3
        ctc_weight: 0.2
        lm_weight: 2.0
        lm: !apply:speechbrain_ee.language_model.load_lm
            source: !ref <lm>
"""
head, _, rest = SPEECHBRAIN.partition("exits: !new")
TEMPLATE = (
    head.replace("tied: False", "tied: False\ntied_decoder: True\nlm: null")
    + HEADS
    + rest[rest.index("\nepoch_counter") :]
)
LM_YAML = """
lm_model: !new:speechbrain.lobes.models.transformer.TransformerLM.TransformerLM
    vocab: 12
    d_model: 8
    nhead: 2
    num_encoder_layers: 1
    d_ffn: 16
"""


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    """The folder of a language model."""
    folder = tmp_path_factory.mktemp("lm")
    (folder / "hyperparams.yaml").write_text(LM_YAML)
    train_tokenizer(folder / "char.model")
    torch.manual_seed(3)
    model = load_hyperpyyaml(LM_YAML)["lm_model"]
    save_lm(folder, model, folder / "char.model")
    return folder


def hypotheses(modules):
    """Transcripts of every exit."""
    outputs = read_exits(*modules, *make_wavs())
    return {k: output.nbest for k, output in outputs.items()}


def of(asr):
    return asr.mods.encoder, asr.mods.exits


@pytest.mark.parametrize("with_lm", [False, True])
def test_a_loaded_model_finds_what_the_trained_one_found(tmp_path, lm, with_lm):
    source = str(lm) if with_lm else None
    run = make_run(tmp_path / "run", template=TEMPLATE, lm=source)
    expected = hypotheses(run.modules)
    folder = run.export(tmp_path / "model")
    assert (folder / "lm.ckpt").is_file() == with_lm
    text = (folder / "inference.yaml").read_text()
    assert str(lm) not in text and "load_lm" not in text
    asr = EarlyExitASR.from_hparams(folder, run_opts=CPU)
    found = hypotheses(of(asr))
    for k in (1, 2, 4):
        for ours, theirs in zip(found[k], expected[k], strict=True):
            assert [one for one, _ in ours] == [one for one, _ in theirs]
    wavs, wav_lens = make_wavs()
    asr.set_depth(exit_layer=2)
    texts = [one.text for one in asr.transcribe_batch(wavs, wav_lens)]
    assert texts == asr.decode([nbest[0][0] for nbest in expected[2]])


def test_the_language_model_is_heard(tmp_path, lm):
    plain = make_run(tmp_path / "a", template=TEMPLATE)
    helped = make_run(tmp_path / "b", template=TEMPLATE, lm=str(lm))
    assert hypotheses(plain.modules) != hypotheses(helped.modules)


@pytest.mark.parametrize("exit_norm", ["shared", "own", "none"])
@pytest.mark.parametrize("tied_decoder", [False, True])
def test_a_truncated_model_finds_what_it_found(
    tmp_path, lm, exit_norm, tied_decoder
):
    run = make_run(
        tmp_path / "run",
        template=TEMPLATE,
        lm=str(lm),
        exit_norm=exit_norm,
        tied_decoder=tied_decoder,
    )
    expected = hypotheses(run.modules)
    run.export(tmp_path / "model")
    cut = truncate_model(tmp_path / "model", 2, tmp_path / "cut")
    assert cut.parameters_after < cut.parameters_before
    asr = EarlyExitASR.from_hparams(tmp_path / "cut", run_opts=CPU)
    found = hypotheses(of(asr))
    assert found.keys() == {1, 2}
    for k in (1, 2):
        for ours, theirs in zip(found[k], expected[k], strict=True):
            assert [one for one, _ in ours] == [one for one, _ in theirs]
    decoders = asr.mods.exits.decoder.keys()
    assert set(decoders) == ({"tied"} if tied_decoder else {"1", "2"})


def test_scores_of_the_decoder_say_who_leaves(tmp_path):
    run = make_run(tmp_path / "run", template=TEMPLATE)
    folder = run.export(tmp_path / "model")
    asr = EarlyExitASR.from_hparams(folder, run_opts=CPU)
    wavs, wav_lens = make_wavs()
    for threshold, layer in ((9.0, 1), (0.0, 4)):
        asr.set_depth(
            {
                "selector": "threshold",
                "score": "token_entropy",
                "threshold": threshold,
            }
        )
        for one in asr.transcribe_batch(wavs, wav_lens):
            assert one.exit_layer == layer and 0 < one.score < 9
