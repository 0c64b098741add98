"""The command line: what it writes, and what it says to bad input."""

from importlib import import_module
from io import StringIO
from unittest.mock import create_autospec

import pandas as pd
import pytest

from speechbrain_ee.cli import LAYOUTS, main
from speechbrain_ee.corpora import librispeech
from speechbrain_ee.exits import read_selector
from tests.unit.analysis.synthetic import write_run


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "run")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_has_a_maker(layout, tmp_path, capsys, monkeypatch):
    module = import_module(f"speechbrain_ee.corpora.{layout}")
    made = create_autospec(getattr(module, LAYOUTS[layout]))
    monkeypatch.setattr(module, LAYOUTS[layout], made)
    folder = tmp_path / "corpus"
    assert main(["corpus", str(folder), "--layout", layout, "--seed", "3"]) == 0
    made.assert_called_once_with(folder, seed=3)


def test_the_demo_is_the_default_layout(tmp_path, monkeypatch):
    made = create_autospec(librispeech.make_demo_corpus)
    monkeypatch.setattr(librispeech, "make_demo_corpus", made)
    assert main(["corpus", str(tmp_path)]) == 0
    made.assert_called_once_with(tmp_path, seed=0)


def test_sweep_prints_the_curve(run, capsys):
    assert main(["sweep", str(run / "traces_test.csv")]) == 0
    curve = pd.read_csv(StringIO(capsys.readouterr().out))
    assert list(curve)[:3] == ["selector", "threshold", "mean_exit_layer"]
    assert {"entropy", "margin", "random", "oracle"} <= set(curve["selector"])


def test_sweep_of_some_scores_into_a_file(run, tmp_path):
    path = tmp_path / "curve.csv"
    arguments = ["sweep", str(run / "traces_test.csv"), "--out", str(path)]
    assert main([*arguments, "--score", "margin", "--points", "5"]) == 0
    curve = pd.read_csv(path)
    assert "entropy" not in set(curve["selector"])
    assert (curve["selector"] == "margin").sum() == 7


def test_calibrate_prints_what_it_found_and_writes_it(tmp_path, capsys):
    run = write_run(tmp_path / "run", "dev", utterances=200)
    (run / "hyperparams.yaml").write_text("scores: [entropy, margin]")
    out = tmp_path / "thresholds.yaml"
    arguments = ["calibrate", str(run / "traces_dev.csv"), "--score", "margin"]
    assert main([*arguments, "--risk", "0.05", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("Leave where margin >= 0.")
    assert "at most 0.05" in printed and "without guarantee" in printed
    rule = read_selector(out)
    assert rule["score"] == {"score": "margin"}
    assert rule["calibration"]["mean_exit_layer"] < 6
    by_exit = [*arguments, "--layers", "4", "--per-exit", "--out", str(out)]
    assert main(by_exit) == 0
    assert set(read_selector(out)["threshold"]) <= {2, 4}


def test_report_and_compare_tell_where_they_wrote(run, tmp_path, capsys):
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().out.strip() == str(run / "report.html")
    out = tmp_path / "comparison"
    assert main(["compare", str(run), "--out", str(out)]) == 0
    assert (out / "comparison.html").is_file()


def test_tables_of_a_run_whose_model_is_named(run, tmp_path, capsys):
    out = tmp_path / "tables"
    arguments = ["tables", str(run), "--model", "Mine", "--out", str(out)]
    assert main([*arguments, "--set", "test=tedlium-test"]) == 0
    assert capsys.readouterr().out.strip() == str(out / "tables.html")
    assert "TED-LIUM test" in (out / "tables.md").read_text(encoding="utf-8")


def test_an_unknown_layout_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["corpus", str(tmp_path), "--layout", "timit"])
    assert "librispeech" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["sweep", "nowhere.csv"], "nowhere.csv"),
        (["sweep", "{traces}", "--score", "entropie"], "no score 'entropie'"),
        (["report", "{empty}"], "no traces_<set>.csv"),
        (["tables", "{empty}"], "no traces_<set>.csv"),
        (["tables", "{empty}", "--set", "test"], "write NAME=STANDARD"),
        (["truncate", "{empty}", "--exit", "2"], "inference.yaml"),
        (["transcribe", "x.wav", "--model", "{empty}"], "inference.yaml"),
        (
            ["transcribe", "x.wav", "--model", "m", "--score", "entropy"],
            "--score and --threshold go together",
        ),
        (
            ["transcribe", "x.wav", "--model", "m", "--selector", "never"]
            + ["--score", "entropy", "--threshold", "0.1"],
            "--selector goes without",
        ),
        (
            ["calibrate", "{traces}", "--score", "margin", "--layers", "4"],
            "Give the definition",
        ),
        (
            ["calibrate", "{traces}", "--score", "{{score", "--layers", "4"],
            "--score {score",
        ),
        (
            ["calibrate", "{traces}", "--score", "{{score: margin}}"]
            + ["--risk", "0.02"],
            "Give at least 146 utterances",
        ),
        (
            ["calibrate", "{traces}", "--score", "{{score: margin}}"]
            + ["--layers", "4", "--out", "rules.txt"],
            "rules.txt: give the file a name",
        ),
    ],
)
def test_what_is_wrong_is_told_without_a_traceback(
    arguments, told, run, tmp_path, capsys
):
    (tmp_path / "empty").mkdir()
    names = {"traces": run / "traces_test.csv", "empty": tmp_path / "empty"}
    assert main([a.format(**names) for a in arguments]) == 2
    error = capsys.readouterr().err
    assert told in error and "Traceback" not in error
