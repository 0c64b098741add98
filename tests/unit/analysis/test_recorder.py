"""Recorder: rows, scores, their time, and errors as jiwer counts them."""

import time

import jiwer
import pandas as pd
import pytest
import torch

from speechbrain_ee.analysis.recorder import TraceRecorder
from speechbrain_ee.analysis.traces import Traces, read_traces
from speechbrain_ee.exits import SCORES, NeverLeave, get_score, score
from speechbrain_ee.heads import CTCHeads, ExitOutput
from speechbrain_ee.runtime import Departures, EarlyExitLoop
from tests.unit.encoders.backbones import build

WORDS = ["", "ONE", "TWO", "THREE", "FOUR", "FIVE"]
REFERENCES = {"a": "ONE TWO TWO", "b": "FOUR"}


def decode(hypotheses):
    return [" ".join(WORDS[label] for label in one) for one in hypotheses]


@pytest.fixture(scope="module")
def recorder():
    encoder = build("conformer-RoPEMHA").encoder
    heads = CTCHeads([1, 4], encoder.output_size, vocab_size=6).eval()
    for head in heads.linear.values():
        torch.nn.init.normal_(head.weight)
    scores = [get_score("entropy"), get_score("kl_to_previous")]
    recorder = TraceRecorder(
        [1, 4], scores, decode, REFERENCES, {"speaker": {"a": "s", "b": "t"}}
    )
    loop = EarlyExitLoop(encoder, heads, NeverLeave(), watched=scores)
    for name in "ba":  # batches need not come in order
        wavs = torch.randn(1, 9000, generator=torch.manual_seed(ord(name)))
        loop(wavs, ids=[name], on_exit=recorder)
    return recorder


@pytest.fixture
def slow_score():
    """A score that takes 20 ms, and tells whether others worked for it."""

    @score("slow", higher_is_confident=True)
    def slow(output):
        time.sleep(0.02)
        calls.append("greedy" in vars(output))
        return output.frames.float()

    calls = []
    yield get_score("slow"), calls
    SCORES.pop("slow")


def two_utterances():
    frames = torch.tensor([30, 10])
    zeros = torch.zeros(2)
    output = ExitOutput(torch.zeros(2, 30, 6), frames, 1, ids=["a", "b"])
    return output, Departures([], zeros, zeros, frames, zeros, zeros, 0.0)


def test_a_row_per_utterance_and_exit_in_order(recorder):
    table = recorder.table()
    assert table[["id", "exit_layer"]].values.tolist() == [
        ["a", 1],
        ["a", 4],
        ["b", 1],
        ["b", 4],
    ]
    assert table["speaker"].tolist() == ["s", "s", "t", "t"]
    assert table["entropy"].notna().all()
    # there is nothing before the first exit
    assert table["kl_to_previous"].isna().tolist() == [True, False] * 2


def test_errors_are_those_that_jiwer_counts(recorder):
    for row in recorder.table().itertuples():
        counted = jiwer.process_words(row.ref, row.hyp)
        errors = counted.substitutions + counted.deletions + counted.insertions
        assert row.errors == errors
        assert row.ref_len == len(row.ref.split())


def test_each_score_stands_before_its_seconds(recorder):
    columns = (
        "id,exit_layer,layers_run,hyp,ref,errors,ref_len,frames,macs,seconds,"
        "hypothesis_seconds,entropy,entropy_seconds,"
        "kl_to_previous,kl_to_previous_seconds,speaker"
    )
    assert recorder.table().columns.tolist() == columns.split(",")
    assert (recorder.table()["entropy_seconds"] > 0).all()


def test_the_time_of_a_score_is_split_by_frames(slow_score):
    recorder = TraceRecorder([1], slow_score[:1], decode, REFERENCES)
    recorder(*two_utterances())
    spent = recorder.table()["slow_seconds"]
    assert 0.02 <= spent.sum() < 0.2
    assert spent[0] == pytest.approx(3 * spent[1])


def test_a_score_pays_for_what_it_reads(slow_score):
    slow, calls = slow_score
    recorder = TraceRecorder([1], [slow], decode, REFERENCES)
    output, account = two_utterances()
    recorder(output, account)
    assert "greedy" in vars(output)  # the transcripts came of it
    assert calls == [False, False]  # once to warm up, once for the record
    recorder(output, account)
    assert calls == [False] * 3


def test_files_are_written_with_the_names_that_other_tools_read(
    recorder, tmp_path
):
    recorder.write(tmp_path, "dev")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "traces_dev.csv",
        "wer_dev_exit1.txt",
        "wer_dev_exit4.txt",
    ]
    assert len(pd.read_csv(tmp_path / "traces_dev.csv")) == 4


def test_what_is_written_is_what_is_read(recorder, tmp_path):
    recorder.write(tmp_path, "dev")
    written = read_traces(tmp_path / "traces_dev.csv")
    recorded = Traces.from_frame(recorder.table())
    assert written.ids.tolist() == ["a", "b"]
    assert (written.hyp == recorded.hyp).all()
    assert (written.seconds == recorded.seconds).all()
    assert (written.scores["entropy"] == recorded.scores["entropy"]).all()
    spent = "kl_to_previous"
    assert (written.score_seconds[spent] == recorded.score_seconds[spent]).all()


def test_a_failed_write_leaves_the_old_file(recorder, tmp_path, monkeypatch):
    path = tmp_path / "traces_dev.csv"
    path.write_text("old")

    def fail(table, file, **options):
        file.write_text("half")
        raise OSError("no space left")

    monkeypatch.setattr(pd.DataFrame, "to_csv", fail)
    with pytest.raises(OSError, match="no space left"):
        recorder.write(tmp_path, "dev")
    assert [one.name for one in tmp_path.iterdir()] == [path.name]
    assert path.read_text() == "old"
