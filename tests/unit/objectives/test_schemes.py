"""Training schemes: by hand, and what must hold for all of them."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import ctc_loss

from speechbrain_ee.heads import CTCHeads
from speechbrain_ee.objectives import (
    AlternateExits,
    ExitLossSum,
    ExitPredictions,
    InverseConfidence,
    PosteriorDistillation,
    RandomExits,
    TranscriptDistillation,
)
from tests.unit.objectives.schemes import BLOCKS, make_objective

LAYERS = [2, 4, 6]
FRAMES = torch.tensor([9, 6])
LAST_EXIT_DISTILS = [PosteriorDistillation, TranscriptDistillation]


@pytest.fixture
def batch():
    """Two utterances at three exits, and a teacher that is another model."""
    generator = torch.Generator().manual_seed(0)
    log_probs = torch.randn(4, 2, 9, 5, generator=generator).log_softmax(-1)
    return ExitPredictions(
        LAYERS,
        log_probs[:3],
        FRAMES,
        torch.tensor([[1, 2, 2], [3, 0, 0]]),
        torch.tensor([3, 1]),
        step=1,
        teacher_log_probs=log_probs[3],
    )


def peaky(path, labels=3, p=0.98):
    """Log-probabilities that are sure of a path."""
    probs = torch.full((len(path), labels), (1 - p) / (labels - 1))
    probs[torch.arange(len(path)), torch.tensor(path)] = p
    return probs.log()


def of_one(log_probs, tokens=(1,), **settings):
    """Predictions of exits (exits, time, labels) for one utterance."""
    return ExitPredictions(
        LAYERS[-len(log_probs) :],
        log_probs[:, None],
        torch.tensor([log_probs.shape[1]]),
        torch.tensor([tokens]),
        torch.tensor([len(tokens)]),
        **settings,
    )


@pytest.mark.parametrize("step", [None, 0, 1, 7])
@pytest.mark.parametrize("name", BLOCKS)
def test_every_head_gets_a_gradient_at_every_step(name, step, batch):
    torch.manual_seed(0)
    heads = CTCHeads(LAYERS, input_size=4, vocab_size=5, exit_norm="own")
    states = list(torch.randn(3, 2, 9, 4).requires_grad_().unbind())
    log_probs = heads(states)
    loss = make_objective(name)(replace(batch, log_probs=log_probs, step=step))
    loss.backward()
    assert loss.isfinite() and loss.shape == ()
    for name, parameter in heads.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("name", BLOCKS)
def test_padded_frames_do_not_count(name, batch):
    objective = make_objective(name)
    louder = replace(
        batch,
        log_probs=batch.log_probs.clone(),
        teacher_log_probs=batch.teacher_log_probs.clone(),
    )
    louder.log_probs[:, 1, 6:] = peaky([3] * 3, labels=5)
    louder.teacher_log_probs[1, 6:] = peaky([4] * 3, labels=5)
    assert torch.equal(objective(batch), objective(louder))


@pytest.mark.parametrize("name", BLOCKS)
def test_the_loss_of_a_batch_is_the_mean_of_its_utterances(name, batch):
    objective = make_objective(name)

    def alone(row):
        """The loss of one utterance, without the padding."""
        time, count = FRAMES[row], batch.token_counts[row]
        return objective(
            replace(
                batch,
                log_probs=batch.log_probs[:, [row], :time],
                frames=FRAMES[[row]],
                tokens=batch.tokens[[row], :count],
                token_counts=count[None],
                teacher_log_probs=batch.teacher_log_probs[[row], :time],
            )
        )

    mean = (alone(0) + alone(1)) / 2
    assert torch.allclose(objective(batch), mean, atol=1e-5)


def test_steps_alternate_between_the_last_exit_and_all(batch):
    objective = AlternateExits()
    per_exit = batch.losses.mean(dim=1)
    for step in (0, 2, 8):
        assert torch.equal(objective(replace(batch, step=step)), per_exit[-1])
    for step in (1, 3, None):
        loss = objective(replace(batch, step=step))
        assert torch.allclose(loss, per_exit.sum())


@pytest.mark.parametrize("num_exits", [1, 2, 3])
def test_random_exits_are_on_average_the_plain_sum(num_exits, batch):
    objective = RandomExits(num_exits)
    steps = 6000
    weights = torch.stack(
        [objective.weights(LAYERS, step) for step in range(steps)]
    )
    assert ((weights > 0).sum(dim=1) == num_exits).all()
    # Six standard errors of the most scattered case.
    bound = 6 * (2 / steps) ** 0.5
    assert (weights.mean(dim=0) - 1).abs().max() < bound
    plain = ExitLossSum()(batch)
    assert torch.equal(objective(replace(batch, step=None)), plain)
    mean = (weights.mean(dim=0) * batch.losses.mean(dim=1)).sum()
    assert abs(mean - plain) < bound * plain


def test_random_exits_depend_on_seed_and_step_only():
    def drawn(objective, steps):
        """Weights of these steps, one after another."""
        return [objective.weights(LAYERS, step).tolist() for step in steps]

    whole = drawn(RandomExits(2), range(50))
    torch.manual_seed(99)
    assert drawn(RandomExits(2), range(20, 50)) == whole[20:]  # goes on
    assert drawn(RandomExits(2, seed=5), range(50)) != whole
    assert len(set(map(tuple, whole))) == 3


def test_more_random_exits_than_there_are_cannot_be_drawn():
    with pytest.raises(ValueError, match=r"num_exits: 4.*3 exits \[2, 4, 6\]"):
        RandomExits(4).weights(LAYERS, 0)
    with pytest.raises(ValueError, match="num_exits: 0"):
        RandomExits(0)


def test_unsure_exits_weigh_more_by_hand():
    sure, unsure = torch.tensor([0.9, 0.1]), torch.tensor([0.5, 0.5])
    # Geometric means over two frames: 0.9, and sqrt(0.9 * 0.5).
    log_probs = torch.stack(
        [torch.stack([sure, sure]), torch.stack([sure, unsure])]
    ).log()
    inverse = torch.tensor([1 / 0.9, 1 / (0.9 * 0.5) ** 0.5])
    expected = 2 * inverse / inverse.sum()
    batch = of_one(log_probs)
    objective = InverseConfidence()
    assert torch.allclose(objective.weights(batch)[:, 0], expected)
    assert objective.weights(batch)[1] > objective.weights(batch)[0]
    loss = (expected * batch.losses[:, 0]).sum()
    assert torch.allclose(objective(batch), loss)


def test_weights_by_confidence_have_a_floor_and_no_gradient(batch):
    log_probs = torch.stack([peaky([1], 50, p=0.04), peaky([1], 50, p=0.5)])
    weights = InverseConfidence(least=0.25).weights(of_one(log_probs))
    assert torch.allclose(weights[:, 0], torch.tensor([4 / 3, 2 / 3]))
    logits = torch.randn(3, 2, 9, 5, requires_grad=True)
    batch = replace(batch, log_probs=logits.log_softmax(-1))
    weights = InverseConfidence().weights(batch)
    assert not weights.requires_grad
    assert torch.allclose(weights.sum(dim=0), torch.tensor(3.0))
    with pytest.raises(ValueError, match="least: 0"):
        InverseConfidence(0)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_posteriors_are_distilled_by_hand(temperature):
    student, teacher = torch.tensor([[0.5, 0.5], [0.8, 0.2]])[:, None].log()
    soft_student, soft_teacher = (
        x.exp() ** (1 / temperature) for x in (student, teacher)
    )
    soft_student, soft_teacher = (
        x / x.sum(-1, keepdim=True) for x in (soft_student, soft_teacher)
    )
    divergence = (soft_teacher * (soft_teacher / soft_student).log()).sum()
    batch = of_one(torch.stack([student, teacher]))
    expected = (
        0.75 * -torch.log(torch.tensor(0.5))  # label 1
        + 0.25 * temperature**2 * divergence
        - torch.log(torch.tensor(0.2))  # the teacher's own
    )
    objective = PosteriorDistillation(alpha=0.25, temperature=temperature)
    assert torch.allclose(objective(batch), expected)


def test_transcripts_are_distilled_by_hand():
    student = torch.randn(4, 3).log_softmax(-1)
    teacher = peaky([0, 2, 2, 1])  # says 2 1, the reference is 1
    batch = of_one(torch.stack([student, teacher]))

    def ctc(log_probs, labels):
        """One loss, by torch."""
        sizes = torch.tensor(4), torch.tensor(len(labels))
        return ctc_loss(
            log_probs, torch.tensor(labels), *sizes, reduction="sum"
        )

    # Per label of the reference, which has one.
    expected = 0.4 * ctc(student, [1]) + 0.6 * ctc(student, [2, 1])
    loss = TranscriptDistillation(alpha=0.6)(batch)
    assert torch.allclose(loss, expected + ctc(teacher, [1]))


@pytest.mark.parametrize("teacher", ["last_exit", "model"])
def test_an_empty_transcript_leaves_the_reference_the_whole_loss(teacher):
    silent = peaky([0, 0, 0, 0])
    log_probs = torch.stack([torch.randn(4, 3).log_softmax(-1), silent])
    batch = of_one(log_probs, teacher_log_probs=silent[None])
    loss = TranscriptDistillation(teacher, alpha=1.0)(batch)
    assert torch.allclose(loss, ExitLossSum()(batch))


@pytest.mark.parametrize("kind", LAST_EXIT_DISTILS)
def test_the_last_exit_learns_nothing_of_its_students(kind, batch):
    logits = torch.randn(3, 2, 9, 5, requires_grad=True)
    batch = replace(batch, log_probs=logits.log_softmax(-1))
    kind(alpha=1.0)(batch).backward()
    own = logits.grad[-1].clone()
    logits.grad = None
    log_probs = logits.log_softmax(-1)
    replace(batch, log_probs=log_probs).losses[-1].mean().backward()
    assert torch.allclose(own, logits.grad[-1])


@pytest.mark.parametrize("kind", LAST_EXIT_DISTILS)
def test_nobody_listens_to_the_teacher_before_the_start(kind, batch):
    objective = kind(start=5)
    plain, distilled = ExitLossSum()(batch), kind()(batch)
    assert not torch.allclose(plain, distilled)
    assert objective(replace(batch, step=4)) == plain
    assert objective(replace(batch, step=5)) == distilled
    assert objective(replace(batch, step=None)) == distilled


@pytest.mark.parametrize("kind", LAST_EXIT_DISTILS)
def test_a_model_teaches_all_exits_and_gets_no_gradient(kind, batch):
    teacher = torch.randn(2, 9, 5, requires_grad=True)
    logits = torch.randn(3, 2, 9, 5, requires_grad=True)
    batch = replace(
        batch,
        log_probs=logits.log_softmax(-1),
        teacher_log_probs=teacher.log_softmax(-1),
    )
    kind("model", alpha=1.0)(batch).backward()
    assert teacher.grad is None
    assert (logits.grad.abs().sum(dim=(1, 2, 3)) > 0).all()


def test_students_that_agree_with_their_teacher_lose_nothing(batch):
    batch = replace(
        batch, log_probs=batch.teacher_log_probs.expand(3, -1, -1, -1)
    )
    loss = PosteriorDistillation("model", alpha=1.0)(batch)
    assert abs(loss) < 1e-6


@pytest.mark.parametrize("kind", LAST_EXIT_DISTILS)
def test_without_a_teacher_or_a_student_it_says_what_to_do(kind, batch):
    assert kind("model").needs_teacher and not kind().needs_teacher
    with pytest.raises(ValueError, match="--teacher"):
        kind("model")(replace(batch, teacher_log_probs=None))
    with pytest.raises(ValueError, match=r"Name more exit_layers than \[6\]"):
        kind()(of_one(torch.randn(1, 4, 3).log_softmax(-1)))
    with pytest.raises(ValueError, match="last_exit, model"):
        kind("last exit")
    with pytest.raises(ValueError, match="alpha: 1.5"):
        kind(alpha=1.5)
    with pytest.raises(ValueError, match="start: -1"):
        kind(start=-1)


def test_a_temperature_must_be_above_zero():
    with pytest.raises(ValueError, match="temperature: 0"):
        PosteriorDistillation(temperature=0)
