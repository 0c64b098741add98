"""A small network that looks at an utterance and chooses layers.

Only the abstract of input-conditioned layer dropping (Hannan, Falavigna and
Brutti, arXiv 2507.07954) was there to read: features of the input go into a
light network that selects the layers of an unchanged backbone. All else here
is our choice: what it reads, its layers, how it is told the number of layers,
its estimators and its losses. The nearest published design is I3D (Peng et
al., arXiv 2303.07624): gates predicted from the encoder's input or from the
input of each layer, trained by Gumbel-softmax with a term on the mean number
of layers.

Authors
 * SpeechBrain-EE contributors 2026
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from speechbrain.processing.features import mean_std_update
from speechbrain.utils.logger import get_logger
from torch.nn.utils.rnn import pack_padded_sequence

from speechbrain_ee.encoders.base import EncoderState, moments, padding_mask
from speechbrain_ee.gates.base import LayerGate, check_count, keep_top

logger = get_logger(__name__)


class Statistics(torch.nn.Module):
    """Mean and standard deviation over real frames.

    Arguments
    ---------
    width : int
        Channels of the states.
    size : int
        Not used: there is nothing to learn.

    Example
    -------
    >>> Statistics(8, 4)(torch.ones(2, 5, 8), torch.tensor([5, 3])).shape
    torch.Size([2, 16])
    """

    def __init__(self, width: int, size: int):
        super().__init__()
        self.output_size = 2 * width

    def forward(self, hidden, frames):
        """Of shape (batch, time, width) to (batch, 2 width)."""
        mean, variance = moments(hidden, frames)
        return torch.cat([mean, (variance + 1e-5).sqrt()], dim=-1)


class Recurrent(torch.nn.Module):
    """The last state of a small GRU.

    Arguments
    ---------
    width : int
        Channels of the states.
    size : int
        Of the GRU.

    Example
    -------
    >>> Recurrent(8, 4)(torch.ones(2, 5, 8), torch.tensor([5, 3])).shape
    torch.Size([2, 4])
    """

    def __init__(self, width: int, size: int):
        super().__init__()
        self.gru = torch.nn.GRU(width, size, batch_first=True)
        self.output_size = size

    def forward(self, hidden, frames):
        """Of shape (batch, time, width) to (batch, size)."""
        packed = pack_padded_sequence(
            hidden, frames, batch_first=True, enforce_sorted=False
        )
        return self.gru(packed)[1][0]


class AttentionPooling(torch.nn.Module):
    """A mean over real frames, weighted by what each frame says of itself.

    Arguments
    ---------
    width : int
        Channels of the states.
    size : int
        Not used: one vector weighs all frames.

    Example
    -------
    >>> AttentionPooling(8, 4)(torch.ones(2, 5, 8), torch.tensor([5, 3])).shape
    torch.Size([2, 8])
    """

    def __init__(self, width: int, size: int):
        super().__init__()
        # No bias: a softmax would not see it.
        self.weigh = torch.nn.Linear(width, 1, bias=False)
        self.output_size = width

    def forward(self, hidden, frames):
        """Of shape (batch, time, width) to (batch, width)."""
        padded = padding_mask(hidden, frames)[..., None]
        weights = self.weigh(hidden).masked_fill(padded, float("-inf"))
        hidden = hidden.masked_fill(padded, 0.0)
        return (weights.softmax(dim=1) * hidden).sum(dim=1)


class Standardisation(torch.nn.Module):
    """Makes features of utterances comparable: mean 0 and deviation 1 of each.

    Mean and deviation run with the training and are those of all processes.
    Within an utterance, what all have in common is far larger than what tells
    them apart: a LayerNorm would leave it so.

    Arguments
    ---------
    size : int
        Features.
    window : int
        Utterances that are remembered, as the state that is read is trained.

    Example
    -------
    >>> norm = Standardisation(2)
    >>> norm(torch.tensor([[10.0, -0.1], [12.0, 0.1]]))
    tensor([[-1., -1.],
            [ 1.,  1.]])
    """

    def __init__(self, size: int, window: int = 2000):
        super().__init__()
        self.window = window
        self.register_buffer("count", torch.tensor(0.0))
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("std", torch.ones(size))

    def forward(self, features):
        """Of shape (batch, size), before and after."""
        if self.training:
            count = self.count.clamp(max=self.window).item()
            running = mean_std_update(
                *(features.detach(), None, 0, count, self.mean, self.std)
            )
            for kept, new in zip((self.count, self.mean, self.std), running):
                kept.copy_(torch.as_tensor(new))
        return (features - self.mean) / self.std.clamp_min(1e-5)


SUMMARIES = {
    "statistics": Statistics,
    "recurrent": Recurrent,
    "attention": AttentionPooling,
}
ESTIMATORS = ("straight_through", "gumbel")
_FAR = 15.0  # a sigmoid is 0 or 1 there, but for 3e-7
_HALVINGS = 40
_STREAM = 1  # of training draws, beside those of evaluation


class InputConditionedGate(LayerGate):
    """Layers chosen from the utterance itself, for any number of layers.

    Our reading of arXiv 2507.07954, see the head of this module. A summary of
    the state over real frames goes through one hidden layer to a logit for each
    layer. Each feature of the summary is standardised over utterances of the
    training.
    The number of layers wanted, n, adds a learned vector to the hidden layer
    and one to the logits, which starts at ln n / (L - n).

    ``decides: at_once``: the state at layer 0 is read, and the n layers with
    the highest logits run. ``layer_by_layer``: before each layer the running
    state is read, by the same network, and the layer runs if its logit is above
    0; n is then what the compute term pulls the count to, and not kept exactly.

    In training every layer runs, and its output f(h) is mixed as
    h + g (f(h) - h), with g = 1 for chosen layers and 0 for others, and the
    gradient of sigmoid(logit / temperature). Where it decides at once, these
    logits are shifted for each utterance until the sigmoids sum to n: layers
    compete, and the slope is greatest where the choice is made. ``gumbel`` adds
    logistic noise to the logits (the difference of two Gumbel variables), so
    that other layers are tried. n is drawn from ``train_targets``. With p the
    sigmoid(logit) so shifted, the losses are:

    - ``compute_weight`` times the mean over utterances of ((sum of p - n) / L)²
      where it decides layer by layer; at once exactly n are chosen,
    - ``logit_weight`` times the mean squared logit, much as the z-loss of
      ST-MoE (arXiv 2202.08906). Without it they grew to 25 in our runs, where
      noise changes nothing and sigmoids have no slope,
    - ``balance_weight`` times L Σ f P / (Σ f)², with f the share of the batch
      that keeps a layer and P its mean p, as in the Switch Transformer (arXiv
      2101.03961): it is 1 where all layers are used alike,
    - ``dependence_weight`` times minus the mean over layers of the mutual
      information, in nats, of the utterance and whether the layer is kept,
      H(P) - mean of H(p) with P the mean of p over the batch. It is 0 where all
      utterances are given the same layers.

    Evaluation has no noise. A fractional target lets each utterance keep one of
    the two numbers beside it, drawn by its own samples. A target that was not
    trained for is replaced by the nearest one that was, with a warning.

    Arguments
    ---------
    train_targets : sequence or mapping, optional
        Numbers of layers, one of which is drawn each time; or ``{lowest: a,
        highest: b}``, and any number between is drawn (default: the numbers
        from 1 to L).
    target_layers : float, optional
        In evaluation, where nobody says otherwise (default: the middle of
        ``train_targets``).
    summary : str
        ``statistics`` (mean and standard deviation), ``recurrent`` (a GRU) or
        ``attention`` (a weighted mean). A GRU costs some 1% of a small
        Conformer, the others next to nothing; it decides ``at_once`` only.
    decides : str
        ``at_once`` or ``layer_by_layer``.
    estimator : str
        ``straight_through`` or ``gumbel``.
    draw_targets : str
        For each ``utterance`` or for the ``batch``.
    hidden_size : int
        Of the network, and of the GRU.
    temperature : float
        Of the gradient.
    compute_weight : float
        See above.
    logit_weight : float
        See above.
    balance_weight : float
        See above.
    dependence_weight : float
        See above. ``draw_targets`` must be ``batch``, as else the layers depend
        on the target that an utterance was given.
    closing_norm : bool
        See ``LayerGate``.
    seed : int
        See ``LayerGate``.

    Example
    -------
    >>> gate = InputConditionedGate(train_targets=[1, 2, 3], target_layers=2)
    >>> gate.prepare(num_layers=4, width=8)
    >>> keys = torch.tensor([7, 8])
    >>> frames = torch.tensor([5, 3])
    >>> state = EncoderState(torch.randn(2, 5, 8), frames, keys=keys)
    >>> gate.plan(state).requires_grad, bool(gate.penalty() >= 0)
    (True, True)
    >>> gate.eval().plan(state).sum(dim=1).tolist()
    [2.0, 2.0]
    """

    name = "input_conditioned"
    serves_targets = True
    mixes = True

    def __init__(
        self,
        train_targets: Sequence[float] | Mapping[str, float] | None = None,
        target_layers: float | None = None,
        summary: str = "statistics",
        decides: str = "at_once",
        estimator: str = "gumbel",
        draw_targets: str = "utterance",
        hidden_size: int = 32,
        temperature: float = 1.0,
        compute_weight: float = 1.0,
        logit_weight: float = 0.01,
        balance_weight: float = 0.0,
        dependence_weight: float = 0.0,
        closing_norm: bool = False,
        seed: int = 1234,
    ):
        _check("summary", summary, SUMMARIES)
        _check("decides", decides, ("at_once", "layer_by_layer"))
        _check("estimator", estimator, ESTIMATORS)
        _check("draw_targets", draw_targets, ("utterance", "batch"))
        if (summary, decides) == ("recurrent", "layer_by_layer"):
            raise ValueError(
                "summary: a GRU before every layer is no light network. Take "
                "statistics or attention, or decide at_once."
            )
        if dependence_weight and draw_targets != "batch":
            raise ValueError(
                "dependence_weight: the layers that are kept depend on the "
                "target that is drawn for each utterance. Set draw_targets: "
                "batch."
            )
        if isinstance(train_targets, Mapping):
            if set(train_targets) != {"lowest", "highest"}:
                raise ValueError(
                    "train_targets: a range has the entries lowest and "
                    f"highest, and no others: {dict(train_targets)}."
                )
            lowest, highest = train_targets["lowest"], train_targets["highest"]
            trained = [*range(math.ceil(lowest), math.floor(highest) + 1)]
            trained = sorted({lowest, *trained, highest})
        elif train_targets is not None:
            trained = sorted(train_targets)
            if not trained:
                raise ValueError("train_targets: name at least one.")
        else:
            trained = None
        super().__init__(target_layers, closing_norm, seed)
        self.trained = trained
        self.in_range = isinstance(train_targets, Mapping)
        self.summary_kind = summary
        self.layerwise = decides == "layer_by_layer"
        self.estimator = estimator
        self.draw_targets = draw_targets
        self.hidden_size = hidden_size
        self.temperature = temperature
        self.compute_weight = compute_weight
        self.logit_weight = logit_weight
        self.balance_weight = balance_weight
        self.dependence_weight = dependence_weight
        self.seen = []
        self.register_load_state_dict_pre_hook(_check_same_backbone)

    def build(self):
        """See ``LayerGate.build``."""
        layers, size = self.num_layers, self.hidden_size
        if self.trained is None:
            self.trained = list(range(1, layers + 1))
        if self.default_target is None:
            self.default_target = self.trained[(len(self.trained) - 1) // 2]
        for target in self.trained:
            check_count("train_targets", target, layers)
        self.summary = SUMMARIES[self.summary_kind](self.width, size)
        self.norms = torch.nn.ModuleList(
            Standardisation(self.summary.output_size)
            for _ in range(layers if self.layerwise else 1)
        )
        self.reads = torch.nn.Linear(self.summary.output_size, size)
        self.wants = torch.nn.Embedding(layers + 1, size)
        self.answers = torch.nn.Linear(size, layers)
        self.prior = torch.nn.Embedding(layers + 1, layers)
        share = torch.arange(layers + 1) / layers
        with torch.no_grad():
            self.prior.weight.copy_(share.logit(eps=0.02)[:, None])

    @property
    def keyed(self):
        """See ``LayerGate.keyed``."""
        return self.training or super().keyed

    def set_target(self, target_layers):
        """See ``LayerGate.set_target``; the nearest one trained is taken."""
        super().set_target(target_layers)
        wanted = self.target_layers
        counts = {math.floor(wanted), math.ceil(wanted)}
        trained = {f(x) for x in self.trained for f in (math.floor, math.ceil)}
        if not counts <= trained:
            nearest = min(self.trained, key=lambda x: (abs(x - wanted), x))
            self.target_layers = nearest
            logger.warning(
                "target_layers: this gate was not trained for %s, but for %s; "
                "%s is used, the nearest of them.",
                wanted,
                self.trained,
                nearest,
            )

    def plan(self, state):
        """See ``LayerGate.plan``."""
        self.seen = []
        if self.layerwise:
            return state.hidden.new_zeros(len(state), 0, dtype=torch.float32)
        counts = self.counts(state)
        logits = self.logits(state, counts)
        return self._values(state, logits, counts, slice(None))

    def decide(self, state):
        """See ``LayerGate.decide``."""
        counts = self.counts(state)
        layer = slice(state.layer, state.layer + 1)
        logits = self.logits(state, counts)[:, layer]
        return self._values(state, logits, counts, layer)[:, 0]

    def logits(self, state: EncoderState, counts: torch.Tensor) -> torch.Tensor:
        """What speaks for each layer.

        Arguments
        ---------
        state : EncoderState
            At any layer.
        counts : torch.Tensor
            Layers wanted, int64 of shape (batch,).

        Returns
        -------
        torch.Tensor
            float32 of shape (batch, layers).
        """
        counts = counts.to(state.hidden.device)
        # In half precision, logits would often be equal.
        with torch.autocast(state.hidden.device.type, enabled=False):
            summary = self.summary(state.hidden.float(), state.frames)
            norm = self.norms[state.layer if self.layerwise else 0]
            hidden = self.reads(norm(summary)) + self.wants(counts)
            return self.answers(hidden.relu()) + self.prior(counts)

    def counts(self, state):
        """See ``LayerGate.counts``; in training, drawn from those trained."""
        if not self.training:
            return super().counts(state)
        drawn = self._draws(state)[:, -2:]
        if self.draw_targets == "batch":
            rng = np.random.default_rng([self.seed, self.step])
            drawn[:] = torch.from_numpy(rng.random(2))
        trained = torch.tensor(self.trained, dtype=torch.double)
        if self.in_range:
            low, high = trained[0], trained[-1]
            targets = low + drawn[:, 0] * (high - low)
        else:
            targets = trained[(drawn[:, 0] * len(trained)).long()]
        whole = targets.floor()
        return (whole + (drawn[:, 1] < targets - whole)).long()

    def penalty(self):
        """See ``LayerGate.penalty``."""
        if not self.seen:
            return None
        counts = self.seen[0][-1]
        logits, probabilities, kept = (
            torch.cat([one[part] for one in self.seen], dim=1)
            for part in range(3)
        )
        self.seen = []
        penalty = self.logit_weight * logits.square().mean()
        if self.layerwise:
            excess = probabilities.sum(dim=1) - counts.to(probabilities.device)
            compute = (excess / self.num_layers).square().mean()
            penalty = penalty + self.compute_weight * compute
        if self.balance_weight:
            share = _mean_over_processes(kept)
            uneven = (share * probabilities.mean(dim=0)).sum()
            uneven = uneven / share.sum().clamp_min(1e-3).square()
            penalty = penalty + self.balance_weight * self.num_layers * uneven
        if self.dependence_weight:
            told = _information(probabilities).mean()
            penalty = penalty - self.dependence_weight * told
        return penalty

    def _draws(self, state):
        """Of a step: one for the noise of each layer, two for the target."""
        return self.uniforms(state, self.num_layers + 2, self.step, _STREAM)

    def _values(self, state, logits, counts, layers):
        """Zeros and ones; in training with the gradient of a sigmoid."""
        if not self.training:
            return self._choose(logits, counts)
        noisy = logits
        if self.estimator == "gumbel":
            drawn = self._draws(state)[:, :-2][:, layers]
            noise = drawn.logit(eps=1e-6)
            noisy = logits + noise.to(logits.device, torch.float32)
        hard = self._choose(noisy, counts)
        probabilities = self._soften(logits, counts)
        self.seen.append((logits, probabilities, hard, counts))
        soft = self._soften(noisy / self.temperature, counts)
        return hard - soft.detach() + soft

    def _choose(self, logits, counts):
        chosen = logits > 0 if self.layerwise else keep_top(logits, counts)
        return chosen.float()

    def _soften(self, logits, counts):
        shifted = logits if self.layerwise else shift_to(logits, counts)
        return shifted.sigmoid()


def shift_to(logits: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Shift the logits of each utterance until their sigmoids sum to a count.

    Arguments
    ---------
    logits : torch.Tensor
        Of shape (batch, layers).
    counts : torch.Tensor
        From 0 to the number of layers, int64 of shape (batch,).

    Returns
    -------
    torch.Tensor
        Of shape (batch, layers). Its gradient knows that the sum stays.

    Example
    -------
    >>> shifted = shift_to(torch.tensor([[3.0, 4.0, 5.0]]), torch.tensor([1]))
    >>> shifted.sigmoid().sum(dim=1)
    tensor([1.0000])
    """
    counts = counts.to(logits)[:, None]
    with torch.no_grad():
        low = logits.amin(dim=1, keepdim=True) - _FAR
        high = logits.amax(dim=1, keepdim=True) + _FAR
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            over = (logits - middle).sigmoid().sum(dim=1, keepdim=True) > counts
            low, high = low.where(~over, middle), high.where(over, middle)
        at = (low + high) / 2
    shares = (logits - at).sigmoid()
    slope = (shares * (1 - shares)).sum(dim=1, keepdim=True).detach()
    moved = shares.sum(dim=1, keepdim=True)
    moved = (moved - moved.detach()) / slope.clamp_min(1e-6)
    return logits - at - moved


def _information(probabilities: torch.Tensor) -> torch.Tensor:
    """Of the utterance and whether a layer is kept, in nats, of each layer.

    The mean of several processes' gradients is that of one with all utterances.
    """
    probabilities = probabilities.clamp(1e-6, 1 - 1e-6)
    bernoulli = torch.distributions.Bernoulli
    mean, own = _mean_over_processes(probabilities), probabilities.mean(dim=0)
    # The gradient of the first entropy, which all processes have a part in.
    slope = -mean.logit() * (own - own.detach())
    each = bernoulli(probabilities).entropy().mean(dim=0)
    return bernoulli(mean).entropy() + slope - each


def _mean_over_processes(values: torch.Tensor) -> torch.Tensor:
    """The mean over the utterances of all processes, without a gradient."""
    total = torch.cat([values.sum(dim=0), values.new_tensor([len(values)])])
    total = total.detach()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(total)
    return total[:-1] / total[-1]


def _check(key, value, known):
    if value not in known:
        raise ValueError(f"{key}: {value!r} is none of {', '.join(known)}.")


def _check_same_backbone(gate, state_dict, prefix, *_):
    """Say what differs, before torch lists sizes."""
    own = gate.state_dict()
    given = {
        key[len(prefix) :]: tuple(value.shape)
        for key, value in state_dict.items()
        if key.startswith(prefix)
    }
    wrong = [
        f"{key} of shape {given[key]} instead of {tuple(own[key].shape)}"
        for key in own
        if key in given and given[key] != tuple(own[key].shape)
    ]
    if wrong:
        raise ValueError(
            "gate: this checkpoint has a selector of other sizes, "
            f"{wrong[0]}; the encoder has {gate.num_layers} layers of width "
            f"{gate.width}. It was trained with another backbone, or with "
            "another summary or hidden_size: load one that fits, or train "
            "the selector anew."
        )
