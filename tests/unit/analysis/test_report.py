"""The report: files that need no other, and say what the traces say."""

import re

import pandas as pd
import pytest

from speechbrain_ee.analysis.comparison import compare_runs
from speechbrain_ee.analysis.replay import exits_at, outcome
from speechbrain_ee.analysis.report import _compare_words, write_report
from speechbrain_ee.analysis.traces import read_traces
from tests.unit.analysis.synthetic import write_run

PNG = b"\x89PNG"


@pytest.fixture
def run(tmp_path):
    folder = write_run(tmp_path / "model" / "1234")
    traces = read_traces(folder / "traces_test.csv")
    taken = exits_at(traces, "entropy", [0.2])
    row = outcome(traces, taken, "entropy").iloc[0].to_dict()
    row |= {"selector": "entropy_dev+1", "score": "entropy", "threshold": 0.2}
    row |= {"low": 1.0, "high": 9.0, "replayed_seconds": 0.5}
    row |= {"real_time_factor": 0.01, "peak_memory_mb": 100.0}
    pd.DataFrame([row]).to_csv(folder / "loop_test.csv", index=False)
    return folder


def test_the_report_stands_alone_and_names_what_was_saved(run):
    page = write_report(run).read_text()
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    saved = re.search(r"([\d.]+) layers run on average, (\d+)% fewer", page)
    loop = pd.read_csv(run / "loop_test.csv").iloc[0]
    assert float(saved[1]) == pytest.approx(loop["mean_exit_layer"], abs=0.05)
    assert int(saved[2]) == round(100 * (1 - loop["mean_exit_layer"] / 6))
    for heading in ("By snr", "By speaker", "Rank correlation", "Watch"):
        assert heading in page
    for name in ("curve_test.png", "exits_test.png"):
        assert (run / name).read_bytes().startswith(PNG)


def test_the_markdown_says_the_same(run):
    write_report(run)
    text = (run / "report.md").read_text()
    assert "![" in text and "(curve_test.png)" in text
    table = pd.read_csv(run / "traces_test.csv")
    last = table[table["exit_layer"] == 6]
    rate = 100 * last["errors"].sum() / last["ref_len"].sum()
    assert re.search(rf"\| 6 \| {rate:.1f} \[", text)


def test_a_run_with_one_exit_and_no_loop_has_a_report_too(tmp_path):
    run = write_run(tmp_path / "single", layers=(6,))
    assert "last exit, after layer 6" in write_report(run).read_text()


def test_a_score_that_is_known_at_the_last_exit_only_has_an_empty_row(tmp_path):
    folder = write_run(tmp_path / "two", layers=(6, 12))
    path = folder / "traces_test.csv"
    table = pd.read_csv(path)
    table["kl_to_previous"] = table["entropy"].where(table["exit_layer"] == 12)
    table.to_csv(path, index=False)
    write_report(folder)
    assert "| kl_to_previous |  |" in (folder / "report.md").read_text()


def test_a_folder_without_traces_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no traces_<set>.csv"):
        write_report(tmp_path)


def test_wrong_and_missing_words_are_told_apart():
    assert _compare_words("A B C D", "A X C") == [
        ("same", "A"),
        ("wrong", "X"),
        ("same", "C"),
        ("missing", "D"),
    ]


def test_runs_are_compared_at_the_same_depth(run, tmp_path):
    single = write_run(tmp_path / "single", layers=(4,))
    page = compare_runs([run, single], tmp_path / "out").read_text()
    assert "1234, exit 4" in page
    assert (tmp_path / "out" / "comparison.png").read_bytes().startswith(PNG)
    table = pd.read_csv(tmp_path / "out" / "comparison.csv")
    assert table["run"].tolist() == ["1234"] * 3 + ["single"]


def test_runs_with_exits_are_compared_exit_by_exit(run, tmp_path):
    path = tmp_path / "better" / "traces_test.csv"
    write_run(path.parent, layers=(4, 6))
    table = pd.read_csv(path)
    table.loc[table["exit_layer"] == 6, "errors"] = 0
    table.to_csv(path, index=False)
    page = compare_runs([run, path.parent], tmp_path / "out").read_text()
    assert "Exit by exit against 1234" in page
    other = read_traces(run / "traces_test.csv")
    rate = 100 * other.errors[:, -1].sum() / other.ref_len.sum()
    assert f"{-rate:.1f} [-" in page


def test_runs_on_other_utterances_are_refused(run, tmp_path):
    other = write_run(tmp_path / "other", utterances=7)
    with pytest.raises(ValueError, match="not evaluated on the same"):
        compare_runs([run, other], tmp_path / "out")


def test_a_set_or_score_that_a_run_lacks_is_named(run, tmp_path):
    with pytest.raises(ValueError, match="has traces of test"):
        compare_runs([run], tmp_path / "out", set_name="dev")
    with pytest.raises(ValueError, match="it has entropy, margin"):
        compare_runs([run], tmp_path / "out", score="kl_to_previous")
    with pytest.raises(ValueError, match="same run twice"):
        compare_runs([run, run], tmp_path / "out")


def test_layers_chosen_by_gates_stand_beside_early_exits(run, tmp_path):
    table = pd.read_csv(run / "traces_test.csv", dtype={"id": str})
    table = table[table["exit_layer"] == 6].assign(gate="first_n")
    gates = [
        table.assign(target_layers=n, layers_run=n, layers="1" * n)
        for n in (2, 4)
    ]
    columns = ["id", "gate", "target_layers", "exit_layer", "layers_run"]
    columns += ["layers", "errors", "ref_len", "macs", "seconds"]
    path = run / "gates_test.csv"
    pd.concat(gates)[columns].to_csv(path, index=False)
    page = compare_runs([run], tmp_path / "out").read_text()
    assert "Layers chosen by gates" in page and "1234: first_n" in page
    assert "<td>first_n</td>" in write_report(run).read_text()
    gates[0][columns][1:].to_csv(path, index=False)
    with pytest.raises(ValueError, match="of other utterances"):
        compare_runs([run], tmp_path / "out")
