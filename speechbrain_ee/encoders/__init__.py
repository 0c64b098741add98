"""Encoders: the only place that knows how a backbone is wired."""

from speechbrain_ee.encoders.base import (
    EncoderState,
    LayerwiseEncoder,
    check_layers,
)
from speechbrain_ee.encoders.filterbank import FilterbankEncoder
from speechbrain_ee.encoders.speechbrain import SpeechBrainEncoder

__all__ = [
    "EncoderState",
    "FilterbankEncoder",
    "LayerwiseEncoder",
    "SpeechBrainEncoder",
    "check_layers",
]
