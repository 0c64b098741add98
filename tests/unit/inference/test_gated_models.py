"""Models with a gate: what is exported chooses the layers that it chose."""

import pytest
import torch

from speechbrain_ee.inference import EarlyExitASR, load_teacher
from speechbrain_ee.inference.truncate import truncate_model
from tests.unit.inference.models import KINDS, make_run, make_wavs

SELECTOR = """
gate: !new:speechbrain_ee.gates.InputConditionedGate
    hidden_size: 8
    target_layers: 3
"""
GREEDY = "\ngate: !new:speechbrain_ee.gates.GreedyMasks\n"
FIXED = "\ngate: !new:speechbrain_ee.gates.FixedMask\n    mask: '1001'\n"


def gated_run(folder, kind, gate):
    """A run whose YAML has a gate."""
    text = KINDS[kind] + gate
    for head in (
        "    cnn: !ref <cnn>\n",
        "    pretrained: !ref <pretrained>\n",
    ):
        text = text.replace(head, f"{head}    gate: !ref <gate>\n")
    return make_run(folder, kind, text)


@pytest.mark.parametrize("kind", ["conformer", "wavlm"])
def test_an_exported_selector_chooses_as_before(kind, tmp_path):
    run = gated_run(tmp_path / "run", kind, SELECTOR)
    wavs, wav_lens = make_wavs()
    asr = EarlyExitASR.from_hparams(run.export(tmp_path / "model"))
    encoder = run.modules[0]
    for target in (None, 1, 4, 2.5):
        encoder.gate.set_target(target)
        asr.set_depth(target_layers=target)
        states = [encoder.begin(wavs, wav_lens)]
        for _ in range(4):
            states.append(encoder.step(states[-1]))
        found = asr.transcribe_batch(wavs, wav_lens)
        counts = [one.layers_run for one in found]
        assert counts == states[-1].ran.sum(dim=1).tolist()
        assert target is None or target % 1 or counts == [target] * 4
    assert asr.loop.encoder is asr.mods.encoder
    with pytest.raises(ValueError, match="target_layers: 5 is no number"):
        asr.set_depth(target_layers=5)
    loaded = EarlyExitASR.from_hparams(tmp_path / "model", target_layers=1)
    assert loaded.transcribe_batch(wavs, wav_lens)[0].layers_run == 1


def test_masks_are_exported(tmp_path):
    run = gated_run(tmp_path / "run", "conformer", GREEDY)
    gate = run.modules[0].gate
    gate.search(lambda: float(gate.trial.sum() - 3 * gate.trial[1]))
    asr = EarlyExitASR.from_hparams(run.export(tmp_path / "model"))
    assert torch.equal(asr.mods.encoder.gate.masks, gate.masks)
    assert gate.masks[1].tolist() == [False, True, False, False]
    asr.set_depth(target_layers=1)
    assert asr.transcribe_batch(make_wavs()[0])[0].layers_run == 1


def test_targets_without_a_gate_that_serves_them_are_refused(tmp_path):
    plain = make_run(tmp_path / "plain").export(tmp_path / "a")
    with pytest.raises(ValueError, match="no gate chooses the layers"):
        EarlyExitASR.from_hparams(plain, target_layers=2)
    fixed = gated_run(tmp_path / "fixed", "conformer", FIXED)
    fixed = fixed.export(tmp_path / "b")
    asr = EarlyExitASR.from_hparams(fixed)
    assert asr.transcribe_batch(make_wavs()[0])[0].layers_run == 2
    with pytest.raises(ValueError, match="keeps the layers that it was made"):
        asr.set_depth(target_layers=2)
    with pytest.raises(ValueError, match="its gate chooses among all layers"):
        truncate_model(fixed, 2, tmp_path / "c")


def test_a_gated_run_teaches_and_is_started_from(tmp_path):
    run = gated_run(tmp_path / "run", "conformer", SELECTOR)
    start = load_teacher(run.export(tmp_path / "model"), key="init_from")
    wavs, wav_lens = make_wavs()
    assert start(wavs, wav_lens).isfinite().all()
    other = make_run(tmp_path / "other")
    encoder, exits = other.modules
    torch.nn.init.zeros_(exits.linear["4"].weight)
    encoder.normalize.glob_mean = encoder.normalize.glob_mean + 1
    start.give_weights(encoder, exits)
    own = encoder.state_dict()
    given = start.encoder.state_dict()
    assert all(torch.equal(own[key], given[key]) for key in own)
    assert torch.equal(
        encoder.normalize.glob_mean, start.encoder.normalize.glob_mean
    )
    assert exits.linear["4"].weight.any()
