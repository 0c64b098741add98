"""One step API for every backbone: begin, step, rows that can leave.

Authors
 * SpeechBrain-EE contributors 2026
"""

from __future__ import annotations

import re
import zlib
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from speechbrain.utils.logger import get_logger

if TYPE_CHECKING:
    from speechbrain_ee.gates import LayerGate

logger = get_logger(__name__)

SAMPLE_RATE = 16000  # Hz, of the waveforms that corpora are prepared to
_MULTIPLE = 1024 * 9 * 125  # samples; of all likely distances of frames


@dataclass(frozen=True)
class EncoderState:
    """Where a batch of utterances stands inside an encoder.

    Arguments
    ---------
    hidden : torch.Tensor
        Output of the last layer that ran, before any final norm, of shape
        (batch, time, channel).
    frames : torch.Tensor
        Real frames of each utterance, int64 of shape (batch,), on the CPU.
    layer : int
        How deep it is: 0 = front-end output, k = after layer k.
    context : dict
        What the layers need beside ``hidden``; the encoder that made the state
        is the only reader.
    plan : torch.Tensor, optional
        What the encoder's gate has decided, of shape (batch, layers); up to
        here where it decides layer by layer, and None before layer 1. bool,
        on the CPU; or, where the gate mixes, its values.
    keys : torch.Tensor, optional
        A number made of each utterance's samples, int64 of shape (batch,), on
        the CPU, where the gate draws by it.
    """

    hidden: torch.Tensor
    frames: torch.Tensor
    layer: int = 0
    context: dict[str, torch.Tensor | None] = field(default_factory=dict)
    plan: torch.Tensor | None = None
    keys: torch.Tensor | None = None

    def __len__(self) -> int:
        """The number of utterances."""
        return len(self.frames)

    @property
    def ran(self) -> torch.Tensor:
        """Which layers ran so far, bool of shape (batch, layer), on the CPU."""
        if self.plan is None or self.plan.dtype != torch.bool:
            return torch.ones(len(self), self.layer, dtype=torch.bool)
        return self.plan[:, : self.layer]


class LayerwiseEncoder(torch.nn.Module, ABC):
    """A speech encoder whose layers can be run one at a time.

    In training, ``forward`` gives the states at the asked layers in one call.
    In inference, ``begin``, ``step`` and ``keep`` walk the same layers while
    utterances leave the batch. In evaluation mode each utterance of a padded
    batch gets what the stock model computes for it alone.

    A ``gate`` that is attached decides which layers run; without one, or where
    it keeps all, the encoder is the stock model. A layer that an utterance
    drops hands its input on.

    Subclasses are the only place that knows how a backbone is wired. They set
    ``output_size`` and write the abstract methods.
    """

    output_size: int
    least_frames: int = 1  # the fewest that the layers can take
    frozen: bool = False  # then evaluation mode stays on, except for the gate

    def __init__(self):
        super().__init__()
        self.register_module("gate", None)
        self.register_load_state_dict_pre_hook(_check_same_layers)
        self.register_load_state_dict_pre_hook(_check_same_gate)

    def attach(self, gate: LayerGate | None) -> None:
        """Let a gate decide from now on which layers run.

        Arguments
        ---------
        gate : LayerGate, optional
            It learns here how large the encoder is; None lets all layers run.

        Raises
        ------
        ValueError
            If the gate's settings do not fit the encoder.
        """
        if gate is not None:
            gate.prepare(self.num_layers, self.output_size)
            gate.train(self.training)
            if gate.closing_norm and self.closing_norm(0) is None:
                logger.warning(
                    "closing_norm: the layers of this encoder do not end with "
                    "a LayerNorm; a dropped layer keeps nothing."
                )
        self.gate = gate

    def freeze_backbone(self) -> None:
        """Train nothing but the gate; the rest stays in evaluation mode."""
        self.requires_grad_(False)
        if self.gate is not None:
            self.gate.requires_grad_(True)
        self.frozen = True
        self.train(self.training)

    def load_backbone(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Take the weights of another encoder, but for its gate.

        Arguments
        ---------
        weights : mapping
            Its ``state_dict``.

        Raises
        ------
        RuntimeError or ValueError
            If it is built otherwise.
        """
        own = self.state_dict()
        self.load_state_dict(
            {
                **{k: w for k, w in weights.items() if not _of_gate(k)},
                **{k: w for k, w in own.items() if _of_gate(k)},
            }
        )

    def train(self, mode: bool = True):
        """Training mode, except for what is frozen."""
        super().train(mode and not self.frozen)
        if self.gate is not None:
            self.gate.train(mode)
        return self

    @property
    def num_layers(self) -> int:
        """How many layers the encoder has."""
        return len(self.layers)

    @property
    def state_sizes(self) -> list[int]:
        """The width of each state, from the front end to the last layer."""
        return [self.output_size] * (self.num_layers + 1)

    @property
    def frame_shift(self) -> int:
        """Samples from one frame to the next.

        Raises
        ------
        ValueError
            If that is no whole number.
        """
        counts = self.frames_of(torch.tensor([_MULTIPLE, 2 * _MULTIPLE]))
        shift, rest = divmod(_MULTIPLE, int(counts[1] - counts[0]))
        if rest:
            raise ValueError(
                f"{type(self).__name__} has no whole number of samples "
                "between two frames."
            )
        return shift

    @property
    @abstractmethod
    def layers(self) -> torch.nn.ModuleList:
        """The stock model's layers, first to last."""

    @abstractmethod
    def frames_of(self, samples: torch.Tensor) -> torch.Tensor:
        """How many frames are left of waveforms.

        Arguments
        ---------
        samples : torch.Tensor
            Samples of each utterance, int64 of any shape.

        Returns
        -------
        torch.Tensor
            int64 of the same shape, 0 where an utterance is too short.
        """

    @abstractmethod
    def begin(
        self, wavs: torch.Tensor, wav_lens: torch.Tensor | None = None
    ) -> EncoderState:
        """Run the front end and all that comes before the first layer.

        Arguments
        ---------
        wavs : torch.Tensor
            Waveforms at the encoder's sample rate, of shape (batch, samples).
        wav_lens : torch.Tensor, optional
            Lengths relative to the longest, of shape (batch,).

        Returns
        -------
        EncoderState
            The state at layer 0.

        Raises
        ------
        ValueError
            If an utterance is too short to leave any frame.
        """

    @abstractmethod
    def run_layer(self, state: EncoderState) -> torch.Tensor:
        """Run the next layer for all utterances of a state.

        Arguments
        ---------
        state : EncoderState
            The state at some layer k.

        Returns
        -------
        torch.Tensor
            What layer k + 1 makes of ``state.hidden``, of the same shape.
        """

    def closing_norm(self, layer: int) -> torch.nn.Module | None:
        """The LayerNorm that a layer ends with.

        Arguments
        ---------
        layer : int
            Its place in ``layers``, from 0 on.

        Returns
        -------
        torch.nn.Module or None
            None where what is added to the layer's input stays as it is.
        """
        return None

    def step(self, state: EncoderState) -> EncoderState:
        """Run the next layer, for those utterances that keep it.

        Arguments
        ---------
        state : EncoderState
            The state at some layer k.

        Returns
        -------
        EncoderState
            The state at layer k + 1.
        """
        plan = None
        if self.gate is None:
            hidden = self.run_layer(state)
        else:
            plan = self._decide(state)
            run = self._mix if self.gate.mixing else self._run_for
            hidden = run(state, plan[:, state.layer])
        return replace(state, hidden=hidden, layer=state.layer + 1, plan=plan)

    def _decide(self, state) -> torch.Tensor:
        """The gate's plan, up to the next layer at least."""
        plan = state.plan
        if plan is None:
            plan = self._settle(self.gate.plan(state))
        if plan.shape[1] == state.layer:
            value = self._settle(self.gate.decide(state))
            plan = torch.cat([plan, value[:, None]], dim=1)
        return plan

    def _settle(self, values) -> torch.Tensor:
        """Whether layers run is asked before each: it must not wait for a GPU.

        Values that mix keep their gradients, and stay where they are.
        """
        return values if self.gate.mixing else values.cpu() > 0.5

    def _mix(self, state, values) -> torch.Tensor:
        """What goes into the next layer and what comes out, by the values."""
        skipped, hidden = self._skip(state), self.run_layer(state)
        values = values[:, None, None].to(hidden.dtype)
        return skipped + values * (hidden - skipped)

    def _skip(self, state) -> torch.Tensor:
        """What is handed on by utterances that drop the next layer."""
        norm = None
        if self.gate.closing_norm:
            norm = self.closing_norm(state.layer)
        return state.hidden if norm is None else norm(state.hidden)

    def _run_for(self, state, kept) -> torch.Tensor:
        """Run the next layer for some utterances."""
        count = int(kept.sum())
        if count == len(kept):
            return self.run_layer(state)
        hidden = self._skip(state)
        if count:
            rows = kept.nonzero().flatten()
            new = self.run_layer(self.keep(state, rows))
            hidden = hidden.clone()  # others still hold it
            rows = rows.to(hidden.device)
            hidden[rows, : new.shape[1]] = new.to(hidden.dtype)
        elif torch.is_grad_enabled():
            # DDP waits for unused parameters: an empty sum is 0, with zeros as
            # gradients.
            for parameter in self.layers[state.layer].parameters():
                if parameter.requires_grad:
                    hidden = hidden + parameter.flatten()[:0].sum()
        return hidden

    def first_state(
        self,
        hidden: torch.Tensor,
        frames: torch.Tensor,
        wavs: torch.Tensor,
        samples: torch.Tensor,
    ) -> EncoderState:
        """The state at layer 0, for ``begin``.

        Arguments
        ---------
        hidden : torch.Tensor
            Of shape (batch, time, channel).
        frames : torch.Tensor
            Real frames, int64 of shape (batch,), on the CPU.
        wavs : torch.Tensor
            What they were made of, of shape (batch, samples).
        samples : torch.Tensor
            Real samples, int64 of shape (batch,).

        Returns
        -------
        EncoderState
            With context; with keys, if the gate draws by them.
        """
        keys = None
        if self.gate is not None and self.gate.keyed:
            heard = wavs.detach().float().contiguous().cpu().numpy()
            ends = zip(heard, samples.tolist())
            keys = torch.tensor([zlib.crc32(wav[:n]) for wav, n in ends])
        context = self.make_context(hidden, frames)
        return EncoderState(hidden, frames, context=context, keys=keys)

    @abstractmethod
    def final_norm(self, hidden: torch.Tensor) -> torch.Tensor:
        """What the stock encoder does after its last layer.

        Arguments
        ---------
        hidden : torch.Tensor
            A state of shape (batch, time, channel).

        Returns
        -------
        torch.Tensor
            The same shape; the state itself for post-norm backbones.
        """

    @abstractmethod
    def make_context(
        self, hidden: torch.Tensor, frames: torch.Tensor
    ) -> dict[str, torch.Tensor | None]:
        """Masks and positions for a batch of this shape."""

    @abstractmethod
    def keep_context(
        self,
        context: dict[str, torch.Tensor | None],
        hidden: torch.Tensor,
        frames: torch.Tensor,
        rows: torch.Tensor,
    ) -> dict[str, torch.Tensor | None]:
        """The context cut to fewer and perhaps shorter utterances."""

    def keep(
        self, state: EncoderState, rows: Sequence[int] | torch.Tensor
    ) -> EncoderState:
        """Let all other utterances leave the batch.

        Arguments
        ---------
        state : EncoderState
            The state of the running batch.
        rows : sequence of int
            Positions of the utterances that stay.

        Returns
        -------
        EncoderState
            Their state; padding that none of them needs is cut off.
        """
        rows = torch.as_tensor(rows, dtype=torch.long)
        frames = state.frames[rows]
        keys = None if state.keys is None else state.keys[rows]
        plan = state.plan
        if plan is not None:
            plan = plan[rows.to(plan.device)]
        rows = rows.to(state.hidden.device)
        hidden = state.hidden[:, : int(frames.max())].index_select(0, rows)
        context = self.keep_context(state.context, hidden, frames, rows)
        return EncoderState(hidden, frames, state.layer, context, plan, keys)

    def forward(
        self,
        wavs: torch.Tensor,
        wav_lens: torch.Tensor | None = None,
        layers: Sequence[int] | None = None,
        normed: Collection[int] | None = None,
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        """States at the asked layers; nothing deeper than the last one runs.

        Arguments
        ---------
        wavs : torch.Tensor
            Waveforms of shape (batch, samples).
        wav_lens : torch.Tensor, optional
            Lengths relative to the longest, of shape (batch,).
        layers : sequence of int, optional
            Rising indices, 0 for the front-end output (default: all, 0 to the
            last).
        normed : collection of int, optional
            Those of ``layers`` at which the encoder's final norm is applied
            (default: none).

        Returns
        -------
        states : list of torch.Tensor
            One state of shape (batch, time, channel) per asked layer.
        frames : torch.Tensor
            Real frames of each utterance, int64 of shape (batch,), on the CPU.
        """
        layers = range(self.num_layers + 1) if layers is None else layers
        normed = () if normed is None else normed
        check_layers(layers, self.num_layers, first=0)
        state = self.begin(wavs, wav_lens)
        states = []
        for layer in layers:
            while state.layer < layer:
                state = self.step(state)
            hidden = state.hidden
            states.append(
                self.final_norm(hidden) if layer in normed else hidden
            )
        return states, state.frames


def _check_same_layers(encoder, state_dict, prefix, *_):
    """Say how many layers differ, before torch lists missing keys."""
    pattern = re.compile(re.escape(prefix) + r".*\bencoder\.layers\.(\d+)\.")
    found = {int(m[1]) for m in map(pattern.match, state_dict) if m}
    if found and len(found) != encoder.num_layers:
        raise ValueError(
            f"This checkpoint has {len(found)} encoder layers, the model "
            f"{encoder.num_layers}. Set the same number of layers as when it "
            "was trained."
        )


def _of_gate(key: str) -> bool:
    return key.startswith("gate.")


def _check_same_gate(encoder, state_dict, prefix, *_):
    """Say that a gate is missing or too much, before torch lists keys."""
    prefix += "gate."
    given = {key[len(prefix) :] for key in state_dict if key.startswith(prefix)}
    wanted, learned = set(), set()
    if encoder.gate is not None:
        wanted = set(encoder.gate.state_dict())
        learned = {name for name, _ in encoder.gate.named_parameters()}
    if learned and not given:
        raise ValueError(
            f"gate: this checkpoint has no weights of the {encoder.gate.name} "
            "gate that the model has. Take a run that was trained with it, or "
            "start from this one by its folder (init_from)."
        )
    if given - wanted:
        raise ValueError(
            "gate: this checkpoint has a gate with weights, such as "
            f"{min(given - wanted)}, which the model has not. Set the gate "
            "that it was trained with, or start from the run by its folder "
            "(init_from), which leaves the gate out."
        )


def check_layers(
    layers: Sequence[int], num_layers: int, first: int = 1
) -> None:
    """Raise unless the layers rise strictly and lie inside the encoder.

    Arguments
    ---------
    layers : sequence of int
        Layer indices.
    num_layers : int
        Layers of the encoder.
    first : int
        The lowest index allowed.

    Raises
    ------
    ValueError
        Naming the layers at fault and the range.

    Example
    -------
    >>> check_layers([2, 4, 6], num_layers=6)
    >>> check_layers([2, 2, 8], num_layers=6)
    Traceback (most recent call last):
      ...
    ValueError: Layers [2, 2, 8]: 8 outside 1 to 6.
    """
    layers = list(layers)
    outside = [k for k in layers if not first <= k <= num_layers]
    if not layers:
        raise ValueError("At least one layer must be named.")
    if outside:
        raise ValueError(
            f"Layers {layers}: {', '.join(map(str, outside))} outside "
            f"{first} to {num_layers}."
        )
    if any(b <= a for a, b in zip(layers, layers[1:])):
        raise ValueError(
            f"Layers {layers}: each must be deeper than the one before it."
        )


def sample_counts(
    wavs: torch.Tensor, wav_lens: torch.Tensor | None
) -> torch.Tensor:
    """Relative lengths as whole numbers of samples.

    Arguments
    ---------
    wavs : torch.Tensor
        Waveforms of shape (batch, samples).
    wav_lens : torch.Tensor, optional
        Lengths relative to the longest, of shape (batch,).

    Returns
    -------
    torch.Tensor
        int64 of shape (batch,), on the CPU.

    Example
    -------
    >>> sample_counts(torch.zeros(2, 10), torch.tensor([1.0, 0.7])).tolist()
    [10, 7]
    """
    if wav_lens is None:
        return torch.full((len(wavs),), wavs.shape[1], dtype=torch.long)
    return (wav_lens.double().cpu() * wavs.shape[1]).round().long()


def samples_of(
    durations: Iterable[float], sample_rate: int = SAMPLE_RATE
) -> torch.Tensor:
    """Durations as whole numbers of samples.

    Arguments
    ---------
    durations : iterable of float
        Of utterances, in seconds; as text, too, as CSVs have them.
    sample_rate : int
        In Hz.

    Returns
    -------
    torch.Tensor
        int64 of shape (utterances,).

    Example
    -------
    >>> samples_of([1.0, "0.25"]).tolist()
    [16000, 4000]
    """
    seconds = torch.tensor([float(x) for x in durations], dtype=torch.double)
    return (seconds * sample_rate).round().long()


def check_frames(
    frames: torch.Tensor, samples: torch.Tensor, least: int = 1
) -> None:
    """Raise if an utterance is too short for the encoder.

    Arguments
    ---------
    frames : torch.Tensor
        Frames of each utterance, int64 of shape (batch,).
    samples : torch.Tensor
        Samples of each utterance, int64 of shape (batch,).
    least : int
        The fewest frames that the encoder can take.

    Raises
    ------
    ValueError
        Naming the utterance by its position in the batch.
    """
    for row in (frames < least).nonzero().flatten().tolist():
        raise ValueError(
            f"Utterance {row} of the batch has {int(samples[row])} samples: "
            f"{int(frames[row])} frames are left of it, and the encoder needs "
            f"{least}. Leave such utterances out when the data is prepared "
            "(min_duration)."
        )


def is_padded(hidden: torch.Tensor, frames: torch.Tensor) -> bool:
    """Whether any utterance is shorter than the batch.

    Arguments
    ---------
    hidden : torch.Tensor
        A state of shape (batch, time, channel).
    frames : torch.Tensor
        Real frames of each utterance, int64 of shape (batch,), on the CPU.

    Returns
    -------
    bool
        False lets attention and convolutions go without a mask.
    """
    return bool((frames < hidden.shape[1]).any())


def padding_mask(hidden: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
    """True at padded frames.

    Arguments
    ---------
    hidden : torch.Tensor
        A state of shape (batch, time, channel).
    frames : torch.Tensor
        Real frames of each utterance, int64 of shape (batch,).

    Returns
    -------
    torch.Tensor
        bool of shape (batch, time), on the device of ``hidden``.
    """
    time = torch.arange(hidden.shape[1], device=hidden.device)
    return time >= frames.to(hidden.device)[:, None]


def moments(
    hidden: torch.Tensor, frames: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance over real frames.

    Arguments
    ---------
    hidden : torch.Tensor
        A state of shape (batch, time, channel).
    frames : torch.Tensor
        Real frames of each utterance, int64 of shape (batch,), on the CPU.

    Returns
    -------
    mean : torch.Tensor
        Shape (batch, channel).
    variance : torch.Tensor
        Of the same shape; that of the frames themselves, divided by their
        number.

    Example
    -------
    >>> moments(torch.tensor([[[1.0], [3.0], [8.0]]]), torch.tensor([2]))
    (tensor([[2.]]), tensor([[1.]]))
    """
    if not is_padded(hidden, frames):
        # Many times faster than torch.var_mean over this dimension.
        mean = hidden.mean(dim=1)
        return mean, (hidden - mean[:, None]).square().mean(dim=1)
    padded = padding_mask(hidden, frames)[..., None]
    counts = frames.to(hidden.device, hidden.dtype)[:, None]
    mean = hidden.masked_fill(padded, 0.0).sum(dim=1) / counts
    centred = (hidden - mean[:, None]).masked_fill(padded, 0.0)
    return mean, centred.square().sum(dim=1) / counts


def silence_padding(wavs: torch.Tensor, samples: torch.Tensor) -> torch.Tensor:
    """Zeros behind the end of each waveform.

    Arguments
    ---------
    wavs : torch.Tensor
        Waveforms of shape (batch, samples).
    samples : torch.Tensor
        Real samples of each, int64 of shape (batch,).

    Returns
    -------
    torch.Tensor
        The same shape.

    Example
    -------
    >>> silence_padding(torch.ones(1, 4), torch.tensor([3]))
    tensor([[1., 1., 1., 0.]])
    """
    time = torch.arange(wavs.shape[1], device=wavs.device)
    return wavs.masked_fill(time >= samples.to(wavs.device)[:, None], 0.0)


def relative_lengths(
    hidden: torch.Tensor, frames: torch.Tensor
) -> torch.Tensor:
    """Lengths as SpeechBrain's modules want them.

    A quarter of a frame less, so that its masks, which multiply by the time
    again and round up or to the nearest, count right.

    Arguments
    ---------
    hidden : torch.Tensor
        Shape (batch, time, …).
    frames : torch.Tensor
        Real frames of each utterance, int64 of shape (batch,).

    Returns
    -------
    torch.Tensor
        Shape (batch,), on the device of ``hidden``.

    Example
    -------
    >>> relative_lengths(torch.zeros(2, 4, 1), torch.tensor([4, 2]))
    tensor([0.9375, 0.4375])
    """
    return ((frames - 0.25) / hidden.shape[1]).to(hidden.device)
