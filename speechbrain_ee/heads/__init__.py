"""Heads: what is read out of an encoder state, as an ``ExitOutput``."""

from speechbrain_ee.heads.attention import AttentionDecoder, AttentionHeads
from speechbrain_ee.heads.branches import (
    BranchOutput,
    ClusterBranches,
    load_branches,
    save_branches,
)
from speechbrain_ee.heads.clusters import (
    ClusterHead,
    HeadTargets,
    load_cluster_head,
)
from speechbrain_ee.heads.ctc import CTCHeads
from speechbrain_ee.heads.output import (
    AttentionOutput,
    ExitOutput,
    SilentHeads,
    SilentOutput,
)
from speechbrain_ee.heads.search import BeamSearch

__all__ = [
    "AttentionDecoder",
    "AttentionHeads",
    "AttentionOutput",
    "BeamSearch",
    "BranchOutput",
    "CTCHeads",
    "ClusterBranches",
    "ClusterHead",
    "ExitOutput",
    "HeadTargets",
    "SilentHeads",
    "SilentOutput",
    "load_branches",
    "load_cluster_head",
    "save_branches",
]
