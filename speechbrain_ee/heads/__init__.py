"""Heads: what is read out of an encoder state, as an ``ExitOutput``."""

from speechbrain_ee.heads.ctc import CTCHeads
from speechbrain_ee.heads.output import ExitOutput

__all__ = ["CTCHeads", "ExitOutput"]
