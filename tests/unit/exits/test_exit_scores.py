"""Scores against their definitions, and what they make of odd input."""

import math
from functools import partial
from itertools import pairwise

import pytest
import torch

from speechbrain_ee.exits import (
    SCORES,
    Score,
    ctc_nbest,
    frame_entropy,
    get_score,
    hypothesis_posterior,
    kl_to_previous,
    sentence_confidence,
    state_similarity,
)

NAMES = [
    "entropy",
    "hypothesis_posterior",
    "kl_to_previous",
    "margin",
    "max_probability",
    "sentence_confidence",
    "state_similarity",
]
# Those of attention decoders have a test file of their own.
ALL_NAMES = sorted([*NAMES, "beam_confidence", "token_entropy"])


def with_previous(reading, **facts):
    """A reading that every score can be taken of."""
    states = torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(5))
    first = reading(seed=1, hidden=states.flip(0), **facts)
    second = reading(seed=2, hidden=states, previous=first, **facts)
    second.exit_layer = 4
    return second


def small(name):
    options = {"k": 10} if name == "sentence_confidence" else {}
    return get_score(name, **options)


def test_registry():
    assert sorted(SCORES) == ALL_NAMES


@pytest.mark.parametrize("name", NAMES)
def test_shape_type_and_padding(reading, name):
    output = with_previous(reading, frames=[5, 3, 2])
    values = small(name)(output)
    assert values.shape == (3,) and values.dtype == torch.float32
    assert values.isfinite().all()
    for part in (output, output.previous):
        part.log_probs[1, 3:] = math.nan
        part.hidden[1, 3:] = math.nan
    poisoned = with_previous(reading, frames=[5, 3, 2])
    for part, source in (
        (poisoned, output),
        (poisoned.previous, output.previous),
    ):
        part.log_probs, part.hidden = source.log_probs, source.hidden
    torch.testing.assert_close(small(name)(poisoned), values)


@pytest.mark.parametrize("name", NAMES)
def test_nan_stays_in_its_utterance(reading, name):
    expected = small(name)(with_previous(reading))
    output = with_previous(reading)
    output.log_probs[1, 2, 3] = math.nan
    values = small(name)(output)
    assert values.isnan().tolist() == [False, True, False]
    torch.testing.assert_close(values[::2], expected[::2])


@pytest.mark.parametrize("name", ["kl_to_previous", "state_similarity"])
def test_nan_at_the_previous_exit(reading, name):
    output = with_previous(reading)
    output.previous.log_probs[1, 2, 3] = math.nan
    assert small(name)(output).isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("name", NAMES)
def test_minus_infinity_is_a_log_probability(reading, name):
    output = with_previous(reading)
    output.log_probs[:, 1:3, 2] = -math.inf
    output.previous.log_probs[:, 1, 2] = -math.inf
    assert small(name)(output).isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_no_frames_is_no_evidence(reading, name):
    output = with_previous(reading, frames=[5, 0, 5])
    assert small(name)(output).isnan().tolist() == [False, True, False]
    nothing = with_previous(reading, frames=[0, 0, 0])
    for part in (nothing, nothing.previous):
        part.log_probs, part.hidden = part.log_probs[:, :0], part.hidden[:, :0]
    assert small(name)(nothing).isnan().all()


@pytest.mark.parametrize(
    "normalization, uniform",
    [("nats", math.log(4)), ("vocabulary", math.log(4) / 4), ("unit", 1.0)],
)
def test_entropy_normalizations(reading, normalization, uniform):
    log_probs = torch.full((1, 3, 4), 0.25).log()
    certain = torch.tensor([0.0, -math.inf, -math.inf, -math.inf])
    log_probs[0, 2] = certain
    values = frame_entropy(reading(log_probs), normalization)
    assert values.item() == pytest.approx(uniform * 2 / 3)


def test_entropy_is_that_of_torch(reading):
    output = reading(frames=[5, 4, 1])
    probs = output.log_probs.exp()
    entropy = torch.distributions.Categorical(probs=probs).entropy()
    expected = [entropy[row, :n].mean() for row, n in enumerate([5, 4, 1])]
    torch.testing.assert_close(frame_entropy(output), torch.stack(expected))


def test_unknown_normalization(reading):
    with pytest.raises(ValueError, match="nats, vocabulary, unit"):
        frame_entropy(reading(), normalization="bits")


def test_max_probability_and_margin(reading):
    probs = torch.tensor([[[0.1, 0.6, 0.3], [0.5, 0.5, 0.0], [1.0, 0, 0]]])
    output = reading(probs.log(), frames=[2])
    assert get_score("max_probability")(output).item() == pytest.approx(0.55)
    assert get_score("margin")(output).item() == pytest.approx(0.15)


@pytest.mark.parametrize("blank_index", [0, 2])
@pytest.mark.parametrize("seed", range(4))
def test_posterior_equals_enumeration(
    reading, enumerate_ctc, blank_index, seed
):
    output = reading(
        shape=(3, 5, 3), frames=[5, 4, 1], seed=seed, blank_index=blank_index
    )
    values = hypothesis_posterior(output)
    per_token = hypothesis_posterior(output, per_token=True)
    for row, text in enumerate(output.hypotheses):
        log_probs = output.log_probs[row, : output.frames[row]]
        log_prob = enumerate_ctc(log_probs, blank_index)[text]
        assert values[row].log().item() == pytest.approx(log_prob, abs=1e-5)
        assert per_token[row].log().item() == pytest.approx(
            log_prob / max(1, len(text)), abs=1e-5
        )


@pytest.mark.parametrize("per_token", [False, True])
def test_posterior_of_silence_is_that_of_blanks(reading, per_token):
    log_probs = torch.tensor([[[0.9, 0.1], [0.8, 0.2]]]).log()
    output = reading(log_probs)
    assert output.hypotheses == [()]
    value = hypothesis_posterior(output, per_token=per_token)
    assert value.item() == pytest.approx(0.72)


@pytest.mark.parametrize("seed", range(4))
def test_sentence_confidence_equals_enumeration(reading, enumerate_ctc, seed):
    output = reading(shape=(2, 4, 3), seed=seed)
    for k in (2, 4, 100):
        values = sentence_confidence(output, k=k, beam_size=200)
        for row, log_probs in enumerate(output.log_probs):
            best = sorted(enumerate_ctc(log_probs, 0).values())[-k:]
            expected = math.exp(best[-1]) / sum(map(math.exp, best))
            assert values[row].item() == pytest.approx(expected, abs=1e-5)


def test_sentence_confidence_tends_to_the_posterior(reading):
    generator = torch.Generator().manual_seed(3)
    log_probs = 4 * torch.randn(4, 20, 8, generator=generator)
    output = reading(log_probs.log_softmax(dim=-1))
    lists = ctc_nbest(output.log_probs, output.frames, 2, beam_size=2000)
    texts = [torch.tensor(hypotheses[0][0]) for hypotheses in lists]
    posterior = torch.exp(
        -torch.nn.functional.ctc_loss(
            output.log_probs.transpose(0, 1),
            torch.cat(texts),
            output.frames,
            torch.tensor([len(text) for text in texts]),
            reduction="none",
        )
    )
    gaps = [
        sentence_confidence(output, k=k, beam_size=2000) - posterior
        for k in (2, 10, 50, 250, 1000)
    ]
    for larger, smaller in pairwise(gaps):
        assert (larger > smaller).all()
    assert (gaps[-1] > -1e-4).all()
    assert (gaps[-1] < gaps[0] / 5).all()
    assert (hypothesis_posterior(output) <= posterior + 1e-6).all()


def test_all_hypotheses_give_the_posterior(reading, enumerate_ctc):
    output = reading(shape=(8, 5, 3))
    confidence = sentence_confidence(output, k=200)
    posterior = hypothesis_posterior(output)
    greedy_is_best = []
    for row, log_probs in enumerate(output.log_probs):
        everything = enumerate_ctc(log_probs, 0)
        best = max(everything, key=everything.get)
        assert confidence[row].item() == pytest.approx(
            math.exp(everything[best]), abs=1e-5
        )
        greedy_is_best.append(best == output.hypotheses[row])
    assert any(greedy_is_best)
    torch.testing.assert_close(
        confidence[greedy_is_best], posterior[greedy_is_best]
    )


def test_list_of_one_is_no_certainty(reading):
    log_probs = torch.full((1, 3, 3), -math.inf)
    log_probs[..., 1] = 0.0
    assert sentence_confidence(reading(log_probs), k=10).isnan().all()


def test_sentence_confidence_needs_two(reading):
    with pytest.raises(ValueError, match="k must be >= 2"):
        sentence_confidence(reading(), k=1)


@pytest.mark.parametrize("name", ["kl_to_previous", "state_similarity"])
def test_nothing_before_the_first_exit(reading, name):
    assert get_score(name)(reading()).isnan().all()
    assert get_score(name).previous == 1


def test_kl_is_that_of_torch(reading):
    output = with_previous(reading)
    kl = torch.nn.functional.kl_div(
        output.previous.log_probs,
        output.log_probs,
        log_target=True,
        reduction="none",
    )
    expected = kl.sum(dim=-1).mean(dim=1)
    torch.testing.assert_close(kl_to_previous(output), expected)


def test_kl_is_infinite_where_the_previous_exit_ruled_out(reading):
    output = with_previous(reading)
    output.previous.log_probs[1, 0, 0] = -math.inf
    values = kl_to_previous(output)
    assert values.isposinf().tolist() == [False, True, False]
    decided = get_score("kl_to_previous").is_confident(values, 100.0)
    assert decided.tolist() == [True, False, True]


def test_similarity(reading):
    states = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    turned = torch.tensor([[[3.0, 0.0], [2.0, 0.0]]])
    log_probs = torch.zeros(1, 2, 3)
    first = reading(log_probs, hidden=states)
    second = reading(log_probs, hidden=turned, previous=first)
    assert state_similarity(second).item() == pytest.approx(0.5)


def test_similarity_needs_states(reading):
    output = reading(previous=reading())
    with pytest.raises(ValueError, match="hidden states"):
        state_similarity(output)
    assert get_score("state_similarity").hidden
    assert not get_score("entropy").hidden


@pytest.mark.parametrize(
    "higher_is_confident, expected",
    [(True, [True, True, False]), (False, [False, True, True])],
)
def test_is_confident(higher_is_confident, expected):
    rule = Score("x", len, higher_is_confident=higher_is_confident)
    values = torch.tensor([0.6, 0.5, 0.4])
    assert rule.is_confident(values, 0.5).tolist() == expected
    odd = torch.tensor([math.nan, math.inf, -math.inf])
    for threshold in (0.5, math.inf, -math.inf):
        assert not rule.is_confident(odd, threshold).any()


@pytest.mark.parametrize(
    "spec",
    [
        "entropy",
        frame_entropy,
        partial(frame_entropy),
        get_score("entropy"),
    ],
)
def test_get_score_takes(reading, spec):
    made = get_score(spec, normalization="unit")
    assert (made.name, made.higher_is_confident) == ("entropy", False)
    torch.testing.assert_close(
        made(reading()), frame_entropy(reading(), "unit")
    )


def test_get_score_keeps_and_overrides_options():
    spec = partial(sentence_confidence, k=5, beam_size=50)
    assert get_score(spec, k=7).options == {"k": 7, "beam_size": 50}
    assert get_score(get_score(spec), k=7).options["beam_size"] == 50


@pytest.mark.parametrize("spec", [len, partial(len), 3, {"k": 3}])
def test_unknown_score_lists_the_names(spec):
    with pytest.raises(ValueError, match=", ".join(ALL_NAMES)):
        get_score(spec)


def test_the_nearest_score_is_suggested():
    told = f"Did you mean 'entropy'. There are: {', '.join(ALL_NAMES)}"
    with pytest.raises(ValueError, match=told):
        get_score("entropi")


def test_wrong_options():
    with pytest.raises(ValueError, match="entropy has no option k; .*normal"):
        get_score("entropy", k=3)
    with pytest.raises(ValueError, match="margin .* options are: none"):
        get_score("margin", k=3)
    with pytest.raises(ValueError, match="need a name"):
        get_score(partial(frame_entropy, "unit"))


def test_hyperpyyaml_gives_a_score():
    hyperpyyaml = pytest.importorskip("hyperpyyaml")
    made = hyperpyyaml.load_hyperpyyaml(
        "score: !name:speechbrain_ee.exits.scores.frame_entropy\n"
        "    normalization: unit\n"
    )
    assert get_score(made["score"]).options == {"normalization": "unit"}
