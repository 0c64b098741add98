"""Tests of pronunciations."""

import pytest

from speechbrain_ee.phones import Pronunciations, spell_out

LEXICON = """;;; a comment
A\tAH0
A\tEY1
ABSENT  AE1 B S AH0 N T
absent(2) AE0 B S EH1 N T
d'etre D EH1 T R AH0 # foreign french
"""


@pytest.fixture
def lexicon(tmp_path):
    file = tmp_path / "lexicon.txt"
    file.write_text(LEXICON)
    return file


def test_the_first_pronunciation_counts(lexicon, tmp_path):
    more = tmp_path / "more.txt"
    more.write_text("A AA1\nDAY D EY1\n")
    pronunciations = Pronunciations([lexicon, more])
    assert pronunciations("A day absent") == (
        "AH0 D EY1 AE1 B S AH0 N T".split()
    )
    assert pronunciations("D'ETRE") == "D EH1 T R AH0".split()


def test_stress_can_be_left_out(lexicon):
    assert Pronunciations([lexicon], stress=False)("ABSENT") == (
        "AE B S AH N T".split()
    )


def test_missing_words_are_told(lexicon):
    pronunciations = Pronunciations([lexicon])
    with pytest.raises(
        ValueError, match="2 words .*lexicon.txt.* ONE, TWO: na"
    ):
        pronunciations.learn(["A TWO", "ONE TWO"])


def test_what_is_no_lexicon_is_told(tmp_path):
    with pytest.raises(ValueError, match="lexicon: name a file .*g2p: True"):
        Pronunciations()
    with pytest.raises(FileNotFoundError, match="no lexicon .*none.txt: set"):
        Pronunciations([tmp_path / "none.txt"])
    file = tmp_path / "words.txt"
    file.write_text("A AH0\nABLE\n")
    with pytest.raises(ValueError, match="line 2: ABLE has no phones"):
        Pronunciations([file])


def test_rules_say_what_the_lexicon_lacks(lexicon):
    pronunciations = Pronunciations([lexicon], g2p=True)
    assert pronunciations("A HELLO") == "AH0 HH AH0 L OW1".split()
    assert Pronunciations(g2p=True, stress=False)("A") == ["EY"]
    with pytest.raises(ValueError, match="1 words .*such as --: name"):
        pronunciations("A --")


@pytest.mark.parametrize(
    ("word", "phones"),
    [
        ("through", "TH R UW1"),
        ("bird", "B ER1 D"),
        ("little", "L IH1 T AH0 L"),
        ("chair", "CH EH1 R"),
        ("joyful", "JH OY1 F AH0 L"),
        ("university", "Y UW2 N IH0 V ER1 S IH0 T IY0"),
        ("cat's", "K AE1 T S"),
    ],
)
def test_rules_speak_american_english(word, phones):
    assert spell_out([word]) == [phones.split()]
