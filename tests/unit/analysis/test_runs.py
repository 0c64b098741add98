"""Runs: what their folders tell, for every recipe, and what cannot be told."""

from pathlib import Path

import pytest
from hyperpyyaml import resolve_references

from speechbrain_ee.analysis.runs import describe_run

RECIPES = Path(__file__).resolve().parents[3] / "recipes"
RECOGNISERS = [
    path
    for path in sorted(RECIPES.glob("*/hparams/*.yaml"))
    if "\nselectors:" in path.read_text(encoding="utf-8")
]
BRAIN = "brain: !name:speechbrain_ee.brains.EarlyExitCTC\n"
CONFORMER = (
    "encoder: !new:speechbrain_ee.encoders.SpeechBrainEncoder\n"
    "  transformer: !new:somewhere.TransformerASR\n"
    "    encoder_module: conformer\n"
)


def write(folder, text):
    folder.mkdir(exist_ok=True)
    (folder / "hyperparams.yaml").write_text(text, encoding="utf-8")
    return folder


def hugging_face(source, **options):
    lines = [f"  {k}: {v}\n" for k, v in {"source": source, **options}.items()]
    return f"encoder: !new:any.HuggingFaceEncoder\n{''.join(lines)}"


@pytest.mark.parametrize("path", RECOGNISERS, ids=lambda path: path.stem)
def test_the_hyperparams_of_every_recipe_tell_the_model(path, tmp_path):
    with open(path, encoding="utf-8") as stream:
        text = resolve_references(stream, {"data_folder": "data"}).getvalue()
    run = describe_run(write(tmp_path / "run", text))
    name = "conformer_ctc" if path.stem == "demo" else path.stem
    assert run.model.lower().replace("-", "_") in name
    assert run.seed.isdigit()


@pytest.mark.parametrize(
    ("encoder", "model"),
    [
        (CONFORMER, "Conformer-CTC"),
        (CONFORMER.replace("conf", "branchf"), "Branchformer-CTC"),
        (hugging_face("facebook/wav2vec2-base"), "Wav2Vec2-CTC"),
        (hugging_face("models/WavLM-base/"), "WavLM-CTC"),
        (
            hugging_face("hubert", pretrained="False"),
            "HuBERT-CTC (from scratch)",
        ),
    ],
)
def test_models_are_called_as_in_the_paper(encoder, model, tmp_path):
    assert describe_run(write(tmp_path, encoder + BRAIN)).model == model


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("encoder: [", "hyperparams.yaml is no YAML"),
        ("just words", "hyperparams.yaml holds no keys"),
        (BRAIN, "encoder of .*hyperparams.yaml is not one of those known"),
        (hugging_face("gpt") + BRAIN, "encoder of .* not one of those known"),
        (CONFORMER, "brain of .*hyperparams.yaml is not named, none of Early"),
        (CONFORMER + BRAIN.replace("CTC", "X"), "is EarlyExitX, none of Early"),
    ],
)
def test_what_does_not_tell_the_model_is_named(text, told, tmp_path):
    with pytest.raises(ValueError, match=told):
        describe_run(write(tmp_path, text))


def test_without_the_file_the_name_of_the_folder_tells_the_seed(tmp_path):
    with pytest.raises(ValueError, match="there is no .*hyperparams.yaml"):
        describe_run(tmp_path / "early_seed12")
    run = describe_run(tmp_path / "early_seed12", "Conformer-CTC")
    assert (run.model, run.seed) == ("Conformer-CTC", "12")
    assert describe_run(tmp_path / "early", "Conformer-CTC").seed == ""


def test_settings_that_shape_the_model_are_told(tmp_path):
    text = "train_splits: [a, b]\nd_model: 96\nnum_workers: 4\n"
    text += "objective: !new:speechbrain_ee.objectives.ExitLossSum\n"
    text += "  weights: !name:speechbrain_ee.objectives.weights.rising\n"
    run = describe_run(write(tmp_path, CONFORMER + BRAIN + text))
    assert run.settings == {
        "d_model": "96",
        "train_splits": "a, b",
        "objective": "ExitLossSum rising",
    }
