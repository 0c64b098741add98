"""The table of upstreams and interfaces over tasks, and the SUPERB score."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from ruamel.yaml import YAML

from speechbrain_ee.analysis.runs import describe_downstream
from speechbrain_ee.analysis.superb import (
    ML_SUPERB,
    SETTINGS,
    make_superb_table,
    published_figures,
    superb_scores,
)
from speechbrain_ee.cli import main

BLOCKS = Path(__file__).parents[3] / "hparams"
HUBERT = """!new:speechbrain_ee.encoders.huggingface.HuggingFaceEncoder
    source: facebook/hubert-base-ls960"""
FBANK = "!new:speechbrain_ee.encoders.FilterbankEncoder"
WS, HCONV = (
    f"!name:speechbrain_ee.interfaces.{name}"
    for name in ("WeightedSum", "HierarchicalConv")
)


def write_run(folder, rows, task="monolingual", upstream=HUBERT, interface=WS):
    """A run that has these results; its settings follow ``task``."""
    folder.mkdir(parents=True)
    setting = f"upstream: {upstream}\ninterface: {interface}\ntask: {task}\n"
    (folder / "hyperparams.yaml").write_text(setting)
    columns = ["metric", "group", "value", "low", "high"]
    table = pd.DataFrame(rows, columns=columns)
    table.to_csv(folder / "results_test.csv", index=False)
    return folder


def error(value, metric="CER", group="normal"):
    return [(metric, group, value, value - 1, value + 1)]


def mono(folder, language, value, seed=1, **more):
    task = f"monolingual\nduration: 1h\nlanguage: {language}\nseed: {seed}"
    return write_run(folder, error(value), task, **more)


def read(folder):
    table = pd.read_csv(folder / "superb.csv")
    return table.set_index(["upstream", "interface", "figure"])


def test_the_score_is_that_of_published_models():
    """10 minutes; FBANK as remembered from arXiv 2305.10615, not looked up."""
    figures = pd.DataFrame(
        {
            "FBANK": [72.1, 62.4, 58.3, 11.1, 35.9, 62.0, 58.9],
            "MMS-1B": [33.3, 21.3, 30.2, 84.8, 73.3, 26.0, 25.4],
            "mHuBERT-147": [34.2, 23.6, 33.2, 85.3, 81.4, 26.2, 34.9],
            "XLS-R-300M": [39.7, 29.2, 40.9, 66.9, 55.6, 28.4, 42.1],
        },
        index=[column.name for column in ML_SUPERB],
    ).T
    scores = superb_scores(
        figures,
        {column.name: column.task for column in ML_SUPERB},
        [column.name for column in ML_SUPERB if column.higher_is_better],
        "FBANK",
    )
    assert scores.round(1).to_dict() == {
        "FBANK": 0,
        "MMS-1B": 983.5,
        "mHuBERT-147": 949.8,
        "XLS-R-300M": 730.8,
    }


@pytest.mark.parametrize(
    ("rows", "fault"),
    [
        ({"A": [20, 5]}, "filterbank features: add runs with --upstream fbank"),
        ({"FBANK": [60, np.nan], "A": [20, 5]}, "needs LID of FBANK"),
        ({"FBANK": [60, 7]}, "needs CER, LID of any other model"),
        ({"FBANK": [60, 9], "A": [20, 5]}, "better than FBANK in LID"),
    ],
)
def test_a_score_that_cannot_be_is_refused(rows, fault):
    figures = pd.DataFrame.from_dict(
        rows, orient="index", columns=["CER", "LID"]
    )
    with pytest.raises(ValueError, match=fault):
        superb_scores(figures, {"CER": "asr", "LID": "lid"}, ["LID"], "FBANK")


def test_the_papers_table_is_whole():
    table = published_figures()
    assert len(table) == 15
    assert table.notna().all(axis=None)
    indexed = table.set_index(["upstream", "interface"])
    assert indexed.loc[("XLSR-53", "CLS")].tolist() == [
        *(31.0, 80.7, 4.5, 65.10, 99.47, 12.95, 5.27)
    ]
    published = {x.published for x in ML_SUPERB} - {""}
    assert published <= set(table.columns)


def test_settings_are_averaged_within_their_language_first(tmp_path):
    values = {"eng1": 10, "eng2": 20, "eng3": 30, "rus": 60}
    runs = [mono(tmp_path / k, k, value) for k, value in values.items()]
    runs.append(mono(tmp_path / "again", "rus", 80, seed=2))
    make_superb_table(runs, tmp_path / "out")
    row = read(tmp_path / "out").loc[("HuBERT-Base", "WS", "mono")]
    assert row["value"] == ((10 + 20 + 30) / 3 + (60 + 80) / 2) / 2
    assert row["runs"] == 5 and np.isnan(row["low"])
    assert row["settings"] == "eng1 eng2 eng3 rus"
    assert row["published"] == 35.1
    text = (tmp_path / "out" / "superb.md").read_text()
    assert "45.0 (5 runs)" in text and "| 35.1 |" in text
    assert "of eng1 eng2 eng3 rus only, and not of all 13" in text
    assert len(SETTINGS) == 13


def test_ours_stand_beside_the_papers_with_the_score(tmp_path):
    runs = []
    for name, upstream, cer, lid in (
        ("fbank", FBANK, 60.0, 10.0),
        ("hubert", HUBERT, 30.0, 80.0),
    ):
        folder = tmp_path / name
        rows = error(cer, group="normal, pooled")
        rows += error(2 * cer, group="few-shot, pooled")
        task = "multilingual\nduration: 1h"
        runs.append(write_run(folder / "multi", rows, task, upstream))
        rows = error(lid, "LID accuracy", "normal, pooled")
        task = "lid\nduration: 1h"
        runs.append(write_run(folder / "lid", rows, task, upstream))
    page = make_superb_table(runs, tmp_path / "out")
    table = read(tmp_path / "out")
    assert table.loc[("FBANK", "WS", "multi few-shot"), "value"] == 120
    row = table.loc[("HuBERT-Base", "WS", "LID")]
    assert row[["value", "low", "high", "published"]].tolist() == [
        *(80, 79, 81, 84.6)
    ]
    text = (tmp_path / "out" / "superb.md").read_text()
    assert "80.0 [79.0, 81.0]" in text and "| 1000.0 |" in text
    assert "Its tasks here: multilingual, lid." in text
    assert "SUPERB score" in page.read_text()


def test_without_filterbanks_there_is_a_table_and_no_score(tmp_path, capsys):
    run = mono(tmp_path / "run", "eng1", 30)
    assert main(["superb", str(run), "--out", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.strip().endswith("superb.html")
    text = (tmp_path / "out" / "superb.md").read_text()
    assert "No SUPERB score: the SUPERB score is measured from" in text


def test_a_score_over_other_settings_is_refused(tmp_path):
    runs = [
        mono(tmp_path / "a", "eng1", 30),
        mono(tmp_path / "b", "rus", 60, upstream=FBANK),
    ]
    make_superb_table(runs, tmp_path / "out")
    text = (tmp_path / "out" / "superb.md").read_text()
    assert "other settings for one model than for another: eng1 / rus" in text


def test_a_classification_is_named_on_the_command_line(tmp_path, capsys):
    run = write_run(
        tmp_path / "run", error(97.0, "accuracy", "all"), "classification"
    )
    out = ["--out", str(tmp_path / "out")]
    assert main(["superb", str(run), *out]) == 2
    assert "--task run=IC" in capsys.readouterr().err
    assert main(["superb", str(run), "--task", "run=IC", *out]) == 0
    row = read(tmp_path / "out").loc[("HuBERT-Base", "WS", "IC")]
    assert (row["value"], row["published"]) == (97.0, 98.34)
    assert main(["superb", str(run), "--task", "other=IC", *out]) == 2
    assert "no run other; there are run" in capsys.readouterr().err


def test_folders_that_are_no_such_runs_are_refused(tmp_path):
    with pytest.raises(ValueError, match="there is no .*hyperparams.yaml"):
        make_superb_table([tmp_path], tmp_path / "out")
    run = mono(tmp_path / "run", "eng1", 30)
    (run / "results_test.csv").unlink()
    with pytest.raises(FileNotFoundError, match="no results at all: choose"):
        make_superb_table([run], tmp_path / "out")
    (run / "hyperparams.yaml").write_text("encoder: 1\n")
    with pytest.raises(ValueError, match="no upstream, interface, task"):
        make_superb_table([run], tmp_path / "out")


@pytest.mark.parametrize(
    "block",
    sorted((BLOCKS / "interfaces").glob("*.yaml")),
    ids=lambda b: b.stem,
)
def test_a_block_of_interfaces_has_a_plain_name(block, tmp_path):
    design = YAML().load(block)
    lines = [f"    {key}: {value}" for key, value in design.items()]
    tag = "\n".join([design.tag.value, *lines])
    run = mono(tmp_path / "run", "eng1", 30, interface=tag)
    assert "," not in describe_downstream(run).interface


@pytest.mark.parametrize(
    "block", sorted((BLOCKS / "upstreams").glob("*.yaml")), ids=lambda b: b.stem
)
def test_a_block_of_upstreams_has_the_papers_name(block, tmp_path):
    model = YAML().load(block)
    source = f"\n    source: {model['source']}" if "source" in model else ""
    tag = f"{model.tag.value}{source}"
    run = mono(tmp_path / "run", "eng1", 30, upstream=tag)
    name = describe_downstream(run).upstream
    assert name != str(model.get("source", "")).rpartition("/")[2] or (
        name == "mHuBERT-147"
    )


@pytest.mark.parametrize(
    ("exits", "told"),
    [
        ("null", "WS"),
        ("{}", "WS"),
        ("!new:speechbrain_ee.exits.NeverLeave", "WS"),
        ("{selector: fixed, layer: 6}", "WS, fixed layer 6"),
        (
            "!new:speechbrain_ee.exits.FixedLayer\n    layer: 6",
            "WS, fixed layer 6",
        ),
        (
            "!new:speechbrain_ee.exits.BranchExits\n"
            "    score: entropy\n    scale: 0.9\n    of: all\n"
            "    window: average",
            "WS, DAISY scale 0.9 window average",
        ),
        (
            "{threshold: 0.5, score: margin}",
            "WS, DAISY threshold 0.5 score margin",
        ),
    ],
)
def test_exits_are_another_model(exits, told, tmp_path):
    run = write_run(tmp_path / "run", error(30), f"lid\nexits: {exits}")
    assert describe_downstream(run).interface == told


def test_a_larger_downstream_is_another_model(tmp_path):
    larger = "monolingual\nd_ffn: 5337"
    run = write_run(tmp_path / "run", error(30), larger, interface=HCONV)
    assert describe_downstream(run).interface == "HConv, d_ffn 5337"
