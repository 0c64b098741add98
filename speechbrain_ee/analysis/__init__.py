"""Analysis: traces of what every exit said, and curves of what it costs."""
