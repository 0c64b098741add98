"""Gates: which layers run, for which utterance."""

from speechbrain_ee.gates.base import LayerGate
from speechbrain_ee.gates.fixed import FirstN, FixedMask, GreedyMasks, RunAll
from speechbrain_ee.gates.random import BernoulliGate, RandomN
from speechbrain_ee.gates.selector import InputConditionedGate

GATES = {
    gate.name: gate
    for gate in (
        RunAll,
        FixedMask,
        FirstN,
        GreedyMasks,
        RandomN,
        BernoulliGate,
        InputConditionedGate,
    )
}

__all__ = [
    "GATES",
    "BernoulliGate",
    "FirstN",
    "FixedMask",
    "GreedyMasks",
    "InputConditionedGate",
    "LayerGate",
    "RandomN",
    "RunAll",
]
