"""N-best lists against enumeration of all alignments, and odd input."""

import math
import sys

import pytest
import torch

from speechbrain_ee.exits import ctc_nbest, nbest


@pytest.mark.parametrize("blank_index", [0, 1, 2])
@pytest.mark.parametrize("time", [1, 4, 5])
def test_equals_enumeration(reading, enumerate_ctc, blank_index, time):
    log_probs = reading(shape=(2, time, 3), seed=time).log_probs
    lists = ctc_nbest(
        log_probs, torch.tensor([time, time]), 100, blank_index=blank_index
    )
    for found, utterance in zip(lists, log_probs, strict=True):
        expected = enumerate_ctc(utterance, blank_index)
        texts = [text for text, _ in found]
        assert len(texts) == len(set(texts)) == len(expected)
        for text, log_prob in found:
            assert log_prob == pytest.approx(expected[text], abs=1e-5)
        ordered = [log_prob for _, log_prob in found]
        assert ordered == sorted(ordered, reverse=True)


def test_padding_is_not_read(reading):
    long = reading(shape=(1, 5, 3)).log_probs
    padded = torch.cat([long, reading(shape=(1, 5, 3), seed=1).log_probs])
    alone = ctc_nbest(padded[1:, :3], torch.tensor([3]), 20)
    assert ctc_nbest(padded, torch.tensor([5, 3]), 20)[1] == alone[0]


def test_impossible_labels(enumerate_ctc, reading):
    log_probs = reading(shape=(1, 4, 3)).log_probs
    log_probs[0, 1, 0] = log_probs[0, 2, 1] = -math.inf
    found = dict(ctc_nbest(log_probs, torch.tensor([4]), 100)[0])
    expected = enumerate_ctc(log_probs[0], 0)
    assert found.keys() == expected.keys()
    for text, log_prob in found.items():
        assert log_prob == pytest.approx(expected[text], abs=1e-5)


def test_nan_impossible_and_empty_utterances_leave_the_others_alone(reading):
    log_probs = reading(shape=(4, 4, 3)).log_probs
    log_probs[0, 1, 1] = math.nan
    log_probs[1, 2] = -math.inf
    lists = ctc_nbest(log_probs, torch.tensor([4, 4, 0, 4]), 10)
    assert lists[:3] == [[], [], [((), 0.0)]]
    assert lists[3] == ctc_nbest(log_probs[3:], torch.tensor([4]), 10)[0]


def test_nan_in_padding_is_ignored(reading):
    log_probs = reading(shape=(1, 4, 3)).log_probs
    expected = ctc_nbest(log_probs, torch.tensor([3]), 10)
    log_probs[0, 3] = math.nan
    assert ctc_nbest(log_probs, torch.tensor([3]), 10) == expected


def test_k_cuts_the_list_and_default_beam_holds_it(reading):
    log_probs = reading(shape=(1, 6, 4)).log_probs
    frames = torch.tensor([6])
    whole = ctc_nbest(log_probs, frames, 2000)[0]
    short = ctc_nbest(log_probs, frames, 20)[0]
    assert len(whole) > len(short) == 20
    assert [text for text, _ in short[:5]] == [text for text, _ in whole[:5]]
    assert ctc_nbest(log_probs, frames, 20, beam_size=40)[0] == short
    assert ctc_nbest(log_probs, frames, 20, beam_size=20)[0] != short


def test_processes_give_the_same(reading):
    output = reading(shape=(3, 5, 4))
    one = ctc_nbest(output.log_probs, output.frames, 10, jobs=1)
    assert ctc_nbest(output.log_probs, output.frames, 10, jobs=2) == one


@pytest.mark.parametrize("k, beam_size", [(0, None), (5, 4)])
def test_bad_sizes(reading, k, beam_size):
    output = reading()
    with pytest.raises(ValueError, match="beam size"):
        ctc_nbest(output.log_probs, output.frames, k, beam_size=beam_size)


def test_missing_flashlight_says_what_to_install(reading, monkeypatch):
    monkeypatch.setitem(sys.modules, "flashlight.lib.text.decoder", None)
    nbest._decoder.cache_clear()
    output = reading()
    with pytest.raises(ImportError, match="pip install flashlight-text"):
        ctc_nbest(output.log_probs, output.frames, 10)


def test_decoders_are_built_once(reading):
    output = reading(shape=(2, 3, 4))
    nbest._decoder.cache_clear()
    for _ in range(3):
        ctc_nbest(output.log_probs, output.frames, 10)
    assert nbest._decoder.cache_info().misses == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("blank_index", [0, 1])
def test_gpu_equals_cpu(reading, blank_index):
    output = reading(shape=(3, 5, 40), frames=[5, 0, 4])
    arguments = {"k": 8, "blank_index": blank_index, "beam_size": 40}
    expected = ctc_nbest(output.log_probs, output.frames, **arguments)
    log_probs = output.log_probs.cuda()
    if blank_index:
        with pytest.warns(UserWarning, match="blank at 0"):
            found = ctc_nbest(log_probs, output.frames, **arguments)
    else:
        found = ctc_nbest(log_probs, output.frames, **arguments)
    for ours, theirs in zip(found, expected, strict=True):
        assert [text for text, _ in ours[:3]] == [t for t, _ in theirs[:3]]
        for (_, one), (_, other) in zip(ours[:3], theirs[:3], strict=True):
            assert one == pytest.approx(other, abs=1e-2)
