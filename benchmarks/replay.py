#!/usr/bin/env python3
"""Whether seconds replayed from traces are those that the loop takes.

The passes of the loop, full depth and at several thresholds, are run in turn
several times; medians are compared, since one pass alone varies by a tenth on a
machine that does anything else.

> python benchmarks/replay.py RUN FILE.flac …

Authors
 * SpeechBrain-EE contributors 2026
"""

import argparse
from collections import defaultdict

import numpy as np

from speechbrain_ee.analysis.recorder import ExitTimer, TraceRecorder
from speechbrain_ee.analysis.replay import exits_at, outcome
from speechbrain_ee.analysis.traces import Traces
from speechbrain_ee.exits import NeverLeave, Threshold, get_score
from speechbrain_ee.inference import EarlyExitASR
from speechbrain_ee.runtime import EarlyExitLoop


def main():
    """Print replayed and measured seconds at each threshold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", help="folder of a run, with its inference.yaml")
    parser.add_argument("files", nargs="+", help="audio, one batch each")
    parser.add_argument("--score", default="entropy")
    parser.add_argument(
        "--quantiles",
        type=float,
        nargs="+",
        default=[0.25, 0.5, 0.75],
        help="of the score's values: the thresholds",
    )
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()

    asr = EarlyExitASR.from_hparams(options.run)
    wavs = {file: asr.load_audio(file)[None] for file in options.files}

    def walk(selector, on_exit=None, watched=()):
        """Seconds of a pass over all files, one at a time."""
        loop = EarlyExitLoop(
            asr.mods.encoder, asr.mods.exits, selector, asr.costs, watched
        )
        with asr.inference_ctx:
            return sum(
                loop(wav, ids=[name], on_exit=on_exit).seconds.sum().item()
                for name, wav in wavs.items()
            )

    def trace():
        """Traces with the times of a pass of their own."""
        timer = ExitTimer()
        walk(NeverLeave(), timer)
        recorder = TraceRecorder(
            asr.mods.exits.exit_layers,
            [get_score(options.score)],
            asr.decode,
            dict.fromkeys(wavs, "UNKNOWN"),
        )
        walk(NeverLeave(), recorder, recorder.scores)
        recorder.take_seconds(timer)
        return Traces.from_frame(recorder.table())

    traces = trace()
    values = traces.scores[options.score][:, :-1]
    thresholds = np.quantile(values, options.quantiles).tolist()
    taken = exits_at(traces, options.score, thresholds)
    measured, replayed = defaultdict(list), []
    for _ in range(options.repeats):
        rows = outcome(trace(), taken, options.score)
        replayed.append(rows["seconds"].to_numpy())
        for threshold in thresholds:
            selector = Threshold(options.score, threshold)
            measured[threshold].append(walk(selector))
    depths = outcome(traces, taken)["mean_exit_layer"]
    for threshold, depth, replay in zip(
        thresholds, depths, np.median(replayed, axis=0), strict=True
    ):
        real = np.median(measured[threshold])
        print(
            f"{options.score} {threshold:.3g}: mean exit {depth:.2f}, "
            f"measured {real:.3f} s, replayed {replay:.3f} s, "
            f"ratio {replay / real:.3f}"
        )


if __name__ == "__main__":
    main()
