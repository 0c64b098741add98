"""Branches of a frozen upstream: what each of them says, and signs of failure.

DAISY (arXiv 2406.05464) finds that the mean entropy of branches falls linearly
with depth. Where it does not fall, or where utterances leave anywhere, exits
chosen by it can hardly be good. From when on that is so is not published: the
rules here are ours, and say so.

Authors
 * SpeechBrain-EE contributors 2026
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import linregress

from speechbrain_ee.analysis.plots import draw_entropy_by_layer
from speechbrain_ee.analysis.report import (
    Part,
    Section,
    save_picture,
    write_markdown,
)
from speechbrain_ee.files import replacing


class Line(NamedTuple):
    """A straight line through mean entropies.

    Arguments
    ---------
    slope : float
        Nats per layer.
    intercept : float
        Nats, at layer 0.
    r2 : float
        Share of the variance that it explains; NaN of less than three points,
        and where all are equal.

    Example
    -------
    >>> Line(-0.1, 3.0, 0.98).slope
    -0.1
    """

    slope: float
    intercept: float
    r2: float


@dataclass
class BranchReadings:
    """What all branches say of the utterances of a set.

    Arguments
    ---------
    layers : sequence of int
        Those of the branches, rising.
    frames : np.ndarray
        Real frames of each utterance, of shape (utterances,).
    entropies : np.ndarray
        Mean over the frames of an utterance of the entropy in nats, of shape
        (utterances, layers).
    right : np.ndarray
        How many frames of an utterance got their cluster, of the same shape.
    losses : np.ndarray
        Cross-entropy in nats, summed over the frames of an utterance, of the
        same shape.

    Example
    -------
    >>> readings = BranchReadings(
    ...     layers=[1, 2],
    ...     frames=np.array([10, 30]),
    ...     entropies=np.array([[2.0, 1.0], [3.0, 1.5]]),
    ...     right=np.array([[5, 6], [5, 14]]),
    ...     losses=np.array([[20.0, 10.0], [60.0, 30.0]]),
    ... )
    >>> readings.table()[["layer", "accuracy", "mean_entropy"]]
       layer  accuracy  mean_entropy
    0      1      25.0          2.50
    1      2      50.0          1.25
    >>> readings.line().slope
    -1.25
    """

    layers: Sequence[int]
    frames: np.ndarray
    entropies: np.ndarray
    right: np.ndarray
    losses: np.ndarray

    def table(self) -> pd.DataFrame:
        """A row per layer.

        Returns
        -------
        pandas.DataFrame
            ``layer``; ``accuracy`` (% of frames) and ``cross_entropy`` (nats
            per frame); of the utterances' entropies (nats) ``mean_entropy``,
            ``sd_entropy``, ``lowest_entropy`` and ``highest_entropy``.
        """
        count = self.frames.sum()
        return pd.DataFrame(
            {
                "layer": list(self.layers),
                "accuracy": 100 * self.right.sum(axis=0) / count,
                "mean_entropy": self.entropies.mean(axis=0),
                "sd_entropy": self.entropies.std(axis=0),
                "lowest_entropy": self.entropies.min(axis=0),
                "highest_entropy": self.entropies.max(axis=0),
                "cross_entropy": self.losses.sum(axis=0) / count,
            }
        )

    def line(self) -> Line | None:
        """The line of least squares through mean entropies.

        Returns
        -------
        Line or None
            None of a single branch.
        """
        means = self.entropies.mean(axis=0)
        if len(means) < 2:
            return None
        found = linregress(self.layers, means)
        varies = len(means) > 2 and np.ptp(means) > 0
        r2 = float(found.rvalue) ** 2 if varies else float("nan")
        return Line(float(found.slope), float(found.intercept), r2)

    def exits(self, threshold: float | None = None) -> np.ndarray:
        """Where each utterance leaves: at the first layer of so low an entropy.

        Arguments
        ---------
        threshold : float, optional
            In nats (default: the mean over layers of mean entropies).

        Returns
        -------
        np.ndarray
            A layer for each utterance; the last where none is so low.
        """
        if threshold is None:
            threshold = self.entropies.mean()
        low = self.entropies <= threshold
        low[:, -1] = True
        return np.asarray(self.layers)[low.argmax(axis=1)]

    def warnings(self) -> list[str]:
        """Signs that exits by these branches will fail.

        The paper names two: entropies that are flat over depth, and a large
        variance of exits. **Our rules**: entropy is flat if from the first
        branch to the last the line falls by less than the standard deviation
        over utterances (mean over layers); exits vary much if, at the threshold
        of ``exits``, their standard deviation is that of a draw of all layers
        with equal chance, or larger.

        Returns
        -------
        list of str
            Sentences; none where all is well.
        """
        line = self.line()
        if line is None:
            return []
        told = []
        change = line.slope * (self.layers[-1] - self.layers[0])
        spread = self.entropies.std(axis=0).mean()
        if change >= 0 or -change < spread:
            told.append(
                f"The entropy does not fall enough with depth: from layer "
                f"{self.layers[0]} to {self.layers[-1]} its line changes by "
                f"{change:+.3g} nats, and utterances differ by {spread:.3g} "
                "(standard deviation). A threshold then tells utterances "
                "apart, but hardly finds a depth. Train branches longer, or "
                "choose other targets."
            )
        exits = self.exits()
        if len(exits) > 1 and exits.std() >= np.std(self.layers):
            told.append(
                "Exits vary much: at the mean entropy as threshold "
                f"({self.entropies.mean():.3g} nats) they have a standard "
                f"deviation of {exits.std():.2f} layers, and layers drawn with "
                f"equal chance {np.std(self.layers):.2f}. Take a window of "
                "exits in evaluation (average or min_max)."
            )
        return told

    def facts(self) -> dict:
        """What ``branches.json`` says of the set.

        Returns
        -------
        dict
            Columns of ``table`` as lists over layers, ``utterances``,
            ``frames``, ``entropy_range`` (over utterances and layers) and
            ``line``.
        """
        line = self.line()
        table = self.table().drop(columns="layer")
        return {
            "utterances": len(self.frames),
            "frames": int(self.frames.sum()),
            **{name: table[name].tolist() for name in table},
            "entropy_range": [
                float(self.entropies.min()),
                float(self.entropies.max()),
            ],
            "line": None
            if line is None
            else {
                key: None if np.isnan(x) else x
                for key, x in line._asdict().items()
            },
        }


def write_branch_report(
    folder: str | Path,
    readings: Mapping[str, BranchReadings],
    about: str = "",
) -> list[str]:
    """Write what the branches say of some sets.

    Arguments
    ---------
    folder : str or Path
        Gets ``branches_<set>.csv``, ``entropy_by_layer.png`` where there is
        more than one branch, and ``report.md``.
    readings : mapping
        Name of a set to what was said of it.
    about : str
        What the branches predict, for the report.

    Returns
    -------
    list of str
        The warnings of all sets, with their names.

    Example
    -------
    >>> readings = BranchReadings(
    ...     layers=[1, 2],
    ...     frames=np.array([10, 30]),
    ...     entropies=np.array([[2.0, 1.9], [3.0, 3.1]]),
    ...     right=np.zeros((2, 2)),
    ...     losses=np.ones((2, 2)),
    ... )
    >>> folder = getfixture("tmp_path")
    >>> len(write_branch_report(folder, {"dev": readings}))
    2
    >>> sorted(path.name for path in folder.iterdir())
    ['branches_dev.csv', 'entropy_by_layer.png', 'report.md']
    """
    folder = Path(folder)
    tables = {name: one.table() for name, one in readings.items()}
    for name, table in tables.items():
        with replacing(folder / f"branches_{name}.csv") as file:
            table.to_csv(file, index=False)
    sections = []
    lines = {name: one.line() for name, one in readings.items()}
    if all(line is not None for line in lines.values()):
        picture = save_picture(
            folder,
            "entropy_by_layer",
            draw_entropy_by_layer(tables, lines),
            "Mean entropy of each branch with its standard deviation over "
            "utterances, and the line of least squares through the means",
        )
        sections.append(Section("Entropy by layer", about, [picture]))
    warnings = []
    for name, one in readings.items():
        found = one.warnings()
        warnings += [f"{name}: {text}" for text in found]
        sections.append(
            Section(
                name,
                _summarise(one),
                [Part(table=_print(tables[name]), notes=found)],
            )
        )
    write_markdown(folder / "report.md", "Branches", sections)
    return warnings


def _summarise(one) -> str:
    """Size of a set, its line, and where its utterances would leave."""
    told = f"{len(one.frames)} utterances, {one.frames.sum():.0f} frames."
    line = one.line()
    if line is None:
        return told
    exits = one.exits()
    r2 = "" if np.isnan(line.r2) else f" (R² {line.r2:.3f})"
    return (
        f"{told} The entropy changes by {line.slope:+.3f} nats per layer{r2}. "
        f"At its mean over layers, {one.entropies.mean():.3f} nats, as "
        f"threshold, utterances leave at layer {exits.mean():.2f} on average, "
        f"with a standard deviation of {exits.std():.2f}."
    )


def _print(table: pd.DataFrame) -> pd.DataFrame:
    """Ready to read."""
    return pd.DataFrame(
        {
            "layer": table["layer"],
            "accuracy (%)": [f"{x:.1f}" for x in table["accuracy"]],
            "cross-entropy": [f"{x:.3f}" for x in table["cross_entropy"]],
            "mean entropy": [f"{x:.3f}" for x in table["mean_entropy"]],
            "sd": [f"{x:.3f}" for x in table["sd_entropy"]],
            "from": [f"{x:.3f}" for x in table["lowest_entropy"]],
            "to": [f"{x:.3f}" for x in table["highest_entropy"]],
        }
    )
