"""The one loop with gates: what ran, what it cost, and what traces say."""

import pandas as pd
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from speechbrain_ee.analysis.recorder import TraceRecorder
from speechbrain_ee.analysis.traces import read_traces
from speechbrain_ee.costs import ExitCosts
from speechbrain_ee.encoders.huggingface import HuggingFaceEncoder
from speechbrain_ee.exits import NeverLeave, Oracle, get_score
from speechbrain_ee.gates import FixedMask, InputConditionedGate
from speechbrain_ee.heads import CTCHeads
from speechbrain_ee.runtime import EarlyExitLoop
from tests.unit.encoders.backbones import NUM_LAYERS, build
from tests.unit.gates.gates import LEARNED, ROWS

EXITS = [1, 2, 3, 4]
LENGTHS = (9000, 16000, 12345)
IDS = ["a", "b", "c"]


@pytest.fixture(params=["conformer-RelPosMHAXL", "wavlm-base"])
def encoder(request):
    return build(request.param).encoder


def attach(encoder, row):
    torch.manual_seed(6)
    encoder.attach(ROWS[row]())


def make_loop(encoder, selector, exits=EXITS, **options):
    torch.manual_seed(5)
    heads = CTCHeads(exits, encoder.output_size, vocab_size=6).eval()
    return EarlyExitLoop(encoder, heads, selector, **options)


def make_wavs():
    generator = torch.Generator().manual_seed(2)
    return [0.1 * torch.randn(n, generator=generator) for n in LENGTHS]


def batch_of(wavs):
    batch = torch.nn.utils.rnn.pad_sequence(wavs, batch_first=True)
    return batch, torch.tensor([len(wav) / batch.shape[1] for wav in wavs])


@pytest.mark.parametrize("row", ROWS)
def test_each_utterance_of_a_batch_is_treated_as_it_would_be_alone(
    encoder, row
):
    attach(encoder, row)
    wavs, exits = make_wavs(), Oracle(dict(zip(IDS, [4, 3, 4])))
    loop, found = make_loop(encoder, exits), {}

    def note(output, rows, states):
        for place, name in enumerate(output.ids):
            count = output.frames[place]
            found[name] = [state[place, :count] for state in states]

    left = loop(*batch_of(wavs), ids=IDS, on_leave=note)
    for place, (name, wav) in enumerate(zip(IDS, wavs)):
        together = found[name]
        alone = loop(wav[None], ids=[name], on_leave=note)
        assert alone.exit_layer[0] == left.exit_layer[place]
        assert alone.layers_run[0] == left.layers_run[place]
        assert alone.layers[0] == left.layers[place]
        assert alone.macs[0] == left.macs[place]
        assert alone.hypotheses[0] == left.hypotheses[place]
        for one, other in zip(together, found[name], strict=True):
            assert (one - other).abs().max() <= 1e-5
    counts = [layers.count("1") for layers in left.layers]
    assert left.layers_run.tolist() == counts
    assert [len(layers) for layers in left.layers] == [4, 3, 4]


@pytest.mark.parametrize("row", ROWS)
@torch.no_grad()
def test_costs_equal_a_count_of_the_real_run(encoder, row):
    attach(encoder, row)
    loop = make_loop(encoder, NeverLeave(), exits=[NUM_LAYERS])
    wav = make_wavs()[1][None]
    left = loop(wav)
    state = encoder.begin(wav)
    with (
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):
        while state.layer < NUM_LAYERS:
            state = encoder.step(state)
        loop.heads.logits(state.hidden, NUM_LAYERS)
    assert left.macs.tolist() == [counter.get_total_flops() / 2]


def test_the_gate_of_the_moment_is_counted(encoder):
    attach(encoder, LEARNED[0])
    gate, wavs = encoder.gate, make_wavs()[:1]
    costs = make_loop(encoder, NeverLeave()).costs
    frames = encoder.begin(wavs[0][None]).frames
    gated = costs(4, frames)
    encoder.attach(None)
    costs.count_gate(encoder)
    assert 0 < gated - costs(4, frames) < gated
    encoder.attach(gate)
    costs.count_gate(encoder)
    assert costs(4, frames) == gated


@pytest.mark.parametrize("summary", ["statistics", "recurrent", "attention"])
@pytest.mark.parametrize("decides", ["at_once", "layer_by_layer"])
@pytest.mark.parametrize("make", ["small", "base"])
def test_a_selector_is_at_most_a_hundredth_of_its_backbone(
    decides, make, summary
):
    if (decides, summary) == ("layer_by_layer", "recurrent"):
        with pytest.raises(ValueError, match="no light network"):
            InputConditionedGate([6], summary=summary, decides=decides)
        return
    if make == "small":
        encoder = small_conformer()
    else:
        encoder = HuggingFaceEncoder("hubert", pretrained=False)
    heads = CTCHeads([12], encoder.output_size, vocab_size=30)
    costs = ExitCosts(encoder, heads)
    frames = torch.tensor([50, 500])  # 2 and 20 s after sub-sampling by 4
    backbone = costs(12, frames)
    encoder.attach(InputConditionedGate([6], summary=summary, decides=decides))
    costs.count_gate(encoder)
    assert (costs(12, frames) <= 1.01 * backbone).all()


def small_conformer():
    """The size of recipes/LibriSpeech/hparams/conformer_ctc_ee_small.yaml."""
    from speechbrain.lobes.features import Fbank
    from speechbrain.lobes.models.transformer.TransformerASR import (
        TransformerASR,
    )

    from speechbrain_ee.encoders import SpeechBrainEncoder

    transformer = TransformerASR(
        tgt_vocab=30,
        input_size=320,
        d_model=96,
        nhead=4,
        num_encoder_layers=12,
        num_decoder_layers=0,
        d_ffn=256,
        kernel_size=15,
        encoder_module="conformer",
        attention_type="RoPEMHA",
        positional_encoding=None,
        normalize_before=True,
        causal=False,
    )
    return SpeechBrainEncoder(transformer, Fbank(n_mels=80))


def test_traces_tell_the_layers_and_stay_readable(encoder, tmp_path):
    encoder.attach(FixedMask("0110"))
    recorder = TraceRecorder(
        EXITS,
        [get_score("entropy")],
        lambda hyps: ["X"] * len(hyps),
        dict.fromkeys(IDS, "X Y"),
    )
    loop = make_loop(encoder, NeverLeave(), watched=recorder.scores)
    loop(*batch_of(make_wavs()), ids=IDS, on_exit=recorder)
    recorder.write(tmp_path, "test")
    path = tmp_path / "traces_test.csv"
    table = pd.read_csv(path, dtype=str)
    assert table["layers"].tolist() == ["0", "01", "011", "0110"] * 3
    traces = read_traces(path)
    assert traces.layers_run.tolist() == [[0, 1, 2, 2]] * 3
    assert "layers" not in traces.groups
    encoder.attach(None)
    recorder.rows = []
    loop(*batch_of(make_wavs()), ids=IDS, on_exit=recorder)
    assert "layers" not in recorder.table()
