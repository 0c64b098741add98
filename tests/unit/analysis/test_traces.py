"""Traces: rows, scores and errors of every exit, counted as jiwer counts."""

import jiwer
import pandas as pd
import pytest
import torch

from speechbrain_ee.analysis import TraceRecorder
from speechbrain_ee.exits import NeverLeave, get_score
from speechbrain_ee.heads import CTCHeads
from speechbrain_ee.runtime import EarlyExitLoop
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


def test_files_are_written_with_the_names_that_other_tools_read(
    recorder, tmp_path
):
    recorder.write(tmp_path, "dev")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "traces_dev.csv",
        "wer_dev_exit1.txt",
        "wer_dev_exit4.txt",
    ]
    table = pd.read_csv(tmp_path / "traces_dev.csv")
    assert table.columns[:10].tolist() == (
        "id,exit_layer,layers_run,hyp,ref,errors,ref_len,frames,macs,seconds"
    ).split(",")
    assert len(table) == 4
