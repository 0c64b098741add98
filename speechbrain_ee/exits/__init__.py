"""Exits: scores of an exit's reading, and selectors of who leaves there.

Authors
 * SpeechBrain-EE contributors 2026
"""

from speechbrain_ee.exits.branches import (
    BranchExits,
    exits_taken,
    get_exits,
)
from speechbrain_ee.exits.nbest import ctc_nbest
from speechbrain_ee.exits.scores import (
    SCORES,
    Score,
    frame_entropy,
    get_score,
    hypothesis_posterior,
    kl_to_previous,
    margin,
    max_probability,
    score,
    sentence_confidence,
    state_similarity,
)
from speechbrain_ee.exits.selectors import (
    SELECTORS,
    DepthWindow,
    ExitSelector,
    FixedLayer,
    MaxLayers,
    MaxMacs,
    NeverLeave,
    Oracle,
    Patience,
    RandomExit,
    Threshold,
    check_selector,
    get_selector,
    read_selector,
)

__all__ = [
    "SCORES",
    "SELECTORS",
    "BranchExits",
    "DepthWindow",
    "ExitSelector",
    "FixedLayer",
    "MaxLayers",
    "MaxMacs",
    "NeverLeave",
    "Oracle",
    "Patience",
    "RandomExit",
    "Score",
    "Threshold",
    "check_selector",
    "ctc_nbest",
    "exits_taken",
    "frame_entropy",
    "get_exits",
    "get_score",
    "get_selector",
    "hypothesis_posterior",
    "kl_to_previous",
    "margin",
    "max_probability",
    "read_selector",
    "score",
    "sentence_confidence",
    "state_similarity",
]
