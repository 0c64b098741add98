"""Interfaces: the hidden states of an encoder, made one sequence."""

from speechbrain_ee.interfaces.base import LayerInterface, build_interface
from speechbrain_ee.interfaces.concatenation import (
    ConcatProjection,
    PCAConcat,
)
from speechbrain_ee.interfaces.convolution import HierarchicalConv
from speechbrain_ee.interfaces.pooling import CLSPooling
from speechbrain_ee.interfaces.sums import (
    AttentionWeightedSum,
    GroupedWeightedSum,
    PerExitWeightedSum,
    SingleLayer,
    WeightedSum,
)

__all__ = [
    "AttentionWeightedSum",
    "CLSPooling",
    "ConcatProjection",
    "GroupedWeightedSum",
    "HierarchicalConv",
    "LayerInterface",
    "PCAConcat",
    "PerExitWeightedSum",
    "SingleLayer",
    "WeightedSum",
    "build_interface",
]
