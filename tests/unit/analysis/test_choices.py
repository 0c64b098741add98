"""What gates choose: layers, masks, and whether the input matters."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import mutual_info_score

from speechbrain_ee.analysis.choices import (
    count_masks,
    dependence,
    grouping_columns,
    kept_layers,
    one_for_all,
    read_choices,
)
from speechbrain_ee.cli import main

UTTERANCES, SNRS = 24, ("clean", "20", "0")


def write_gates(folder, chooser, gate="input_conditioned", name="test"):
    """A run whose gate is a function of utterance and condition."""
    folder.mkdir(parents=True, exist_ok=True)
    for snr in SNRS:
        end = "clean" if snr == "clean" else f"snr{snr}"
        rows = []
        for k in range(UTTERANCES):
            mask = chooser(k, snr)
            ref = {"hyp": "A", "ref": "A B", "errors": 1, "ref_len": 2}
            rows.append(
                {
                    "id": f"u{k}" if snr == "clean" else f"u{k}_{end}",
                    "gate": gate,
                    "target_layers": 2,
                    "exit_layer": len(mask),
                    "layers_run": mask.count("1"),
                    "layers": mask,
                    **ref,
                    "frames": 10 + k,
                    "macs": 1e9,
                    "seconds": 0.1,
                    "speaker": f"s{k % 3}",
                }
            )
        path = folder / f"gates_{name}_{end}.csv"
        pd.DataFrame(rows).to_csv(path, index=False)
    return folder


def test_a_choice_by_noise_is_told_from_one_by_length(tmp_path):
    by_noise = write_gates(
        tmp_path / "noise", lambda k, snr: "011" if snr == "0" else "110"
    )
    table = read_choices(by_noise)
    assert grouping_columns(table) == ["snr", "length", "speaker"]
    found = dependence(table, ["snr", "length"]).set_index("by")
    snr, length = found.loc["snr"], found.loc["length"]
    entropy = np.log2(3) - 2 / 3  # of a third against two
    assert snr["bits"] == pytest.approx(entropy) == snr["most_bits"]
    assert snr["p_value"] == 0.001 and snr["chance_bits"] < 0.1
    assert length["bits"] == pytest.approx(0) and length["p_value"] == 1.0

    by_length = write_gates(
        tmp_path / "length", lambda k, snr: "011" if k < 12 else "110"
    )
    table = read_choices(by_length, "test")
    found = dependence(table, ["snr", "length"]).set_index("by")
    assert found.loc["length", "bits"] == pytest.approx(1)
    assert found.loc["length", "p_value"] == 0.001
    assert found.loc["snr", "p_value"] == 1.0


def test_the_estimate_is_scikit_learns_and_chance_is_no_finding(tmp_path):
    rng = np.random.default_rng(0)
    masks = rng.choice(["110", "101", "011"], size=UTTERANCES)
    run = write_gates(tmp_path, lambda k, snr: str(masks[k]))
    table = read_choices(run)
    found = dependence(table, ["length"]).loc[0]
    bits = mutual_info_score(table["layers"], table["length"]) / np.log(2)
    assert found["bits"] == pytest.approx(bits) and bits > 0.1
    # As rows, each of which comes thrice, this would be beyond doubt.
    assert found["p_value"] > 0.05
    assert found["chance_bits"] > 0.1


def test_shares_and_masks(tmp_path):
    run = write_gates(tmp_path, lambda k, snr: "110" if k % 2 else "011")
    table = read_choices(run)
    shares = kept_layers(table, ["snr"])
    whole = shares[shares["by"] == "all"]
    assert whole["share"].tolist() == [0.5, 1.0, 0.5]
    assert whole["utterances"].unique().tolist() == [3 * UTTERANCES]
    assert set(shares.loc[shares["by"] == "snr", "group"]) == set(SNRS)
    masks = count_masks(table)
    assert masks["masks"].item() == 2 and masks["commonest_share"].item() == 0.5
    assert one_for_all(masks) == []


def test_a_gate_that_never_chooses_is_warned_of(tmp_path):
    for gate, count in {"input_conditioned": 1, "greedy": 0}.items():
        run = write_gates(tmp_path / gate, lambda k, snr: "110", gate)
        warnings = one_for_all(count_masks(read_choices(run)))
        assert len(warnings) == count
        page = tmp_path / f"{gate}_report"
        assert main(["gates", str(run), "--out", str(page)]) == 0
        text = (page / "gates.md").read_text()
        assert text.count("Warning: ") == count


def test_the_command_writes_tables_and_pictures(tmp_path, capsys):
    runs = [
        write_gates(tmp_path / "one", lambda k, snr: "110"),
        write_gates(tmp_path / "two", lambda k, snr: ("110", "011")[k % 2]),
    ]
    out = tmp_path / "report"
    assert main(["gates", *map(str, runs), "--out", str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out / "gates.html")
    for name in ("layers", "masks", "dependence"):
        table = pd.read_csv(out / f"{name}.csv", dtype={"commonest": str})
        assert set(table["run"]) == {"one", "two"}
    pictures = {path.name for path in out.glob("*.png")}
    assert pictures == {
        *("run1_layers.png", "run2_layers.png", "run2_by_snr.png"),
        *("run2_by_length.png", "run2_by_speaker.png"),
    }


def test_what_is_missing_is_named(tmp_path, capsys):
    assert main(["gates", str(tmp_path)]) == 2
    assert "eval_gates" in capsys.readouterr().err
    run = write_gates(tmp_path / "run", lambda k, snr: "110")
    assert main(["gates", str(run), "--set", "dev"]) == 2
    assert "it has those of test" in capsys.readouterr().err
    path = run / "gates_test_clean.csv"
    pd.read_csv(path).drop(columns="frames").to_csv(path, index=False)
    assert main(["gates", str(run)]) == 2
    assert "the column frames is missing" in capsys.readouterr().err
