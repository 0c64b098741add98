"""What an exit says: greedy transcripts, masks, rows that leave."""

import torch

from speechbrain_ee.heads import ExitOutput


def spelled(paths, frames, vocab=4, **kwargs):
    """An output whose most probable path is given."""
    log_probs = torch.full((len(paths), len(paths[0]), vocab), -9.0)
    for row, path in enumerate(paths):
        log_probs[row, range(len(path)), path] = -0.01
    return ExitOutput(log_probs, torch.tensor(frames), 2, **kwargs)


def test_greedy_merges_repeats_drops_blanks_and_stops_at_the_end():
    output = spelled(
        [[1, 1, 0, 1, 2], [0, 0, 0, 0, 0], [3, 3, 3, 2, 1]], [5, 5, 3]
    )
    assert output.hypotheses == [(1, 1, 2), (), (3,)]
    tokens, counts = output.greedy
    assert tokens.tolist() == [1, 1, 2, 3]
    assert counts.tolist() == [3, 0, 1]


def test_the_blank_may_be_any_label():
    output = spelled([[3, 0, 0, 3, 0]], [5], blank_index=3)
    assert output.hypotheses == [(0, 0)]


def test_zero_frames_say_nothing():
    assert spelled([[1, 2]], [0]).hypotheses == [()]


def test_kept_rows_are_those_asked_for_and_history_is_cut():
    first = spelled([[1, 1], [2, 2]], [2, 1], ids=["a", "b"])
    second = spelled([[1, 2], [2, 1]], [2, 1], ids=["a", "b"], previous=first)
    third = spelled([[3, 2], [2, 3]], [2, 1], ids=["a", "b"], previous=second)
    kept = third.keep([1], history=1)
    assert kept.ids == ["b"] and kept.hypotheses == [(2,)]
    assert kept.previous.ids == ["b"] and kept.previous.previous is None
    assert third.keep([1]).previous is None
    assert len(third) == 2 and third.ids == ["a", "b"]
