"""Tests of the script that measures DAISY on real speech."""

import numpy as np
import pandas as pd
import pytest
from ruamel.yaml import YAML

from speechbrain_ee.exits import BranchExits, FixedLayer, RandomExit, get_exits
from tests.unit.recipes.scripts import load_script

SCRIPT = load_script("recipes/SUPERB/run_daisy.py")
TASK = "drinks"
IDS = [f"{i:02d}" for i in range(30)]  # read back, they would be numbers


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Runs with fixed exits, of which branches know who will be wrong."""
    for name in ("RESULTS", "KEPT"):
        folder = tmp_path / name
        monkeypatch.setitem(SCRIPT["folder_of"].__globals__, name, folder)
        (folder / TASK).mkdir(parents=True)
    generator = np.random.default_rng(0)
    entropy = generator.random(30)
    for layer in SCRIPT["FEW"]:
        folder = SCRIPT["folder_of"]((TASK, f"fixed_{layer}", 1234))
        folder.mkdir(parents=True)
        for name, snr in (("test_clean", "clean"), ("test_snr0", "0")):
            errors = (entropy > 0.5) if layer == 12 else np.arange(30) % 2
            traces = {"id": IDS, "exit_layer": layer, "hyp": "A", "ref": "B"}
            traces |= {"errors": errors.astype(int), "ref_len": 1, "snr": snr}
            pd.DataFrame(traces).to_csv(
                folder / f"traces_{name}.csv", index=False
            )
            scores = {"id": np.repeat(IDS, 12)}
            scores |= {"exit_layer": np.tile(range(1, 13), 30)}
            scores |= {"entropy": np.repeat(entropy, 12)}
            pd.DataFrame(scores).to_csv(
                folder / f"branch_scores_{name}.csv", index=False
            )
    return tmp_path


@pytest.mark.parametrize("task", SCRIPT["TASKS"])
def test_exits_are_those_that_their_names_tell(task):
    for name, text in SCRIPT["exits_of"](task).items():
        kind, value = name.split("_")
        exits = get_exits(YAML(typ="safe").load(text))
        if kind == "fixed":
            assert isinstance(exits, FixedLayer) and exits.layer == int(value)
        elif kind == "random":
            assert isinstance(exits, RandomExit)
        else:
            assert isinstance(exits, BranchExits)
            assert exits.scale == float(value)


def test_entropy_that_tells_errors_is_found(folders):
    table = SCRIPT["correlate"](TASK, [1234])
    assert table["condition"].unique().tolist() == ["clean", "0", "all"]
    at = table.set_index(["condition", "exit_layer"])
    for condition in ("clean", "0", "all"):
        for layer in (12, "mean of all"):
            assert at.loc[(condition, layer), "low"] > 0.5
        other = at.loc[(condition, 6)]
        assert other["low"] < 0 < other["high"]


def test_what_is_kept_can_be_put_back(folders):
    runs = [(TASK, f"fixed_{k}", 1234) for k in SCRIPT["FEW"]]
    SCRIPT["keep"](TASK, runs)
    before = SCRIPT["correlate"](TASK, [1234])
    (folders / "RESULTS").rename(folders / "lost")
    assert SCRIPT["restore"](TASK) == set(runs)
    pd.testing.assert_frame_equal(SCRIPT["correlate"](TASK, [1234]), before)
    traces = pd.read_csv(
        SCRIPT["folder_of"](runs[0]) / "traces_test_snr0.csv", dtype=str
    )
    assert traces["id"].tolist() == IDS and set(traces["snr"]) == {"0"}


def test_daisy_is_compared_on_the_same_utterances(folders, monkeypatch):
    exits = {"daisy_1.0": "", "random_6.7": ""}
    monkeypatch.setitem(
        SCRIPT["compare"].__globals__, "exits_of", lambda task: exits
    )
    fixed = SCRIPT["folder_of"]((TASK, "fixed_12", 1234))
    for name, wrong in ("daisy_1.0", 0), ("random_6.7", 1):
        folder = SCRIPT["folder_of"]((TASK, name, 1234))
        folder.mkdir(parents=True)
        for path in fixed.glob("traces_*.csv"):
            table = pd.read_csv(path, dtype=str)
            table["errors"] = wrong
            # The order of utterances is no matter.
            table[:: 1 - 2 * wrong].to_csv(folder / path.name, index=False)
    table = SCRIPT["compare"](TASK, [1234])
    assert table["condition"].tolist() == ["clean", "snr0"]
    assert (table[["difference", "low", "high"]] == -100).all(axis=None)
