"""Which utterances stand in a batch."""

from collections import Counter

from speechbrain_ee.batches import SortedBatches

LENGTHS = [5.0, 1.0, 4.0, 2.0, 3.0, 9.0, 7.0]


def epoch(batches, number):
    batches.set_epoch(number)
    return [tuple(batch) for batch in batches]


def test_batches_hold_utterances_of_similar_length():
    batches = SortedBatches(LENGTHS, 2)
    assert sorted(batches) == [[0, 6], [1, 3], [4, 2], [5]]
    assert len(batches) == 4


def test_an_epoch_has_so_many_batches_each_as_often_as_the_others():
    batches = SortedBatches(LENGTHS, 2, num_batches=10, seed=3)
    drawn = epoch(batches, 1)
    assert len(drawn) == len(batches) == 10
    assert set(Counter(drawn).values()) == {2, 3}
    few = epoch(SortedBatches(LENGTHS, 2, num_batches=3), 1)
    assert len(few) == len(set(few)) == 3


def test_an_epoch_depends_on_its_number_and_the_seed_alone():
    batches = SortedBatches(LENGTHS, 2, num_batches=40)
    first, second = epoch(batches, 1), epoch(batches, 2)
    assert first != second
    # As in a run that goes on from a checkpoint.
    again = SortedBatches(LENGTHS, 2, num_batches=40)
    assert epoch(again, 2) == second
    assert epoch(SortedBatches(LENGTHS, 2, 40, seed=1), 2) != second
