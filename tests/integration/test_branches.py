"""Every YAML of branches runs from end to end."""

import json
import re
import shutil
from math import log

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from speechbrain_ee.encoders.huggingface import HuggingFaceEncoder
from speechbrain_ee.heads import ClusterHead, load_branches
from tests.integration.recipes import (
    DEBUG,
    ROWS,
    check,
    flags,
    missing_files,
    name,
    run,
)

BRANCHES = [row for row in ROWS if row["Task"] == "Branches"]
HEAD = "hubert-with-head"


def given(row, flag):
    """The value of a flag of a row, if it is given."""
    return next((x.split("=")[1] for x in flags(row) if flag in x), None)


def label(row):
    """The YAML of a row, with its targets."""
    return f"{name(row)}-{given(row, '--targets=') or 'default'}"


@pytest.fixture(scope="module")
def with_head(corpora):
    """A model with its cluster head, as ``pretrain_hubert.py`` writes it."""
    folder = corpora / "models" / HEAD
    shutil.copytree(corpora / "models" / "hubert", folder)
    torch.manual_seed(0)
    weights = ClusterHead(16, 7, proj_size=8).state_dict()
    save_file(weights, folder / "cluster_head.safetensors")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("row", BRANCHES, ids=label)
def test_the_recipe_runs_from_end_to_end(row, corpora, with_head, tmp_path):
    learns = given(row, "--number_of_epochs=") is not None
    check(run(row, corpora, tmp_path, *(() if learns else DEBUG)))
    assert missing_files(row, tmp_path) == []

    # The upstream is frozen, and is not stored with every checkpoint.
    checkpoint, *_ = (tmp_path / "save").glob("CKPT*")
    stored = {file.stem for file in checkpoint.glob("*.ckpt")}
    assert "branches" in stored and "upstream" not in stored

    source = re.search(r"source: ([^}]*)", row["test_debug_flags"])[1]
    source = source.replace("tests/tmp", str(corpora))
    upstream = HuggingFaceEncoder(source, freeze=True)
    branches = load_branches(tmp_path / "branches", upstream)
    exits = json.loads(given(row, "--exit_layers=") or "[1, 2, 3, 4]")
    clusters = int(given(row, "--num_clusters=") or 7)
    assert branches.exit_layers == exits
    assert branches.num_clusters == clusters

    facts = json.loads((tmp_path / "branches" / "branches.json").read_text())
    report = (tmp_path / "report.md").read_text()
    for part in ("train", "valid"):
        table = pd.read_csv(tmp_path / f"branches_{part}.csv")
        assert table["layer"].tolist() == exits
        assert facts[part]["mean_entropy"] == pytest.approx(
            table["mean_entropy"].tolist()
        )
        assert table["mean_entropy"].between(0, log(clusters)).all()
        assert f"## {part}" in report
    if learns:
        assert facts["train"]["utterances"] == 6 and facts["utterances"] == 17
        text = (tmp_path / "train_log.txt").read_text()
        found = re.findall(r"train loss: ([\d.e+-]+)", text)
        losses = [float(x) for x in found]
        assert len(losses) == 4 and losses[-1] < losses[0]
