"""Which utterances stand in a batch.

Authors
 * SpeechBrain-EE contributors 2026
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler


class SortedBatches(Sampler[list[int]]):
    """Batches of utterances of similar length, so many in an epoch.

    Utterances are sorted by length and cut into batches once. The batches come
    in an order drawn from seed and epoch: all of them, and again in another
    order, until there are enough. What an epoch gives depends on its number
    alone, so that a stopped run goes on as it would have.

    Arguments
    ---------
    lengths : sequence of float
        Of each utterance.
    batch_size : int
        Utterances in a batch; one may have fewer.
    num_batches : int, optional
        Batches in an epoch (default: each once).
    seed : int
        Of the order.

    Example
    -------
    >>> batches = SortedBatches([3.0, 1.0, 2.0, 9.0], 2, num_batches=3)
    >>> len(batches), sorted(map(sorted, batches))[0]
    (3, [0, 3])
    >>> sorted(batches)[-1]
    [1, 2]
    """

    def __init__(
        self,
        lengths: Sequence[float],
        batch_size: int,
        num_batches: int | None = None,
        seed: int = 0,
    ):
        order = np.argsort(lengths, kind="stable").tolist()
        self.batches = [
            order[first : first + batch_size]
            for first in range(0, len(order), batch_size)
        ]
        self.num_batches = num_batches or len(self.batches)
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order.

        Arguments
        ---------
        epoch : int
            Its number.
        """
        self.epoch = epoch

    def __len__(self) -> int:
        """Batches in an epoch."""
        return self.num_batches

    def __iter__(self) -> Iterator[list[int]]:
        """The batches of the epoch, as positions of utterances."""
        rng = np.random.default_rng([self.seed, self.epoch])
        left = self.num_batches
        while left > 0:
            for index in rng.permutation(len(self.batches))[:left]:
                yield self.batches[index]
            left -= len(self.batches)
