"""Every YAML of a task model behind an upstream runs from end to end."""

import json

import pandas as pd
import pytest
from ruamel.yaml import YAML

from tests.integration.recipes import (
    DEBUG,
    DOWNSTREAMS,
    check,
    flags,
    missing_files,
    name,
    run,
)

# What is told of tasks that have no error rate.
FIGURES = {
    "Downstream-Enhancement": ("pesq", "stoi", "si_sdri", "pesq_failed"),
    "Downstream-Separation": ("si_sdr", "si_sdri"),
}


def label(row):
    """The YAML of a row, with its interface and exits."""
    told = ("--interface", "--exits", "--gate=")
    blocks = [x for x in flags(row) if x.startswith(told)]
    return "-".join([name(row), *(x.split("=")[1] for x in blocks)])


@pytest.mark.slow
@pytest.mark.parametrize("row", DOWNSTREAMS, ids=label)
def test_the_recipe_runs_from_end_to_end(row, corpora, tmp_path):
    check(run(row, corpora, tmp_path, *DEBUG))
    assert missing_files(row, tmp_path) == []
    log = (tmp_path / "train_log.txt").read_text()
    verifies = row["Task"] == "Downstream-Verification"
    figures = FIGURES.get(row["Task"], ("error_rate",))
    for figure in figures:
        assert f"valid {figure}: " in log
        assert verifies or f"test {figure}: " in log
    assert not verifies or "test EER: " in log

    # A frozen upstream is not stored with every checkpoint.
    checkpoint, *_ = (tmp_path / "save").glob("CKPT*")
    stored = {file.stem for file in checkpoint.glob("*.ckpt")}
    assert stored >= {"interface", "downstream"}
    assert ("upstream" in stored) == (
        "freeze: False" in row["test_debug_flags"]
    )

    settings = YAML().load(tmp_path / "hyperparams.yaml")
    # One of each set, which is in noise if there is some.
    snrs = settings.get("test_snrs") if settings.get("noise_folder") else [0]
    files = sorted(tmp_path.glob("results_*.csv"))
    exits = [x.split("=")[1] for x in flags(row) if x.startswith("--exits=")]
    assert len(files) == len(snrs)
    for file in files:
        if verifies:
            name = file.name.replace("results", "trials")
            trials = pd.read_csv(tmp_path / name)
            assert set(trials["label"]) == {0, 1}
            assert trials["score"].between(-1.001, 1.001).all()
        else:
            traces = pd.read_csv(
                tmp_path / file.name.replace("results", "traces"),
                keep_default_na=False,
            )
            if row["Task"] in FIGURES:
                assert set(figures) <= set(traces)
            assert {"errors", "ref_len", *settings["groups"]} <= set(traces)
            assert traces["id"].is_unique and traces["ref_len"].gt(0).all()
            if settings.get("noise_folder"):
                level = file.stem.rpartition("_")[2].removeprefix("snr")
                assert set(traces["snr"].astype(str)) == {level}
        results = pd.read_csv(file)
        if settings.get("gate"):
            check_gates(tmp_path, settings, file.stem.partition("_")[2])
        if exits:
            check_exits(exits[0], tmp_path, file.stem.partition("_")[2])
        assert results[["value", "low", "high"]].notna().all(axis=None)
        report = (tmp_path / "report.md").read_text()
        for one in results.itertuples():
            assert f"| {one.metric} | {one.group} | {one.value:.2f} |" in report


def check_gates(folder, settings, name):
    """Each gate is judged at each target that it serves."""
    texts = {"id": str, "layers": str}
    table = pd.read_csv(folder / f"gates_{name}.csv", dtype=texts)
    assert (table["layers"].str.count("1") == table["layers_run"]).all()
    served = table[~table["gate"].isin(["all", "fixed"])]
    if len(served):
        assert set(served["target_layers"]) == set(settings["target_layers"])
        off = served["layers_run"] - served["target_layers"]
        assert (off.abs() < 1).all()
    assert (table[["macs", "seconds", "frames"]] > 0).all(axis=None)
    curve = pd.read_csv(folder / f"curve_{name}.csv")
    kinds = ["gate", "target_layers"]
    assert len(curve) == len(table[kinds].drop_duplicates())
    assert "## Layers chosen by gates" in (folder / "report.md").read_text()


def check_exits(block, folder, name):
    """Where utterances of a set left, told in the same way everywhere."""
    results = pd.read_csv(folder / f"results_{name}.csv")
    left = results.set_index("metric")["value"]
    assert 1 <= left["mean exit layer"] <= 6
    assert left[["left at layer (%)"]].sum() == pytest.approx(100)
    traces = folder / f"traces_{name}.csv"
    if traces.is_file():
        traces = pd.read_csv(traces)
        mean = traces["exit_layer"].mean()
        assert left["mean exit layer"] == pytest.approx(mean)
    if not block.startswith("daisy"):
        return
    told = json.loads((folder / "exits.json").read_text())
    (checkpoint, *_) = (folder / "save").glob("CKPT*")
    assert json.loads((checkpoint / "exits.ckpt").read_text()) == told
    counts = told["training_exits"]
    assert sum(counts.values()) == told["utterances"] > 0
    scores = pd.read_csv(folder / f"branch_scores_{name}.csv")
    assert scores["exit_layer"].unique().tolist() == [*range(1, 7)]
    assert scores[["entropy", "max_probability", "margin"]].notna().all().all()
    if isinstance(traces, pd.DataFrame):
        keys = ["id", "exit_layer"]
        both = traces.merge(scores, on=keys, validate="1:1")
        assert len(both) == len(traces)
        assert both["branch_entropy"].to_numpy() == pytest.approx(
            both["entropy"].to_numpy(), abs=1e-3
        )
