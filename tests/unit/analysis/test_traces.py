"""Traces: what is read, what stays as written, and what is refused."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from speechbrain_ee.analysis.traces import (
    HIGHER_IS_CONFIDENT,
    SEARCHES,
    Traces,
    read_traces,
)

CSV = """\
id,exit_layer,layers_run,hyp,ref,errors,ref_len,frames,macs,seconds,\
entropy,entropy_seconds,margin,speaker,snr,weight,room,hyp_lm
007,2,2,,NA,1,1,30,200,0.25,,0.5,0.5,0900,05,1.5,hall,A
007,4,3,NA,NA,0,1,30,400,0.5,0.1,0.5,inf,0900,05,1.5,hall,B
NA,4,4,null,NO NO,2,2,20,300,0.75,inf,0.25,0.1,nan,clean,1.5,hut,A
NA,2,2,NO,NO NO,1,2,20,100,0.5,0.3,0.25,0.2,nan,clean,,hut,A
"""


def frame(**columns):
    """Two utterances at two exits, with some columns changed or added."""
    table = {
        "id": ["a", "a", "b", "b"],
        "exit_layer": [2, 4, 2, 4],
        "errors": [1, 0, 2, 1],
        "ref_len": [4, 4, 5, 5],
    }
    return pd.DataFrame({**table, **columns})


@pytest.fixture
def traces(tmp_path):
    path = tmp_path / "traces_test.csv"
    path.write_text(CSV, encoding="utf-8")
    return read_traces(path)


def test_text_stays_as_written(traces):
    assert traces.ids.tolist() == ["007", "NA"]
    assert traces.hyp.tolist() == [["", "NA"], ["NO", "null"]]
    assert traces.ref.tolist() == ["NA", "NO NO"]
    assert traces.groups["speaker"].tolist() == ["0900", "nan"]
    assert traces.groups["snr"].tolist() == ["05", "clean"]


def test_numbers_are_laid_out_by_utterance_and_exit(traces):
    assert traces.exit_layers.tolist() == [2, 4]
    assert traces.errors.tolist() == [[1, 0], [1, 2]]
    assert traces.ref_len.tolist() == [1, 2]
    assert traces.layers_run.tolist() == [[2, 3], [2, 4]]
    assert traces.frames.tolist() == [[30, 30], [20, 20]]
    assert traces.macs.tolist() == [[200, 400], [100, 300]]
    assert traces.seconds.tolist() == [[0.25, 0.5], [0.5, 0.75]]
    assert traces.score_seconds["entropy"].tolist() == [[0.5, 0.5], [0.25] * 2]


def test_empty_scores_are_nan_and_infinite_ones_stay(traces):
    np.testing.assert_equal(
        traces.scores["entropy"], [[np.nan, 0.1], [0.3, np.inf]]
    )
    assert traces.scores["margin"].tolist() == [[0.5, np.inf], [0.2, 0.1]]


def test_only_known_columns_are_scores_and_only_steady_text_groups(traces):
    assert list(traces.scores) == ["entropy", "margin"]
    assert list(traces.score_seconds) == ["entropy"]
    assert list(traces.groups) == ["speaker", "snr", "room"]


def test_the_directions_are_those_of_the_registry():
    from speechbrain_ee.exits import SCORES

    assert {
        name: function.higher_is_confident for name, function in SCORES.items()
    } == HIGHER_IS_CONFIDENT
    assert {name for name, f in SCORES.items() if f.searches} == set(SEARCHES)


def test_a_column_with_a_direction_is_a_score(tmp_path):
    path = tmp_path / "traces.csv"
    own = frame(mine=[0.1, 0.2, 0.3, 0.4], mine_seconds=[1.0] * 4)
    own.to_csv(path, index=False)
    traces = read_traces(path, {"mine": False})
    assert traces.scores["mine"].tolist() == [[0.1, 0.2], [0.3, 0.4]]
    assert traces.score_seconds["mine"].sum() == 4
    assert traces.confidence("mine").tolist() == [[-0.1, -0.2], [-0.3, -0.4]]


def test_never_confident_is_nan_whatever_the_direction(traces):
    np.testing.assert_equal(
        traces.confidence("entropy"), [[np.nan, -0.1], [-0.3, np.nan]]
    )
    np.testing.assert_equal(
        traces.confidence("margin"), [[0.5, np.nan], [0.2, 0.1]]
    )
    with pytest.raises(ValueError, match="no score 'purity'; there are entr"):
        traces.confidence("purity")


def test_numbers_are_read_to_the_last_digit(tmp_path):
    values = np.random.default_rng(0).random(400).astype(np.float32)
    table = pd.DataFrame({"id": range(400), "entropy": values.astype(float)})
    table[["exit_layer", "errors", "ref_len"]] = 2, 0, 1
    table.to_csv(tmp_path / "traces.csv", index=False)
    traces = read_traces(tmp_path / "traces.csv")
    assert (traces.scores["entropy"][:, 0] == values).all()


def test_what_is_optional_may_be_missing():
    traces = Traces.from_frame(frame())
    assert traces.layers_run is traces.frames is traces.macs is None
    assert traces.seconds is traces.hyp is traces.ref is None
    assert traces.scores == traces.score_seconds == traces.groups == {}


def test_a_typed_frame_reads_as_its_file(traces, tmp_path):
    text = {"id": str, "speaker": str, "snr": str, "hyp": str, "ref": str}
    typed = pd.read_csv(
        tmp_path / "traces_test.csv", dtype=text, keep_default_na=False
    )
    typed["entropy"] = [None, 0.1, float("inf"), 0.3]
    other = Traces.from_frame(typed)
    np.testing.assert_equal(other.scores, traces.scores)
    np.testing.assert_equal(other.groups, traces.groups)
    assert (other.hyp == traces.hyp).all()


def test_missing_transcripts_of_a_frame_are_empty():
    traces = Traces.from_frame(frame(hyp=["X", None, float("nan"), "Y"]))
    assert traces.hyp.tolist() == [["X", ""], ["", "Y"]]


@pytest.mark.parametrize(
    "table, message",
    [
        (frame().drop(columns="ref_len"), "no column ref_len among id, exit"),
        (frame()[:0], "no utterance; traces have one row per"),
        (frame()[:3], "no row for utterance 'b' at exit 4"),
        (frame(exit_layer=[2, 4, 2, 2]), "two rows for utterance 'b' at exit"),
        (frame(exit_layer=[2, 4, 2, 4.5]), "exit_layer is 4.5 in a row"),
        (frame(exit_layer=[2, 4, 2, ""]), "exit_layer is nan in a row"),
        (
            frame(ref_len=[4, 4, 5, 6]),
            r"ref_len of .*'b' differs between .*\(5.0, ",
        ),
        (frame(ref_len=[4, 4, None, None]), "ref_len of utterance 'b' is nan"),
        (frame(ref_len=0), "every ref_len is 0"),
        (frame(errors=[1, -1, 2, 1]), "errors of utterance 'a' is -1; it must"),
        (frame(errors=[1, "", 2, 1]), "errors of utterance 'a' is nan; it mus"),
        (frame(errors=[1, "?", 2, 1]), "column errors: .*'?'.*write a number"),
        (frame(macs=[1, 2, 3, None]), "macs of .*'b' is nan.* leave out the c"),
        (frame(entropy=["low"] * 4), "column entropy: could not .* 'low'"),
        (frame(speaker=list("stuv")), "speaker of utterance 'a' differs"),
        (frame(ref=list("stuu")), r"ref of utterance 'a' differs .*\(s, t\)"),
    ],
)
def test_what_cannot_be_traces_is_refused(table, message):
    with pytest.raises(ValueError, match=f"^my.csv: {message}"):
        Traces.from_frame(table, source="my.csv")


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe\x00", b"id,errors\n1,2,3,4\n1,2,3,4,5\n"]
)
def test_files_that_are_no_tables_are_named(tmp_path, content):
    path = tmp_path / "broken.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="broken.csv: .*traces have one row"):
        read_traces(path)


def test_a_refusal_names_the_file(tmp_path):
    path = tmp_path / "traces_dev.csv"
    frame()[:3].to_csv(path, index=False)
    with pytest.raises(ValueError, match="traces_dev.csv: no row for"):
        read_traces(path)


def test_a_missing_own_score_is_refused():
    with pytest.raises(ValueError, match="no column mine among"):
        Traces.from_frame(frame(), directions={"mine": True})


def test_a_subset_cuts_all_that_there_is(traces):
    part = traces.subset(traces.groups["room"] == "hut")
    assert part.ids.tolist() == ["NA"]
    assert part.errors.tolist() == [[1, 2]]
    assert part.ref_len.tolist() == [2]
    assert part.ref.tolist() == ["NO NO"]
    assert part.hyp.shape == part.macs.shape == part.frames.shape == (1, 2)
    assert part.scores["entropy"].tolist() == [[0.3, np.inf]]
    assert part.score_seconds["entropy"].tolist() == [[0.25, 0.25]]
    assert part.groups["speaker"].tolist() == ["nan"]
    assert part.directions == traces.directions
    assert part.source == traces.source
    assert len(traces) == 2


def test_a_subset_of_nobody_is_refused(traces):
    with pytest.raises(ValueError, match="traces_test.csv: no utterance"):
        traces.subset([False, False])


@pytest.mark.parametrize(
    "given, message",
    [
        ({"ref_len": [4]}, r"ref_len has shape \(1,\), but 2 utterances"),
        ({"errors": [[1], [2]]}, r"errors has shape \(2, 1\).* need \(2, 2\)"),
        ({"scores": {"margin": [[1, 2]]}}, r"margin has shape \(1, 2\)"),
        ({"scores": {"mine": [[1, 2]] * 2}}, "mine speak.* add it to direct"),
        ({"score_seconds": {"x": [[1, -1]] * 2}}, "x_seconds of .* is -1"),
        ({"groups": {"snr": ["5"]}}, r"snr has shape \(1,\)"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(given, message):
    plain = {"errors": [[1, 0], [2, 1]], "ref_len": [4, 5]}
    with pytest.raises(ValueError, match=message):
        Traces(["a", "b"], [2, 4], **{**plain, **given})


def test_nothing_here_waits_for_pytorch():
    modules = ", ".join(
        f"speechbrain_ee.analysis.{x}"
        for x in ("traces", "replay", "statistics", "risk", "tables")
    )
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize(
    ("score", "expected"), [("entropy", [3, 6]), ("token_entropy", [2, 6])]
)
def test_a_score_that_searches_pays_for_the_transcript(score, expected):
    traces = Traces(
        ["a"],
        [2, 4],
        [[1, 0]],
        [4],
        seconds=[[1, 3]],
        hypothesis_seconds=[[1, 2]],
        scores={score: [[0.3, 0.1]]},
        score_seconds={score: [[1, 1]]},
    )
    assert traces.seconds_with(score).tolist() == [expected]
    assert traces.seconds_with().tolist() == [[2, 5]]
    assert traces.seconds_with("margin") is None
