"""Pictures, by what is drawn on them.

Authors
 * SpeechBrain-EE contributors 2026
"""

import pandas as pd

from speechbrain_ee.analysis.plots import draw_runs

CURVE = pd.DataFrame(
    {
        "selector": ["entropy", "entropy"],
        "mean_layers_run": [2.0, 4.0],
        "macs": [1e9, 2e9],
        "seconds": [1.0, 2.0],
        "error_rate": [30.0, 10.0],
    }
)


def test_gates_of_a_run_share_a_colour_and_no_two_a_marker():
    points = pd.DataFrame(columns=[*CURVE, "run", "low", "high"])
    gates = {"dropped": {"first_n": CURVE, "greedy": CURVE}}
    figure = draw_runs({"exits": CURVE}, points, "entropy", gates=gates)
    for panel in figure.axes:
        lines = {line.get_label(): line for line in panel.get_lines()}
        first, greedy = lines["dropped: first_n"], lines["dropped: greedy"]
        assert first.get_color() == greedy.get_color()
        assert first.get_color() != lines["exits: entropy"].get_color()
        assert first.get_marker() != greedy.get_marker()
