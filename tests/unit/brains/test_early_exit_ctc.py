"""The Brain: lengths, what is frozen, what is refused before training."""

from functools import partial

import pytest
import speechbrain as sb
import torch
from speechbrain.dataio.batch import PaddedBatch
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.nnet.schedulers import NoamScheduler

from speechbrain_ee.brains import EarlyExitCTC
from speechbrain_ee.checkpoints import SafeCheckpointer
from speechbrain_ee.encoders.huggingface import HuggingFaceEncoder
from speechbrain_ee.heads import CTCHeads
from speechbrain_ee.inference import FrozenTeacher
from speechbrain_ee.objectives import ExitLossSum, PosteriorDistillation
from tests.unit.encoders.backbones import (
    NUM_LAYERS,
    SMALL,
    build,
    save_pretrained,
)

SAMPLES = {"a": 16000, "b": 9000, "c": 12000}
TOKENS = {"a": [1, 2, 3, 3], "b": [2, 1], "c": [3]}


class Labels:
    """As much of a tokenizer as the Brain asks for."""

    def __init__(self, count):
        self.sp = self
        self.vocab_size = lambda: count
        self.id_to_piece = ["<pad>", "<unk>", *"abcdef"].__getitem__
        self.decode_ids = lambda ids: " ".join("abcde"[i] for i in ids)


def make_brain(exit_layers=(2, NUM_LAYERS), labels=5, **settings):
    encoder = build("conformer-RoPEMHA").encoder
    return EarlyExitCTC(
        tokenizer=Labels(labels),
        modules={
            "encoder": encoder,
            "exits": CTCHeads(exit_layers, encoder.output_size, vocab_size=5),
        },
        hparams={"sample_rate": 16000},
        **{"opt_class": torch.optim.AdamW, **settings},
    )


def make_teacher(labels=5):
    """Another model that says the same labels."""
    torch.manual_seed(1)
    encoder = build("conformer-RelPosMHAXL").encoder
    exits = CTCHeads([NUM_LAYERS], encoder.output_size, vocab_size=5)
    modules = {"encoder": encoder, "exits": exits}
    return FrozenTeacher(modules, Labels(labels), 16000)


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


def test_a_teacher_hears_the_waveforms_that_the_student_hears():
    def louder(wavs, wav_lens):
        """An augmentation."""
        return 3 * wavs, wav_lens

    louder.replicate_labels = lambda labels: labels
    heard = []
    teacher = make_teacher()
    brain = make_brain(
        objective=PosteriorDistillation("model"),
        teacher=teacher,
        wav_augment=louder,
    )
    brain.encoder.register_forward_pre_hook(lambda _, x: heard.append(x[0]))
    teacher.encoder.register_forward_pre_hook(lambda _, x: heard.append(x[0]))
    loss_of(brain, *"abc").backward()
    wavs, _ = batch_of(*"abc").sig
    assert torch.equal(heard[0], 3 * wavs) and heard[0] is heard[1]
    for name, parameter in brain.modules.named_parameters():
        assert parameter.grad is not None, name
    assert all(p.grad is None for p in teacher.encoder.parameters())
    own = {id(p) for p in brain.modules.parameters()}
    assert own.isdisjoint(map(id, teacher.encoder.parameters()))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"objective": PosteriorDistillation("model")}, "--teacher"),
        ({"teacher": make_teacher}, "teacher_posteriors"),
        (
            {
                "objective": PosteriorDistillation("model"),
                "teacher": lambda: make_teacher(labels=4),
            },
            "has 4 labels, this model 5",
        ),
    ],
)
def test_a_teacher_that_does_not_fit_is_told_before_training(settings, told):
    if "teacher" in settings:
        settings = {**settings, "teacher": settings["teacher"]()}
    with pytest.raises(ValueError, match=told):
        make_brain(**settings)


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


# --- an optimiser for the encoder, and one for the rest -------------------

SGD, RATES = torch.optim.SGD, {"encoder": 0.25, "exits": 0.5}


def make_twofold(**settings):
    """A brain with both, and schedules that leave the first rate as it is."""
    brain = make_brain(
        opt_class=partial(SGD, lr=RATES["exits"], momentum=0.9),
        encoder_opt_class=partial(SGD, lr=RATES["encoder"], momentum=0.9),
        lr_annealing=NoamScheduler(RATES["exits"], 1),
        encoder_lr_annealing=NoamScheduler(RATES["encoder"], 1),
        **settings,
    )
    brain.noprogressbar = True
    return brain


def fit(brain, epochs=(1,), batches=1, **loaders):
    brain.fit(epochs, batches_loader([batch_of(*"abc")] * batches), **loaders)


def steps_of(brain, monkeypatch):
    """Gradients before clipping, and the parameters before and after."""
    step, seen = brain.optimizers_step, {}

    def watched():
        """The step, with what it found and left."""
        trained = {
            name: p
            for name, p in brain.modules.named_parameters()
            if p.requires_grad
        }
        before = {
            name: (p.detach().clone(), p.grad.clone())
            for name, p in trained.items()
        }
        step()
        for name, (old, grad) in before.items():
            seen[name] = (grad, trained[name].detach() - old)

    monkeypatch.setattr(brain, "optimizers_step", watched)
    fit(brain)
    return seen


def test_each_part_is_trained_at_its_own_rate(monkeypatch):
    seen = steps_of(make_twofold(run_opts={"max_grad_norm": 1e9}), monkeypatch)
    assert {name.split(".")[0] for name in seen} == set(RATES)
    for name, (grad, change) in seen.items():
        rate = RATES[name.split(".")[0]]
        assert torch.allclose(change, -rate * grad, rtol=1e-3, atol=1e-6), name


def test_each_part_clips_its_own_gradients(monkeypatch):
    seen = steps_of(make_twofold(run_opts={"max_grad_norm": 0.01}), monkeypatch)
    for part, rate in RATES.items():
        changes = [x for name, (_, x) in seen.items() if name.startswith(part)]
        norm = torch.cat([x.flatten() for x in changes]).norm().item()
        assert norm == pytest.approx(0.01 * rate, rel=0.01)


@pytest.mark.parametrize("without_decay", [False, True])
def test_every_parameter_has_one_optimiser(without_decay):
    brain = make_twofold(run_opts={"remove_vector_weight_decay": without_decay})
    brain.init_optimizers()
    held = [
        id(p)
        for optimizer in brain.optimizers_dict.values()
        for group in optimizer.param_groups
        for p in group["params"]
    ]
    trained = {id(p) for p in brain.modules.parameters() if p.requires_grad}
    assert len(held) == len(set(held))
    assert trained <= set(held)


def test_both_rates_move_once_per_step_and_not_per_batch():
    brain = make_twofold(run_opts={"grad_accumulation_factor": 2})
    fit(brain, batches=4)
    assert brain.optimizer_step == 2
    assert brain.lr_annealing.n_steps == 2
    assert brain.encoder_lr_annealing.n_steps == 2
    expected = {"lr": 0.5 / 2**0.5, "lr_encoder": 0.25 / 2**0.5}
    assert brain.rates == pytest.approx(expected)


def test_the_train_log_names_both_rates():
    class Logger:
        """Keeps what it is told."""

        def log_stats(self, meta, **stats):
            """As SpeechBrain calls it."""
            self.meta = meta

    logger = Logger()
    brain = make_twofold(train_logger=logger)
    fit(brain, valid_set=batches_loader([batch_of("a")]))
    assert logger.meta == {"epoch": 1, "lr": 0.5, "lr_encoder": 0.25}


def test_a_run_goes_on_with_both_optimisers_as_they_were(tmp_path):
    def make():
        """The brain of a run, with all that it saves."""
        brain = make_twofold()
        brain.checkpointer = SafeCheckpointer(
            tmp_path,
            {
                "encoder": brain.encoder,
                "exits": brain.exits,
                "scheduler": brain.lr_annealing,
                "encoder_scheduler": brain.encoder_lr_annealing,
            },
        )
        return brain

    first, second = make(), make()
    fit(first, batches=3, valid_set=batches_loader([batch_of("a")]))
    second.on_fit_start()
    for name in ("optimizer", "encoder_optimizer"):
        ours = getattr(second, name).state_dict()
        theirs = getattr(first, name).state_dict()
        assert ours["param_groups"] == theirs["param_groups"]
        assert ours["state"].keys() == theirs["state"].keys() != set()
        for index, state in theirs["state"].items():
            momentum = ours["state"][index]["momentum_buffer"]
            assert torch.equal(momentum, state["momentum_buffer"])
    assert second.encoder_lr_annealing.n_steps == 3
    assert second.lr_annealing.n_steps == 3


def test_a_schedule_of_an_optimiser_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="give encoder_opt_class too"):
        make_brain(encoder_lr_annealing=NoamScheduler(1.0, 1))


def test_a_loss_that_stays_nan_names_both_rates():
    brain = make_twofold()
    with torch.no_grad():
        next(brain.encoder.layers[0].parameters()).fill_(torch.nan)
    with pytest.raises(ValueError, match=r"lr \(.*\) and lr_encoder \(now 0"):
        fit(brain, batches=9)


# --- Hugging Face encoders ------------------------------------------------


def make_ssl_brain(model_type, tied=False, **settings):
    encoder = HuggingFaceEncoder(
        model_type, pretrained=False, apply_spec_augment=True, config=SMALL
    )
    exits = CTCHeads([1, 2], encoder.output_size, vocab_size=5, tied=tied)
    return EarlyExitCTC(
        tokenizer=Labels(5),
        modules={"encoder": encoder, "exits": exits},
        opt_class=SGD,
        **settings,
    )


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("model_type", ["wav2vec2", "hubert", "wavlm"])
def test_a_step_trains_every_parameter_that_is_not_frozen(model_type, tied):
    brain = make_ssl_brain(model_type, tied)
    brain.modules.train()
    loss_of(brain, *"abc").backward()
    without = {
        name
        for name, p in brain.modules.named_parameters()
        if p.requires_grad and p.grad is None
    }
    frozen = {
        name.split(".")[2]
        for name, p in brain.modules.named_parameters()
        if not p.requires_grad
    }
    assert without == set()
    assert frozen == {"feature_extractor"}


@pytest.mark.parametrize("tied", [False, True])
def test_a_plain_ctc_model_starts_every_exit(tmp_path, tied):
    vocab = ["<pad>", "C", "B", "A", "<unk>"]
    model = save_pretrained(tmp_path, "hubert", vocab)
    brain = make_ssl_brain("hubert", tied, ctc_source=str(tmp_path))
    for linear in brain.exits.linear.values():
        assert torch.equal(linear.weight, model.lm_head.weight[[0, 4, 3, 2, 1]])


def batches_loader(batches):
    return torch.utils.data.DataLoader(
        batches, batch_size=None, collate_fn=lambda batch: batch
    )
