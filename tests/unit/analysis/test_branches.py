"""What is told of branches against NumPy, and when they are warned of."""

import numpy as np
import pandas as pd
import pytest

from speechbrain_ee.analysis.branches import (
    BranchReadings,
    write_branch_report,
)

LAYERS = [1, 2, 4, 7]


def make_readings(fall=0.3, spread=0.05, own=0.0, utterances=40):
    """Entropies that fall with depth, and vary over utterances."""
    chance = np.random.default_rng(0)
    shape = utterances, len(LAYERS)
    entropies = 3 - fall * np.array(LAYERS) + own * chance.normal(size=shape)
    entropies = entropies + spread * chance.normal(size=(utterances, 1))
    frames = chance.integers(20, 90, utterances)
    right = chance.integers(0, 20, shape)
    losses = chance.random(shape)
    return BranchReadings(LAYERS, frames, entropies, right, losses)


def test_a_table_has_a_row_per_layer():
    readings = make_readings()
    table = readings.table()
    assert table["layer"].tolist() == LAYERS
    for row in range(4):
        one, values = table.loc[row], readings.entropies[:, row]
        frames = readings.frames.sum()
        assert one["accuracy"] == pytest.approx(
            100 * readings.right[:, row].sum() / frames
        )
        assert one["cross_entropy"] == pytest.approx(
            readings.losses[:, row].sum() / frames
        )
        assert one["mean_entropy"] == pytest.approx(sum(values) / 40)
        assert one["sd_entropy"] == pytest.approx(values.std())
        assert (one["lowest_entropy"], one["highest_entropy"]) == (
            min(values),
            max(values),
        )


def test_the_line_is_that_of_least_squares():
    readings = make_readings(own=0.4)
    means = readings.entropies.mean(axis=0)
    slope, intercept = np.polyfit(LAYERS, means, 1)
    line = readings.line()
    assert line.slope == pytest.approx(slope)
    assert line.intercept == pytest.approx(intercept)
    assert line.r2 == pytest.approx(np.corrcoef(LAYERS, means)[0, 1] ** 2)
    assert make_readings().line().r2 == pytest.approx(1)
    facts = readings.facts()
    assert facts["line"]["slope"] == line.slope
    assert facts["entropy_range"] == [
        readings.entropies.min(),
        readings.entropies.max(),
    ]


def test_a_line_needs_two_branches_and_its_fit_three():
    readings = make_readings()
    one = BranchReadings(
        [1], readings.frames, *(readings.entropies[:, :1],) * 3
    )
    assert one.line() is None and one.warnings() == []
    two = BranchReadings(
        [1, 2], readings.frames, *(readings.entropies[:, :2],) * 3
    )
    assert np.isnan(two.line().r2) and two.facts()["line"]["r2"] is None


def test_utterances_leave_at_the_first_low_entropy():
    readings = make_readings(own=0.5)
    for threshold in (None, 2.0, -1.0, 9.0):
        limit = readings.entropies.mean() if threshold is None else threshold
        expected = [
            next((k for k, x in zip(LAYERS, row) if x <= limit), LAYERS[-1])
            for row in readings.entropies
        ]
        assert readings.exits(threshold).tolist() == expected


def test_signs_of_failure_are_named_and_only_those():
    assert make_readings().warnings() == []
    (flat,) = make_readings(fall=0.01, spread=0.2).warnings()[:1]
    assert "does not fall enough" in flat and "-0.06 nats" in flat
    (rising,) = make_readings(fall=-0.3).warnings()[:1]
    assert "+1.8 nats" in rising
    wide = make_readings(fall=0.2, spread=1.0).warnings()
    assert any("Exits vary much" in text for text in wide)
    assert not any("vary" in text for text in make_readings().warnings())


def test_the_report_holds_all_sets(tmp_path):
    sets = {"train": make_readings(), "valid": make_readings(fall=0)}
    warnings = write_branch_report(tmp_path, sets, "Targets: some.")
    assert warnings and all(text.startswith("valid: ") for text in warnings)
    report = (tmp_path / "report.md").read_text()
    assert "Targets: some." in report and "## valid" in report
    assert report.count("does not fall enough") == 1
    assert "changes by -0.300 nats per layer (R² 1.000)" in report
    for name, one in sets.items():
        pd.testing.assert_frame_equal(
            pd.read_csv(tmp_path / f"branches_{name}.csv"), one.table()
        )
    assert (tmp_path / "entropy_by_layer.png").stat().st_size > 1000
