"""The Brain of CTC and attention: losses, accuracy, searches of the loop."""

import time
from functools import partial

import pytest
import speechbrain as sb
import torch

from speechbrain_ee.brains import EarlyExitAED
from speechbrain_ee.exits import Threshold
from speechbrain_ee.heads import (
    AttentionDecoder,
    AttentionHeads,
    BeamSearch,
)
from speechbrain_ee.objectives import ExitLossSum
from speechbrain_ee.runtime import EarlyExitLoop
from tests.unit.brains.test_early_exit_ctc import (
    Labels,
    batch_of,
    batches_loader,
    loss_of,
    make_brain,
)
from tests.unit.encoders.backbones import NUM_LAYERS, build

SAMPLES = (9000, 16000, 12345, 8000)


class MarkedLabels(Labels):
    """Labels with begin and end of sentences."""

    def __init__(self, count, bos=1, eos=2):
        super().__init__(count)
        self.bos_id, self.eos_id = lambda: bos, lambda: eos


class CountedSearch(BeamSearch):
    """Notes how many utterances were searched at a time."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.calls = []

    def __call__(self, decoder, ctc_lin, states, frames, **marks):
        self.calls.append(len(frames))
        return super().__call__(decoder, ctc_lin, states, frames, **marks)


def make_aed(exit_layers=(2, NUM_LAYERS), tokenizer=None, **settings):
    torch.manual_seed(0)
    encoder = build("conformer-RoPEMHA").encoder
    exits = AttentionHeads(
        exit_layers,
        encoder.output_size,
        vocab_size=6,
        decoder=partial(
            AttentionDecoder, nhead=2, num_layers=1, d_ffn=16, dropout=0.0
        ),
        search=CountedSearch(beam_size=3),
        tied_decoder=settings.pop("tied_decoder", True),
    )
    return EarlyExitAED(
        tokenizer=tokenizer or MarkedLabels(5),
        modules={"encoder": encoder, "exits": exits},
        opt_class=partial(torch.optim.AdamW, lr=0.01),
        hparams={"sample_rate": 16000},
        **settings,
    )


@torch.no_grad()
def test_the_loss_of_a_padded_batch_is_the_mean_of_its_utterances():
    brain = make_aed()
    brain.modules.eval()
    alone = torch.stack([loss_of(brain, name) for name in "abc"])
    assert torch.allclose(loss_of(brain, *"abc"), alone.mean(), atol=1e-5)


@torch.no_grad()
def test_ctc_and_attention_are_weighed():
    losses = []
    for weight in (0.0, 0.3, 1.0):
        brain = make_aed(ctc_weight=weight)
        brain.modules.eval()
        losses.append(loss_of(brain, *"abc"))
    expected = 0.7 * losses[0] + 0.3 * losses[2]
    assert torch.allclose(losses[1], expected, atol=1e-5)


@pytest.mark.parametrize("tied_decoder", [False, True])
def test_one_step_trains_every_parameter(tied_decoder):
    brain = make_aed(tied_decoder=tied_decoder)
    loss_of(brain, *"abc").backward()
    without = [
        name
        for name, parameter in brain.modules.named_parameters()
        if parameter.requires_grad and parameter.grad is None
    ]
    assert without == []


def test_an_exit_without_weight_still_has_gradients():
    def last_only(exit_layers):
        return torch.tensor([0.0, 1.0])

    brain = make_aed(objective=ExitLossSum(last_only), tied_decoder=False)
    loss_of(brain, *"abc").backward()
    assert all(p.grad is not None for p in brain.exits.parameters())


def test_it_fits_and_logs_the_accuracy_of_decoders():
    brain = make_aed()
    brain.noprogressbar = True
    logged = []
    brain.log = lambda meta, **stats: logged.append(stats)
    batches = [batch_of(*"abc")]
    brain.fit(range(1, 25), batches_loader(batches), batches_loader(batches))
    first, last = logged[0]["valid_stats"], logged[-1]["valid_stats"]
    assert last["loss"] < first["loss"]
    for k in brain.exit_layers:
        assert first[f"ACC_exit{k}"] < last[f"ACC_exit{k}"] <= 1.0
    assert brain.exits.search.calls == []  # epochs are judged without


def loop_of(brain, selector):
    brain.modules.eval()
    loop = EarlyExitLoop(brain.encoder, brain.exits, selector)
    batch = torch.nn.utils.rnn.pad_sequence(
        [
            0.1 * torch.randn(n, generator=torch.Generator().manual_seed(n))
            for n in SAMPLES
        ],
        batch_first=True,
    )
    lens = torch.tensor(SAMPLES) / max(SAMPLES)
    brain.exits.search.calls.clear()
    return loop(batch, lens, ids=list("abcd")), brain.exits.search.calls


def middle_of(brain, score):
    """A threshold that about half of the utterances reach at exit 2."""
    values = []

    def note(output, _):
        """The score at the first exit."""
        if output.exit_layer == 2:
            values.extend(score(output).tolist())

    brain.modules.eval()
    loop = EarlyExitLoop(brain.encoder, brain.exits, "never")
    for n in SAMPLES:
        generator = torch.Generator().manual_seed(n)
        wav = 0.1 * torch.randn(n, generator=generator)
        loop(wav[None], ids=["a"], on_exit=note)
    values = sorted(values)
    return (values[1] + values[2]) / 2


def test_with_a_cheap_score_each_utterance_is_searched_once_where_it_leaves():
    brain = make_aed()
    threshold = Threshold("entropy", 0.0)
    threshold = Threshold("entropy", middle_of(brain, threshold.scores[0]))
    left, calls = loop_of(brain, threshold)
    assert left.exit_layer.unique().tolist() == [2, NUM_LAYERS]
    assert calls == [2, 2]
    assert (left.seconds > 0).all()


def test_a_score_that_searches_does_not_search_twice():
    brain = make_aed()
    score = Threshold("token_entropy", 0.0).scores[0]
    threshold = Threshold("token_entropy", middle_of(brain, score))
    left, calls = loop_of(brain, threshold)
    assert left.exit_layer.unique().tolist() == [2, NUM_LAYERS]
    assert calls == [4, 2]  # all at the first exit, the others at the last


def test_the_time_of_the_search_counts_where_it_is_spent():
    brain = make_aed()
    seen = []

    def slow(*args, **marks):
        """A search of a tenth of a second."""
        time.sleep(0.1)
        return search(*args, **marks)

    search, brain.exits.search = brain.exits.search, slow
    brain.modules.eval()
    loop = EarlyExitLoop(brain.encoder, brain.exits, "never")
    left = loop(
        torch.randn(2, 9000),
        on_exit=lambda _, account: seen.append(float(account.seconds.sum())),
    )
    assert len(search.calls) == 1
    assert float(left.seconds.sum()) > seen[-1] + 0.1  # it comes last, once


def test_in_a_batch_each_utterance_leaves_with_the_transcript_it_has_alone():
    brain = make_aed()
    score = Threshold("entropy", 0.0).scores[0]
    threshold = Threshold("entropy", middle_of(brain, score))
    together, _ = loop_of(brain, threshold)
    loop = EarlyExitLoop(brain.encoder, brain.exits, threshold)
    for row, n in enumerate(SAMPLES):
        generator = torch.Generator().manual_seed(n)
        alone = loop(0.1 * torch.randn(n, generator=generator)[None])
        assert alone.exit_layer == together.exit_layer[row]
        assert alone.hypotheses == [together.hypotheses[row]]


@pytest.mark.parametrize("marks", [(-1, -1), (2, 1)])
def test_a_tokenizer_with_other_marks_is_refused(marks):
    with pytest.raises(ValueError, match="tokenizer_opts"):
        make_aed(tokenizer=MarkedLabels(5, *marks))


def test_a_weight_outside_0_to_1_is_refused():
    with pytest.raises(ValueError, match="ctc_weight: 1.5"):
        make_aed(ctc_weight=1.5)


def test_scores_of_decoders_are_refused_for_ctc_heads_before_training():
    for scores, selectors in (
        (["token_entropy"], {}),
        ([], {"mine": Threshold("beam_confidence", 0.5)}),
    ):
        make_aed().check_strategies(scores, selectors)
        with pytest.raises(ValueError, match="CTC heads only"):
            make_brain().check_strategies(scores, selectors)


def test_the_stage_is_that_of_the_experiment():
    brain = make_aed()
    batch = batch_of(*"abc")
    predictions = brain.compute_forward(batch, sb.Stage.TRAIN)
    assert brain.seen(predictions, batch, sb.Stage.VALID).step is None
    brain.optimizer_step = 7
    assert brain.seen(predictions, batch, sb.Stage.TRAIN).step == 7
