"""Scores: how sure an exit is of each utterance, as one number.

A score is a pure function of an :class:`ExitOutput`. Its name is the column of
the traces that holds it. All of them give NaN, which is never confident, to an
utterance without a frame and to one whose log-probabilities hold NaN; minus
infinity is an ordinary log-probability.

Authors
 * SpeechBrain-EE contributors 2026
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn.functional as F

from speechbrain_ee.exits.nbest import ctc_nbest
from speechbrain_ee.heads.output import LOWEST, AttentionOutput, ExitOutput
from speechbrain_ee.overrides import nearest

SCORES: dict[str, Callable[..., torch.Tensor]] = {}


def score(
    name: str,
    *,
    higher_is_confident: bool,
    previous: int = 0,
    hidden: bool = False,
    searches: bool = False,
):
    """Register a function of an ``ExitOutput`` as a score.

    Arguments
    ---------
    name : str
        Name of the score, also of its column in the traces.
    higher_is_confident : bool
        Whether large values speak for leaving.
    previous : int
        How many earlier exits the function reads.
    hidden : bool
        Whether it reads the hidden states.
    searches : bool
        Whether it reads what the search of an attention decoder finds.

    Returns
    -------
    Callable
        A decorator that sets these facts as attributes of the function.

    Example
    -------
    >>> @score("frames", higher_is_confident=False)
    ... def number_of_frames(output):
    ...     return output.frames_on_device.float()
    >>> get_score("frames").higher_is_confident
    False
    >>> SCORES.pop("frames").name
    'frames'
    """

    def register(function):
        """Note what the score is."""
        function.name = name
        function.higher_is_confident = higher_is_confident
        function.previous = previous
        function.hidden = hidden
        function.searches = searches
        SCORES[name] = function
        return function

    return register


@dataclass(frozen=True)
class Score:
    """A registered function together with its options.

    Arguments
    ---------
    name : str
        Name of the score.
    function : Callable
        Takes an ``ExitOutput`` and the options, returns values of shape
        (batch,).
    options : Mapping
        Keyword arguments of the function.
    higher_is_confident : bool
        Whether large values speak for leaving.
    previous : int
        How many earlier exits it reads.
    hidden : bool
        Whether it reads the hidden states.
    searches : bool
        Whether it reads what the search of an attention decoder finds.

    Example
    -------
    >>> entropy = get_score("entropy", normalization="unit")
    >>> log_probs = torch.tensor([[[0.5, 0.5]], [[0.0, 1.0]]]).log()
    >>> values = entropy(ExitOutput(log_probs, torch.tensor([1, 1]), 2))
    >>> values.abs()
    tensor([1., 0.])
    >>> entropy.is_confident(values, 0.1)
    tensor([False,  True])
    """

    name: str
    function: Callable[..., torch.Tensor]
    options: Mapping[str, object] = field(default_factory=dict)
    higher_is_confident: bool = True
    previous: int = 0
    hidden: bool = False
    searches: bool = False

    @property
    def definition(self) -> dict[str, object]:
        """What ``get_score`` takes, with the options left at their defaults."""
        parameters = list(inspect.signature(self.function).parameters.values())
        defaults = {one.name: one.default for one in parameters[1:]}
        return {"score": self.name, **defaults, **self.options}

    def __call__(self, output: ExitOutput) -> torch.Tensor:
        """The value of each utterance, float32 of shape (batch,)."""
        return self.function(output, **self.options)

    def is_confident(
        self, values: torch.Tensor, threshold: float | torch.Tensor
    ) -> torch.Tensor:
        """Which values reach the threshold; NaN and infinity never do.

        Arguments
        ---------
        values : torch.Tensor
            Values of this score, of any shape.
        threshold : float or torch.Tensor
            The last value that still counts as confident.

        Returns
        -------
        torch.Tensor
            Booleans of the shape of ``values``.
        """
        if self.higher_is_confident:
            reached = values >= threshold
        else:
            reached = values <= threshold
        return reached & values.isfinite()


def get_score(spec, **options) -> Score:
    """Make a :class:`Score` of what a recipe names.

    Arguments
    ---------
    spec : str, Mapping, Callable, functools.partial or Score
        Name of a score, a mapping with the name as "score" and the options
        beside it, a registered function, such a function with options (what
        ``!name:`` gives in HyperPyYAML) or a score, returned with the further
        options set.
    **options
        Keyword arguments of the function.

    Returns
    -------
    Score

    Raises
    ------
    ValueError
        For a score or an option that does not exist.

    Example
    -------
    >>> get_score("sentence_confidence", k=10).options
    {'k': 10}
    >>> get_score({"score": "entropy", "normalization": "unit"}).options
    {'normalization': 'unit'}
    >>> get_score(partial(frame_entropy, normalization="unit")).name
    'entropy'
    """
    if isinstance(spec, Mapping):
        options = {**spec, **options}
        spec = options.pop("score", None)
    function = SCORES.get(spec) if isinstance(spec, str) else spec
    while isinstance(function, Score | partial):
        if isinstance(function, Score):
            options = {**function.options, **options}
            function = function.function
        elif function.args:
            raise ValueError(f"options of a score need a name: {function}")
        else:
            options = {**function.keywords, **options}
            function = function.func
    if function not in SCORES.values():
        raise ValueError(
            f"unknown score {spec!r}. {nearest(spec, sorted(SCORES))}"
        )
    known = list(inspect.signature(function).parameters)[1:]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(
            f"score {function.name} has no option {', '.join(unknown)}; "
            f"its options are: {', '.join(known) or 'none'}"
        )
    return Score(
        name=function.name,
        function=function,
        options=options,
        higher_is_confident=function.higher_is_confident,
        previous=function.previous,
        hidden=function.hidden,
        searches=function.searches,
    )


def has_nan(output: ExitOutput) -> torch.Tensor:
    """Which utterances have NaN in a real frame, of shape (batch,)."""
    # One pass: a sum is NaN if a term is, and plus infinity does not occur.
    frames_with_nan = output.log_probs.sum(dim=-1).isnan()
    return (frames_with_nan & output.mask).any(dim=1)


def _mean_over_frames(values: torch.Tensor, output: ExitOutput):
    """Mean of (batch, time) over real frames; NaN where there is none."""
    if min(output.frames.tolist(), default=0) == values.shape[1]:
        return values.mean(dim=1)  # no padding, and no time for masks
    total = values.masked_fill(~output.mask, 0.0).sum(dim=1)
    return total / output.frames_on_device


def _no_evidence(output: ExitOutput) -> torch.Tensor:
    return output.log_probs.new_full((len(output),), math.nan)


@score("entropy", higher_is_confident=False)
def frame_entropy(
    output: ExitOutput, normalization: str = "nats"
) -> torch.Tensor:
    """Mean over real frames of the entropy of the labels.

    Arguments
    ---------
    output : ExitOutput
        The reading of an exit.
    normalization : str
        "nats": −Σ p ln p as it stands (DAISY, arXiv:2406.05464; Zaiem et al.,
        arXiv:2303.06740); "vocabulary": divided by the size of the vocabulary
        (Ξ of Wright et al., arXiv:2309.09546); "unit": divided by the
        logarithm of that size, hence from 0 to 1.

    Returns
    -------
    torch.Tensor
        Values of shape (batch,).

    Example
    -------
    >>> log_probs = torch.full((1, 3, 4), 0.25).log()
    >>> frame_entropy(ExitOutput(log_probs, torch.tensor([3]), 2))
    tensor([1.3863])
    """
    vocabulary = output.given.shape[-1]
    divisors = {
        "nats": 1.0,
        "vocabulary": vocabulary,
        "unit": math.log(vocabulary),
    }
    if normalization not in divisors:
        raise ValueError(
            f"unknown normalization {normalization!r} of the entropy; "
            f"there are {', '.join(divisors)}"
        )
    return (
        _mean_over_frames(output.frame_entropies, output)
        / divisors[normalization]
    )


@score("max_probability", higher_is_confident=True)
def max_probability(output: ExitOutput) -> torch.Tensor:
    """Mean over real frames of the largest probability.

    Arguments
    ---------
    output : ExitOutput
        The reading of an exit.

    Returns
    -------
    torch.Tensor
        Values of shape (batch,), from 0 to 1.

    Example
    -------
    >>> log_probs = torch.tensor([[[0.2, 0.8], [0.6, 0.4]]]).log()
    >>> max_probability(ExitOutput(log_probs, torch.tensor([2]), 2))
    tensor([0.7000])
    """
    return _mean_over_frames(output.log_probs.amax(dim=-1).exp(), output)


@score("margin", higher_is_confident=True)
def margin(output: ExitOutput) -> torch.Tensor:
    """Mean over real frames of the best label's lead over the second.

    CALM (arXiv:2207.07061, section 3.5) calls it the softmax response.

    Arguments
    ---------
    output : ExitOutput
        The reading of an exit.

    Returns
    -------
    torch.Tensor
        Differences of probabilities of shape (batch,), from 0 to 1.

    Example
    -------
    >>> log_probs = torch.tensor([[[0.2, 0.8], [0.6, 0.4]]]).log()
    >>> margin(ExitOutput(log_probs, torch.tensor([2]), 2))
    tensor([0.4000])
    """
    best, second = output.log_probs.topk(2, dim=-1).values.exp().unbind(-1)
    return _mean_over_frames(best - second, output)


@score("hypothesis_posterior", higher_is_confident=True)
def hypothesis_posterior(
    output: ExitOutput, per_token: bool = False
) -> torch.Tensor:
    """P(transcript | X) of the greedy transcript, summed over alignments.

    It is exp(−CTC loss), one forward recursion, and what
    :func:`sentence_confidence` tends to as its list grows, provided that the
    greedy transcript is the best one. For an empty transcript it is the
    probability that all frames are blank.

    Arguments
    ---------
    output : ExitOutput
        The reading of an exit.
    per_token : bool
        Whether to take the geometric mean over labels, so that long
        utterances can be compared with short ones.

    Returns
    -------
    torch.Tensor
        Probabilities of shape (batch,).

    Example
    -------
    >>> log_probs = torch.tensor([[[0.4, 0.6], [0.5, 0.5]]]).log()
    >>> hypothesis_posterior(ExitOutput(log_probs, torch.tensor([2]), 2))
    tensor([0.8000])
    """
    if not output.frames.any():
        return _no_evidence(output)
    tokens, counts = output.greedy
    loss = F.ctc_loss(
        output.log_probs.transpose(0, 1),
        tokens,
        output.frames,
        counts,
        blank=output.blank_index,
        reduction="none",
    )
    if per_token:
        loss = loss / counts.clamp(min=1)
    # NaN needs no care: the arg max picks it, and so does the recursion.
    return torch.exp(-loss).masked_fill(output.frames_on_device == 0, math.nan)


@score("sentence_confidence", higher_is_confident=True)
def sentence_confidence(
    output: ExitOutput,
    k: int = 300,
    beam_size: int | None = None,
    beam_size_token: int | None = None,
    jobs: int | None = None,
) -> torch.Tensor:
    """Share of the best transcript in the probability of the K best ones.

    Ψ of Wright et al. (arXiv:2309.09546): softmax over the log-probabilities
    of the N-best list, value of the best. A list of one carries no evidence
    and gives NaN, not certainty.

    Arguments
    ---------
    output : ExitOutput
        The reading of an exit.
    k : int
        Length of the list, at least 2; 300 in the paper.
    beam_size : int, optional
        See :func:`speechbrain_ee.exits.nbest.ctc_nbest`, as for the rest.
    beam_size_token : int, optional
        How many labels are tried at each frame.
    jobs : int, optional
        Number of processes.

    Returns
    -------
    torch.Tensor
        Values of shape (batch,), from 1 / k to 1.

    Example
    -------
    >>> log_probs = torch.tensor([[[0.4, 0.6], [0.5, 0.5]]]).log()
    >>> sentence_confidence(ExitOutput(log_probs, torch.tensor([2]), 2), k=5)
    tensor([0.8000])
    """
    if k < 2:
        raise ValueError(f"a list of {k} carries no evidence: k must be >= 2")
    confidences = _no_evidence(output)
    lists = ctc_nbest(
        output.log_probs,
        output.frames,
        k,
        output.blank_index,
        beam_size=beam_size,
        beam_size_token=beam_size_token,
        jobs=jobs,
    )
    for row, hypotheses in enumerate(lists):
        if len(hypotheses) > 1:
            log_probs = torch.tensor([log_prob for _, log_prob in hypotheses])
            confidences[row] = log_probs.softmax(dim=0)[0]
    return confidences


@score("kl_to_previous", higher_is_confident=False, previous=1)
def kl_to_previous(output: ExitOutput) -> torch.Tensor:
    """Mean over real frames of KL(this exit ‖ the exit before), in nats.

    NaN at the first exit; infinite where this exit allows a label that the
    exit before ruled out.

    Arguments
    ---------
    output : ExitOutput
        The reading of an exit, with the one before as ``previous``.

    Returns
    -------
    torch.Tensor
        Values of shape (batch,).

    Example
    -------
    >>> frames = torch.tensor([1])
    >>> first = ExitOutput(torch.tensor([[[0.5, 0.5]]]).log(), frames, 2)
    >>> log_probs = torch.tensor([[[0.0, 1.0]]]).log()
    >>> kl_to_previous(ExitOutput(log_probs, frames, 4, previous=first))
    tensor([0.6931])
    """
    if output.previous is None:
        return _no_evidence(output)
    probs = output.log_probs.exp()
    before = output.previous.log_probs.masked_fill(probs == 0, 0.0)
    log_ratio = output.log_probs.clamp(min=LOWEST) - before
    divergence = (probs * log_ratio).sum(dim=-1)
    return _mean_over_frames(divergence, output).masked_fill(
        has_nan(output.previous), math.nan
    )


@score("state_similarity", higher_is_confident=True, previous=1, hidden=True)
def state_similarity(output: ExitOutput) -> torch.Tensor:
    """Mean over real frames of the cosine of successive hidden states.

    Zaiem et al. (arXiv:2303.06740) leave above 0.95. NaN at the first exit.

    Arguments
    ---------
    output : ExitOutput
        The reading of an exit, with hidden states, as in its ``previous``.

    Returns
    -------
    torch.Tensor
        Values of shape (batch,), from −1 to 1.

    Example
    -------
    >>> log_probs, frames = torch.zeros(1, 1, 2), torch.tensor([1])
    >>> state = torch.tensor([[[1.0, 0.0]]])
    >>> first = ExitOutput(log_probs, frames, 2, hidden=state)
    >>> second = ExitOutput(
    ...     log_probs, frames, 4, hidden=2 * state, previous=first
    ... )
    >>> state_similarity(second)
    tensor([1.])
    """
    if output.previous is None:
        return _no_evidence(output)
    if output.hidden is None or output.previous.hidden is None:
        raise ValueError("state_similarity needs the hidden states of exits")
    cosine = F.cosine_similarity(
        output.hidden, output.previous.hidden, dim=-1
    ).float()
    return _mean_over_frames(cosine, output).masked_fill(
        has_nan(output) | has_nan(output.previous), math.nan
    )


@score("token_entropy", higher_is_confident=False, searches=True)
def token_entropy(output: AttentionOutput) -> torch.Tensor:
    """Mean entropy of an attention decoder along its transcript, in nats.

    Over the labels of the best hypothesis and the sentence's end, each given
    those before it.

    Arguments
    ---------
    output : AttentionOutput
        The reading of an exit with a decoder.

    Returns
    -------
    torch.Tensor
        Values of shape (batch,).
    """
    _check_searched(output, "token_entropy")
    log_probs = output.token_log_probs.clamp(min=LOWEST)
    entropies = -(log_probs.exp() * log_probs).sum(dim=-1)
    counts = torch.tensor(
        [len(one) + 1 for one in output.hypotheses], device=entropies.device
    )
    places = torch.arange(entropies.shape[1], device=entropies.device)
    beyond = places >= counts[:, None]
    means = entropies.masked_fill(beyond, 0.0).sum(dim=1) / counts
    return means.masked_fill(output.frames_on_device == 0, math.nan)


@score("beam_confidence", higher_is_confident=True, searches=True)
def beam_confidence(output: AttentionOutput) -> torch.Tensor:
    """Share of the best transcript in the probability of those in the beam.

    Ψ of Wright et al. (arXiv:2309.09546) for attention decoders: softmax over
    the summed log-probabilities of labels, K being the size of the beam. A list
    of one carries no evidence and gives NaN.

    Arguments
    ---------
    output : AttentionOutput
        The reading of an exit with a decoder.

    Returns
    -------
    torch.Tensor
        Values of shape (batch,), from 0 to 1.
    """
    _check_searched(output, "beam_confidence")
    confidences = _no_evidence(output)
    for row, found in enumerate(output.nbest):
        if len(found) > 1 and output.frames[row] > 0:
            log_probs = torch.tensor([log_prob for _, log_prob in found])
            confidences[row] = log_probs.softmax(dim=0)[0]
    return confidences


def _check_searched(output, name):
    """Raises if an exit has no decoder."""
    if not isinstance(output, AttentionOutput):
        raise ValueError(
            f"score {name} reads an attention decoder, and these exits have "
            "CTC heads only: take entropy or sentence_confidence, or exits of "
            "the kind AttentionHeads."
        )
