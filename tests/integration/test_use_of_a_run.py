"""What a user does with a finished run."""

import csv

import pandas as pd
import pytest

from speechbrain_ee.cli import main
from speechbrain_ee.inference import EarlyExitASR
from speechbrain_ee.inference.truncate import truncate_model

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
    names = list(map(str, files.values()))
    capsys.readouterr()
    for model in (short, trained[0]):
        arguments = ["transcribe", *names, "--model", str(model)]
        assert main([*arguments, "--max-layers", "2", "--device", "cpu"]) == 0
        printed = capsys.readouterr().out.splitlines()
        rows = csv.DictReader(printed, delimiter="\t", quoting=csv.QUOTE_NONE)
        texts = {row["file"]: row["text"] for row in rows}
        for name, path in files.items():
            assert texts[str(path)] == traces[2][name]
