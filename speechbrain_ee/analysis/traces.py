"""Traces: what every exit said of every utterance, as a table.

Authors
 * SpeechBrain-EE contributors 2026
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pandas as pd
from speechbrain.utils.metric_stats import ErrorRateStats

from speechbrain_ee.exits import Score
from speechbrain_ee.heads import ExitOutput
from speechbrain_ee.runtime import Departures


class TraceRecorder:
    """Collects one row per utterance and exit while a loop runs.

    Pass it as ``on_exit`` to an ``EarlyExitLoop`` that never leaves early.

    Arguments
    ---------
    exit_layers : sequence of int
        The exits of the loop.
    scores : sequence of Score
        Each becomes a column of raw values.
    decode : callable
        Turns a list of label tuples into a list of transcripts.
    references : mapping
        Utterance name to reference transcript.
    groups : mapping, optional
        Column name to a mapping of utterance name to value, e.g. the speaker.
    error_rate_computer : callable
        Makes the ErrorRateStats of an exit.
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
        hyps = self.decode(output.hypotheses)
        refs = [self.references[i] for i in output.ids]
        stats = self.error_rates[output.exit_layer]
        stats.append(
            output.ids, [h.split() for h in hyps], [r.split() for r in refs]
        )
        values = {s.name: s(output).tolist() for s in self.scores}
        for row, name in enumerate(output.ids):
            details = stats.scores[row - len(output)]
            self.rows.append(
                {
                    "id": name,
                    "exit_layer": output.exit_layer,
                    "layers_run": int(account.layers_run[row]),
                    "hyp": hyps[row],
                    "ref": refs[row],
                    "errors": details["num_edits"],
                    "ref_len": details["num_ref_tokens"],
                    "frames": int(account.frames[row]),
                    "macs": int(account.macs[row]),
                    "seconds": float(account.seconds[row]),
                    **{score: v[row] for score, v in values.items()},
                    **{group: v[name] for group, v in self.groups.items()},
                }
            )

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

        Arguments
        ---------
        folder : str or Path
            Where to.
        name : str
            Of the set.
        """
        folder = Path(folder)
        self.table().to_csv(folder / f"traces_{name}.csv", index=False)
        for layer, stats in self.error_rates.items():
            path = folder / f"wer_{name}_exit{layer}.txt"
            with open(path, "w", encoding="utf-8") as file:
                stats.write_stats(file)
