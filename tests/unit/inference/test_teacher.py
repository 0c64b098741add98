"""A finished run as a teacher: what it says, and whom it cannot teach."""

import pytest
import torch

from speechbrain_ee.inference import FrozenTeacher, load_teacher
from tests.unit.inference.models import make_run, make_wavs, read_exits


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run, with a normaliser that has statistics."""
    return make_run(tmp_path_factory.mktemp("teacher") / "run")


@pytest.fixture(scope="module")
def teacher(run, tmp_path_factory):
    """The same run, loaded from its export."""
    folder = tmp_path_factory.mktemp("teacher") / "model"
    return load_teacher(run.export(folder))


class Tokenizer:
    """As much of a tokenizer as is compared."""

    def __init__(self, pieces):
        self.id_to_piece = pieces.__getitem__
        self.vocab_size = lambda: len(pieces)


def pieces_of(tokenizer):
    """All labels."""
    return [tokenizer.id_to_piece(k) for k in range(tokenizer.vocab_size())]


def test_it_says_what_the_last_exit_of_the_run_says(run, teacher):
    wavs, wav_lens = make_wavs()
    last = read_exits(*run.modules, wavs, wav_lens)[4]
    before = torch.get_rng_state()
    heard = teacher(wavs, wav_lens)
    assert torch.allclose(heard, last.log_probs, atol=1e-5)
    assert not heard.requires_grad
    assert torch.equal(torch.get_rng_state(), before)  # nothing is dropped


def test_nothing_of_it_is_trained(teacher):
    for module in teacher.modules.values():
        assert not any(p.requires_grad for p in module.parameters())
        assert not any(part.training for part in module.modules())
    assert teacher.to("cpu") is teacher


def test_without_a_folder_there_is_no_teacher(tmp_path):
    assert load_teacher(None) is None
    with pytest.raises(FileNotFoundError, match="teacher: .*finished run"):
        load_teacher(tmp_path)


def test_its_own_kind_can_learn_from_it(run, teacher):
    teacher.check_student(*run.modules, teacher.tokenizer, 16000)


@pytest.mark.parametrize(
    ("pieces", "told"),
    [
        (lambda own: own[:-1], "has 10 labels, this model 9"),
        (
            lambda own: [*own[:3], "Z", *own[4:]],
            "as label 3, this model 'Z'.*token_type",
        ),
    ],
)
def test_other_labels_are_refused(run, teacher, pieces, told):
    other = Tokenizer(pieces(pieces_of(teacher.tokenizer)))
    with pytest.raises(ValueError, match=told):
        teacher.check_student(*run.modules, other, 16000)


@pytest.mark.parametrize(
    ("settings", "rate", "told"),
    [
        ({}, 8000, "sample_rate 16000, this model 8000"),
        ({"vocab_size": 13}, 16000, "output_neurons 12, this model 13"),
        ({"blank_index": 3}, 16000, "blank_index 0, this model 3"),
    ],
)
def test_other_heads_or_rates_are_refused(run, teacher, settings, rate, told):
    encoder, exits = run.modules
    for key, value in settings.items():
        exits = type(exits)(
            [1, 2, 4],
            **{"input_size": 16, "vocab_size": 12, key: value},
        )
    with pytest.raises(ValueError, match=told):
        teacher.check_student(encoder, exits, teacher.tokenizer, rate)


def test_other_frames_are_refused(run, teacher, tmp_path):
    _, exits = run.modules
    encoder, _ = make_run(tmp_path / "other", "wavlm").modules
    told = r"makes 26 frames of 16000 samples, this model 49.*sub-sampling"
    with pytest.raises(ValueError, match=told):
        teacher.check_student(encoder, exits, teacher.tokenizer, 16000)


def test_a_teacher_may_be_made_of_modules(run):
    encoder, exits = run.modules
    teacher = FrozenTeacher({"encoder": encoder, "exits": exits}, None, 16000)
    assert teacher.name == "the model"
    assert teacher(*make_wavs()).shape[-1] == exits.vocab_size
