"""Analysis: traces of what every exit said, and curves of what it costs."""

from speechbrain_ee.analysis.curves import curve_row
from speechbrain_ee.analysis.traces import TraceRecorder

__all__ = ["TraceRecorder", "curve_row"]
