"""The one loop: run layers, read exits, let decided utterances leave.

Authors
 * SpeechBrain-EE contributors 2026
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from speechbrain_ee.costs import ExitCosts
from speechbrain_ee.encoders import LayerwiseEncoder
from speechbrain_ee.exits import ExitSelector, Score, get_selector
from speechbrain_ee.heads import ClusterBranches, CTCHeads, ExitOutput


@dataclass
class Departures:
    """How each utterance of a batch left the encoder, in the batch's order.

    Arguments
    ---------
    hypotheses : list of tuple of int
        Transcripts as labels, read at the exit taken.
    exit_layer : torch.Tensor
        The exit taken, int64 of shape (batch,).
    layers_run : torch.Tensor
        Encoder layers executed, int64 of shape (batch,); less than
        ``exit_layer`` where a gate has dropped some.
    frames : torch.Tensor
        Encoder frames, int64 of shape (batch,).
    macs : torch.Tensor
        MACs of layers, heads and gate without padding, float64 of shape
        (batch,).
    seconds : torch.Tensor
        Share of the time of layers, gate, heads, scores and transcripts,
        float64 of shape (batch,): each stretch between two exits is split over
        the utterances still running, by their frames, and the time of
        transcripts over those that leave. The sum is the batch's time.
    front_end_seconds : float
        Time before the first layer, for the whole batch.
    ran : torch.Tensor, optional
        Which layers ran, bool of shape (batch, layers), False behind the exit;
        None where no gate decides.
    """

    hypotheses: list[tuple[int, ...]]
    exit_layer: torch.Tensor
    layers_run: torch.Tensor
    frames: torch.Tensor
    macs: torch.Tensor
    seconds: torch.Tensor
    front_end_seconds: float
    ran: torch.Tensor | None = None

    def of(self, rows: torch.Tensor) -> Departures:
        """The account of some of the utterances.

        Arguments
        ---------
        rows : torch.Tensor
            Positions of the utterances, int64.

        Returns
        -------
        Departures
            A copy for these; the front end's time stays the batch's.
        """
        return Departures(
            [self.hypotheses[i] for i in rows],
            self.exit_layer[rows],
            self.layers_run[rows],
            self.frames[rows],
            self.macs[rows],
            self.seconds[rows],
            self.front_end_seconds,
            None if self.ran is None else self.ran[rows],
        )

    @property
    def layers(self) -> list[str] | None:
        """Which layers ran up to the exit, as "1101"; None without a gate."""
        if self.ran is None:
            return None
        return [
            "".join(str(int(one)) for one in row[:depth])
            for row, depth in zip(self.ran.tolist(), self.exit_layer.tolist())
        ]


class EarlyExitLoop:
    """Runs an encoder layer by layer and lets each utterance leave in its time.

    Nothing behind the last departure runs, nor does a layer run for utterances
    that the encoder's gate lets pass it. The modules must be in evaluation
    mode; autocast, if wanted, is the caller's context.

    Arguments
    ---------
    encoder : LayerwiseEncoder
        The unwrapped encoder.
    heads : CTCHeads or ClusterBranches
        What is read at its exits.
    selector : ExitSelector, str or mapping
        Who leaves where, as ``get_selector`` takes it. All leave at the last
        exit.
    costs : ExitCosts, optional
        Counted here by default; pass it to share one count among loops.
    watched : sequence of Score
        Scores that ``on_exit`` or ``on_leave`` will read, so that what they
        need is kept.
    exit_layers : sequence of int, optional
        Those of the heads' exits that are read (default: all). All leave at the
        last of them.

    Example
    -------
    >>> from speechbrain_ee.encoders.huggingface import HuggingFaceEncoder
    >>> from speechbrain_ee.exits import FixedLayer
    >>> small = {"num_hidden_layers": 4, "hidden_size": 32}
    >>> small |= {"num_attention_heads": 4, "intermediate_size": 64}
    >>> encoder = HuggingFaceEncoder("hubert", pretrained=False, config=small)
    >>> heads = CTCHeads([2, 4], input_size=32, vocab_size=10)
    >>> loop = EarlyExitLoop(encoder.eval(), heads.eval(), FixedLayer(2))
    >>> departures = loop(torch.randn(2, 8000), torch.tensor([1.0, 0.5]))
    >>> departures.exit_layer
    tensor([2, 2])
    """

    def __init__(
        self,
        encoder: LayerwiseEncoder,
        heads: CTCHeads | ClusterBranches,
        selector: ExitSelector | str | Mapping,
        costs: ExitCosts | None = None,
        watched: Sequence[Score] = (),
        exit_layers: Sequence[int] | None = None,
    ):
        if exit_layers is None:
            exit_layers = heads.exit_layers
        self.exit_layers = sorted(exit_layers)
        if self.exit_layers[-1] > encoder.num_layers:
            raise ValueError(
                f"Exit layers {self.exit_layers} lie outside an encoder of "
                f"{encoder.num_layers} layers."
            )
        unknown = sorted(set(exit_layers) - set(heads.exit_layers))
        if unknown:
            raise ValueError(
                f"Exit layers {self.exit_layers}: the heads have no exit at "
                f"{', '.join(map(str, unknown))}, but at {heads.exit_layers}."
            )
        self.encoder = encoder
        self.heads = heads
        self.selector = selector = get_selector(selector)
        self.costs = costs or ExitCosts(encoder, heads, self.exit_layers)
        self.history = max([selector.history, *(s.previous for s in watched)])
        self.hidden = selector.hidden or any(s.hidden for s in watched)
        selector.prepare(self.exit_layers, self.costs)

    @torch.no_grad()
    def __call__(
        self,
        wavs: torch.Tensor,
        wav_lens: torch.Tensor | None = None,
        ids: list[str] | None = None,
        on_exit: Callable[[ExitOutput, Departures], None] | None = None,
        on_leave: Callable[[ExitOutput, torch.Tensor, list[torch.Tensor]], None]
        | None = None,
    ) -> Departures:
        """Walk one batch.

        Arguments
        ---------
        wavs : torch.Tensor
            Waveforms of shape (batch, samples).
        wav_lens : torch.Tensor, optional
            Lengths relative to the longest, of shape (batch,).
        ids : list of str, optional
            Names of the utterances.
        on_exit : callable, optional
            Called with the output of each exit and the account so far, before
            transcripts are read and outside the measured time.
        on_leave : callable, optional
            Called where utterances leave, also outside that time, with what the
            exit says of them, their positions in the batch (int64, rising), and
            their states 0 to that of the exit, each of shape (utterances, time,
            channel), without padding that none of them needs. Without it no
            state is kept.

        Returns
        -------
        Departures
            How each utterance left.
        """
        if self.encoder.training or self.heads.training:
            raise RuntimeError("Call eval() on encoder and heads first.")
        clock = _Clock(wavs.device)
        state = self.encoder.begin(wavs, wav_lens)
        batch = len(state)
        account = Departures(
            hypotheses=[()] * batch,
            exit_layer=torch.zeros(batch, dtype=torch.long),
            layers_run=torch.zeros(batch, dtype=torch.long),
            frames=state.frames,
            macs=torch.zeros(batch, dtype=torch.float64),
            seconds=torch.zeros(batch, dtype=torch.float64),
            front_end_seconds=clock.lap(),
        )
        if self.encoder.gate is not None:
            shape = batch, self.encoder.num_layers
            account.ran = torch.zeros(shape, dtype=torch.bool)
        rows = torch.arange(batch)  # which utterances are still running
        kept = None if on_leave is None else _History(state.hidden, rows)
        previous = None
        clock.lap()  # keeping accounts is no part of the work
        for exit_layer in self.exit_layers:
            while state.layer < exit_layer:
                state = self.encoder.step(state)
                if kept is not None:
                    kept.add(state.hidden, rows)
            output = self._read(state, rows, ids, previous)
            leave = self._decide(output)
            seconds = clock.lap()
            account.seconds[rows] += seconds * _shares(state.frames)
            account.exit_layer[rows] = exit_layer
            account.layers_run[rows] = state.ran.sum(dim=1)
            account.macs[rows] = self.costs(exit_layer, state.frames, state.ran)
            if account.ran is not None:
                account.ran[rows, :exit_layer] = state.ran
            if on_exit is not None:
                on_exit(output, account.of(rows))
            clock.lap()

            gone = leave.nonzero().flatten()
            if len(gone) > 0:
                # Transcripts may have to be searched: only theirs are.
                left = output
                if not leave.all():
                    left = output.keep(gone, self.history if kept else 0)
                for i, found in zip(rows[gone].tolist(), left.hypotheses):
                    account.hypotheses[i] = found
                seconds = clock.lap()
                account.seconds[rows[gone]] += seconds * _shares(left.frames)
                if kept is not None:
                    states = kept.of(rows[gone], left.frames)
                    on_leave(left, rows[gone], states)
                    clock.lap()

            stay = (~leave).nonzero().flatten()
            if len(stay) == 0:
                break
            if len(stay) < len(rows):
                state, rows = self.encoder.keep(state, stay), rows[stay]
            if self.history > 0:
                previous = output.keep(stay, history=self.history - 1)
        return account

    def _read(self, state, rows, ids, previous) -> ExitOutput:
        hidden = state.hidden
        if state.layer in self.heads.normed_layers:
            hidden = self.encoder.final_norm(hidden)
        output = self.heads.read(hidden, state.frames, state.layer)
        output.ids = None if ids is None else [ids[i] for i in rows]
        output.hidden = state.hidden if self.hidden else None
        output.previous = previous
        return output

    def _decide(self, output) -> torch.Tensor:
        if output.exit_layer == self.exit_layers[-1]:
            return torch.ones(len(output), dtype=torch.bool)
        return self.selector(output).cpu()


def _shares(frames: torch.Tensor) -> torch.Tensor:
    """What part of a batch's frames each utterance has."""
    return frames / frames.sum()


class _History:
    """The state of each layer, as it was when that layer ran.

    It is held, not copied; rows are picked where utterances leave.
    """

    def __init__(self, hidden: torch.Tensor, rows: torch.Tensor):
        self.states = [(hidden, rows)]

    def add(self, hidden: torch.Tensor, rows: torch.Tensor) -> None:
        """The state of the next layer, of the utterances that it ran for."""
        self.states.append((hidden, rows))

    def of(
        self, rows: torch.Tensor, frames: torch.Tensor
    ) -> list[torch.Tensor]:
        """All states of some utterances, cut to the longest of them."""
        longest, found = int(frames.max()), []
        for hidden, held in self.states:
            hidden = hidden[:, :longest]
            if len(held) > len(rows):  # both rise
                places = torch.searchsorted(held, rows)
                hidden = hidden.index_select(0, places.to(hidden.device))
            found.append(hidden)
        return found


class _Clock:
    """Seconds between laps, the GPU's work included."""

    def __init__(self, device: torch.device):
        self.device = device
        self.last = time.perf_counter()

    def lap(self) -> float:
        """Seconds since the last lap."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        lap, self.last = now - self.last, now
        return lap
