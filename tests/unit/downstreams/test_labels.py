"""Labels of CTC."""

import pytest

from speechbrain_ee.downstreams import (
    join_labels,
    make_label_encoder,
    split_labels,
)


@pytest.mark.parametrize(
    ("text", "unit", "labels"),
    [
        ("AN OX", "character", ["A", "N", " ", "O", "X"]),
        ("[eng]", "character", ["[eng]"]),
        ("[org_jpn] 犬 X", "character", ["[org_jpn]", "犬", " ", "X"]),
        ("k o N n i", "phone", ["k", "o", "N", "n", "i"]),
        ("n i3 OK", "phone", ["n", "i3", "OK"]),
    ],
)
def test_splitting_and_joining_undo_each_other(text, unit, labels):
    assert split_labels(text, unit) == labels
    assert join_labels(labels, unit) == text


def test_tokens_in_the_middle_of_a_hypothesis_can_be_read():
    labels = ["A", "[eng]", "[deu]", "B"]
    assert join_labels(labels) == "A[eng] [deu] B"


def test_an_unknown_unit_is_refused():
    with pytest.raises(ValueError, match="'word' is none of character, phone"):
        split_labels("A", "word")


def test_labels_are_numbered_the_same_whatever_the_order(tmp_path):
    one = make_label_encoder(tmp_path / "one", [["b", " "], ["[eng]", "a"]])
    other = make_label_encoder(tmp_path / "other", [["a", "[eng]", " ", "b"]])
    assert one.lab2ind == other.lab2ind
    assert one.get_blank_index() == 0
    assert one.encode_sequence(["b", "?"])[1] == 1
    assert len(one) == 6


def test_a_run_that_goes_on_with_other_labels_is_refused(tmp_path):
    file = tmp_path / "labels.txt"
    make_label_encoder(file, ["ab"])
    make_label_encoder(file, ["ba"])
    with pytest.raises(ValueError, match="numbers 4 labels, and not the 5"):
        make_label_encoder(file, ["abc"])
