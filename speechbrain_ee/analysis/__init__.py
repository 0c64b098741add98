"""Analysis: traces of what every exit said, and what is read from them."""

from speechbrain_ee.analysis.traces import TraceRecorder

__all__ = ["TraceRecorder"]
