"""Exit selectors: which utterances leave at an exit.

A selector holds no memory of utterances, because their rows leave the batch:
what was read before stands in ``output.previous``. Everybody leaves at the
last exit, so no selector has to say so.

Authors
 * SpeechBrain-EE contributors 2026
"""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import torch
from ruamel.yaml import YAML, YAMLError

from speechbrain_ee.chance import random_exit_probabilities
from speechbrain_ee.exits.scores import get_score, has_nan
from speechbrain_ee.files import is_yaml
from speechbrain_ee.heads.output import ExitOutput
from speechbrain_ee.overrides import nearest


class ExitSelector:
    """Decides who leaves. Subclasses give ``__call__``.

    Attributes
    ----------
    scores : list of Score
        The scores it reads.
    history : int
        How many earlier exits must stand in the ``previous`` chain.
    hidden : bool
        Whether exits must carry their hidden states.
    threshold : object
        What a score is held against, where one is.

    Arguments
    ---------
    scores : sequence of Score
        The scores it reads.
    history : int
        How many earlier exits it reads besides those of its scores.
    """

    threshold = None

    def __init__(self, scores: Sequence = (), history: int = 0):
        self.scores = list(scores)
        self.history = max([history, *(one.previous for one in scores)])
        self.hidden = any(one.hidden for one in scores)

    def prepare(
        self,
        exit_layers: Sequence[int],
        macs: Callable[[int, torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        """Learn where the exits are, and check the settings against them.

        Arguments
        ---------
        exit_layers : sequence of int
            The layers read out, ascending.
        macs : Callable, optional
            Maps an exit layer and frames of shape (batch,) to the cumulative
            MACs of each utterance up to and including that exit.

        Raises
        ------
        ValueError
            If the settings do not fit these exits.
        """
        self.exit_layers = sorted(exit_layers)
        self.macs = macs

    def check_scores(self, scores: Sequence) -> None:
        """Raise if thresholds were calibrated for other scores of these names.

        Arguments
        ---------
        scores : sequence of Score
            As they are defined where the selector is to be used.

        Raises
        ------
        ValueError
            With both definitions.
        """

    def __call__(self, output: ExitOutput) -> torch.Tensor:
        """Who leaves now.

        Arguments
        ---------
        output : ExitOutput
            The reading of the current exit.

        Returns
        -------
        torch.Tensor
            Booleans of shape (batch,), True = leave.
        """
        raise NotImplementedError

    def _check_exits(self, layers):
        wrong = sorted(set(layers) - set(self.exit_layers))
        if wrong:
            raise ValueError(
                f"no exit after layer {', '.join(map(str, wrong))}; "
                f"exits are {self.exit_layers}"
            )


def _all(output: ExitOutput, leave: bool) -> torch.Tensor:
    return torch.full((len(output),), leave)


def _ids(output: ExitOutput) -> list[str]:
    if output.ids is None:
        raise ValueError("this selector needs the ids of the utterances")
    return output.ids


class NeverLeave(ExitSelector):
    """Everybody runs to the last exit.

    Example
    -------
    >>> output = ExitOutput(torch.zeros(2, 1, 3), torch.tensor([1, 1]), 2)
    >>> NeverLeave()(output)
    tensor([False, False])
    """

    def __call__(self, output: ExitOutput) -> torch.Tensor:
        """See :class:`ExitSelector`."""
        return _all(output, False)


class FixedLayer(ExitSelector):
    """Everybody leaves at the same exit.

    Arguments
    ---------
    layer : int
        One of the exit layers.

    Example
    -------
    >>> selector = FixedLayer(4)
    >>> selector.prepare([2, 4, 6])
    >>> selector(ExitOutput(torch.zeros(1, 1, 3), torch.tensor([1]), 2))
    tensor([False])
    >>> selector(ExitOutput(torch.zeros(1, 1, 3), torch.tensor([1]), 4))
    tensor([True])
    """

    def __init__(self, layer: int):
        super().__init__()
        self.layer = layer

    def prepare(self, exit_layers, macs=None) -> None:
        """See :class:`ExitSelector`."""
        super().prepare(exit_layers, macs)
        self._check_exits([self.layer])

    def __call__(self, output: ExitOutput) -> torch.Tensor:
        """See :class:`ExitSelector`."""
        return _all(output, output.exit_layer >= self.layer)


class Threshold(ExitSelector):
    """Leaves at the first exit whose score reaches a threshold.

    The rule of Wright et al. (arXiv:2309.09546) with one threshold, of DAISY
    (arXiv:2406.05464) with the entropy of its branches.

    Arguments
    ---------
    score : str, Callable or Score
        Whatever :func:`speechbrain_ee.exits.scores.get_score` takes.
    threshold : float, sequence of float or mapping from int to float
        One for all exits, or one per exit in their order, or by exit layer;
        nobody leaves at an exit that a mapping passes over.
    calibration : mapping, optional
        How the threshold was chosen, as ``speechbrain-ee calibrate`` writes it.
        Its ``exit_layers`` must be the model's: those of another model, or of
        this one cut off, have other thresholds.

    Example
    -------
    >>> selector = Threshold("max_probability", 0.7)
    >>> selector.prepare([2, 4])
    >>> log_probs = torch.tensor([[[0.4, 0.6]], [[0.2, 0.8]]]).log()
    >>> selector(ExitOutput(log_probs, torch.tensor([1, 1]), 2))
    tensor([False,  True])
    """

    def __init__(self, score, threshold, calibration=None):
        self.score = get_score(score)
        self.threshold = threshold
        self.calibration = calibration
        if calibration is not None and "exit_layers" not in calibration:
            raise ValueError(
                "calibration does not say for which exit_layers the threshold "
                "was made: calibrate again, or leave it out"
            )
        super().__init__([self.score])

    def prepare(self, exit_layers, macs=None) -> None:
        """See :class:`ExitSelector`."""
        super().prepare(exit_layers, macs)
        if self.calibration is not None:
            made_for = list(self.calibration["exit_layers"])
            if made_for != self.exit_layers:
                raise ValueError(
                    f"the threshold was made for exits {made_for}, not for "
                    f"{self.exit_layers}: calibrate again on traces of this "
                    "model"
                )
        given = self.threshold
        if isinstance(given, Mapping):
            self._check_exits(given)
            self.thresholds = dict(given)
            return
        if not isinstance(given, Sequence):
            given = [given] * len(self.exit_layers)
        if len(given) != len(self.exit_layers):
            raise ValueError(
                f"{len(given)} thresholds for {len(self.exit_layers)} exits "
                f"({self.exit_layers})"
            )
        self.thresholds = dict(zip(self.exit_layers, given, strict=True))

    def check_scores(self, scores) -> None:
        """See :class:`ExitSelector`."""
        if self.calibration is None:
            return
        mine = self.score.definition
        for other in scores:
            if other.name == self.score.name and other.definition != mine:
                raise ValueError(
                    f"the threshold was made for the score {mine}, but here "
                    f"that is {other.definition}: calibrate again on traces of "
                    "this model"
                )

    def __call__(self, output: ExitOutput) -> torch.Tensor:
        """See :class:`ExitSelector`."""
        threshold = self.thresholds.get(output.exit_layer)
        if threshold is None:
            return _all(output, False)
        return self.score.is_confident(self.score(output), threshold)


class Patience(ExitSelector):
    """Leaves once successive exits give the same greedy transcript.

    The idea of PABEE (arXiv:2006.04152), carried to speech recognition by
    Berrebbi et al. (arXiv:2211.08989). Silence at several exits is no
    evidence: empty transcripts never agree, nor does one that comes of NaN.

    Arguments
    ---------
    patience : int
        How many successive exits must agree, this one included; at least 2.
    tolerance : float
        Largest edit distance between two successive transcripts, divided by
        the length of the longer one, that still counts as agreement; from 0
        up to but not including 1.

    Example
    -------
    >>> frames = torch.tensor([2])
    >>> log_probs = torch.tensor([[[0.1, 0.9], [0.8, 0.2]]]).log()
    >>> first = ExitOutput(log_probs, frames, 2)
    >>> selector = Patience(2)
    >>> selector(first)
    tensor([False])
    >>> selector(ExitOutput(log_probs, frames, 4, previous=first))
    tensor([True])
    """

    def __init__(self, patience: int = 2, tolerance: float = 0.0):
        if patience < 2:
            raise ValueError(f"patience must be at least 2, not {patience}")
        if not 0 <= tolerance < 1:
            raise ValueError(f"tolerance must be in [0, 1), not {tolerance}")
        super().__init__(history=patience - 1)
        self.patience = patience
        self.tolerance = tolerance

    def __call__(self, output: ExitOutput) -> torch.Tensor:
        """See :class:`ExitSelector`."""
        exits = [output]
        while len(exits) < self.patience:
            if exits[-1].previous is None:
                return _all(output, False)
            exits.append(exits[-1].previous)
        agreed = [
            all(self._agree(*pair) for pair in pairwise(transcripts))
            for transcripts in zip(
                *(one.hypotheses for one in exits), strict=True
            )
        ]
        broken = torch.stack([has_nan(one) for one in exits]).any(dim=0)
        return torch.tensor(agreed, dtype=torch.bool) & ~broken.cpu()

    def _agree(self, one, other) -> bool:
        if not one or not other:
            return False
        if one == other or self.tolerance == 0:
            return one == other
        from torchaudio.functional import edit_distance

        limit = self.tolerance * max(len(one), len(other))
        return edit_distance(one, other) <= limit


class _Cap(ExitSelector):
    """A limit on depth, alone or on top of another selector.

    Arguments
    ---------
    selector : ExitSelector, str or Mapping, optional
        Whatever :func:`get_selector` takes.
    """

    def __init__(self, selector=None):
        self.selector = get_selector("never" if selector is None else selector)
        super().__init__(self.selector.scores, self.selector.history)
        self.hidden = self.selector.hidden
        self.threshold = self.selector.threshold

    def prepare(self, exit_layers, macs=None) -> None:
        """See :class:`ExitSelector`."""
        super().prepare(exit_layers, macs)
        self.selector.prepare(exit_layers, macs)

    def check_scores(self, scores) -> None:
        """See :class:`ExitSelector`."""
        self.selector.check_scores(scores)

    def __call__(self, output: ExitOutput) -> torch.Tensor:
        """See :class:`ExitSelector`."""
        capped = self.capped(output)
        if capped.all():
            return capped
        return capped | self.selector(output).cpu()

    def capped(self, output: ExitOutput) -> torch.Tensor:
        """Who has reached the limit, on the CPU, of shape (batch,)."""
        raise NotImplementedError


class MaxLayers(_Cap):
    """Leaves at the last exit that is not deeper than a number of layers.

    Arguments
    ---------
    max_layers : int
        The deepest layer that may run, at least the first exit.
    selector : ExitSelector, str or Mapping, optional
        Another selector, which may leave earlier.

    Example
    -------
    >>> selector = MaxLayers(5, Threshold("max_probability", 0.7))
    >>> selector.prepare([2, 4, 6])
    >>> log_probs = torch.tensor([[[0.4, 0.6]], [[0.2, 0.8]]]).log()
    >>> selector(ExitOutput(log_probs, torch.tensor([1, 1]), 2))
    tensor([False,  True])
    >>> selector(ExitOutput(log_probs, torch.tensor([1, 1]), 4))
    tensor([True, True])
    """

    def __init__(self, max_layers: int, selector=None):
        super().__init__(selector)
        self.max_layers = max_layers

    def prepare(self, exit_layers, macs=None) -> None:
        """See :class:`ExitSelector`."""
        super().prepare(exit_layers, macs)
        reachable = [x for x in self.exit_layers if x <= self.max_layers]
        if not reachable:
            raise ValueError(
                f"no exit within {self.max_layers} layers; "
                f"exits are {self.exit_layers}"
            )
        self.deepest = reachable[-1]

    def capped(self, output: ExitOutput) -> torch.Tensor:
        """See :class:`_Cap`."""
        return _all(output, output.exit_layer >= self.deepest)


class MaxMacs(_Cap):
    """Leaves where going on to the next exit would cost too much.

    The limit holds for each utterance, so long ones leave earlier. The first
    exit is always read, even if it costs more than the limit.

    Arguments
    ---------
    max_macs : float
        Most multiply-accumulates that an utterance may take, as counted by
        the ``macs`` given to :meth:`prepare`.
    selector : ExitSelector, str or Mapping, optional
        Another selector, which may leave earlier.

    Example
    -------
    >>> selector = MaxMacs(1000)
    >>> selector.prepare([2, 4], lambda layer, frames: 10 * layer * frames)
    >>> selector(ExitOutput(torch.zeros(2, 30, 3), torch.tensor([20, 30]), 2))
    tensor([False,  True])
    """

    def __init__(self, max_macs: float, selector=None):
        super().__init__(selector)
        self.max_macs = max_macs

    def prepare(self, exit_layers, macs=None) -> None:
        """See :class:`ExitSelector`."""
        if macs is None:
            raise ValueError("max_macs needs to know the MACs of each exit")
        super().prepare(exit_layers, macs)

    def capped(self, output: ExitOutput) -> torch.Tensor:
        """See :class:`_Cap`."""
        following = bisect.bisect(self.exit_layers, output.exit_layer)
        if following == len(self.exit_layers):
            return _all(output, True)
        cost = self.macs(self.exit_layers[following], output.frames)
        return torch.as_tensor(cost > self.max_macs).cpu()


class DepthWindow(_Cap):
    """Asks another selector at the exits from one layer to another only.

    Nobody leaves before the first of them, and all leave at the last: the
    evaluation modes of DAISY (arXiv:2406.05464), which test few exits around
    those that the training set took.

    Arguments
    ---------
    lowest : float
        The layer before which nobody leaves.
    highest : float
        The layer beyond which nobody goes; at least one exit must lie between
        the two, which count themselves.
    selector : ExitSelector, str or Mapping, optional
        Another selector, which decides in between.

    Example
    -------
    >>> selector = DepthWindow(4, 6, Threshold("max_probability", 0.7))
    >>> selector.prepare([2, 4, 6, 8])
    >>> log_probs = torch.tensor([[[0.4, 0.6]], [[0.2, 0.8]]]).log()
    >>> for layer in (2, 4, 6):
    ...     selector(ExitOutput(log_probs, torch.tensor([1, 1]), layer))
    tensor([False, False])
    tensor([False,  True])
    tensor([True, True])
    """

    def __init__(self, lowest: float, highest: float, selector=None):
        super().__init__(selector)
        self.lowest = lowest
        self.highest = highest

    def prepare(self, exit_layers, macs=None) -> None:
        """See :class:`ExitSelector`."""
        super().prepare(exit_layers, macs)
        inside = [
            x for x in self.exit_layers if self.lowest <= x <= self.highest
        ]
        if not inside:
            raise ValueError(
                f"no exit from layer {self.lowest} to {self.highest}; "
                f"exits are {self.exit_layers}"
            )
        self.deepest = inside[-1]

    def __call__(self, output: ExitOutput) -> torch.Tensor:
        """See :class:`ExitSelector`."""
        if output.exit_layer < self.lowest:
            return _all(output, False)
        return super().__call__(output)

    def capped(self, output: ExitOutput) -> torch.Tensor:
        """See :class:`_Cap`."""
        return _all(output, output.exit_layer >= self.deepest)


class RandomExit(ExitSelector):
    """Control: leaves at random, at a given depth on average.

    The exit of an utterance is drawn from the distribution of largest entropy
    that has the given mean, p(k) ∝ exp(λ · layer k), by a hash of the seed and
    of the utterance's id; so it does not depend on the batch it stands in.

    Arguments
    ---------
    mean_exit_layer : float
        Expected exit layer.
    seed : int
        Seed of the draw.

    Example
    -------
    >>> selector = RandomExit(4.0)
    >>> selector.prepare([2, 4, 6])
    >>> [round(probability, 3) for probability in selector.probabilities]
    [0.333, 0.333, 0.333]
    >>> log_probs, frames = torch.zeros(1, 1, 3), torch.tensor([1])
    >>> selector(ExitOutput(log_probs, frames, 6, ids=["utterance"]))
    tensor([True])
    """

    def __init__(self, mean_exit_layer: float, seed: int = 0):
        super().__init__()
        self.mean_exit_layer = mean_exit_layer
        self.seed = seed

    def prepare(self, exit_layers, macs=None) -> None:
        """See :class:`ExitSelector`."""
        super().prepare(exit_layers, macs)
        probabilities = random_exit_probabilities(
            self.exit_layers, self.mean_exit_layer
        )
        self.probabilities = probabilities.tolist()
        self._bounds = probabilities.cumsum().tolist()[:-1]

    def draw(self, utterance: str) -> int:
        """The exit layer of the utterance with this id."""
        digest = hashlib.sha256(f"{self.seed}:{utterance}".encode()).digest()
        uniform = (int.from_bytes(digest[:8], "big") >> 11) / 2**53
        return self.exit_layers[bisect.bisect(self._bounds, uniform)]

    def __call__(self, output: ExitOutput) -> torch.Tensor:
        """See :class:`ExitSelector`."""
        return torch.tensor(
            [self.draw(one) <= output.exit_layer for one in _ids(output)],
            dtype=torch.bool,
        )


class Oracle(ExitSelector):
    """Bound for analysis: each utterance leaves at the exit best for it.

    It knows the references, as the bound of Berrebbi et al. (arXiv:2211.08989)
    does, so it is no system.

    Arguments
    ---------
    best_exits : mapping from str to int
        Exit layer by id of the utterance.

    Example
    -------
    >>> selector = Oracle({"a": 2, "b": 4})
    >>> selector.prepare([2, 4])
    >>> log_probs, frames = torch.zeros(2, 1, 3), torch.tensor([1, 1])
    >>> selector(ExitOutput(log_probs, frames, 2, ids=["a", "b"]))
    tensor([ True, False])
    """

    def __init__(self, best_exits: Mapping[str, int]):
        super().__init__()
        self.best_exits = dict(best_exits)

    @classmethod
    def from_traces(cls, path) -> Oracle:
        """Take the first exit with the fewest errors of each utterance.

        Arguments
        ---------
        path : str or os.PathLike
            A ``traces_<set>.csv`` with columns id, exit_layer and errors.

        Returns
        -------
        Oracle
        """
        import pandas

        # Ids stay as written: "007" and "NA" are names.
        traces = pandas.read_csv(
            path,
            usecols=["id", "exit_layer", "errors"],
            dtype={"id": str},
            keep_default_na=False,
        )
        best = traces.sort_values(["errors", "exit_layer"])
        best = best.drop_duplicates("id").set_index("id")["exit_layer"]
        return cls(best.to_dict())

    def prepare(self, exit_layers, macs=None) -> None:
        """See :class:`ExitSelector`."""
        super().prepare(exit_layers, macs)
        self._check_exits(self.best_exits.values())

    def __call__(self, output: ExitOutput) -> torch.Tensor:
        """See :class:`ExitSelector`."""
        ids = _ids(output)
        unknown = [one for one in ids if one not in self.best_exits]
        if unknown:
            raise ValueError(f"the oracle does not know {', '.join(unknown)}")
        return torch.tensor(
            [self.best_exits[one] <= output.exit_layer for one in ids],
            dtype=torch.bool,
        )


SELECTORS: dict[str, type[ExitSelector]] = {
    "fixed": FixedLayer,
    "max_layers": MaxLayers,
    "max_macs": MaxMacs,
    "never": NeverLeave,
    "oracle": Oracle,
    "patience": Patience,
    "random": RandomExit,
    "threshold": Threshold,
    "window": DepthWindow,
}


def get_selector(spec, **options) -> ExitSelector:
    """Make a selector of what a recipe or the command line names.

    Arguments
    ---------
    spec : ExitSelector, str, Path or Mapping
        A selector, a name, a mapping with the name as "selector" and the
        options beside it, or a YAML file with such a mapping, as
        :func:`read_selector` reads it.
    **options
        Arguments of the selector.

    Returns
    -------
    ExitSelector

    Raises
    ------
    FileNotFoundError
        For a file that does not exist.
    ValueError
        For a selector that does not exist.

    Example
    -------
    >>> get_selector("fixed", layer=4).layer
    4
    >>> rule = {"selector": "threshold", "score": "entropy", "threshold": 0.1}
    >>> MaxLayers(8, rule).selector.scores[0].name
    'entropy'
    """
    if isinstance(spec, str | Path) and is_yaml(spec):
        spec = read_selector(spec)
    if isinstance(spec, Mapping):
        settings = dict(spec)
        name = settings.pop("selector", None)
        options = {**settings, **options}
    else:
        name = spec
    if isinstance(name, ExitSelector):
        if options:
            raise ValueError(f"{name} is built already: options {options}")
        return name
    if name not in SELECTORS:
        raise ValueError(
            f"unknown selector {name!r}. {nearest(name, SELECTORS)}"
        )
    return SELECTORS[name](**options)


def read_selector(path: str | Path) -> dict:
    """Read what ``speechbrain-ee calibrate`` has written.

    Arguments
    ---------
    path : str or Path
        A YAML file with one entry: a label, and under it what
        :func:`get_selector` takes. It can run no code.

    Returns
    -------
    dict
        What stands under the label.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it holds something else.

    Example
    -------
    >>> path = getfixture("tmp_path") / "thresholds.yaml"
    >>> _ = path.write_text("shallow: {selector: fixed, layer: 4}")
    >>> get_selector(path).layer
    4
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: there is no such file; speechbrain-ee calibrate writes "
            "one with --out"
        )
    try:
        entries = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, YAMLError) as error:
        raise ValueError(f"{path} is no plain YAML: {error}") from error
    rules = list(entries.values()) if isinstance(entries, Mapping) else []
    if (
        len(rules) != 1
        or not isinstance(rules[0], Mapping)
        or "selector" not in rules[0]
    ):
        raise ValueError(
            f"{path} does not hold just one selector, such as "
            "'mine: {selector: threshold, score: entropy, threshold: 0.1}'"
        )
    return dict(rules[0])


def check_selector(
    selector, exit_layers: Sequence[int], scores: Sequence = ()
) -> None:
    """Raise unless a selector can be made and fits the exits and scores.

    Arguments
    ---------
    selector : ExitSelector, str or Mapping
        What ``get_selector`` takes.
    exit_layers : sequence of int
        The layers read out.
    scores : sequence of Score
        As :meth:`ExitSelector.check_scores` takes them.

    Raises
    ------
    ValueError
        With the reason.

    Example
    -------
    >>> check_selector("fixed", [2, 4])  # doctest: +ELLIPSIS
    Traceback (most recent call last):
      ...
    ValueError: selector: fixed ... [2, 4]: ... argument: 'layer'
    """
    try:
        # The costs only have to be there: nothing is selected yet.
        made = get_selector(selector)
        made.prepare(exit_layers, lambda k, frames: frames)
        made.check_scores(scores)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"selector: {selector} cannot be used with exits "
            f"{list(exit_layers)}: {error}"
        ) from error
