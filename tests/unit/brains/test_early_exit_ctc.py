"""The Brain: lengths, what is frozen, what is refused before training."""

import pytest
import speechbrain as sb
import torch
from speechbrain.dataio.batch import PaddedBatch
from speechbrain.dataio.dataset import DynamicItemDataset

from speechbrain_ee.brains import EarlyExitCTC
from speechbrain_ee.heads import CTCHeads
from speechbrain_ee.objectives import ExitLossSum
from tests.unit.encoders.backbones import NUM_LAYERS, build

SAMPLES = {"a": 16000, "b": 9000, "c": 12000}
TOKENS = {"a": [1, 2, 3, 3], "b": [2, 1], "c": [3]}


class Labels:
    """As much of a tokenizer as the Brain asks for."""

    def __init__(self, count):
        self.sp = self
        self.vocab_size = lambda: count
        self.decode_ids = lambda ids: " ".join("abcde"[i] for i in ids)


def make_brain(exit_layers=(2, NUM_LAYERS), labels=5, **settings):
    encoder = build("conformer-RoPEMHA").encoder
    return EarlyExitCTC(
        tokenizer=Labels(labels),
        modules={
            "encoder": encoder,
            "exits": CTCHeads(exit_layers, encoder.output_size, vocab_size=5),
        },
        opt_class=torch.optim.AdamW,
        hparams={"sample_rate": 16000},
        **settings,
    )


def batch_of(*names):
    generator = torch.Generator().manual_seed(0)
    wavs = {
        name: torch.randn(n, generator=generator) for name, n in SAMPLES.items()
    }
    return PaddedBatch(
        [
            {
                "id": name,
                "sig": wavs[name],
                "tokens": torch.tensor(TOKENS[name]),
                "wrd": "ONE",
            }
            for name in names
        ]
    )


def loss_of(brain, *names):
    batch = batch_of(*names)
    predictions = brain.compute_forward(batch, sb.Stage.TRAIN)
    return brain.compute_objectives(predictions, batch, sb.Stage.TRAIN)


@torch.no_grad()
def test_the_loss_of_a_padded_batch_is_the_mean_of_its_utterances():
    brain = make_brain()
    brain.modules.eval()
    alone = torch.stack([loss_of(brain, name) for name in "abc"])
    assert torch.allclose(loss_of(brain, *"abc"), alone.mean(), atol=1e-5)


def test_one_step_trains_every_parameter():
    brain = make_brain()
    loss_of(brain, *"abc").backward()
    without = [
        name
        for name, parameter in brain.modules.named_parameters()
        if parameter.requires_grad and parameter.grad is None
    ]
    assert without == []


def test_exits_that_end_early_are_warned_of_and_what_is_unread_is_frozen(
    caplog,
):
    with caplog.at_level("WARNING"):
        brain = make_brain(exit_layers=(1, 3))
    assert "layer 3 of 4" in caplog.text
    trained = [
        any(p.requires_grad for p in layer.parameters())
        for layer in brain.encoder.layers
    ]
    assert trained == [True, True, True, False]
    loss_of(brain, *"abc").backward()
    assert all(
        p.grad is not None
        for p in brain.modules.parameters()
        if p.requires_grad
    )


def test_exits_at_the_last_layer_are_not_warned_of(caplog):
    make_brain()
    assert "layer" not in caplog.text


def test_exits_outside_the_encoder_are_refused():
    with pytest.raises(ValueError, match=r"\[2, 8\].*4 layers"):
        make_brain(exit_layers=(2, 8))


def test_an_unknown_figure_to_select_by_is_refused():
    with pytest.raises(ValueError, match="WER_mean, WER_exit2, WER_exit4"):
        make_brain(select_by="WER")


def test_more_labels_than_the_exits_know_are_refused():
    with pytest.raises(ValueError, match="6 labels, the exits only 5"):
        make_brain(labels=6)


def test_targets_longer_than_their_frames_are_named_before_training():
    brain = make_brain()
    items = {
        "fits": {"duration": 1.0, "tokens": torch.arange(1, 26) % 5},
        "long": {"duration": 0.5, "tokens": torch.ones(8, dtype=torch.long)},
    }
    dataset = DynamicItemDataset(items)
    with pytest.raises(ValueError, match=r"1 targets.*long \(13 frames, 15"):
        brain.check_lengths(dataset, targets=True)
    brain.check_lengths(dataset)  # tests need no room for their targets
    del items["long"]
    brain.check_lengths(DynamicItemDataset(items), targets=True)


def test_utterances_too_short_for_the_encoder_are_named():
    brain = make_brain()
    tokens = torch.tensor([1])
    items = {"brief": {"duration": 0.001, "tokens": tokens}}
    with pytest.raises(ValueError, match="brief .*min_duration"):
        brain.check_lengths(DynamicItemDataset(items))


def test_labels_that_the_tokenizer_does_not_know_are_left_out():
    assert make_brain(labels=3).decode([(1, 4, 2), ()]) == ["b c", ""]


def test_weights_of_the_exits_count():
    def last_only(exit_layers):
        return torch.tensor([0.0, 1.0])

    brain, last = make_brain(), make_brain(objective=ExitLossSum(last_only))
    for one in (brain, last):
        one.modules.eval()
    assert loss_of(last, "a") < loss_of(brain, "a")


def test_a_loss_that_stays_nan_stops_training_and_says_what_to_do():
    brain = make_brain(lr_annealing=None)
    brain.noprogressbar = True
    with torch.no_grad():
        next(brain.encoder.layers[0].parameters()).fill_(torch.nan)
    batches = [batch_of(*"abc")] * 9
    with pytest.raises(ValueError, match=r"loss is nan.*Lower lr \(now 0.001"):
        brain.fit(range(1, 2), batches_loader(batches))


def calibrated(exit_layers):
    """A rule as ``speechbrain-ee calibrate`` writes it."""
    return {
        "selector": "threshold",
        "score": {"score": "entropy", "normalization": "nats"},
        "threshold": 0.1,
        "calibration": {"exit_layers": exit_layers},
    }


def test_a_calibrated_threshold_is_taken_where_it_was_made():
    rules = {"mine": calibrated([2, NUM_LAYERS])}
    make_brain().check_strategies(["entropy", "margin"], rules)
    make_brain().check_strategies(["margin"], rules)


@pytest.mark.parametrize(
    ("scores", "selectors", "told"),
    [
        (["entropie"], {}, "Did you mean 'entropy'"),
        (["margin", "margin"], {}, "name one twice"),
        ([], {"mine": {"selector": "fixed", "layer": 3}}, "mine: .*layer 3"),
        ([], {"mine": "patiance"}, "mine: .*Did you mean 'patience'"),
        ([], {"mine": calibrated([1, 9])}, r"mine: .*made for exits \[1, 9\]"),
        (
            [{"score": "entropy", "normalization": "unit"}],
            {"mine": calibrated([2, NUM_LAYERS])},
            "mine: .*here that is .*'unit'",
        ),
    ],
)
def test_strategies_that_cannot_run_are_told_before_training(
    scores, selectors, told
):
    with pytest.raises(ValueError, match=told):
        make_brain().check_strategies(scores, selectors)


def test_it_fits_and_evaluates_with_no_more_than_it_must_be_given():
    brain = make_brain()
    brain.noprogressbar = True
    batches = [batch_of(*"abc")]
    before = brain.evaluate(batches_loader(batches))
    brain.fit(range(1, 4), batches_loader(batches), batches_loader(batches))
    assert brain.evaluate(batches_loader(batches)) < before


def batches_loader(batches):
    return torch.utils.data.DataLoader(
        batches, batch_size=None, collate_fn=lambda batch: batch
    )
