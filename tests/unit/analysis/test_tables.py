"""Tables of runs: the paper's figures, ours, and what stands beside what."""

import re

import pandas as pd
import pytest

from speechbrain_ee.analysis import tables
from speechbrain_ee.analysis.tables import make_tables, published_rates
from speechbrain_ee.analysis.traces import read_traces
from tests.unit.analysis.synthetic import write_run

LAYERS = (2, 4, 6)
CLEAN = ("LibriSpeech", "test-clean")
HYPERPARAMS = """\
seed: {seed}
train_splits: [{split}]
encoder: !new:speechbrain_ee.encoders.huggingface.HuggingFaceEncoder
    source: {source}
brain: !name:speechbrain_ee.brains.EarlyExitCTC
"""


@pytest.fixture(autouse=True)
def forty_utterances(monkeypatch):
    monkeypatch.setitem(tables._UTTERANCES, CLEAN, 40)


@pytest.fixture
def make(tmp_path):
    def make_run(
        path, seed=1, source="facebook/wav2vec2-base", split="train", **traces
    ):
        traces = {"name": "test-clean", "layers": LAYERS, **traces}
        folder = write_run(tmp_path / path, seed=seed, **traces)
        (folder / "hyperparams.yaml").write_text(
            HYPERPARAMS.format(seed=seed, source=source, split=split)
        )
        return folder

    return make_run


def rates(folder, layer, name="test-clean"):
    table = pd.read_csv(folder / f"traces_{name}.csv")
    rows = table[table["exit_layer"] == layer]
    return 100 * rows["errors"].sum() / rows["ref_len"].sum()


def cells(out):
    """The first table of tables.md: column heading to cells."""
    lines = (out / "tables.md").read_text(encoding="utf-8").splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("| exit"))
    rows = []
    for line in lines[first:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split(" | ")])
    heads, _, *body = rows
    return {h: list(c) for h, c in zip(heads, zip(*body), strict=True)}


@pytest.mark.parametrize(
    ("set_name", "model", "exits", "layers", "expected"),
    [
        (
            *("test-clean", "Conformer-CTC", "single"),
            *([2, 4, 6, 12], [17.6, 9.8, 7.6, 6.5]),
        ),
        (
            *("test-other", "Conformer-AED", "early"),
            *([2, 4, 6, 8, 10, 12], [40.1, 25.2, 17.1, 11.5, 6.9, 6.0]),
        ),
        ("test-other", "Wav2Vec2-CTC", "single", [12], [8.6]),
        ("test-clean", "WavLM-CTC", "single", [2, 4, 12], [28.2, 12.9, 3.0]),
        ("TED-LIUM", "Conformer-CTC", "single", [4, 12], [35.4, 16.4]),
        ("VoxPopuli", "Conformer-CTC", "early", [2, 10], [36.7, 14.7]),
    ],
)
def test_published_figures_are_the_papers(
    set_name, model, exits, layers, expected
):
    table = published_rates()
    rows = table[
        ((table["set"] == set_name) | (table["corpus"] == set_name))
        & (table["model"] == model)
        & (table["exits"] == exits)
    ].set_index("exit_layer")["error_rate"]
    assert rows[layers].tolist() == expected
    if len(layers) > 2:
        assert rows.index.tolist() == layers


def test_published_figures_are_complete_and_say_their_table():
    table = published_rates()
    sizes = table.groupby(["source", "corpus", "set"]).size()
    assert sizes.to_dict() == {
        ("Table 2", "LibriSpeech", "test-clean"): 39,
        ("Table 2", "LibriSpeech", "test-other"): 39,
        ("Table 3", "TED-LIUM", "test"): 10,
        ("Table 3", "VoxPopuli", "test"): 10,
    }
    keys = ["corpus", "set", "model", "exits", "exit_layer"]
    assert not table.duplicated(keys).any()


def test_ours_stand_beside_the_papers_and_what_is_missing_is_a_dash(
    make, tmp_path
):
    early, single = make("early"), make("single", layers=(4,))
    out = tmp_path / "out"
    page = make_tables([early, single], out).read_text(encoding="utf-8")
    table = cells(out)
    assert table["exit"] == ["2", "4", "6", "8", "10", "12"]
    ours = table["Wav2Vec2-CTC, early exits, ours"]
    assert ours[3:] == ["–"] * 3
    for layer, cell in zip(LAYERS, ours):
        assert cell.startswith(f"{rates(early, layer):.1f} [")
    singles = table["Wav2Vec2-CTC, single exit, ours"]
    assert singles[0] == "–" and singles[1][0] != "–"
    paper = table["Wav2Vec2-CTC, single exit, paper"]
    assert paper[:5] == ["35.7", "17.4", "10.7", "–", "–"]
    # A mark leads from the public model's cell to its note.
    assert paper[5][:-1] == "3.4"
    assert f"{paper[5][-1]} By the released results" in page
    assert "Conformer-AED" in page
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    assert (out / "rules_test-clean.png").stat().st_size > 10_000
    # No further heading than there are columns in the body.
    heads, body = re.search(
        r"<thead>(.*?)</thead>\s*<tbody>\s*<tr>(.*?)</tr>", page, re.S
    ).groups()
    for row in re.findall(r"<tr>(.*?)</tr>", heads):
        spans = re.findall(r'<th(?: class="group" colspan="(\d+)")?>', row)
        assert sum(int(x or 1) for x in spans) == body.count("<td>")


def test_csv_holds_the_papers_figures_and_ours_with_intervals(make, tmp_path):
    run = make("early")
    make_tables([run], tmp_path / "out")
    table = pd.read_csv(tmp_path / "out" / "tables.csv")
    row = table[
        (table["model"] == "Wav2Vec2-CTC")
        & (table["exits"] == "early")
        & (table["exit_layer"] == 4)
    ].squeeze()
    assert (row["published"], row["source"]) == (17.4, "Table 2")
    assert row["error_rate"] == pytest.approx(rates(run, 4), abs=1e-4)
    assert row["low"] < row["error_rate"] < row["high"]
    rules = pd.read_csv(tmp_path / "out" / "rules.csv")
    assert rules.groupby("score").size().to_dict() == {"entropy": 200}
    assert rules["error_rate"].iloc[-1] == pytest.approx(
        rates(run, 6), abs=1e-4
    )


def test_another_set_of_the_same_name_has_no_published_figures(make, tmp_path):
    make_tables([make("early", utterances=39)], tmp_path / "out")
    text = (tmp_path / "out" / "tables.md").read_text(encoding="utf-8")
    assert "- These are 39 utterances" in text
    assert list(cells(tmp_path / "out")) == [
        "exit",
        "Wav2Vec2-CTC, early exits",
    ]
    assert (
        pd.read_csv(tmp_path / "out" / "tables.csv")["published"].isna().all()
    )


def test_a_few_utterances_less_are_told(make, tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "_ENOUGH", 0.9)
    make_tables([make("early", utterances=39)], tmp_path / "out")
    text = (tmp_path / "out" / "tables.md").read_text(encoding="utf-8")
    assert "- 39 of the set's 40 utterances." in text and "| 33.7 |" in text


def test_seeds_are_averaged_with_their_range(make, tmp_path):
    # The same utterances in another order.
    runs = [make(f"early/{seed}", seed=seed) for seed in (1, 2, 3)]
    path = runs[1] / "traces_test-clean.csv"
    pd.read_csv(path).iloc[::-1].to_csv(path, index=False)
    out = tmp_path / "out"
    make_tables(runs, out)
    each = [rates(run, 4) for run in runs]
    cell = cells(out)["Wav2Vec2-CTC, early exits, ours"][1]
    assert cell.startswith(f"{sum(each) / 3:.1f} [")
    assert cell.endswith(f"({min(each):.1f}–{max(each):.1f})")
    row = pd.read_csv(out / "tables.csv").query("seeds == 3").iloc[1]
    assert row["low"] < row["error_rate"] < row["high"]


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({}, r"have the same seed \(1\).*--model b/1=NAME"),
        ({"split": "more"}, "differ in train_splits"),
        ({"layers": (2, 6)}, "differ in exit layers"),
    ],
)
def test_runs_that_are_no_seeds_of_one_model_are_not_averaged(
    changed, told, make, tmp_path
):
    runs = [make("a/1"), make("b/1", **changed)]
    with pytest.raises(ValueError, match=f"a/1 and b/1 are both Wav.*{told}"):
        make_tables(runs, tmp_path / "out")
    make_tables(runs, tmp_path / "out", models=["b/1=Mine"])
    assert "Mine, early exits, ours" in cells(tmp_path / "out")


def test_a_run_without_the_traces_of_a_set_is_named(make, tmp_path):
    runs = [make("all"), make("part", name="test-other", source="wavlm")]
    write_run(runs[0], "test-other")
    make_tables(runs, tmp_path / "out")
    text = (tmp_path / "out" / "tables.md").read_text(encoding="utf-8")
    assert "- Without traces_test-clean.csv: part." in text


def test_what_cannot_be_told_or_read_is_named(make, tmp_path):
    run, out = make("early"), tmp_path / "out"
    with pytest.raises(FileNotFoundError, match="nowhere holds no traces"):
        make_tables([run, tmp_path / "nowhere"], out)
    with pytest.raises(ValueError, match="no run other to name; .* early"):
        make_tables([run], out, models=["other=Mine"])
    with pytest.raises(ValueError, match="A and B: name one model"):
        make_tables([run], out, models=["A", "B"])
    with pytest.raises(ValueError, match="no standard set ted; .*tedlium-test"):
        make_tables([run], out, sets={"test": "ted"})
    with pytest.raises(ValueError, match="same run twice"):
        make_tables([run, run], out)
    broken = make("broken")
    (broken / "traces_test-clean.csv").write_text("id,errors\na,1\n")
    with pytest.raises(
        ValueError, match="broken/traces_test-clean.csv: no col"
    ):
        make_tables([broken], out)
    (broken / "hyperparams.yaml").write_text("encoder: [")
    with pytest.raises(ValueError, match="^[^:]*hyperparams.yaml is no YAML"):
        make_tables([broken], out, models=["broken=Mine"])
    (broken / "hyperparams.yaml").unlink()
    with pytest.raises(
        ValueError, match="its model is unknown.*--model broken"
    ):
        make_tables([broken], out)


def test_runs_on_other_utterances_or_references_are_refused(make, tmp_path):
    one, other = make("one"), make("other", source="wavlm", utterances=39)
    with pytest.raises(ValueError, match="not evaluated on the same"):
        make_tables([one, other], tmp_path / "out")
    other = make("other", source="wavlm")
    path = other / "traces_test-clean.csv"
    pd.read_csv(path).assign(ref_len=5).to_csv(path, index=False)
    with pytest.raises(ValueError, match="references of other lengths"):
        make_tables([one, other], tmp_path / "out")


def test_a_model_without_a_score_that_decides_is_named(make, tmp_path):
    run, out = make("early"), tmp_path / "out"
    path = run / "traces_test-clean.csv"
    table = pd.read_csv(path)
    table["entropy"] = table["entropy"].where(table["exit_layer"] == 6)
    table.to_csv(path, index=False)
    make_tables([run], out)
    text = (out / "tables.md").read_text(encoding="utf-8")
    assert "- Wav2Vec2-CTC: no rule is drawn" in text
    assert not (out / "rules.csv").exists()


def test_rules_are_drawn_that_all_seeds_have_traced(make, tmp_path):
    runs = [make(f"early/{seed}", seed=seed) for seed in (1, 2)]
    for run in runs:
        path = run / "traces_test-clean.csv"
        table = pd.read_csv(path)
        table["hypothesis_posterior"] = table["margin"]
        if run == runs[0]:
            table["sentence_confidence"] = table["margin"]
        table.to_csv(path, index=False)
    assert (
        "sentence_confidence"
        in read_traces(runs[0] / "traces_test-clean.csv").scores
    )
    make_tables(runs, tmp_path / "out")
    rules = pd.read_csv(tmp_path / "out" / "rules.csv")
    assert set(rules["score"]) == {"entropy", "hypothesis_posterior"}
    text = (tmp_path / "out" / "tables.md").read_text(encoding="utf-8")
    assert len(re.findall(r"\| hypothesis posterior \| [\d.]+ \|", text)) == 2
