"""Heads: what is read out of an encoder state, as an ``ExitOutput``."""

from speechbrain_ee.heads.attention import AttentionDecoder, AttentionHeads
from speechbrain_ee.heads.clusters import ClusterHead
from speechbrain_ee.heads.ctc import CTCHeads
from speechbrain_ee.heads.output import AttentionOutput, ExitOutput
from speechbrain_ee.heads.search import BeamSearch

__all__ = [
    "AttentionDecoder",
    "AttentionHeads",
    "AttentionOutput",
    "BeamSearch",
    "CTCHeads",
    "ClusterHead",
    "ExitOutput",
]
