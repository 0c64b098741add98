"""Recorder: traces of what every exit says, collected while a loop runs.

Authors
 * SpeechBrain-EE contributors 2026
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch
from speechbrain.utils.metric_stats import ErrorRateStats

from speechbrain_ee.exits import Score
from speechbrain_ee.files import replacing
from speechbrain_ee.heads import ExitOutput
from speechbrain_ee.runtime import Departures


class ExitTimer:
    """Notes when each utterance was through with each exit.

    Pass it as ``on_exit`` to an ``EarlyExitLoop`` that never leaves early and
    reads no scores. What a TraceRecorder does between exits costs the layers
    their caches, so that its own pass is slower than a real one.

    Attributes
    ----------
    seconds : dict
        (utterance, exit layer) to the time until then, without the front end.

    Example
    -------
    >>> import torch
    >>> log_probs, one = torch.zeros(1, 1, 3), torch.tensor([1])
    >>> account = Departures([()], one, one, one, one, torch.tensor([0.5]), 0.1)
    >>> timer = ExitTimer()
    >>> timer(ExitOutput(log_probs, one, 2, ids=["a"]), account)
    >>> timer.seconds
    {('a', 2): 0.5}
    """

    def __init__(self):
        self.seconds = {}

    def __call__(self, output: ExitOutput, account: Departures) -> None:
        """Note one exit.

        Arguments
        ---------
        output : ExitOutput
            Of the utterances that reached it.
        account : Departures
            What they have cost so far.
        """
        for name, seconds in zip(output.ids, account.seconds.tolist()):
            self.seconds[name, output.exit_layer] = seconds


class TraceRecorder:
    """Collects one row per utterance and exit while a loop runs.

    Pass it as ``on_exit`` to an ``EarlyExitLoop`` that never leaves early.

    Arguments
    ---------
    exit_layers : sequence of int
        The exits of the loop.
    scores : sequence of Score
        Each becomes a column of raw values, and one of the seconds that it
        took, split over the utterances by their frames.
    decode : callable
        Turns a list of label tuples into a list of transcripts.
    references : mapping
        Utterance name to reference transcript.
    groups : mapping, optional
        Column name to a mapping of utterance name to value, e.g. the speaker.
    error_rate_computer : callable
        Makes the ErrorRateStats of an exit.

    Example
    -------
    >>> from speechbrain_ee.exits import get_score
    >>> recorder = TraceRecorder(
    ...     exit_layers=[2],
    ...     scores=[get_score("entropy")],
    ...     decode=lambda hyps: ["YES" if hyp else "" for hyp in hyps],
    ...     references={"a": "YES"},
    ... )
    >>> frames = torch.tensor([3])
    >>> output = ExitOutput(torch.zeros(1, 3, 4), frames, 2, ids=["a"])
    >>> nothing = torch.zeros(1)
    >>> account = Departures(
    ...     [()], frames, nothing + 2, frames, nothing, nothing, 0.0
    ... )
    >>> recorder(output, account)
    >>> recorder.table()[["id", "exit_layer", "errors", "ref_len"]].values
    array([['a', 2, 1, 1]], dtype=object)
    """

    def __init__(
        self,
        exit_layers: Sequence[int],
        scores: Sequence[Score],
        decode: Callable[[list[tuple[int, ...]]], list[str]],
        references: Mapping[str, str],
        groups: Mapping[str, Mapping[str, str]] | None = None,
        error_rate_computer: Callable[[], ErrorRateStats] = ErrorRateStats,
    ):
        names = [score.name for score in scores]
        if len(set(names)) < len(names):
            raise ValueError(
                f"scores: {', '.join(names)} name one twice, but traces have "
                "one column for each name: trace them in two runs."
            )
        self.scores = scores
        self.decode = decode
        self.references = references
        self.groups = groups or {}
        self.error_rates = {k: error_rate_computer() for k in exit_layers}
        self.rows = []

    def __call__(self, output: ExitOutput, account: Departures) -> None:
        """Record one exit.

        Arguments
        ---------
        output : ExitOutput
            What the exit says of the utterances that reached it.
        account : Departures
            What they have cost so far.
        """
        layers = account.layers
        seconds = _seconds(lambda: output.hypotheses, output)
        hyps = self.decode(output.hypotheses)
        refs = [self.references[i] for i in output.ids]
        stats = self.error_rates[output.exit_layer]
        stats.append(
            output.ids, [h.split() for h in hyps], [r.split() for r in refs]
        )
        if not self.rows:
            # The first call of a score pays for imports and kernels.
            for score in self.scores:
                score(replace(output))
        columns = {"hypothesis_seconds": seconds}
        for score in self.scores:
            columns.update(_timed(score, output))
        for row, name in enumerate(output.ids):
            details = stats.scores[row - len(output)]
            kept = {} if layers is None else {"layers": layers[row]}
            self.rows.append(
                {
                    "id": name,
                    "exit_layer": output.exit_layer,
                    "layers_run": int(account.layers_run[row]),
                    **kept,
                    "hyp": hyps[row],
                    "ref": refs[row],
                    "errors": details["num_edits"],
                    "ref_len": details["num_ref_tokens"],
                    "frames": int(account.frames[row]),
                    "macs": int(account.macs[row]),
                    "seconds": float(account.seconds[row]),
                    **{column: v[row] for column, v in columns.items()},
                    **{group: v[name] for group, v in self.groups.items()},
                }
            )

    def take_seconds(self, timer: ExitTimer) -> None:
        """Put the times of an undisturbed pass in place of the own ones.

        Arguments
        ---------
        timer : ExitTimer
            Of a loop over the same utterances that read no scores.
        """
        for row in self.rows:
            row["seconds"] = timer.seconds[row["id"], row["exit_layer"]]

    def table(self) -> pd.DataFrame:
        """The traces so far.

        Returns
        -------
        pandas.DataFrame
            Sorted by utterance and exit.
        """
        return pd.DataFrame(self.rows).sort_values(
            ["id", "exit_layer"], ignore_index=True
        )

    def write(self, folder: str | Path, name: str) -> None:
        """Write ``traces_<name>.csv`` and ``wer_<name>_exit<layer>.txt``.

        Each file is there as a whole or not at all.

        Arguments
        ---------
        folder : str or Path
            Where to.
        name : str
            Of the set.
        """
        folder = Path(folder)
        with replacing(folder / f"traces_{name}.csv") as path:
            self.table().to_csv(path, index=False, encoding="utf-8")
        for layer, stats in self.error_rates.items():
            with (
                replacing(folder / f"wer_{name}_exit{layer}.txt") as path,
                open(path, "w", encoding="utf-8") as file,
            ):
                stats.write_stats(file)


def _timed(score: Score, output: ExitOutput) -> dict[str, list[float]]:
    """A score's values, and the seconds of each utterance behind them."""
    # A copy has not yet computed its mask and its greedy path: a score that
    # reads them pays for them, as it does in a loop that leaves early.
    fresh, values = replace(output), []
    seconds = _seconds(lambda: values.append(score(fresh)), output)
    return {score.name: values[0].tolist(), f"{score.name}_seconds": seconds}


def _seconds(run: Callable[[], object], output: ExitOutput) -> list[float]:
    """What each utterance's share is in the time of a function."""
    device = output.log_probs.device
    _finish(device)
    start = time.perf_counter()
    run()
    _finish(device)
    seconds = time.perf_counter() - start
    share = output.frames / output.frames.sum()
    return (seconds * share.double()).tolist()


def _finish(device: torch.device) -> None:
    """Wait for what the GPU still has to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
