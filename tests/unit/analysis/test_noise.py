"""Exits in noise: reports of traces whose answer is known."""

import numpy as np
import pandas as pd
import pytest

from speechbrain_ee.analysis.noise import make_noise_report
from speechbrain_ee.analysis.statistics import Bootstrap
from speechbrain_ee.cli import main

CONDITIONS = {"clean": 0.0, "20": 0.1, "0": 0.5}
UTTERANCES = 60
EXITS = [2, 4, 8]


def hardness(condition):
    """How deep each utterance must go, in 0 to 1 and beyond."""
    easy = np.random.default_rng(0).uniform(0, 0.5, UTTERANCES)
    return easy + CONDITIONS[condition]


def needed(condition):
    """The first exit without an error: 2, 4 or 8."""
    return np.select(
        [hardness(condition) < 0.25, hardness(condition) < 0.5], [2, 4], 8
    )


def ids(condition):
    end = "" if condition == "clean" else f"_snr{condition}"
    return [f"u{k}{end}" for k in range(UTTERANCES)]


def rows(condition, layers, **columns):
    """One row per utterance, right if it goes deep enough."""
    errors = (np.asarray(layers) < needed(condition)).astype(int)
    return pd.DataFrame(
        {
            "id": ids(condition),
            "exit_layer": layers,
            "layers_run": layers,
            "hyp": "x",
            "errors": errors,
            "ref_len": 1,
            "snr": condition,
            **columns,
        }
    )


def write(folder, tables, name="test"):
    """A run with these traces, in an order of its own."""
    folder.mkdir(parents=True)
    for condition, table in tables.items():
        end = "clean" if condition == "clean" else f"snr{condition}"
        table = table.sample(frac=1, random_state=sum(str(folder).encode()))
        table.to_csv(folder / f"traces_{name}_{end}.csv", index=False)
    pd.DataFrame({"id": ["v"], "exit_layer": 8}).to_csv(
        folder / "traces_dev.csv", index=False
    )
    return folder


def fixed_run(folder, layer, **columns):
    return write(
        folder,
        {k: rows(k, np.full(UTTERANCES, layer), **columns) for k in CONDITIONS},
    )


def daisy_run(folder):
    """Leaves where it is right, and says how unsure it was there."""
    return write(
        folder,
        {
            k: rows(
                k,
                needed(k),
                branch_entropy=hardness(k),
                branch_entropy_seconds=0.1,
            )
            for k in CONDITIONS
        },
    )


def early_exit_run(folder, score=None, name="test"):
    """Each utterance at each exit, whose entropy is what is still lacking."""
    tables = {}
    for k in CONDITIONS:
        parts = []
        for layer in EXITS:
            lacking = np.maximum(needed(k) - layer, 0) + 0.01 * hardness(k)
            parts.append(
                rows(
                    *(k, np.full(UTTERANCES, layer)),
                    entropy=lacking,
                    margin=1 - lacking,
                )
            )
        tables[k] = pd.concat(parts)
    return write(folder, tables, name)


@pytest.fixture
def runs(tmp_path):
    fixed = [fixed_run(tmp_path / f"exit{k}", k) for k in EXITS]
    return [daisy_run(tmp_path / "daisy"), *fixed]


def read(folder, rule=None):
    table = pd.read_csv(folder / "noise.csv")
    if rule is not None:
        table = table[table["rule"] == rule]
    return table.set_index("condition")


def rate_of(layer, conditions=CONDITIONS):
    wrong = [layer < needed(k) for k in conditions]
    return 100 * np.concatenate(wrong).mean()


def mixture(depth, conditions):
    """The error rate of a fixed exit of any depth."""
    rates = [rate_of(k, conditions) for k in EXITS]
    return np.interp(depth, EXITS, rates)


def test_a_rule_stands_beside_the_fixed_exit_of_equal_cost(runs, tmp_path):
    page = make_noise_report(runs, tmp_path / "out")
    table = read(tmp_path / "out", "daisy")
    assert list(table.index) == ["clean", "20", "0", "all"]
    pooled = np.mean([needed(k) for k in CONDITIONS])
    for condition in CONDITIONS:
        row = table.loc[condition]
        depth = needed(condition).mean()
        assert row["exit_layer"] == pytest.approx(depth)
        assert row["error_rate"] == 0 and row["utterances"] == UTTERANCES
        here = mixture(depth, [condition])
        assert row["fixed_here"] == pytest.approx(here)
        assert row["minus_fixed_here"] == pytest.approx(-here)
        overall = mixture(pooled, [condition])
        assert row["fixed_overall"] == pytest.approx(overall)
    row = table.loc["all"]
    assert row["exit_layer"] == pytest.approx(pooled)
    assert row["fixed_here"] == row["fixed_overall"]
    assert row["fixed_here"] == pytest.approx(mixture(pooled, CONDITIONS))
    assert row["minus_fixed_here_high"] < 0 and row["utterances"] == 180
    # At 0 dB all need the last exit, so that there is nothing to choose.
    assert table.loc["0", "minus_fixed_here"] == 0
    assert table.loc["0", "exit_layer_low"] == 8
    exits = read(tmp_path / "out", "exit 4")
    for condition in CONDITIONS:
        found = exits.loc[condition, "error_rate"]
        assert found == pytest.approx(rate_of(4, [condition]))
    text = (tmp_path / "out" / "noise.md").read_text()
    assert "180 utterances in 3 conditions (clean, 20 dB, 0 dB)" in text
    assert "| 0 dB | 8.00 [8.00, 8.00] |" in text
    assert "daisy" in page.read_text()
    assert (tmp_path / "out" / "noise.png").stat().st_size > 10_000


def test_intervals_are_those_of_paired_resamples(runs, tmp_path):
    make_noise_report(runs, tmp_path / "out")
    table = read(tmp_path / "out", "daisy")
    weights = Bootstrap(UTTERANCES).weights / UTTERANCES
    # Which utterance is the first does not matter much for 1000 draws.
    deeper = weights @ (needed("20") - needed("clean"))
    row = table.loc["20"]
    assert row["deeper"] == pytest.approx(
        (needed("20") - needed("clean")).mean()
    )
    expected = np.quantile(deeper, [0.025, 0.975])
    assert row[["deeper_low", "deeper_high"]].tolist() == pytest.approx(
        expected, abs=0.1
    )
    # Unpaired, the interval would be as wide as that of the depth.
    width = row["exit_layer_high"] - row["exit_layer_low"]
    assert row["deeper_high"] - row["deeper_low"] < 0.9 * width
    # Utterances that stand in all conditions are drawn together.
    all_layers = np.mean([needed(k) for k in CONDITIONS], axis=0)
    expected = np.quantile(weights @ all_layers, [0.025, 0.975])
    assert table.loc["all", ["exit_layer_low", "exit_layer_high"]].tolist() == (
        pytest.approx(expected, abs=0.1)
    )
    assert np.isnan(table.loc["clean", "deeper"])


def test_thresholds_are_replayed_where_there_are_several_exits(tmp_path):
    run = early_exit_run(tmp_path / "model" / "1")
    make_noise_report([run], tmp_path / "out", rules={"entropy": 0.5})
    table = read(tmp_path / "out", "entropy ≤ 0.5")
    for condition in CONDITIONS:
        depth = needed(condition).mean()
        assert table.loc[condition, "exit_layer"] == pytest.approx(depth)
        assert table.loc[condition, "error_rate"] == 0
    make_noise_report([run], tmp_path / "out", rules={"entropy": 9.0})
    table = read(tmp_path / "out", "entropy ≤ 9")
    assert (table["exit_layer"] == 2).all()
    assert (table["minus_fixed_here"] == 0).all()


def test_a_threshold_is_chosen_for_a_mean_depth(runs, tmp_path):
    run = early_exit_run(tmp_path / "model" / "1")
    for layers, expected in ((2, 2), (8, 8), (None, 5)):
        make_noise_report(
            [run], tmp_path / "out", None, ["margin"], None, layers
        )
        table = read(tmp_path / "out")
        (name,) = set(table[table["kind"] == "rule"]["rule"])
        assert name.startswith("margin ≥ ")
        found = table[table["rule"] == name].loc["all", "exit_layer"]
        assert found == pytest.approx(expected, abs=0.15)


def test_scores_of_runs_with_a_fixed_exit_each_are_replayed(tmp_path):
    def scored(folder, layer):
        return write(
            folder,
            {
                k: rows(
                    *(k, np.full(UTTERANCES, layer)),
                    max_probability=np.where(layer < needed(k), 0.3, 0.9),
                )
                for k in CONDITIONS
            },
        )

    fixed = [scored(tmp_path / f"exit{k}", k) for k in reversed(EXITS)]
    daisy = daisy_run(tmp_path / "daisy")
    make_noise_report([*fixed, daisy], tmp_path / "out")
    table = read(tmp_path / "out")
    (replayed,) = set(table[table["kind"] == "rule"]["rule"]) - {"daisy"}
    assert replayed == "max probability ≥ 0.9"
    columns = ["exit_layer", "error_rate", "minus_fixed_here_low"]
    ours, theirs = (
        table[table["rule"] == x][columns] for x in (replayed, "daisy")
    )
    assert np.allclose(ours, theirs)


def test_seeds_are_averaged(tmp_path):
    runs = []
    for seed in (1, 2):
        runs += [fixed_run(tmp_path / f"exit{k}" / str(seed), k) for k in EXITS]
    runs.append(daisy_run(tmp_path / "daisy" / "1"))
    # The other seed stays at the last exit when speech is clean.
    tables = {k: rows(k, needed(k)) for k in CONDITIONS}
    tables["clean"] = rows("clean", np.full(UTTERANCES, 8))
    runs.append(write(tmp_path / "daisy" / "2", tables))
    make_noise_report(runs, tmp_path / "out")
    table = read(tmp_path / "out", "daisy (2 seeds)")
    expected = (needed("clean").mean() + 8) / 2
    assert table.loc["clean", "exit_layer"] == pytest.approx(expected)
    assert table.loc["20", "exit_layer"] == pytest.approx(needed("20").mean())
    fixed = read(tmp_path / "out", "exit 2")
    assert fixed.loc["20", "error_rate"] == pytest.approx(rate_of(2, ["20"]))


def test_scores_are_correlated_with_errors_in_each_condition(tmp_path):
    run = early_exit_run(tmp_path / "model" / "1")
    daisy = daisy_run(tmp_path / "daisy")
    make_noise_report([run, daisy], tmp_path / "out")
    table = pd.read_csv(tmp_path / "out" / "noise_correlation.csv")
    assert set(table["score"]) == {"entropy", "branch_entropy"}
    assert set(table["condition"]) == {"clean", "20", "0", "all"}
    entropy = table[table["score"] == "entropy"]
    entropy = entropy.set_index(["exit_layer", "condition"])["correlation"]
    # What lacks most is wrong, what lacks nothing right.
    wrong = hardness("clean") >= 0.25
    expected = 2 * np.sqrt(0.75 * wrong.mean() * (1 - wrong.mean()))
    assert entropy["2", "clean"] == pytest.approx(expected, abs=0.02)
    assert np.isnan(entropy["8", "clean"])  # no errors
    assert np.isnan(entropy["4", "0"])  # nothing but errors
    assert entropy["4", "all"] > 0.8
    taken = table[table["score"] == "branch_entropy"]
    assert set(taken["exit_layer"]) == {"taken"} and len(taken) == 4
    make_noise_report([run, daisy], tmp_path / "out", scores=["margin"])
    table = pd.read_csv(tmp_path / "out" / "noise_correlation.csv")
    assert set(table["score"]) == {"margin"}


def test_conditions_are_told_by_a_column_or_by_names(tmp_path):
    tables = {k: rows(k, needed(k)) for k in CONDITIONS}
    column = tmp_path / "column"
    column.mkdir()
    table = pd.concat(tables.values())
    table["snr"] = table["snr"].replace({"clean": "", "20": "20.0"})
    table.to_csv(column / "traces_test.csv", index=False)
    named = write(
        tmp_path / "exit8",
        {
            k: rows(k, np.full(UTTERANCES, 8)).drop(columns="snr")
            for k in CONDITIONS
        },
    )
    make_noise_report([column, named], tmp_path / "out")
    table = read(tmp_path / "out", "column")
    assert table.loc["20", "exit_layer"] == pytest.approx(needed("20").mean())
    # There is one fixed exit, which is deeper than the rule.
    assert (
        "fixed_here" not in table
        or table.loc["clean":"20", "fixed_here"].isna().all()
    )
    assert "none costs as much" in (tmp_path / "out" / "noise.md").read_text()


def test_utterances_may_stand_in_one_condition_each(tmp_path):
    folder = tmp_path / "run"
    parts = []
    for k in CONDITIONS:
        for layer in EXITS:
            one = rows(k, np.full(UTTERANCES, layer))
            own = [f"{k}-{n}" for n in range(UTTERANCES)]
            lacking = np.maximum(needed(k) - layer, 0)
            parts.append(one.assign(id=own, entropy=lacking))
    folder.mkdir()
    pd.concat(parts).to_csv(folder / "traces_test.csv", index=False)
    make_noise_report([folder], tmp_path / "out", rules={"entropy": 0.5})
    table = read(tmp_path / "out", "entropy ≤ 0.5")
    deeper = needed("20").mean() - needed("clean").mean()
    assert table.loc["20", "deeper"] == pytest.approx(deeper)
    assert table.loc["all", "utterances"] == 3 * UTTERANCES
    assert table.loc["20", "minus_fixed_here_high"] < 0


def test_what_cannot_be_compared_is_refused(runs, tmp_path):
    out = tmp_path / "out"
    daisy, *fixed = runs
    with pytest.raises(ValueError, match="No run has a fixed exit"):
        make_noise_report([daisy], out)
    again = fixed_run(tmp_path / "again", 4)
    with pytest.raises(ValueError, match="exit4 and .*again both leave at"):
        make_noise_report([*runs, again], out)
    model = early_exit_run(tmp_path / "model" / "1")
    with pytest.raises(ValueError, match="has several exits, .* one"):
        make_noise_report([model, *fixed], out)
    other = early_exit_run(tmp_path / "other" / "1")
    with pytest.raises(ValueError, match="both have several exits"):
        make_noise_report([model, other], out)
    with pytest.raises(ValueError, match="no score 'magic'; there are entropy"):
        make_noise_report([model], out, scores=["magic"])

    less = write(tmp_path / "less", {"clean": rows("clean", needed("clean"))})
    with pytest.raises(ValueError, match="less has the conditions clean, and"):
        make_noise_report([*runs, less], out)
    few = write(
        tmp_path / "few", {k: rows(k, needed(k))[1:] for k in CONDITIONS}
    )
    with pytest.raises(
        ValueError, match="few and .* not .* the same utterances"
    ):
        make_noise_report([*runs, few], out)
    longer = write(
        tmp_path / "longer",
        {k: rows(k, needed(k)).assign(ref_len=2) for k in CONDITIONS},
    )
    with pytest.raises(ValueError, match="longer and .* other lengths"):
        make_noise_report([*runs, longer], out)
    seeds = [fixed_run(tmp_path / f"s{k}" / "1", k) for k in EXITS[:2]]
    with pytest.raises(ValueError, match="give the same of each seed"):
        make_noise_report([*runs, *seeds], out)


def test_traces_that_tell_no_ratio_are_refused(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    table = rows("clean", needed("clean"))
    table.drop(columns="snr").to_csv(run / "traces_test.csv", index=False)
    with pytest.raises(ValueError, match="no traces of any set tell a signal"):
        make_noise_report([run], tmp_path / "out")
    table.assign(snr="loud").to_csv(run / "traces_test.csv", index=False)
    with pytest.raises(ValueError, match="snr in traces_test.csv is 'loud'"):
        make_noise_report([run], tmp_path / "out")
    table.drop(columns="errors").to_csv(run / "traces_test.csv", index=False)
    with pytest.raises(ValueError, match="traces_test.csv lacks errors"):
        make_noise_report([run], tmp_path / "out")


def test_the_command_writes_and_tells_where(tmp_path, capsys):
    run = early_exit_run(tmp_path / "model" / "1", name="test-clean")
    out = tmp_path / "out"
    command = ["noise", str(run), "--out", str(out), "--set", "test-clean"]
    assert main([*command, "--rule", "entropy=0.5", "--score", "margin"]) == 0
    assert capsys.readouterr().out.strip() == str(out / "noise.html")
    table = pd.read_csv(out / "noise.csv")
    names = set(table[table["kind"] == "rule"]["rule"])
    assert "entropy ≤ 0.5" in names and len(names) == 2
    for wrong, told in (
        (["--rule", "entropy"], "--rule entropy: write SCORE=THRESHOLD"),
        (["--rule", "entropy=low"], "could not convert string to float"),
        (["--set", "dev"], "no traces of the set dev tell"),
    ):
        assert main([*command, *wrong]) == 2
        assert told in capsys.readouterr().err
