"""Exits of a frozen upstream, by what cluster branches say (DAISY).

Authors
 * SpeechBrain-EE contributors 2026
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from speechbrain.utils.checkpoints import (
    mark_as_loader,
    mark_as_saver,
    register_checkpoint_hooks,
)
from speechbrain.utils.logger import get_logger

from speechbrain_ee.exits.scores import get_score
from speechbrain_ee.exits.selectors import (
    DepthWindow,
    ExitSelector,
    Threshold,
    get_selector,
)
from speechbrain_ee.files import replacing
from speechbrain_ee.heads import ClusterBranches, ExitOutput

logger = get_logger(__name__)

MEANS = ("all", "layer")
WINDOWS = ("average", "min_max")
_OF_TRANSCRIPTS = ("hypothesis_posterior", "sentence_confidence")
_INDENT = 2


@register_checkpoint_hooks
class BranchExits:
    """Where utterances leave a frozen upstream: branches against thresholds.

    The rule of DAISY (arXiv 2406.05464): an utterance leaves at the first layer
    whose branch is confident, which is where the mean entropy of its clusters
    falls to a threshold. All leave at the last exit.

    The threshold is given, or made of the training set. The paper says that it
    comes of the mean entropy and a scaling factor, the authors' code has one
    number per task: how the one becomes the other is **our reading**. With
    ``of: all`` there is one threshold, ``scale`` times the mean over layers of
    the mean score of each; with ``of: layer`` each layer has ``scale`` times
    its own mean, so that about the same share of those that are left leaves
    at every layer.

    In training an utterance leaves freely. For evaluation the authors test only
    the layers around the mean a of the training exits: from floor(a) on, and
    all stop at ceil(a) (``window: average``; one depth if a is an integer).
    ``min_max`` goes from the smallest to the largest exit of the training set.
    Where ``layers`` leaves some out, the nearest exits on both sides count.

    What is found on the training set (``learn``) stands in the checkpoints and
    in the file that ``write`` makes, with the settings that it was found with.

    Arguments
    ---------
    score : str, Mapping, Callable or Score
        What ``get_score`` takes and reads from a distribution: entropy (in
        nats), max_probability, margin …
    threshold : float, sequence of float or mapping, optional
        One for all exits, or one per exit in their order, or by layer; nobody
        leaves at an exit that a mapping passes over.
    scale : float, optional
        What mean scores are multiplied by; either this or ``threshold``. Where
        high scores are confident, larger scales are stricter.
    of : str
        Of which mean: ``all`` or ``layer``.
    window : str, optional
        Which exits are tested in evaluation: ``average`` or ``min_max``
        (default: all, as in training).
    layers : sequence of int, optional
        The layers that are exits (default: all that have a branch).
    in_training : bool
        Whether utterances leave in training, too, as in the paper; else only
        in evaluation, and the task model is trained on all states.

    Raises
    ------
    ValueError
        For settings that contradict each other or mean nothing.

    Example
    -------
    >>> branches = ClusterBranches([1, 2, 3], input_size=8, num_clusters=4)
    >>> exits = BranchExits(scale=1.0, window="average")
    >>> exits.prepare(branches)
    >>> exits.learn(torch.tensor([[1.3, 0.9, 0.6], [1.3, 1.1, 0.8]]))
    >>> exits.statistics["training_exits"], exits.exit_layers(training=False)
    ({1: 0, 2: 1, 3: 1}, [2, 3])
    """

    def __init__(
        self,
        score="entropy",
        threshold: float | Sequence[float] | Mapping | None = None,
        scale: float | None = None,
        of: str = "all",
        window: str | None = None,
        layers: Sequence[int] | None = None,
        in_training: bool = True,
    ):
        self.score = get_score(score)
        if self.score.searches or self.score.name in _OF_TRANSCRIPTS:
            raise ValueError(
                f"score: {self.score.name} is one of transcripts, and branches "
                "transcribe nothing. Take entropy, max_probability or margin."
            )
        if (threshold is None) == (scale is None):
            raise ValueError(
                "Give either threshold (of the score) or scale (of its mean on "
                f"the training set), not {'both' if scale else 'neither'}."
            )
        if scale is not None and not 0 < scale < math.inf:
            raise ValueError(f"scale: {scale} must be a number above 0.")
        if of not in MEANS:
            raise ValueError(f"of: {of!r} is none of {', '.join(MEANS)}.")
        if window is not None and window not in WINDOWS:
            raise ValueError(
                f"window: {window!r} is none of {', '.join(WINDOWS)}, nor null."
            )
        self.threshold = threshold
        self.scale = scale
        self.of = of
        self.window = window
        self.layers = None if layers is None else list(layers)
        self.in_training = in_training
        self.settings = None  # which statistics are found with, see ``prepare``
        self.statistics = None  # what is found on the training set

    def prepare(self, branches: ClusterBranches) -> None:
        """Learn which branches there are, and check the settings against them.

        Arguments
        ---------
        branches : ClusterBranches
            What the scores are read from.

        Raises
        ------
        ValueError
            If a layer has no branch, or thresholds do not fit the exits.
        """
        self._layers = self.layers
        if self.layers is None:
            self._layers = list(branches.exit_layers)
        branches.check_layers(self._layers)
        self._thresholds = None
        if self.threshold is not None:
            rule = Threshold(self.score, self.threshold)
            rule.prepare(self._layers)
            self._thresholds = rule.thresholds
        digest = hashlib.sha256()
        for key, x in branches.state_dict().items():
            digest.update(key.encode() + x.detach().cpu().numpy().tobytes())
        settings = {
            "score": self.score.definition,
            "threshold": self._thresholds,
            "scale": self.scale,
            "of": None if self.scale is None else self.of,
            "window": self.window,
            "exit_layers": self._layers,
            "branches": digest.hexdigest(),
        }
        if settings != self.settings:
            self.settings, self.statistics = settings, None

    @property
    def thresholds(self) -> dict[int, float]:
        """The threshold of each exit that has one."""
        if self._thresholds is None:
            self._check_learnt()
            return self.statistics["thresholds"]
        return self._thresholds

    def exit_layers(self, training: bool) -> list[int]:
        """The exits whose branches are read.

        Arguments
        ---------
        training : bool
            Whether the task model is trained.

        Returns
        -------
        list of int
            Rising; all leave at the last.
        """
        if training or self.window is None:
            return self._layers
        self._check_learnt()
        lowest, highest = self.statistics["window"]
        return [k for k in self._layers if lowest <= k <= highest]

    def selector(self, training: bool) -> ExitSelector:
        """Who leaves where.

        Arguments
        ---------
        training : bool
            Whether the task model is trained.

        Returns
        -------
        ExitSelector
            Prepared for ``exit_layers`` of the same.
        """
        layers = self.exit_layers(training)
        rule = Threshold(
            self.score,
            {k: t for k, t in self.thresholds.items() if k in layers},
        )
        if len(layers) < len(self._layers):
            rule = DepthWindow(layers[0], layers[-1], rule)
        rule.prepare(layers)
        return rule

    def learn(self, values: torch.Tensor) -> None:
        """Find thresholds, and where the training set leaves by them.

        Warns if nobody leaves before the last exit, or all at the first.

        Arguments
        ---------
        values : torch.Tensor
            Scores of the training set, of shape (utterances, exits).

        Raises
        ------
        ValueError
            If no score of the set is a number.
        """
        finite = values.isfinite()
        total = values.double().masked_fill(~finite, 0.0).sum(dim=0)
        means = total / finite.sum(dim=0)
        named = dict(zip(self._layers, means.tolist()))
        named = {k: mean for k, mean in named.items() if math.isfinite(mean)}
        if not named:
            raise ValueError(
                f"No {self.score.name} of the {len(values)} utterances of the "
                "training set is a number: the branches or the states of the "
                "upstream are broken."
            )
        thresholds = self._thresholds
        if thresholds is None:
            over_all = sum(named.values()) / len(named)
            thresholds = {
                k: self.scale * (over_all if self.of == "all" else mean)
                for k, mean in named.items()
            }
        taken = self._taken(values, thresholds)
        counts = {k: int((taken == k).sum()) for k in self._layers}
        mean_exit = taken.double().mean().item()
        window = None
        if self.window == "average":
            window = [
                max(k for k in self._layers if k <= mean_exit),
                min(k for k in self._layers if k >= mean_exit),
            ]
        elif self.window == "min_max":
            window = [int(taken.min()), int(taken.max())]
        seen = values[finite]
        self.statistics = {
            "utterances": len(values),
            "lowest_score": seen.min().item(),
            "highest_score": seen.max().item(),
            "mean_scores": named,
            "thresholds": thresholds,
            "training_exits": counts,
            "mean_training_exit": mean_exit,
            "window": window,
        }
        self._warn()

    def _taken(self, values, thresholds) -> torch.Tensor:
        """Where each utterance leaves freely, of shape (utterances,)."""
        taken = torch.full((len(values),), self._layers[-1])
        for column in reversed(range(len(self._layers) - 1)):
            layer = self._layers[column]
            if layer in thresholds:
                leave = self.score.is_confident(
                    values[:, column], thresholds[layer]
                )
                taken[leave] = layer
        return taken

    def _warn(self):
        """Say so if the thresholds do not tell utterances apart."""
        found = self.statistics
        counts, exits = found["training_exits"], self._layers
        if len(exits) == 1:
            return
        if counts[exits[-1]] == found["utterances"]:
            what = f"never fire: all run to the last exit, layer {exits[-1]}"
            stricter = False
        elif counts[exits[0]] == found["utterances"]:
            what = f"always fire: all leave at the first exit, layer {exits[0]}"
            stricter = True
        else:
            return
        lower = stricter != self.score.higher_is_confident
        given = sorted(set(found["thresholds"].values()))
        name = self.score.name
        means = ", ".join(
            f"{k}: {mean:.3g}" for k, mean in found["mean_scores"].items()
        )
        logger.warning(
            f"exits: on the {found['utterances']} utterances of the training "
            f"set the thresholds ({', '.join(f'{x:.3g}' for x in given)}) "
            f"{what}. Their {name} lies between {found['lowest_score']:.3g} "
            f"and {found['highest_score']:.3g} (mean by layer {means}). "
            f"{'Lower' if lower else 'Raise'} "
            f"{'threshold' if self.scale is None else 'scale'}."
        )

    def _check_learnt(self):
        if self.statistics is None:
            raise RuntimeError(
                "The exits know no statistics of the training set yet: call "
                "learn (fit_exits of the Brain), or load a checkpoint."
            )

    def write(self, path: str | Path) -> None:
        """Write settings and statistics.

        Arguments
        ---------
        path : str or Path
            Of a JSON file.
        """
        self._check_learnt()
        told = {"settings": self.settings, **self.statistics}
        with replacing(path) as file:
            text = json.dumps(told, indent=_INDENT)
            file.write_text(text + "\n", encoding="utf-8")

    def read(self, path: str | Path) -> bool:
        """Take the statistics of a file, if its settings are these.

        Arguments
        ---------
        path : str or Path
            What ``write`` wrote.

        Returns
        -------
        bool
            Whether they were.
        """
        told = json.loads(Path(path).read_text(encoding="utf-8"))
        # As they read once they have been written.
        if told.pop("settings") != json.loads(json.dumps(self.settings)):
            return False
        for key in ("mean_scores", "thresholds", "training_exits"):
            told[key] = {int(k): value for k, value in told[key].items()}
        self.statistics = told
        return True

    @mark_as_saver
    def save(self, path) -> None:
        """Write a checkpoint."""
        self.write(path)

    @mark_as_loader
    def load(self, path, end_of_epoch) -> None:
        """Load a checkpoint; one of other settings is passed over."""
        if not self.read(path):
            logger.warning(
                "The checkpoint was made with other exits, or other branches "
                "(settings in exits.json): those that were asked for now are "
                "used."
            )


def exits_taken(
    selector: ExitSelector, outputs: Sequence[ExitOutput]
) -> torch.Tensor:
    """Where utterances leave, told of readings at all exits.

    Arguments
    ---------
    selector : ExitSelector
        Prepared for these exits.
    outputs : sequence of ExitOutput
        What each exit says of the same utterances.

    Returns
    -------
    torch.Tensor
        Exit layers, int64 of shape (batch,), as ``EarlyExitLoop`` would find.

    Example
    -------
    >>> log_probs = torch.tensor([[[0.4, 0.6]], [[0.2, 0.8]]]).log()
    >>> one = torch.tensor([1, 1])
    >>> outputs = [ExitOutput(log_probs, one, layer) for layer in (2, 4)]
    >>> selector = Threshold("max_probability", 0.7)
    >>> selector.prepare([2, 4])
    >>> exits_taken(selector, outputs)
    tensor([4, 2])
    """
    taken = torch.full((len(outputs[-1]),), outputs[-1].exit_layer)
    for output in reversed(outputs[:-1]):
        taken[selector(output).cpu()] = output.exit_layer
    return taken


def get_exits(spec) -> BranchExits | ExitSelector | None:
    """Make exits of a frozen upstream of what a recipe or command line names.

    Arguments
    ---------
    spec : BranchExits, ExitSelector, str, Mapping or None
        Exits that are made already; what ``get_selector`` takes; a mapping with
        the arguments of ``BranchExits``; None or an empty mapping, which the
        command line can add to, for full depth.

    Returns
    -------
    BranchExits, ExitSelector or None

    Raises
    ------
    ValueError
        For anything else.

    Example
    -------
    >>> get_exits({"scale": 0.9}).scale
    0.9
    >>> get_exits({"selector": "fixed", "layer": 6}).layer
    6
    """
    if isinstance(spec, BranchExits | ExitSelector):
        return spec
    if spec is None or spec == {}:
        return None
    try:
        if isinstance(spec, Mapping) and "selector" not in spec:
            return BranchExits(**spec)
        return get_selector(spec)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"exits: {spec} cannot be used ({error}). Name a block of "
            "hparams/exits, or give options of BranchExits."
        ) from error
