"""Brains: small sb.Brain subclasses, one per kind of training."""

from speechbrain_ee.brains.aed import EarlyExitAED
from speechbrain_ee.brains.ctc import EarlyExitCTC
from speechbrain_ee.brains.downstream import DownstreamBrain
from speechbrain_ee.brains.downstream_ctc import DownstreamCTC
from speechbrain_ee.brains.downstream_masks import (
    DownstreamEnhancer,
    DownstreamMasks,
    DownstreamSeparator,
)
from speechbrain_ee.brains.downstream_utterance import (
    DownstreamClassifier,
    DownstreamVerifier,
)
from speechbrain_ee.brains.lm import LanguageModelBrain

__all__ = [
    "DownstreamBrain",
    "DownstreamCTC",
    "DownstreamClassifier",
    "DownstreamEnhancer",
    "DownstreamMasks",
    "DownstreamSeparator",
    "DownstreamVerifier",
    "EarlyExitAED",
    "EarlyExitCTC",
    "LanguageModelBrain",
]
