"""Traces: what every exit said of every utterance, as arrays.

Neither this module nor those that read its arrays import PyTorch, so that the
command line starts fast.

Authors
 * SpeechBrain-EE contributors 2026
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from os import PathLike

import numpy as np
import pandas as pd

# Which columns are scores, and what they mean. The registry of scores says the
# same (a test compares the two) but imports PyTorch.
HIGHER_IS_CONFIDENT: dict[str, bool] = {
    "beam_confidence": True,
    "entropy": False,
    "hypothesis_posterior": True,
    "kl_to_previous": False,
    "margin": True,
    "max_probability": True,
    "sentence_confidence": True,
    "state_similarity": True,
    "token_entropy": False,
}
# Those that search for transcripts, which then need no further search.
SEARCHES = ("beam_confidence", "token_entropy")

# Columns that group utterances even where their values look like numbers.
GROUPS = ("speaker", "snr", "language")

_REQUIRED = ("id", "exit_layer", "errors", "ref_len")
_COSTS = ("layers_run", "frames", "macs", "seconds", "hypothesis_seconds")
_TEXTS = ("hyp", "ref")
_UNREAD = ("layers",)  # which of them a gate has kept, as "1101"
_REMEDY = (
    "traces have one row per utterance and exit, as a loop that never leaves "
    "early records them"
)


@dataclass
class Traces:
    """What N utterances met at E exits.

    Arguments
    ---------
    ids : np.ndarray
        Names of the utterances, of shape (N,).
    exit_layers : np.ndarray
        The exits, rising, of shape (E,).
    errors : np.ndarray
        Errors of each utterance at each exit, of shape (N, E).
    ref_len : np.ndarray
        What errors are counted against, of shape (N,).
    layers_run : np.ndarray, optional
        Layers executed up to each exit, as the following of shape (N, E).
    frames : np.ndarray, optional
        Encoder frames.
    macs : np.ndarray, optional
        Multiply-accumulates up to each exit.
    seconds : np.ndarray, optional
        Time up to each exit, without that of scores and transcripts.
    hypothesis_seconds : np.ndarray, optional
        Time to find the transcript at each exit.
    hyp : np.ndarray, optional
        Transcripts.
    ref : np.ndarray, optional
        Reference transcripts, of shape (N,).
    scores : dict from str to np.ndarray
        Raw values of shape (N, E); infinity and NaN are never confident.
    score_seconds : dict from str to np.ndarray
        What each score took, of shape (N, E).
    groups : dict from str to np.ndarray
        What utterances can be grouped by, as text of shape (N,).
    directions : Mapping
        Score to whether large values speak for leaving.
    source : str
        Where the traces come from, for messages.

    Raises
    ------
    ValueError
        For shapes that do not fit, no utterance, negative or missing errors
        and costs, references without a single token, or a score without a
        direction.

    Example
    -------
    >>> traces = Traces(["a", "b"], [2, 4], [[1, 0], [2, 2]], ref_len=[4, 5])
    >>> len(traces)
    2
    >>> traces.subset(traces.errors[:, -1] == 0).ids
    array(['a'], dtype=object)
    """

    ids: np.ndarray
    exit_layers: np.ndarray
    errors: np.ndarray
    ref_len: np.ndarray
    layers_run: np.ndarray | None = None
    frames: np.ndarray | None = None
    macs: np.ndarray | None = None
    seconds: np.ndarray | None = None
    hypothesis_seconds: np.ndarray | None = None
    hyp: np.ndarray | None = None
    ref: np.ndarray | None = None
    scores: dict[str, np.ndarray] = field(default_factory=dict)
    score_seconds: dict[str, np.ndarray] = field(default_factory=dict)
    groups: dict[str, np.ndarray] = field(default_factory=dict)
    directions: Mapping[str, bool] = field(
        default_factory=HIGHER_IS_CONFIDENT.copy
    )
    source: str = "traces"

    def __post_init__(self):
        self.exit_layers = np.asarray(self.exit_layers, dtype=int)
        per_utterance = {"ids": object, "ref_len": float, "ref": object}
        per_exit = {"errors": float, "hyp": object}
        per_exit |= dict.fromkeys(_COSTS, float)
        for name, dtype in {**per_utterance, **per_exit}.items():
            if getattr(self, name) is not None:
                setattr(self, name, np.asarray(getattr(self, name), dtype))
        self.scores = _arrays(self.scores, float)
        self.score_seconds = _arrays(self.score_seconds, float)
        self.groups = _arrays(self.groups, object)

        unknown = sorted(set(self.scores) - set(self.directions))
        if unknown:
            raise ValueError(
                f"{self.source}: whether large values of {', '.join(unknown)} "
                "speak for leaving is not said: add it to directions."
            )
        if not len(self.ids):
            raise ValueError(f"{self.source}: no utterance; {_REMEDY}.")
        for name in per_utterance:
            self._check_shape(name, getattr(self, name), self.ids.shape)
        for name, values in self.groups.items():
            self._check_shape(name, values, self.ids.shape)
        shape = len(self.ids), len(self.exit_layers)
        for name in per_exit:
            self._check_shape(name, getattr(self, name), shape)
        for name, values in self.scores.items():
            self._check_shape(name, values, shape)
        for name, values in self.score_seconds.items():
            self._check_shape(f"{name}_seconds", values, shape)
            self._check_amounts(f"{name}_seconds", values)
        for name in ("errors", "ref_len", *_COSTS):
            self._check_amounts(name, getattr(self, name))
        if not self.ref_len.sum():
            raise ValueError(
                f"{self.source}: every ref_len is 0, so that there is no error "
                "rate: trace utterances that have references."
            )

    def __len__(self) -> int:
        """The number of utterances."""
        return len(self.ids)

    @classmethod
    def from_frame(
        cls,
        frame: pd.DataFrame,
        source: str = "traces",
        directions: Mapping[str, bool] | None = None,
    ) -> Traces:
        """Lay out a table with one row per utterance and exit.

        Arguments
        ---------
        frame : pandas.DataFrame
            With columns id, exit_layer, errors and ref_len. Further ones are
            read where there are any: layers_run, hyp, ref, frames, macs,
            seconds, hypothesis_seconds, scores, their ``<score>_seconds``, and
            groups. Numbers may be text.
        source : str
            What messages call the table.
        directions : Mapping, optional
            Columns that are scores too, each with whether large values speak
            for leaving.

        Returns
        -------
        Traces
            Utterances in the order in which they first occur.

        Raises
        ------
        ValueError
            If columns or rows are missing, doubled or contradict each other.

        Example
        -------
        >>> frame = pd.DataFrame(
        ...     {
        ...         "id": ["007", "007"],
        ...         "exit_layer": [4, 2],
        ...         "errors": [0, 1],
        ...         "ref_len": [3, 3],
        ...         "entropy": [0.1, float("nan")],
        ...         "speaker": ["9502", "9502"],
        ...     }
        ... )
        >>> traces = Traces.from_frame(frame)
        >>> traces.errors
        array([[1., 0.]])
        >>> traces.scores["entropy"]
        array([[nan, 0.1]])
        >>> traces.groups
        {'speaker': array(['9502'], dtype=object)}
        """
        own = directions or {}
        missing = [x for x in (*_REQUIRED, *own) if x not in frame]
        if missing:
            raise ValueError(
                f"{source}: no column {', '.join(missing)} among "
                f"{', '.join(map(str, frame.columns)) or 'none at all'}; "
                f"{_REMEDY}, with columns {', '.join(_REQUIRED)} and scores."
            )
        if frame.empty:
            raise ValueError(f"{source}: no utterance; {_REMEDY}.")
        table = _Table(frame, source)
        directions = {**HIGHER_IS_CONFIDENT, **own}
        scores = [x for x in frame if x in directions]
        times = {x: f"{x}_seconds" for x in scores if f"{x}_seconds" in frame}
        known = {*_REQUIRED, *_COSTS, *_TEXTS, *_UNREAD, *scores}
        known |= {*times.values()}
        others = [x for x in frame if x not in known]
        return cls(
            ids=table.ids,
            exit_layers=table.exit_layers,
            errors=table.numbers("errors"),
            ref_len=table.agreed("ref_len", table.numbers("ref_len")),
            **{x: table.numbers(x) for x in _COSTS if x in frame},
            hyp=table.texts("hyp") if "hyp" in frame else None,
            ref=table.agreed("ref", table.texts("ref"))
            if "ref" in frame
            else None,
            scores={x: table.numbers(x) for x in scores},
            score_seconds={x: table.numbers(y) for x, y in times.items()},
            groups={
                x: table.agreed(x, table.texts(x))
                for x in others
                if x in GROUPS or table.is_group(x)
            },
            directions=directions,
            source=source,
        )

    def seconds_with(self, score: str | None = None) -> np.ndarray | None:
        """Time to leave at each exit, of shape (N, E), where it is known.

        Arguments
        ---------
        score : str, optional
            Asked at every exit up to the one taken, but not at the last exit of
            the model, where all leave unasked.

        Returns
        -------
        np.ndarray or None
            Seconds, with those of the transcript and of the score.

        Example
        -------
        >>> traces = Traces(
        ...     ["a"],
        ...     [2, 4],
        ...     [[1, 0]],
        ...     [4],
        ...     seconds=[[1, 2]],
        ...     hypothesis_seconds=[[0.5, 0.5]],
        ...     scores={"entropy": [[0.3, 0.1]]},
        ...     score_seconds={"entropy": [[0.25, 0.25]]},
        ... )
        >>> traces.seconds_with()
        array([[1.5, 2.5]])
        >>> traces.seconds_with("entropy")
        array([[1.75, 2.75]])
        """
        if self.seconds is None:
            return None
        seconds = self.seconds.copy()
        if self.hypothesis_seconds is not None:
            if score in SEARCHES:
                seconds[:, -1] += self.hypothesis_seconds[:, -1]
            else:
                seconds += self.hypothesis_seconds
        if score is None:
            return seconds
        if score not in self.score_seconds:
            return None
        asked = self.score_seconds[score].copy()
        asked[:, -1] = 0
        return seconds + asked.cumsum(axis=1)

    def subset(self, mask) -> Traces:
        """The traces of some of the utterances.

        Arguments
        ---------
        mask : np.ndarray
            Booleans of shape (N,), or positions.

        Returns
        -------
        Traces
            A copy for these; there must be one at least.

        Example
        -------
        >>> traces = Traces(
        ...     ["a", "b"], [2], [[1], [2]], [4, 5], groups={"snr": ["0", "9"]}
        ... )
        >>> traces.subset(traces.groups["snr"] == "9").errors
        array([[2.]])
        """

        def cut(values):
            """The same of some utterances."""
            if isinstance(values, dict):
                return {name: array[mask] for name, array in values.items()}
            return None if values is None else values[mask]

        mask = np.asarray(mask)
        names = ("ids", "errors", "ref_len", *_COSTS, *_TEXTS)
        names += ("scores", "score_seconds", "groups")
        return replace(self, **{x: cut(getattr(self, x)) for x in names})

    def confidence(self, score: str) -> np.ndarray:
        """A score, turned so that large values speak for leaving.

        Arguments
        ---------
        score : str
            One of ``scores``.

        Returns
        -------
        np.ndarray
            The score or its negative, of shape (N, E); NaN where the score is
            never confident.

        Raises
        ------
        ValueError
            If there is no such score.

        Example
        -------
        >>> scores = {"entropy": [[0.5, float("inf")]]}
        >>> traces = Traces(["a"], [2, 4], [[1, 0]], [4], scores=scores)
        >>> traces.confidence("entropy")
        array([[-0.5,  nan]])
        """
        if score not in self.scores:
            raise ValueError(
                f"{self.source}: no score {score!r}; there are "
                f"{', '.join(self.scores) or 'none'}. Trace it, or give the "
                "direction of a column of your own."
            )
        values = self.scores[score]
        values = values if self.directions[score] else -values
        return np.where(np.isfinite(values), values, np.nan)

    def _check_shape(self, name, values, shape):
        if values is not None and values.shape != shape:
            raise ValueError(
                f"{self.source}: {name} has shape {values.shape}, but "
                f"{len(self.ids)} utterances and {len(self.exit_layers)} exits "
                f"need {shape}."
            )

    def _check_amounts(self, name, values):
        if values is None:
            return
        wrong = np.argwhere(~((values >= 0) & np.isfinite(values)))
        if len(wrong):
            row = wrong[0][0]
            raise ValueError(
                f"{self.source}: {name} of utterance {self.ids[row]!r} is "
                f"{values[tuple(wrong[0])]:g}; it must be a number from 0 on. "
                "Mend the row"
                + ("." if name in _REQUIRED else " or leave out the column.")
            )


def read_traces(
    path: str | PathLike, directions: Mapping[str, bool] | None = None
) -> Traces:
    """Read a ``traces_<set>.csv``.

    Arguments
    ---------
    path : str or os.PathLike
        The file.
    directions : Mapping, optional
        Columns that are scores too, each with whether large values speak for
        leaving.

    Returns
    -------
    Traces
        Text stays as written: "007" and "NA" are names.

    Raises
    ------
    ValueError
        If the file is no such table; see :meth:`Traces.from_frame`.

    Example
    -------
    >>> path = getfixture("tmp_path") / "traces_dev.csv"
    >>> rows = ["id,exit_layer,errors,ref_len", "NA,2,1,3", "NA,4,0,3"]
    >>> _ = path.write_text("\\n".join(rows))
    >>> read_traces(path).ids
    array(['NA'], dtype=object)
    """
    try:
        frame = pd.read_csv(
            path, dtype=str, keep_default_na=False, encoding="utf-8"
        )
    except ValueError as error:  # also what pandas raises for other files
        what = str(error).strip()
        raise ValueError(f"{path}: {what}; {_REMEDY}.") from error
    return Traces.from_frame(frame, str(path), directions)


def _arrays(values, dtype):
    return {name: np.asarray(x, dtype) for name, x in values.items()}


class _Table:
    """A frame with a row per utterance and exit, as arrays of (N, E)."""

    def __init__(self, frame: pd.DataFrame, source: str):
        self.frame, self.source = frame, source
        layers = self._floats("exit_layer")
        wrong = ~((layers >= 0) & (layers == np.floor(layers)))
        if wrong.any():
            raise ValueError(
                f"{source}: exit_layer is {layers[wrong][0]:g} in a row; exits "
                "are whole numbers, k = after layer k."
            )
        rows, self.ids = pd.factorize(self._strings("id"))
        self.exit_layers, columns = np.unique(
            layers.astype(int), return_inverse=True
        )
        self.shape = len(self.ids), len(self.exit_layers)
        cells = rows * self.shape[1] + columns
        count = np.bincount(cells, minlength=self.shape[0] * self.shape[1])
        self._refuse(count > 1, "two rows", "Leave one of them")
        self._refuse(count == 0, "no row", "Trace all exits of all utterances")
        self.order = np.argsort(cells)

    def numbers(self, name: str) -> np.ndarray:
        """A column of numbers, of shape (N, E); NaN where a cell is empty."""
        return self._floats(name)[self.order].reshape(self.shape)

    def texts(self, name: str) -> np.ndarray:
        """A column of text, of shape (N, E)."""
        return self._strings(name)[self.order].reshape(self.shape)

    def agreed(self, name: str, values: np.ndarray) -> np.ndarray:
        """What all exits of an utterance say, of shape (N,)."""
        first = values[:, :1]
        both_nan = (values != values) & (first != first)
        differs = ((values != first) & ~both_nan).any(axis=1)
        if differs.any():
            row = differs.argmax()
            said = ", ".join(map(str, dict.fromkeys(values[row])))
            raise ValueError(
                f"{self.source}: {name} of utterance {self.ids[row]!r} differs "
                f"between its exits ({said}): write the same in all its rows."
            )
        return values[:, 0]

    def is_group(self, name: str) -> bool:
        """Whether a column holds text that is the same at all exits."""
        try:
            self._floats(name)
        except ValueError:
            values = self.texts(name)
            return bool((values == values[:, :1]).all())
        return False

    def _strings(self, name):
        cells = self.frame[name]
        blank = cells.isna().to_numpy()
        values = np.array([str(x) for x in cells.tolist()], dtype=object)
        values[blank] = ""
        return values

    def _floats(self, name):
        cells = self.frame[name]
        if pd.api.types.is_numeric_dtype(cells):
            return cells.to_numpy(float, na_value=np.nan)
        # Not pandas.to_numeric, which is off by a last digit at times.
        values = cells.to_numpy(object, na_value=np.nan)
        try:
            return np.where(values == "", np.nan, values).astype(float)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{self.source}: column {name}: {error}; write a number, or "
                "nothing where there is none."
            ) from error

    def _refuse(self, cells, what, remedy):
        if cells.any():
            row, column = divmod(int(cells.argmax()), self.shape[1])
            raise ValueError(
                f"{self.source}: {what} for utterance {self.ids[row]!r} at "
                f"exit {self.exit_layers[column]} ({cells.sum()} such cases). "
                f"{remedy}: {_REMEDY}."
            )
