"""Who leaves where, and which settings are refused."""

import math
from collections import Counter

import pytest
import torch

from speechbrain_ee.exits import (
    SELECTORS,
    DepthWindow,
    FixedLayer,
    MaxLayers,
    MaxMacs,
    NeverLeave,
    Oracle,
    Patience,
    RandomExit,
    Threshold,
    check_selector,
    get_score,
    get_selector,
)

EXITS = [2, 4, 6]


def prepared(selector, exit_layers=EXITS, macs=None):
    selector.prepare(exit_layers, macs)
    return selector


def linear_macs(exit_layer, frames):
    return 10 * exit_layer * frames


def peaked(reading, *probabilities, **facts):
    """One frame per utterance, with the given largest probabilities."""
    top = torch.tensor(probabilities)
    probs = torch.stack([top, 1 - top], dim=-1)[:, None]
    return reading(probs.log(), **facts)


def test_never(reading):
    assert not prepared(NeverLeave())(reading(exit_layer=6)).any()


@pytest.mark.parametrize("layer, leaves", [(2, False), (4, True), (6, True)])
def test_fixed(reading, layer, leaves):
    selector = prepared(FixedLayer(4))
    assert selector(reading(exit_layer=layer)).tolist() == [leaves] * 3


def test_fixed_needs_an_exit():
    with pytest.raises(ValueError, match=r"layer 3; exits are \[2, 4, 6\]"):
        prepared(FixedLayer(3))


@pytest.mark.parametrize(
    "threshold, leaving",
    [
        (0.7, {2: [False, True], 4: [False, True]}),
        ([0.7, 0.6, 0.5], {2: [False, True], 4: [True, True]}),
        ({4: 0.7}, {2: [False, False], 4: [False, True]}),
    ],
)
def test_threshold(reading, threshold, leaving):
    selector = prepared(Threshold("max_probability", threshold))
    for exit_layer, expected in leaving.items():
        output = peaked(reading, 0.65, 0.75, exit_layer=exit_layer)
        assert selector(output).tolist() == expected


def test_threshold_on_a_falling_score_and_nan(reading):
    output = peaked(reading, 0.99, 0.6, 0.99)
    output.log_probs[2] = math.nan
    selector = prepared(Threshold("entropy", 0.5))
    assert selector(output).tolist() == [True, False, False]


def test_threshold_states_its_needs():
    selector = Threshold("state_similarity", 0.95)
    assert selector.scores == [get_score("state_similarity")]
    assert (selector.history, selector.hidden) == (1, True)
    assert (Threshold("entropy", 1.0).history, NeverLeave().scores) == (0, [])


@pytest.mark.parametrize(
    "threshold, message",
    [
        ([0.1, 0.2], "2 thresholds for 3 exits"),
        ({3: 0.1, 5: 0.1}, r"layer 3, 5; exits are \[2, 4, 6\]"),
    ],
)
def test_threshold_count(threshold, message):
    with pytest.raises(ValueError, match=message):
        prepared(Threshold("entropy", threshold))


MADE = {"selector": "threshold", "score": "entropy", "threshold": 0.5}
MADE["calibration"] = {"exit_layers": EXITS, "traces": "traces_dev.csv"}


@pytest.mark.parametrize("spec", [MADE, MaxLayers(6, MADE)])
def test_a_calibrated_threshold_holds_for_its_exits_and_score(spec):
    check_selector(spec, EXITS, [get_score("entropy"), get_score("margin")])
    with pytest.raises(
        ValueError, match=r"made for exits \[2, 4, 6\], not for"
    ):
        check_selector(spec, [2, 4, 6, 8])
    other = get_score("entropy", normalization="unit")
    with pytest.raises(ValueError, match="'nats'.*here that is .*'unit'"):
        check_selector(spec, EXITS, [other])
    # A default that is written out is the same definition.
    check_selector(spec, EXITS, [get_score("entropy", normalization="nats")])


def test_a_threshold_of_ones_own_may_read_any_score():
    other = get_score("entropy", normalization="unit")
    check_selector(Threshold("entropy", 0.5), EXITS, [other])


def test_a_calibration_must_say_for_which_exits():
    with pytest.raises(ValueError, match="for which exit_layers"):
        Threshold("entropy", 0.5, calibration={"risk": 0.02})


@pytest.mark.parametrize(
    ("text", "error", "told"),
    [
        (None, FileNotFoundError, "calibrate writes one"),
        ("a: {selector: never}\nb: {selector: never}", ValueError, "just one"),
        ("a: never", ValueError, "just one"),
        ("[1, 2]", ValueError, "just one"),
        ("a: {score: entropy}", ValueError, "just one"),
        ("a: !new:os.getcwd", ValueError, "no plain YAML"),
        ("a: [", ValueError, "no plain YAML"),
    ],
)
def test_a_file_that_holds_no_selector_is_named(tmp_path, text, error, told):
    path = tmp_path / "mine.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(error, match=f"mine.yaml.*{told}"):
        get_selector(str(path))


def test_a_selector_can_be_prepared_again():
    selector = prepared(Threshold("entropy", 0.1))
    assert prepared(selector, [1, 2]).thresholds == {1: 0.1, 2: 0.1}


def test_patience_of_two(says):
    first = says([1, 2], [1], [])
    second = says([1, 2], [2], [], exit_layer=4, previous=first)
    selector = Patience()
    assert selector.history == 1
    assert selector(first).tolist() == [False] * 3
    assert selector(second).tolist() == [True, False, False]


def test_patience_of_three(says):
    first = says([1, 2], [3])
    second = says([1, 2], [1], exit_layer=4, previous=first)
    third = says([1, 2], [1], exit_layer=6, previous=second)
    selector = Patience(3)
    assert selector.history == 2
    assert not selector(second).any()
    assert selector(third).tolist() == [True, False]


@pytest.mark.parametrize(
    "tolerance, expected", [(0.0, [False] * 2), (0.34, [True, False])]
)
def test_patience_tolerance(says, tolerance, expected):
    # One edit in three labels, and two edits in three.
    first = says([1, 2, 3], [1, 2, 3])
    second = says([1, 2], [1, 4, 4], previous=first)
    assert Patience(2, tolerance)(second).tolist() == expected


def test_patience_tolerance_never_takes_silence(says):
    second = says([], [1], previous=says([1], []))
    assert not Patience(2, 0.99)(second).any()


def test_patience_is_not_won_by_nan(says):
    first = says([1], [1], blank_index=4)
    second = says([1], [1], blank_index=4, previous=first)
    first.log_probs[0] = second.log_probs[0] = math.nan
    assert first.hypotheses[0] == second.hypotheses[0] != ()
    assert Patience()(second).tolist() == [False, True]


@pytest.mark.parametrize(
    "settings", [{"patience": 1}, {"tolerance": -0.1}, {"tolerance": 1.0}]
)
def test_patience_settings(settings):
    with pytest.raises(ValueError, match="patience|tolerance"):
        Patience(**settings)


@pytest.mark.parametrize(
    "max_layers, expected",
    [(2, [True, True, True]), (5, [False, True, True]), (9, [False] * 2)],
)
def test_max_layers(reading, max_layers, expected):
    selector = prepared(MaxLayers(max_layers))
    leaving = [
        selector(reading(exit_layer=exit_layer)).all().item()
        for exit_layer in EXITS
    ]
    assert leaving[: len(expected)] == expected


def test_max_layers_around_another(reading):
    selector = prepared(MaxLayers(5, Threshold("max_probability", 0.7)))
    assert selector(peaked(reading, 0.6, 0.8)).tolist() == [False, True]
    at_limit = peaked(reading, 0.6, 0.8, exit_layer=4)
    assert selector(at_limit).tolist() == [True, True]


def test_max_layers_below_the_first_exit():
    with pytest.raises(ValueError, match=r"within 1 layers; exits are \[2"):
        prepared(MaxLayers(1))


@pytest.mark.parametrize(
    ("lowest", "highest", "expected"),
    [
        (2, 6, [[False, True], [False, True], [True, True]]),
        (4, 6, [[False, False], [False, True], [True, True]]),
        (2, 4, [[False, True], [True, True], [True, True]]),
        (3, 5, [[False, False], [True, True], [True, True]]),
        (0, 2.5, [[True, True]] * 3),
    ],
)
def test_window(reading, lowest, highest, expected):
    inner = Threshold("max_probability", 0.7)
    selector = prepared(DepthWindow(lowest, highest, inner))
    for exit_layer, leaving in zip(EXITS, expected, strict=True):
        output = peaked(reading, 0.6, 0.8, exit_layer=exit_layer)
        assert selector(output).tolist() == leaving


def test_a_window_without_an_exit():
    with pytest.raises(ValueError, match=r"from layer 2.2 to 3; exits are \[2"):
        prepared(DepthWindow(2.2, 3))


def test_caps_hand_on_what_the_inner_selector_needs():
    for cap in (
        MaxLayers(5, Threshold("state_similarity", 0.9)),
        MaxMacs(5, MaxLayers(5, Threshold("state_similarity", 0.9))),
        DepthWindow(2, 4, Threshold("state_similarity", 0.9)),
    ):
        assert (cap.history, cap.hidden) == (1, True)
        assert [one.name for one in cap.scores] == ["state_similarity"]
    assert MaxLayers(5, Patience(4)).history == 3
    with pytest.raises(ValueError, match="layer 3"):
        prepared(MaxLayers(5, FixedLayer(3)))


def test_max_macs(reading):
    selector = prepared(MaxMacs(200), macs=linear_macs)
    # Layer 4 costs 200, 160 and 40, layer 6 costs 300, 240 and 60.
    frames = [5, 4, 1]
    first = selector(reading(frames=frames, exit_layer=2))
    second = selector(reading(frames=frames, exit_layer=4))
    assert first.tolist() == [False, False, False]
    assert second.tolist() == [True, True, False]
    assert selector(reading(frames=frames, exit_layer=6)).all()


def test_max_macs_always_reads_the_first_exit(reading):
    selector = prepared(MaxMacs(1), macs=linear_macs)
    assert selector(reading(exit_layer=2)).all()


def test_max_macs_around_another(reading):
    inner = Threshold("max_probability", 0.7)
    selector = prepared(MaxMacs(40, inner), macs=linear_macs)
    assert selector(peaked(reading, 0.6, 0.8)).tolist() == [False, True]


def test_max_macs_needs_macs():
    with pytest.raises(ValueError, match="needs to know the MACs"):
        prepared(MaxMacs(100))


def exits_of(selector, names, reading):
    """Where the selector lets each utterance out, read in one batch."""
    log_probs = torch.zeros(len(names), 1, 2)
    left = {}
    for exit_layer in selector.exit_layers:
        output = reading(log_probs, ids=names, exit_layer=exit_layer)
        for name, leaves in zip(names, selector(output), strict=True):
            if leaves:
                left.setdefault(name, exit_layer)
    return left


@pytest.mark.parametrize("mean", [2, 2.5, 4, 5.2, 6])
def test_random_has_the_mean(reading, mean):
    selector = prepared(RandomExit(mean, seed=1))
    expected = sum(
        layer * probability
        for layer, probability in zip(
            EXITS, selector.probabilities, strict=True
        )
    )
    assert expected == pytest.approx(mean, abs=1e-6)
    names = [f"utterance-{number}" for number in range(4000)]
    left = exits_of(selector, names, reading)
    assert len(left) == len(names)
    assert sum(left.values()) / len(left) == pytest.approx(mean, abs=0.1)


def test_random_has_the_largest_entropy():
    uniform = prepared(RandomExit(4)).probabilities
    assert uniform == pytest.approx([1 / 3] * 3)
    low, middle, high = prepared(RandomExit(3)).probabilities
    assert middle / low == pytest.approx(high / middle)


def test_random_does_not_depend_on_the_batch(reading):
    names = [f"utterance-{number}" for number in range(50)]
    selector = prepared(RandomExit(4, seed=3))
    together = exits_of(selector, names, reading)
    for name in names[:5]:
        assert exits_of(selector, [name], reading) == {name: together[name]}
    other = exits_of(prepared(RandomExit(4, seed=4)), names, reading)
    assert other != together
    assert set(Counter(together.values())) == set(EXITS)


@pytest.mark.parametrize("mean", [1.9, 6.1])
def test_random_mean_out_of_range(mean):
    with pytest.raises(
        ValueError, match="mean exit layers must be from 2 to 6"
    ):
        prepared(RandomExit(mean))


@pytest.mark.parametrize("selector", [RandomExit(4), Oracle({"a": 2})])
def test_ids_are_needed(reading, selector):
    with pytest.raises(ValueError, match="needs the ids"):
        prepared(selector)(reading())


def test_oracle_from_traces(reading, tmp_path):
    traces = tmp_path / "traces_test.csv"
    traces.write_text(
        "id,exit_layer,hyp,errors\n"
        "NA,6,x,1\nNA,4,x,0\nNA,2,x,0\n"
        + "".join(f"00{n},6,x,1\n00{n},4,x,1\n00{n},2,x,3\n" for n in "789")
        + "".join(f"{n},4,x,1\n{n},6,x,1\n{n},2,x,3\n" for n in "abc")
    )
    selector = prepared(Oracle.from_traces(traces))
    expected = dict.fromkeys(["007", "008", "009", "a", "b", "c"], 4)
    expected["NA"] = 2
    assert exits_of(selector, list(expected), reading) == expected
    output = reading(shape=(1, 2, 3), ids=["7"])
    with pytest.raises(ValueError, match="does not know 7"):
        selector(output)


def test_oracle_from_other_tables(tmp_path):
    traces = tmp_path / "traces_test.csv"
    traces.write_text("id,exit_layer\na,2\n")
    with pytest.raises(ValueError, match="errors"):
        Oracle.from_traces(traces)


def test_oracle_of_other_exits():
    with pytest.raises(ValueError, match=r"layer 5; exits are \[2, 4, 6\]"):
        prepared(Oracle({"a": 5}))


@pytest.mark.parametrize(
    "name, options",
    [
        ("fixed", {"layer": 4}),
        ("max_layers", {"max_layers": 4}),
        ("max_macs", {"max_macs": 1000}),
        ("never", {}),
        ("oracle", {"best_exits": {"a": 2, "b": 4, "c": 6}}),
        ("patience", {"patience": 2}),
        ("random", {"mean_exit_layer": 3}),
        ("threshold", {"score": "entropy", "threshold": 0.5}),
        ("window", {"lowest": 2, "highest": 4}),
    ],
)
def test_get_selector(reading, name, options):
    by_name = get_selector(name, **options)
    by_mapping = get_selector({"selector": name, **options})
    assert get_selector(by_name) is by_name
    for selector in (by_name, by_mapping):
        assert type(selector) is SELECTORS[name]
        prepared(selector, macs=linear_macs)
        leaving = selector(reading(ids=["a", "b", "c"]))
        assert leaving.dtype == torch.bool and leaving.shape == (3,)


def test_every_selector_has_a_test():
    assert sorted(SELECTORS) == [
        "fixed",
        "max_layers",
        "max_macs",
        "never",
        "oracle",
        "patience",
        "random",
        "threshold",
        "window",
    ]


def test_mapping_inside_a_cap():
    inner = {"selector": "threshold", "score": "margin", "threshold": 0.5}
    assert MaxLayers(4, inner).scores[0].name == "margin"


@pytest.mark.parametrize("spec", ["treshold", {"layer": 4}, 3])
def test_unknown_selector_lists_the_names(spec):
    with pytest.raises(
        ValueError,
        match="fixed, max_layers, .*threshold",
    ):
        get_selector(spec)


def test_options_for_a_built_selector():
    with pytest.raises(ValueError, match="built already"):
        get_selector(NeverLeave(), layer=2)
