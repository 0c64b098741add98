"""What a user does with a finished run."""

import csv
import shutil

import pandas as pd
import pytest

from speechbrain_ee.analysis.replay import (
    exits_at,
    outcome,
    threshold_per_exit,
)
from speechbrain_ee.analysis.traces import read_traces
from speechbrain_ee.cli import main
from speechbrain_ee.exits import read_selector
from speechbrain_ee.inference import EarlyExitASR
from speechbrain_ee.inference.truncate import truncate_model
from tests.integration.recipes import check, run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def traces(trained):
    table = pd.read_csv(trained[0] / "traces_test.csv", keep_default_na=False)
    assert table["hyp"].str.len().gt(5).all()  # it has learned to say something
    return table.set_index(["exit_layer", "id"])["hyp"]


@pytest.fixture(scope="module")
def files(corpora):
    found = sorted((corpora / "LibriSpeech" / "test").glob("*/*/*.flac"))
    return {path.stem: path for path in found}


def said(asr, files):
    """Transcripts by utterance."""
    done = asr.transcribe_files(list(files.values()))
    return dict(zip(files, (one.text for one in done), strict=True))


def transcribed(capsys, files, *arguments):
    """Rows of the command line's table, by utterance."""
    names = list(map(str, files.values()))
    capsys.readouterr()
    assert main(["transcribe", *names, "--device", "cpu", *arguments]) == 0
    printed = capsys.readouterr().out.splitlines()
    rows = csv.DictReader(printed, delimiter="\t", quoting=csv.QUOTE_NONE)
    return dict(zip(files, rows, strict=True))


def test_the_model_says_at_every_exit_what_its_traces_say(
    trained, traces, files
):
    asr = EarlyExitASR.from_hparams(trained[0], run_opts={"device": "cpu"})
    for layer in (2, 4):
        asr.set_depth(exit_layer=layer)
        assert said(asr, files) == traces[layer].to_dict()
    asr.set_depth(max_layers=3)
    assert said(asr, files) == traces[2].to_dict()


def test_a_model_cut_off_at_an_exit_is_smaller_and_says_the_same(
    trained, traces, files, tmp_path
):
    summary = truncate_model(trained[0], 2, tmp_path / "short")
    assert summary.parameters_after < 0.7 * summary.parameters_before
    assert summary.bytes_after < 0.7 * summary.bytes_before
    asr = EarlyExitASR.from_hparams(
        tmp_path / "short", run_opts={"device": "cpu"}
    )
    assert len(asr.mods.encoder.layers) == 2
    assert said(asr, files) == traces[2].to_dict()


def test_the_command_line_transcribes_and_truncates(
    trained, traces, files, tmp_path, capsys
):
    short = tmp_path / "short"
    arguments = ["truncate", str(trained[0]), "--exit", "2"]
    assert main([*arguments, "--out", str(short)]) == 0
    for model in (short, trained[0]):
        arguments = ("--model", str(model), "--max-layers", "2")
        rows = transcribed(capsys, files, *arguments)
        for name, path in files.items():
            assert rows[name]["file"] == str(path)
            assert rows[name]["text"] == traces[2][name]


def test_thresholds_from_dev_traces_run_the_loop_and_the_model(
    trained, traces, files, corpora, tmp_path, capsys
):
    folder, row = trained
    rule = tmp_path / "thresholds.yaml"
    arguments = ["calibrate", str(folder / "traces_train.csv"), "--per-exit"]
    arguments += ["--score", "entropy", "--layers", "3", "--out", str(rule)]
    assert main(arguments) == 0

    shutil.copytree(folder, tmp_path / "run")
    more = ["--test_only", f"--selectors={rule}"]
    check(run(row, corpora, tmp_path / "run", *more))
    loop = pd.read_csv(tmp_path / "run" / "loop_test.csv")
    measured = loop.set_index("selector").loc["entropy_layers_3_per_exit"]
    test = read_traces(folder / "traces_test.csv")
    threshold = read_selector(rule)["threshold"]
    taken = exits_at(
        test, "entropy", threshold_per_exit(test, "entropy", threshold)[None]
    )
    replayed = outcome(test, taken).loc[0]
    for figure in ("mean_exit_layer", "error_rate"):
        assert measured[figure] == pytest.approx(replayed[figure])

    rows = transcribed(
        capsys, files, "--model", str(folder), "--selector", str(rule)
    )
    layers = test.exit_layers[taken[:, 0]]
    for name, layer in zip(test.ids, layers, strict=True):
        assert int(rows[name]["exit_layer"]) == layer
        assert rows[name]["text"] == traces[layer][name]


def test_thresholds_of_another_model_are_refused_before_it_is_trained(
    trained, corpora, tmp_path
):
    folder, row = trained
    rule = tmp_path / "thresholds.yaml"
    arguments = ["calibrate", str(folder / "traces_train.csv")]
    arguments += ["--score", "entropy", "--layers", "3", "--out", str(rule)]
    assert main(arguments) == 0
    for setting, told in (
        ("--exit_layers=[1,2,4]", "made for exits [2, 4], not for [1, 2, 4]"),
        ("--scores=[{score: entropy, normalization: unit}]", "but here that"),
    ):
        done = run(
            *(row, corpora, tmp_path / "other"),
            *(f"--selectors={rule}", setting),
        )
        assert done.returncode != 0
        assert told in done.stdout + done.stderr
    assert not (tmp_path / "other" / "train_log.txt").exists()


def test_a_run_is_evaluated_in_noise(trained, corpora, tmp_path, capsys):
    folder, row = trained
    shutil.copytree(folder, tmp_path / "run")
    noise = (f"--noise_folder={corpora / 'musan'}", "--test_snrs=[null,-5]")
    check(run(row, corpora, tmp_path / "run", "--test_only", *noise))
    found = {
        name: read_traces(tmp_path / "run" / f"traces_{name}.csv")
        for name in ("test", "test_clean", "test_snr-5")
    }
    before, clean, noisy = found.values()
    assert list(clean.ids) == list(before.ids)
    assert (clean.hyp == before.hyp).all()
    assert list(noisy.ids) == [f"{name}_snr-5" for name in clean.ids]
    assert (noisy.hyp != clean.hyp).any()
    assert set(noisy.groups["snr"]) == {"-5"}
    assert noisy.errors[:, -1].sum() >= clean.errors[:, -1].sum()

    out = tmp_path / "noise"
    command = ["noise", str(tmp_path / "run"), "--out", str(out)]
    assert main([*command, "--layers", "3"]) == 0
    assert capsys.readouterr().out.strip() == str(out / "noise.html")
    table = pd.read_csv(out / "noise.csv")
    assert list(table["condition"].unique()) == ["clean", "-5", "all"]
    rates = table.set_index(["rule", "condition"])["error_rate"]
    expected = 100 * noisy.errors[:, -1].sum() / noisy.ref_len.sum()
    assert rates["exit 4", "-5"] == pytest.approx(expected)
    (rule,) = set(table[table["kind"] == "rule"]["rule"])
    assert rule.startswith("entropy ≤ ")
