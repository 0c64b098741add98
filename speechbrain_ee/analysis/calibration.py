"""Thresholds chosen on a development set.

Authors
 * SpeechBrain-EE contributors 2026
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import count
from pathlib import Path

import numpy as np
from ruamel.yaml import YAML, YAMLError

from speechbrain_ee.analysis.replay import (
    exits_at,
    outcome,
    threshold_per_exit,
)
from speechbrain_ee.analysis.risk import (
    excess_loss,
    learn_then_test,
    one_threshold,
    threshold_by_exit,
    utterances_needed,
)
from speechbrain_ee.analysis.statistics import Bootstrap, savings
from speechbrain_ee.analysis.traces import Traces
from speechbrain_ee.exits import Score, get_score
from speechbrain_ee.files import is_yaml, replacing

# Utterances that propose the thresholds which the others test: by their scores
# alone, or with what is learned from errors at each exit.
_PROPOSING = {False: 0.2, True: 0.25}
# Settings from which a target of compute chooses.
_FINE = 1000


def calibrated_thresholds(
    traces: Traces,
    traced: Sequence,
    scores: Sequence[str] = (),
    loss: float = 1.0,
) -> dict[str, dict]:
    """For each score, the threshold that runs the fewest layers.

    Arguments
    ---------
    traces : Traces
        Of the development set.
    traced : sequence
        The scores that were traced, as ``get_score`` takes them: a threshold
        holds for a score with just these options.
    scores : sequence of str
        Names of the scores that are wanted; those that were not traced are
        passed over.
    loss : float
        How many points of error rate, in percent, it may cost there, compared
        with the last exit.

    Returns
    -------
    dict
        ``<score>_dev+<loss>`` to what ``get_selector`` takes.

    Example
    -------
    >>> import pandas as pd
    >>> columns = ["id", "exit_layer", "errors", "ref_len", "entropy"]
    >>> rows = [("a", 2, 0, 5, 0.1), ("a", 4, 0, 5, 0.1)]
    >>> rows += [("b", 2, 3, 5, 0.9), ("b", 4, 0, 5, 0.2)]
    >>> traces = Traces.from_frame(pd.DataFrame(rows, columns=columns))
    >>> chosen = calibrated_thresholds(traces, ["entropy"], ["entropy"])
    >>> 0.1 <= chosen["entropy_dev+1"]["threshold"] < 0.9
    True
    """
    chosen = {}
    for score in map(get_score, traced):
        if score.name not in scores:
            continue
        definition = score.name
        if score.options:
            definition = {"score": score.name, **score.options}
        chosen[f"{score.name}_dev+{loss:g}"] = {
            "selector": "threshold",
            "score": definition,
            "threshold": savings(traces, score.name, loss)["threshold"],
        }
    return chosen


def meet_compute(
    traces: Traces,
    score: str,
    layers: float | None = None,
    macs: float | None = None,
    per_exit: bool = False,
) -> float | dict[int, float]:
    """The strictest threshold that keeps within a mean compute.

    It keeps to the target on these utterances. On others it does so as far as
    their scores are like these; there is no guarantee.

    Arguments
    ---------
    traces : Traces
        Of the development set.
    score : str
        A score of theirs.
    layers : float, optional
        How many layers may run, as a mean over utterances.
    macs : float, optional
        How many MACs of layers and heads; give one of the two.
    per_exit : bool
        Whether each exit has a threshold of its own, see
        :func:`speechbrain_ee.analysis.risk.threshold_by_exit`.

    Returns
    -------
    float or dict
        What ``Threshold`` takes.

    Raises
    ------
    ValueError
        If even the first exit takes more, or the traces do not tell.

    Example
    -------
    >>> scores = {"entropy": [[0.1, 0], [0.9, 0]]}
    >>> errors = [[0, 0], [4, 0]]
    >>> traces = Traces(["a", "b"], [2, 4], errors, [4, 4], scores=scores)
    >>> meet_compute(traces, "entropy", layers=3)
    0.1
    """
    if (layers is None) == (macs is None):
        raise ValueError("give either layers or macs as the target")
    settings = _family(per_exit)(traces, score, _FINE)
    figures = outcome(traces, exits_at(traces, score, settings))
    what, limit = ("macs", macs) if layers is None else ("layers", layers)
    if layers is not None and traces.layers_run is None:
        used = figures["mean_exit_layer"]  # all layers up to the exit
    else:
        used = figures["macs" if layers is None else "mean_layers_run"]
    if used.isna().any():
        raise ValueError(f"{traces.source}: no column macs: give layers.")
    within = np.flatnonzero(used <= limit)
    if not len(within):
        raise ValueError(
            f"{what}: no threshold of {score} takes {limit:g} on the mean of "
            f"{traces.source}; the least is {used.iloc[-1]:g}. Allow that."
        )
    return _plain_threshold(traces, score, settings[within[0]], per_exit)


def keep_risk(
    traces: Traces,
    score: str,
    alpha: float,
    delta: float = 0.1,
    per_exit: bool = False,
    p_value: Callable | None = None,
    seed: int = 0,
) -> tuple[float | dict[int, float], dict[str, float]]:
    """The most lenient threshold that is known to keep within a risk.

    The risk is the mean over utterances of
    :func:`speechbrain_ee.analysis.risk.excess_loss`. Utterances are put into a
    random order, in which the first part proposes settings from safe to fast,
    and the others test them (:func:`learn_then_test`). As those who test had no
    part in the proposal, the guarantee holds whatever the model and the score:
    for utterances like these, the true risk of what is returned exceeds alpha
    with a probability of at most delta. That is for one score and one order:
    whoever tries several and takes the best has no such guarantee.

    Arguments
    ---------
    traces : Traces
        Of the development set: N independent utterances.
    score : str
        A score of theirs.
    alpha : float
        Budget of the risk, between 0 and 1.
    delta : float
        With which probability it may be exceeded.
    per_exit : bool
        Whether each exit has a threshold of its own. Then a quarter of the
        utterances propose, with their errors; else a fifth, by scores alone.
    p_value : Callable, optional
        As for :func:`learn_then_test`.
    seed : int
        Seed of the order.

    Returns
    -------
    threshold : float or dict
        What ``Threshold`` takes; infinity, or an empty dict, where only full
        depth is known to be safe.
    found : dict
        ``mean_loss`` and ``tested``: the observed risk, and the number of
        utterances, of those that tested.

    Raises
    ------
    ValueError
        If there are too few utterances to test anything, with the number that
        it takes.

    Example
    -------
    >>> scores = {"entropy": [[0.1, 0], [0.2, 0], [0.9, 0]] * 100}
    >>> errors = [[0, 0], [0, 0], [4, 0]] * 100
    >>> ids, ref_len = range(300), [4] * 300
    >>> traces = Traces(ids, [2, 4], errors, ref_len, scores=scores)
    >>> keep_risk(traces, "entropy", alpha=0.05)
    (0.2, {'mean_loss': 0.0, 'tested': 240})
    """
    for name, value in (("risk", alpha), ("delta", delta)):
        if not 0 < value < 1:
            raise ValueError(f"{name}: {value:g} must lie between 0 and 1.")
    share = _PROPOSING[per_exit]
    first = int(share * len(traces))
    tested = len(traces) - first
    needed = utterances_needed(alpha, delta, p_value)
    if tested < needed:
        least = next(n for n in count(needed) if n - int(share * n) >= needed)
        raise ValueError(
            f"{traces.source}: {len(traces)} utterances are too few for a risk "
            f"of {alpha:g} with delta {delta:g}: {tested} of them test, and "
            f"even without any loss it takes {needed}. Give at least {least} "
            "utterances, or a larger risk or delta."
        )
    order = np.random.default_rng(seed).permutation(len(traces))
    proposing, testing = traces.subset(order[:first]), order[first:]
    settings = _family(per_exit)(proposing, score)
    testing = traces.subset(testing)
    losses = np.take_along_axis(
        excess_loss(testing), exits_at(testing, score, settings), axis=1
    )
    # Never None: nobody leaves at the first setting, which costs nothing.
    best = learn_then_test(losses, alpha, delta, p_value)
    found = {"mean_loss": float(losses[:, best].mean()), "tested": tested}
    threshold = _plain_threshold(traces, score, settings[best], per_exit)
    return threshold, found


def calibrate(
    traces: Traces,
    score: Score,
    layers: float | None = None,
    macs: float | None = None,
    risk: float | None = None,
    delta: float = 0.1,
    per_exit: bool = False,
) -> tuple[str, dict]:
    """Choose thresholds for one target, with what is known of them.

    Arguments
    ---------
    traces : Traces
        Of the development set.
    score : Score
        As it was defined when it was traced.
    layers : float, optional
        A target for :func:`meet_compute`.
    macs : float, optional
        A target for :func:`meet_compute`.
    risk : float, optional
        A target for :func:`keep_risk`; give one of the three.
    delta : float
        For :func:`keep_risk`.
    per_exit : bool
        Whether each exit has a threshold of its own.

    Returns
    -------
    label : str
        For the loop's tables.
    rule : dict
        What ``get_selector`` takes: score, threshold and, as ``calibration``,
        where they come from and what was found on these utterances.

    Raises
    ------
    ValueError
        If there is not just one target, one exit only, or the target cannot be
        met.

    Example
    -------
    >>> scores = {"entropy": [[0.1, 0], [0.9, 0]]}
    >>> errors = [[0, 0], [4, 0]]
    >>> traces = Traces(["a", "b"], [2, 4], errors, [4, 4], scores=scores)
    >>> label, rule = calibrate(traces, get_score("entropy"), layers=3)
    >>> label, rule["threshold"], rule["calibration"]["mean_exit_layer"]
    ('entropy_layers_3', 0.1, 3.0)
    """
    targets = {"layers": layers, "macs": macs, "risk": risk}
    targets = {k: float(v) for k, v in targets.items() if v is not None}
    if len(targets) != 1:
        raise ValueError("give one target: layers, macs or risk.")
    if len(traces.exit_layers) < 2:
        raise ValueError(
            f"{traces.source}: the model has one exit: nothing to choose."
        )
    ((target, value),) = targets.items()
    found = {}
    if target == "risk":
        threshold, found = keep_risk(traces, score.name, value, delta, per_exit)
        targets["delta"] = delta
    else:
        threshold = meet_compute(
            traces, score.name, layers, macs, per_exit=per_exit
        )
    row = threshold_per_exit(traces, score.name, threshold)
    taken = exits_at(traces, score.name, row[None])
    figures = outcome(traces, taken).loc[0]
    errors = np.take_along_axis(traces.errors, taken, axis=1)[:, 0]
    rate = Bootstrap(len(traces)).error_rate_interval(errors, traces.ref_len)
    calibration = {
        "exit_layers": traces.exit_layers.tolist(),
        "traces": traces.source,
        "utterances": len(traces),
        **targets,
        **found,
        "mean_exit_layer": float(figures["mean_exit_layer"]),
        "macs": float(figures["macs"]),
        "error_rate": float(rate.value),
        "error_rate_low": float(rate.low),
        "error_rate_high": float(rate.high),
        "error_rate_full_depth": float(
            100 * traces.errors[:, -1].sum() / traces.ref_len.sum()
        ),
    }
    if traces.macs is None:
        del calibration["macs"]
    label = f"{score.name}_{target}_{value:g}" + "_per_exit" * per_exit
    return label, {
        "selector": "threshold",
        "score": score.definition,
        "threshold": threshold,
        "calibration": calibration,
    }


def describe(rule: Mapping) -> str:
    """What :func:`calibrate` has found, to read.

    Arguments
    ---------
    rule : Mapping
        From :func:`calibrate`.

    Returns
    -------
    str
        Some lines.

    Example
    -------
    >>> scores = {"entropy": [[0.1, 0], [0.9, 0]]}
    >>> errors = [[0, 0], [4, 0]]
    >>> traces = Traces(["a", "b"], [2, 4], errors, [4, 4], scores=scores)
    >>> rule = calibrate(traces, get_score("entropy"), layers=3)[1]
    >>> print(describe(rule).splitlines()[0])
    Leave where entropy <= 0.1.
    """
    score, threshold = get_score(rule["score"]), rule["threshold"]
    sign = ">=" if score.higher_is_confident else "<="
    known = rule["calibration"]
    full = known["exit_layers"][-1]
    if known["mean_exit_layer"] == full:
        lines = ["Leave nowhere before the last exit."]
        if "risk" in known:
            lines[0] += " No threshold that leaves earlier passed the test."
    elif isinstance(threshold, Mapping):
        by_exit = ", ".join(f"{k}: {x:.6g}" for k, x in threshold.items())
        lines = [f"Leave where {score.name} {sign}, by exit layer, {by_exit}."]
    else:
        lines = [f"Leave where {score.name} {sign} {threshold:.6g}."]
    cost = f"Mean exit layer {known['mean_exit_layer']:.2f} of {full}"
    if "macs" in known:
        cost += f", {known['macs']:.3g} MACs per utterance"
    lines.append(f"{cost}, on {known['utterances']} utterances.")
    if "delta" in known:
        lines.append(
            f"Risk {known['mean_loss']:.4f} on the {known['tested']} "
            f"utterances that tested; at most {known['risk']:g} for utterances "
            f"like these, with a probability of {1 - known['delta']:.3g}."
        )
    lines.append(
        f"WER {known['error_rate']:.2f} % [{known['error_rate_low']:.2f}, "
        f"{known['error_rate_high']:.2f}], at full depth "
        f"{known['error_rate_full_depth']:.2f} % (without guarantee)."
    )
    return "\n".join(lines)


def write_rule(path: str | Path, label: str, rule: Mapping) -> None:
    """Write a rule for ``read_selector``, and for ``--selectors`` of a recipe.

    Arguments
    ---------
    path : str or Path
        The YAML file.
    label : str
        From :func:`calibrate`.
    rule : Mapping
        From :func:`calibrate`.

    Raises
    ------
    ValueError
        If recipes would not know the file by its name.

    Example
    -------
    >>> from speechbrain_ee.exits import get_selector
    >>> path = getfixture("tmp_path") / "thresholds.yaml"
    >>> rule = {"selector": "threshold", "score": "entropy", "threshold": 0.1}
    >>> write_rule(path, "mine", rule)
    >>> get_selector(path).threshold
    0.1
    """
    if not is_yaml(path):
        raise ValueError(f"{path}: give the file a name that ends with .yaml.")
    yaml = YAML()
    yaml.indent(mapping=4, sequence=4)
    yaml.width = 2**16
    yaml.default_flow_style = None  # lists of numbers on one line
    with replacing(path) as file:
        yaml.dump({label: dict(rule)}, file)


def traced_score(path: str | Path, wanted: str | Mapping) -> Score:
    """How a score was defined when a run traced it.

    Arguments
    ---------
    path : str or Path
        The traces, in the folder of their run (or its folder ``debug``), whose
        ``hyperparams.yaml`` names the scores.
    wanted : str or Mapping
        Name of the score; or its definition, as ``get_score`` takes it, for
        traces whose run is not there.

    Returns
    -------
    Score

    Raises
    ------
    ValueError
        If the definition is not known, or contradicts that of the run.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> _ = (folder / "hyperparams.yaml").write_text(
    ...     "scores: [{score: entropy, normalization: unit}, margin]"
    ... )
    >>> traced_score(folder / "traces_dev.csv", "entropy").options
    {'normalization': 'unit'}
    """
    score = get_score(wanted)
    folder = Path(path).resolve().parent
    folders = [folder, folder.parent] if folder.name == "debug" else [folder]
    files = [x / "hyperparams.yaml" for x in folders]
    file = next((x for x in files if x.is_file()), None)
    traced = {} if file is None else _scores_of_run(file)
    if score.name in traced:
        found = traced[score.name]
        if isinstance(wanted, str) or score.definition == found.definition:
            return found
        raise ValueError(
            f"score: {file} defines {found.definition}, not "
            f"{score.definition}: give the name alone."
        )
    if isinstance(wanted, str):
        where = f"{file} does not name it" if file else "its run is not there"
        raise ValueError(
            f"score: how {score.name} was defined for {path} is not known, "
            f"since {where}. Give the definition, such as --score "
            f"'{{score: {score.name}}}' if it had no options."
        )
    return score


def _scores_of_run(file) -> dict[str, Score]:
    try:
        tree = YAML().load(file)
    except YAMLError as error:
        raise ValueError(f"{file} is no YAML: {error}") from error
    scores = tree.get("scores") if isinstance(tree, Mapping) else None
    # One with a tag is known to who runs the file, and only to them.
    plain = [
        one
        for one in scores or ()
        if isinstance(one, str)
        or (isinstance(one, Mapping) and one.tag.value is None)
    ]
    return {one.name: one for one in map(get_score, plain)}


def _family(per_exit):
    return threshold_by_exit if per_exit else one_threshold


def _plain_threshold(traces, score, row, per_exit):
    """A row of a family as ``Threshold`` takes it."""
    if not per_exit:
        return float(row[0])
    nobody = np.inf if traces.directions[score] else -np.inf
    pairs = zip(traces.exit_layers[:-1].tolist(), row.tolist())
    return {layer: value for layer, value in pairs if value != nobody}
