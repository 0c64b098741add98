"""The command ``speechbrain-ee``.

Authors
 * SpeechBrain-EE contributors 2026
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

# What a command needs is imported when it runs, so that those which only read
# tables start at once.

# What makes a corpus in a layout: functions of the modules of that name.
LAYOUTS = {
    "esc": "make_esc",
    "librilight": "make_librilight",
    "librimix": "make_librimix",
    "librispeech": "make_demo_corpus",
    "mlsuperb": "make_mlsuperb",
    "tedlium": "make_tedlium",
    "utterances": "make_utterances",
    "voicebank": "make_voicebank",
    "voxceleb": "make_voxceleb",
    "voxpopuli": "make_voxpopuli",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Arguments
    ---------
    arguments : sequence of str, optional
        Those of the process by default.

    Returns
    -------
    int
        0, or 2 where the input was at fault, which is then told on stderr.

    Example
    -------
    >>> main(["sweep", "nowhere.csv"])
    2
    """
    options = _parser().parse_args(arguments)
    try:
        options.command(options)
    except (ImportError, OSError, ValueError) as error:
        print(f"speechbrain-ee: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="speechbrain-ee",
        description="Tools for speech models with early exits.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(function, name, summary):
        """Add a command."""
        sub = commands.add_parser(name, help=summary, description=summary)
        sub.set_defaults(command=function)
        return sub

    sub = command(_corpus, "corpus", "Make a corpus of synthetic speech.")
    sub.add_argument("folder", type=Path, help="where to make it")
    sub.add_argument(
        "--layout",
        choices=LAYOUTS,
        default="librispeech",
        help="the demo's corpus, or a small one laid out as that dataset",
    )
    sub.add_argument("--seed", type=int, default=0)

    sub = command(_sweep, "sweep", "Replay exit rules on traces of a run.")
    sub.add_argument("traces", type=Path, help="traces_<set>.csv of a run")
    sub.add_argument(
        "--score",
        action="append",
        metavar="NAME",
        help="a score to sweep; may be repeated; all by default",
    )
    sub.add_argument(
        "--points", type=int, default=200, help="thresholds per score"
    )
    sub.add_argument(
        "--out", type=Path, help="the curve's file; printed by default"
    )

    sub = command(
        _calibrate,
        "calibrate",
        "Choose thresholds on traces of a development set, for a mean compute "
        "or within a risk that holds for utterances like these.",
    )
    sub.add_argument("traces", type=Path, help="traces_<set>.csv of a run")
    sub.add_argument(
        "--score",
        required=True,
        metavar="NAME",
        help="a score of the traces; with its definition, such as "
        "'{score: entropy, normalization: unit}', where the run is not there",
    )
    target = sub.add_mutually_exclusive_group(required=True)
    target.add_argument(
        "--layers", type=float, help="layers that run on the mean, at most"
    )
    target.add_argument(
        "--macs", type=float, help="MACs per utterance on the mean, at most"
    )
    target.add_argument(
        "--risk",
        type=float,
        metavar="ALPHA",
        help="mean share of its words that an utterance may lose against full "
        "depth, at most, such as 0.02",
    )
    sub.add_argument(
        "--delta",
        type=float,
        default=0.1,
        help="probability that the risk is larger all the same; 0.1 by default",
    )
    sub.add_argument(
        "--per-exit",
        action="store_true",
        help="a threshold for each exit, which errors of some of the "
        "utterances teach",
    )
    sub.add_argument(
        "--out",
        type=Path,
        help="a .yaml to write, for --selectors of a recipe, --selector of "
        "transcribe, and EarlyExitASR",
    )

    sub = command(_report, "report", "Write the report of a run again.")
    sub.add_argument("run", type=Path, help="folder of the run", metavar="RUN")

    sub = command(
        _compare,
        "compare",
        "Draw several runs on one picture; those with a single exit as points.",
    )
    sub.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN", help="folders of runs"
    )
    sub.add_argument(
        "--set",
        dest="set_name",
        metavar="NAME",
        help="the set to compare; the test set by default, if there is one",
    )
    sub.add_argument("--score", default="entropy", help="whose curve is drawn")
    sub.add_argument(
        "--out", type=Path, default=Path("comparison"), help="folder to write"
    )

    sub = command(
        _tables,
        "tables",
        "Table the exits of runs as Wright et al. (arXiv 2309.09546) do, and "
        "beside theirs where the test set is the same.",
    )
    sub.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN", help="folders of runs"
    )
    sub.add_argument(
        "--model",
        action="append",
        default=[],
        dest="models",
        metavar="[RUN=]NAME",
        help="name of the model of a run, or of all runs that do not tell it, "
        "such as Conformer-CTC; may be repeated",
    )
    sub.add_argument(
        "--set",
        action="append",
        default=[],
        dest="sets",
        metavar="NAME=STANDARD",
        help="which of the paper's sets a set is, such as test=tedlium-test; "
        "may be repeated",
    )
    sub.add_argument(
        "--out", type=Path, default=Path("tables"), help="folder to write"
    )

    sub = command(
        _superb,
        "superb",
        "Table upstreams and interfaces over the tasks of ML-SUPERB and "
        "SUPERB, as Shih and Harwath (arXiv 2406.12209) do, beside theirs.",
    )
    sub.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN", help="folders of runs"
    )
    sub.add_argument(
        "--task",
        action="append",
        default=[],
        dest="tasks",
        metavar="RUN=TASK",
        help="task of a run of classification, such as IC or ER; may be "
        "repeated",
    )
    sub.add_argument(
        "--set",
        default="test",
        dest="set_name",
        metavar="NAME",
        help="the set whose results are read",
    )
    sub.add_argument(
        "--out", type=Path, default=Path("superb"), help="folder to write"
    )

    sub = command(
        _noise,
        "noise",
        "Report mean exit and error rate against the signal-to-noise ratio: of "
        "rules that choose exits, and of the fixed exits of equal mean cost.",
    )
    sub.add_argument(
        "runs",
        type=Path,
        nargs="+",
        metavar="RUN",
        help="folders of runs with traces in noise: a model with several "
        "exits, or runs with a fixed exit each, and those that have chosen; "
        "folders called by numbers are seeds",
    )
    sub.add_argument(
        "--set",
        dest="set_name",
        metavar="NAME",
        help="the set, without its noise; the test set by default",
    )
    sub.add_argument(
        "--score",
        action="append",
        default=[],
        dest="scores",
        metavar="NAME",
        help="a score to replay over the fixed exits; may be repeated",
    )
    sub.add_argument(
        "--rule",
        action="append",
        default=[],
        dest="rules",
        metavar="SCORE=THRESHOLD",
        help="the same with a threshold; may be repeated",
    )
    sub.add_argument(
        "--layers",
        type=float,
        help="mean exit over all conditions that other thresholds are chosen "
        "for; that of the first run that has chosen by default",
    )
    sub.add_argument(
        "--out", type=Path, default=Path("noise"), help="folder to write"
    )

    sub = command(
        _gates,
        "gates",
        "Report which layers gates keep at each target, how many different "
        "masks there are, and whether these depend on noise, length and "
        "other groups of utterances.",
    )
    sub.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN", help="folders of runs"
    )
    sub.add_argument(
        "--set",
        dest="set_name",
        metavar="NAME",
        help="the set, without its noise; the test set by default",
    )
    sub.add_argument(
        "--out", type=Path, default=Path("gates"), help="folder to write"
    )

    sub = command(_transcribe, "transcribe", "Transcribe audio files.")
    sub.add_argument("files", type=Path, nargs="+", metavar="FILE")
    sub.add_argument(
        "--model",
        required=True,
        help="folder of a run, or a repository of the Hugging Face hub",
    )
    sub.add_argument(
        "--exit-layer", type=int, help="the exit that all files leave at"
    )
    sub.add_argument(
        "--max-layers", type=int, help="the most layers a file may take"
    )
    sub.add_argument(
        "--target-layers",
        type=float,
        help="layers that a file keeps, of a model with a gate",
    )
    sub.add_argument(
        "--selector",
        help="a file that calibrate has written, or the name of a selector "
        "without options; the model's own by default",
    )
    sub.add_argument("--score", help="score of a threshold rule")
    sub.add_argument("--threshold", type=float, help="threshold of that rule")
    sub.add_argument(
        "--max-seconds",
        type=float,
        default=120.0,
        help="longer files are refused: attention takes their square",
    )
    sub.add_argument("--device", help="such as cpu or cuda:0")

    sub = command(
        _truncate,
        "truncate",
        "Cut a model off behind an exit, for a smaller device.",
    )
    sub.add_argument("run", type=Path, metavar="RUN", help="folder of the run")
    sub.add_argument(
        "--exit",
        type=int,
        required=True,
        dest="exit_layer",
        metavar="LAYER",
        help="the exit that becomes the last",
    )
    sub.add_argument(
        "--out", type=Path, help="folder to write; RUN/exit<LAYER> by default"
    )
    return parser


def _corpus(options) -> None:
    corpus = import_module(f"speechbrain_ee.corpora.{options.layout}")
    make = getattr(corpus, LAYOUTS[options.layout])
    print(make(options.folder, seed=options.seed))


def _sweep(options) -> None:
    from speechbrain_ee.analysis.replay import sweep
    from speechbrain_ee.analysis.traces import read_traces
    from speechbrain_ee.files import replacing

    curve = sweep(read_traces(options.traces), options.score, options.points)
    if options.out is None:
        curve.to_csv(sys.stdout, index=False)
        return
    with replacing(options.out) as file:
        curve.to_csv(file, index=False)


def _calibrate(options) -> None:
    from ruamel.yaml import YAML, YAMLError

    from speechbrain_ee.analysis import calibration
    from speechbrain_ee.analysis.traces import read_traces

    traces = read_traces(options.traces)
    try:
        wanted = YAML(typ="safe").load(options.score)
    except YAMLError as error:
        raise ValueError(f"--score {options.score}: {error}") from error
    score = calibration.traced_score(options.traces, wanted)
    label, rule = calibration.calibrate(
        traces,
        score,
        layers=options.layers,
        macs=options.macs,
        risk=options.risk,
        delta=options.delta,
        per_exit=options.per_exit,
    )
    if options.out is not None:
        calibration.write_rule(options.out, label, rule)
    print(calibration.describe(rule))


def _report(options) -> None:
    from speechbrain_ee.analysis.report import write_report

    print(write_report(options.run))


def _compare(options) -> None:
    from speechbrain_ee.analysis.comparison import compare_runs

    print(
        compare_runs(options.runs, options.out, options.set_name, options.score)
    )


def _tables(options) -> None:
    from speechbrain_ee.analysis.tables import make_tables

    sets = _pairs("--set", "NAME=STANDARD", options.sets)
    print(make_tables(options.runs, options.out, options.models, sets))


def _superb(options) -> None:
    from speechbrain_ee.analysis.superb import make_superb_table

    tasks = _pairs("--task", "RUN=TASK", options.tasks)
    print(make_superb_table(options.runs, options.out, tasks, options.set_name))


def _noise(options) -> None:
    from speechbrain_ee.analysis.noise import make_noise_report

    rules = _pairs("--rule", "SCORE=THRESHOLD", options.rules)
    try:
        rules = {score: float(x) for score, x in rules.items()}
    except ValueError as error:
        raise ValueError(f"--rule: {error}; write SCORE=THRESHOLD.") from error
    print(
        make_noise_report(
            *(options.runs, options.out, options.set_name),
            *(options.scores, rules, options.layers),
        )
    )


def _gates(options) -> None:
    from speechbrain_ee.analysis.choices import make_gates_report

    print(make_gates_report(options.runs, options.out, options.set_name))


def _pairs(option: str, form: str, given: Sequence[str]) -> dict[str, str]:
    """Options that have a name and a value."""
    wrong = [x for x in given if "=" not in x]
    if wrong:
        raise ValueError(f"{option} {wrong[0]}: write {form}.")
    return dict(x.split("=", 1) for x in given)


def _transcribe(options) -> None:
    from speechbrain_ee.inference import EarlyExitASR

    selector = options.selector
    if options.score is not None or options.threshold is not None:
        if options.score is None or options.threshold is None:
            raise ValueError("--score and --threshold go together.")
        if selector is not None:
            raise ValueError("--selector goes without --score and --threshold.")
        selector = {
            "selector": "threshold",
            "score": options.score,
            "threshold": options.threshold,
        }
    model = EarlyExitASR.from_hparams(
        options.model,
        selector=selector,
        exit_layer=options.exit_layer,
        max_layers=options.max_layers,
        target_layers=options.target_layers,
        max_seconds=options.max_seconds,
        run_opts={"device": options.device} if options.device else None,
    )
    print("file", "exit_layer", "score", "text", sep="\t")
    for path, one in zip(
        options.files, model.transcribe_files(options.files), strict=True
    ):
        score = "" if one.score is None else f"{one.score:.4g}"
        print(path, one.exit_layer, score, one.text, sep="\t")


def _truncate(options) -> None:
    from speechbrain_ee.inference.truncate import truncate_model

    folder = options.out or options.run / f"exit{options.exit_layer}"
    summary = truncate_model(options.run, options.exit_layer, folder)
    print(f"{folder}: {summary}")


if __name__ == "__main__":
    sys.exit(main())
