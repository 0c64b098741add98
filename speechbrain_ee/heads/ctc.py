"""CTC heads: one linear layer per exit, or one for all.

Authors
 * SpeechBrain-EE contributors 2026
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from speechbrain_ee.encoders.base import check_layers
from speechbrain_ee.heads.output import ExitOutput

EXIT_NORMS = ("shared", "own", "none")


class CTCHeads(torch.nn.Module):
    """Linear CTC heads behind chosen encoder layers.

    As in Wright et al. (arXiv 2309.09546): one linear layer per exit for
    models trained from scratch; their released Wav2Vec2 model ties them.

    Arguments
    ---------
    exit_layers : sequence of int
        The layers read out, rising (k = after layer k).
    input_size : int
        Channels of the encoder.
    vocab_size : int
        Labels including the blank.
    blank_index : int
        Index of the blank.
    tied : bool
        Whether all exits share one head.
    exit_norm : str
        What stands between an inner exit and its head: ``shared`` (the
        encoder's own final norm), ``own`` (a LayerNorm per exit) or ``none``.
        The last exit has the encoder's final norm in any case.
    final_norm : bool
        False for a truncated model, whose last exit was an inner one: it is
        then treated like one. Not for training, where DDP would wait for the
        encoder's unused norm.

    Example
    -------
    >>> heads = CTCHeads([2, 4], input_size=8, vocab_size=5)
    >>> states = [torch.randn(3, 7, 8), torch.randn(3, 7, 8)]
    >>> heads(states).shape
    torch.Size([2, 3, 7, 5])
    >>> heads.read(
    ...     states[0], torch.tensor([7, 7, 4]), exit_layer=2
    ... ).log_probs.shape
    torch.Size([3, 7, 5])
    """

    has_decoder = False  # whether transcripts are searched

    def __init__(
        self,
        exit_layers: Sequence[int],
        input_size: int,
        vocab_size: int,
        blank_index: int = 0,
        tied: bool = False,
        exit_norm: str = "shared",
        final_norm: bool = True,
    ):
        super().__init__()
        check_layers(exit_layers, max(exit_layers, default=0))
        if exit_norm not in EXIT_NORMS:
            raise ValueError(
                f"exit_norm: {exit_norm!r} is none of {', '.join(EXIT_NORMS)}."
            )
        if not 0 <= blank_index < vocab_size:
            raise ValueError(
                f"blank_index: {blank_index} outside a vocabulary of "
                f"{vocab_size}."
            )
        self.exit_layers = list(exit_layers)
        self.vocab_size = vocab_size
        self.blank_index = blank_index
        self.exit_norm = exit_norm
        self.final_norm = final_norm
        keys = ["tied"] if tied else [str(k) for k in self.exit_layers]
        self.linear = torch.nn.ModuleDict(
            {key: torch.nn.Linear(input_size, vocab_size) for key in keys}
        )
        self.norm = torch.nn.ModuleDict()
        if exit_norm == "own":
            inner = self.exit_layers[:-1] if final_norm else self.exit_layers
            for k in inner:
                self.norm[str(k)] = torch.nn.LayerNorm(input_size)
        self.register_load_state_dict_pre_hook(_check_same_exits)

    @property
    def per_exit(self) -> list[torch.nn.ModuleDict]:
        """Modules by exit layer, or one called ``tied`` for all exits."""
        return [self.linear, self.norm]

    @property
    def normed_layers(self) -> list[int]:
        """The exits that read a state after the encoder's final norm."""
        if self.exit_norm == "shared":
            return self.exit_layers
        return self.exit_layers[-1:] if self.final_norm else []

    def logits(self, hidden: torch.Tensor, exit_layer: int) -> torch.Tensor:
        """Label scores of one exit.

        Arguments
        ---------
        hidden : torch.Tensor
            The state, of shape (batch, time, channel), after the encoder's
            final norm where ``normed_layers`` says so.
        exit_layer : int
            Which exit.

        Returns
        -------
        torch.Tensor
            Shape (batch, time, vocabulary), before the softmax.
        """
        return part(self.linear, exit_layer)(self.normed(hidden, exit_layer))

    def normed(self, hidden: torch.Tensor, exit_layer: int) -> torch.Tensor:
        """What the layers of an exit read of its state.

        Arguments
        ---------
        hidden : torch.Tensor
            As for ``logits``.
        exit_layer : int
            Which exit.

        Returns
        -------
        torch.Tensor
            The same shape, after the exit's own norm if it has one.
        """
        key = str(exit_layer)
        return self.norm[key](hidden) if key in self.norm else hidden

    def forward(self, states: Sequence[torch.Tensor]) -> torch.Tensor:
        """All exits at once, for training.

        Arguments
        ---------
        states : sequence of torch.Tensor
            One state of shape (batch, time, channel) per exit.

        Returns
        -------
        torch.Tensor
            Log-probabilities of shape (exits, batch, time, vocabulary),
            float32.
        """
        logits = torch.stack(
            [
                self.logits(hidden, k)
                for k, hidden in zip(self.exit_layers, states, strict=True)
            ]
        )
        return logits.float().log_softmax(dim=-1)

    def read(
        self, hidden: torch.Tensor, frames: torch.Tensor, exit_layer: int
    ) -> ExitOutput:
        """One exit, for inference.

        Arguments
        ---------
        hidden : torch.Tensor
            As for ``logits``.
        frames : torch.Tensor
            Real frames of each utterance, int64 of shape (batch,), on the CPU.
        exit_layer : int
            Which exit.

        Returns
        -------
        ExitOutput
            What this exit says.
        """
        log_probs = self.logits(hidden, exit_layer).float().log_softmax(dim=-1)
        return ExitOutput(
            log_probs,
            frames,
            exit_layer=exit_layer,
            blank_index=self.blank_index,
        )


def part(modules: torch.nn.ModuleDict, exit_layer: int) -> torch.nn.Module:
    """The module that an exit uses.

    Arguments
    ---------
    modules : torch.nn.ModuleDict
        By exit layer, or one called ``tied``.
    exit_layer : int
        Which exit.

    Returns
    -------
    torch.nn.Module
        Its own, or the one that all share.

    Example
    -------
    >>> shared = torch.nn.Identity()
    >>> part(torch.nn.ModuleDict({"tied": shared}), 4) is shared
    True
    """
    return modules["tied" if "tied" in modules else str(exit_layer)]


def _check_same_exits(heads, state_dict, prefix, *_):
    """Say which exits differ, before torch lists missing keys."""
    check_same_keys(heads.linear, state_dict, f"{prefix}linear.", "tied")


def check_same_keys(
    modules: torch.nn.ModuleDict, state_dict: dict, prefix: str, tied: str
) -> None:
    """Raise if a checkpoint has modules at other exits than the model.

    Arguments
    ---------
    modules : torch.nn.ModuleDict
        By exit layer, or one called ``tied`` for all exits.
    state_dict : dict
        Of the checkpoint.
    prefix : str
        Of the modules in it.
    tied : str
        The setting that says whether there is one for all.

    Raises
    ------
    ValueError
        Naming both.
    """
    keys = [k[len(prefix) :] for k in state_dict if k.startswith(prefix)]
    found = {key.split(".")[0] for key in keys}
    if found and found != set(modules):
        raise ValueError(
            f"This checkpoint has heads at exits {_listed(found)}, the model "
            f"at {_listed(modules)}. Set the same exit_layers and {tied} as "
            "when it was trained."
        )


def _listed(keys) -> str:
    return ", ".join(sorted(keys, key=lambda key: (len(key), key)))
