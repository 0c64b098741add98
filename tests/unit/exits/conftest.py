"""Readings of exits to test on, and CTC by enumeration of all alignments."""

import itertools
import math
from collections import defaultdict

import pytest
import torch

from speechbrain_ee.heads.output import ExitOutput


@pytest.fixture
def reading():
    """Make the reading of an exit; random unless log-probs are given."""

    def make(log_probs=None, frames=None, seed=0, shape=(3, 5, 4), **facts):
        if log_probs is None:
            generator = torch.Generator().manual_seed(seed)
            log_probs = 2 * torch.randn(shape, generator=generator)
            log_probs = log_probs.log_softmax(dim=-1)
        if frames is None:
            frames = [log_probs.shape[1]] * log_probs.shape[0]
        facts.setdefault("exit_layer", 2)
        return ExitOutput(log_probs, torch.tensor(frames), **facts)

    return make


@pytest.fixture
def says(reading):
    """Make the reading of an exit with the given greedy transcripts."""

    def make(*transcripts, time=6, **facts):
        path = torch.zeros(len(transcripts), time, dtype=torch.long)
        for row, labels in enumerate(transcripts):
            # A blank after each label keeps equal neighbours apart.
            path[row, : 2 * len(labels) : 2] = torch.tensor(
                labels, dtype=torch.long
            )
        scores = 9.0 * torch.nn.functional.one_hot(path, 5)
        return reading(scores.log_softmax(dim=-1), **facts)

    return make


@pytest.fixture
def enumerate_ctc():
    """All transcripts of (time, vocabulary) log-probs and their log P."""

    def enumerate_alignments(log_probs, blank_index):
        time, vocabulary = log_probs.shape
        probabilities = defaultdict(float)
        for path in itertools.product(range(vocabulary), repeat=time):
            log_prob = sum(
                log_probs[frame, label].item()
                for frame, label in enumerate(path)
            )
            labels = (label for label, _ in itertools.groupby(path))
            text = tuple(label for label in labels if label != blank_index)
            probabilities[text] += math.exp(log_prob)
        return {
            text: math.log(probability)
            for text, probability in probabilities.items()
            if probability > 0
        }

    return enumerate_alignments
