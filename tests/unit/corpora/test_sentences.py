"""Tests of the grammar: enough words, natural lengths, no loose ends."""

import random
import re
from collections import Counter

import pytest

from speechbrain_ee.corpora.sentences import GRAMMAR, random_sentence


@pytest.fixture(scope="module")
def sentences():
    rng = random.Random(0)
    return [random_sentence(rng) for _ in range(5000)]


def test_vocabulary(sentences):
    words = Counter(word for line in sentences for word in line.split())
    assert 120 <= len(words) <= 150
    # Each comes often enough to be learnt.
    assert min(words.values()) > 5000 / 1000
    for word in words:
        assert re.fullmatch(r"[A-Z]+('[A-Z]+)?", word)


def test_every_word_of_the_grammar_is_said(sentences):
    said = {word for line in sentences for word in line.split()}
    for choices in GRAMMAR.values():
        for choice in choices:
            assert set(re.sub("{.*?}", "", choice).upper().split()) <= said


def test_lengths(sentences):
    lengths = Counter(len(line.split()) for line in sentences)
    assert min(lengths) == 4 and max(lengths) == 10
    assert max(lengths.values()) < 0.3 * len(sentences)


def test_sentences_vary(sentences):
    assert len(set(sentences)) > 0.8 * len(sentences)
    openings = Counter(line.split()[0] for line in sentences)
    assert len(openings) > 15
    assert max(openings.values()) < 0.4 * len(sentences)


def test_a_stands_before_consonants_only(sentences):
    for line in sentences:
        for vowel in re.findall(r"\bAN (\w)", line):
            assert vowel in "AEIOU"
        for consonant in re.findall(r"\bA (\w)", line):
            assert consonant not in "AEIOU"


def test_the_same_seed_says_the_same():
    first, second, other = (
        [random_sentence(rng) for _ in range(20)]
        for rng in map(random.Random, (1, 1, 2))
    )
    assert first == second != other
