"""Task models behind an upstream and its layer interface."""

from speechbrain_ee.downstreams.ctc import ConvTransformerCTC, SpecAugment
from speechbrain_ee.downstreams.labels import (
    join_labels,
    make_label_encoder,
    split_labels,
)

__all__ = [
    "ConvTransformerCTC",
    "SpecAugment",
    "join_labels",
    "make_label_encoder",
    "split_labels",
]
