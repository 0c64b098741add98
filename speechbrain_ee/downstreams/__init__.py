"""Task models behind an upstream and its layer interface."""

from speechbrain_ee.downstreams.ctc import ConvTransformerCTC, SpecAugment
from speechbrain_ee.downstreams.frames import LinearCTC
from speechbrain_ee.downstreams.labels import (
    join_labels,
    make_class_encoder,
    make_label_encoder,
    split_labels,
)
from speechbrain_ee.downstreams.masks import MaskEstimator, MaskLoss
from speechbrain_ee.downstreams.recurrent import PackedLSTM, RecurrentCTC
from speechbrain_ee.downstreams.utterance import (
    SpeakerEmbedder,
    UtteranceClassifier,
)

__all__ = [
    "ConvTransformerCTC",
    "LinearCTC",
    "MaskEstimator",
    "MaskLoss",
    "PackedLSTM",
    "RecurrentCTC",
    "SpeakerEmbedder",
    "SpecAugment",
    "UtteranceClassifier",
    "join_labels",
    "make_class_encoder",
    "make_label_encoder",
    "split_labels",
]
