"""What one exit says about a batch: the only thing a score ever sees.

Authors
 * SpeechBrain-EE contributors 2026
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from speechbrain_ee.heads.attention import AttentionHeads


# Stands for log(0) where a product with p = 0 must be 0.
LOWEST = torch.finfo(torch.float32).min


@dataclass
class ExitOutput:
    """The reading of one exit for the utterances that are still running.

    Arguments
    ---------
    log_probs : torch.Tensor
        Log-probabilities of shape (batch, time, vocabulary), float32.
    frames : torch.Tensor
        Number of real frames of each utterance, int64 of shape (batch,), on
        the CPU, so that reading it never waits for a GPU.
    exit_layer : int
        Index of the encoder layer read out (k = after layer k).
    blank_index : int
        Index of the CTC blank.
    ids : list of str, optional
        Names of the utterances.
    hidden : torch.Tensor, optional
        The encoder's state at this exit, before any norm, of shape
        (batch, time, channel).
    previous : ExitOutput, optional
        What the exit before this one said about the same utterances.

    Example
    -------
    >>> log_probs = torch.tensor([[[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]]]).log()
    >>> output = ExitOutput(
    ...     log_probs, torch.tensor([3]), exit_layer=2, blank_index=0
    ... )
    >>> output.hypotheses
    [(1, 1)]
    >>> output.keep([0]).exit_layer
    2
    """

    log_probs: torch.Tensor
    frames: torch.Tensor
    exit_layer: int
    blank_index: int = 0
    ids: list[str] | None = None
    hidden: torch.Tensor | None = None
    previous: ExitOutput | None = None

    def __len__(self) -> int:
        """The number of utterances."""
        return len(self.frames)

    @property
    def given(self) -> torch.Tensor:
        """What the head gave, of shape (batch, time, vocabulary)."""
        return self.log_probs

    @cached_property
    def frames_on_device(self) -> torch.Tensor:
        """``frames`` beside what the head gave, int64 of shape (batch,)."""
        return self.frames.to(self.given.device)

    @cached_property
    def mask(self) -> torch.Tensor:
        """True at real frames, of shape (batch, time)."""
        time = torch.arange(self.given.shape[1], device=self.given.device)
        return time < self.frames_on_device[:, None]

    @cached_property
    def frame_entropies(self) -> torch.Tensor:
        """Entropy of the labels at each frame in nats, of shape (batch, time).

        A label of no probability adds nothing. What padded frames have means
        nothing.
        """
        log_probs = self.log_probs.clamp(min=LOWEST)
        # Not vecdot, which autocast does in half precision.
        return -(log_probs.exp() * log_probs).sum(dim=-1)

    @cached_property
    def greedy(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The most probable label of each frame, repeats and blanks removed.

        Returns
        -------
        tokens : torch.Tensor
            The labels of all utterances one after another, int64 of shape
            (sum of counts,).
        counts : torch.Tensor
            How many of them belong to each utterance, int64 of shape (batch,).
        """
        path = self.log_probs.argmax(dim=-1)
        starts = torch.ones_like(path, dtype=torch.bool)
        starts[:, 1:] = path[:, 1:] != path[:, :-1]
        spoken = starts & (path != self.blank_index) & self.mask
        return path[spoken], spoken.sum(dim=1)

    @cached_property
    def hypotheses(self) -> list[tuple[int, ...]]:
        """The greedy transcript of each utterance as label indices."""
        tokens, counts = (part.cpu() for part in self.greedy)
        return [tuple(part.tolist()) for part in tokens.split(counts.tolist())]

    def keep(self, rows, history: int = 0) -> ExitOutput:
        """The same reading for some of its utterances.

        Arguments
        ---------
        rows : list of int or torch.Tensor
            Positions of the utterances to keep, in the order wanted.
        history : int
            How many earlier exits to keep behind it.

        Returns
        -------
        ExitOutput
            A new object without the padding that none of them needs; the old
            one is left alone.
        """
        rows = torch.as_tensor(rows, dtype=torch.long)
        frames = self.frames[rows]

        def cut(x):
            """Some rows, without padding that none of them needs."""
            return x[:, : int(frames.max())][rows.to(x.device)]

        return replace(
            self,
            log_probs=cut(self.log_probs),
            frames=frames,
            ids=None if self.ids is None else [self.ids[i] for i in rows],
            hidden=None if self.hidden is None else cut(self.hidden),
            previous=self.previous.keep(rows, history - 1)
            if self.previous is not None and history > 0
            else None,
        )


class SilentOutput(ExitOutput):
    """The reading of an exit at which nothing is said, but utterances leave."""

    @property
    def hypotheses(self) -> list[tuple[int, ...]]:
        """Nothing, for each utterance."""
        return [()] * len(self)


class SilentHeads(torch.nn.Module):
    """Exits that only hand on the states of an encoder, for task models.

    Arguments
    ---------
    exit_layers : sequence of int
        Where utterances may leave.

    Example
    -------
    >>> heads = SilentHeads([2])
    >>> heads.read(torch.zeros(1, 5, 8), torch.tensor([5]), 2).hypotheses
    [()]
    """

    normed_layers = ()

    def __init__(self, exit_layers: Sequence[int]):
        super().__init__()
        self.exit_layers = list(exit_layers)

    def read(
        self, hidden: torch.Tensor, frames: torch.Tensor, exit_layer: int
    ) -> SilentOutput:
        """See ``CTCHeads.read``."""
        return SilentOutput(hidden[..., :0], frames, exit_layer)


@dataclass
class AttentionOutput(ExitOutput):
    """The reading of an exit whose transcripts an attention decoder finds.

    What :class:`ExitOutput` says of log-probabilities and of ``greedy`` holds
    for the CTC head. The search runs when ``nbest`` or ``hypotheses`` is first
    asked for, and once.

    Arguments
    ---------
    log_probs : torch.Tensor
        As for ExitOutput, as are the next five.
    frames : torch.Tensor
        See above.
    exit_layer : int
        See above.
    blank_index : int
        See above.
    ids : list of str, optional
        See above.
    hidden : torch.Tensor, optional
        See above.
    previous : ExitOutput, optional
        See above.
    states : torch.Tensor
        What CTC head and decoder read, of shape (batch, time, channel).
    heads : AttentionHeads
        What has read it.
    """

    states: torch.Tensor | None = None
    heads: AttentionHeads | None = None

    @cached_property
    def nbest(self) -> list[list[tuple[tuple[int, ...], float]]]:
        """The transcripts that the search found, best first.

        Returns
        -------
        list of list of tuple
            For each utterance (labels, sum of the decoder's log-probabilities
            in nats).
        """
        return self.heads.find(self.states, self.frames, self.exit_layer)

    @cached_property
    def hypotheses(self) -> list[tuple[int, ...]]:
        """The best transcript of each utterance as label indices."""
        return [found[0][0] for found in self.nbest]

    @cached_property
    def token_log_probs(self) -> torch.Tensor:
        """The decoder's log-probabilities along ``hypotheses``.

        Returns
        -------
        torch.Tensor
            Shape (batch, labels + 1, vocabulary), float32: of each label, and
            behind the last, where the sentence should end.
        """
        return self.heads.spell(
            self.states, self.frames, self.exit_layer, self.hypotheses
        )

    def keep(self, rows, history: int = 0) -> AttentionOutput:
        """See ``ExitOutput.keep``; what was found stays found."""
        kept = super().keep(rows, history)
        rows = torch.as_tensor(rows, dtype=torch.long)
        states = self.states[:, : int(kept.frames.max())]
        kept.states = states[rows.to(states.device)]
        if "nbest" in self.__dict__:
            kept.nbest = [self.nbest[i] for i in rows]
        return kept
