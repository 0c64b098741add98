"""Language models: what is saved comes back, labels must agree."""

import io
import shutil

import pytest
import sentencepiece
import torch
from hyperpyyaml import load_hyperpyyaml

from speechbrain_ee.language_model import (
    LanguageModel,
    Sentences,
    load_lm,
    read_tokenizer,
    save_lm,
)

YAML = """
d_model: 16
unrelated: !new:collections.OrderedDict
lm_model: !new:speechbrain.lobes.models.transformer.TransformerLM.TransformerLM
    vocab: 12
    d_model: !ref <d_model>
    nhead: 2
    num_encoder_layers: 1
    d_ffn: 32
    activation: !name:torch.nn.GELU
"""


def train_tokenizer(path, text="ABCDEF GA"):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([text]),
        model_writer=model,
        model_type="char",
        vocab_size=len(set(text)) + 4,
        pad_id=0,
        bos_id=1,
        eos_id=2,
        unk_id=3,
        minloglevel=2,
    )
    path.write_bytes(model.getvalue())
    return path


@pytest.fixture
def saved(tmp_path):
    """The folder of a run, and the model."""
    folder = tmp_path / "lm"
    folder.mkdir()
    (folder / "hyperparams.yaml").write_text(YAML)
    torch.manual_seed(0)
    model = load_hyperpyyaml(YAML)["lm_model"].eval()
    save_lm(folder, model, train_tokenizer(tmp_path / "char.model"))
    return folder, model


def test_what_was_saved_says_the_same(saved):
    folder, model = saved
    loaded = load_lm(folder)
    tokens = torch.tensor([[1, 5, 6, 7]])
    assert torch.equal(loaded(tokens), model(tokens))
    assert not loaded.model.training
    assert not any(p.requires_grad for p in loaded.parameters())
    again = load_hyperpyyaml(loaded.description)["lm_model"]
    again.load_state_dict(model.state_dict())
    assert "unrelated" not in loaded.description


def test_labels_must_be_the_same(saved, tmp_path):
    loaded = load_lm(saved[0])
    loaded.check_labels(read_tokenizer(tmp_path / "char.model"))
    for text, told in (
        ("ABCDEF GX", "label .* is .* here and .* there"),
        ("ABCDEF GAH", "labels? .* there"),
    ):
        other = read_tokenizer(train_tokenizer(tmp_path / "other", text))
        with pytest.raises(ValueError, match=told):
            loaded.check_labels(other)


@pytest.mark.parametrize(
    "name", ["hyperparams.yaml", "lm.ckpt", "tokenizer.ckpt"]
)
def test_a_missing_file_is_named(saved, name):
    (saved[0] / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        load_lm(saved[0])


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        (
            "hyperparams.yaml",
            "lm_model: !new:torch.nn.Identity",
            "TransformerLM",
        ),
        ("hyperparams.yaml", "seed: 1", "describes no lm_model"),
        (
            "hyperparams.yaml",
            YAML.replace("16", "8"),
            "does not hold the model",
        ),
        ("lm.ckpt", "junk", "does not hold the model"),
        ("tokenizer.ckpt", "junk", "no SentencePiece model"),
    ],
)
def test_files_that_do_not_fit_are_told(saved, name, content, told):
    (saved[0] / name).write_text(content)
    with pytest.raises(ValueError, match=told):
        load_lm(saved[0])


def test_a_place_that_does_not_exist_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        load_lm(tmp_path / "nowhere")


def test_sentences_of_a_csv_and_of_a_text_file_are_the_same(tmp_path):
    tokenizer = read_tokenizer(train_tokenizer(tmp_path / "char"))
    sentences = ["ABC", "GA FED", "BAD CAB"]
    (tmp_path / "a.csv").write_text(
        "ID,wrd\n" + "".join(f"{i},{s}\n" for i, s in enumerate(sentences))
    )
    # With empty lines, and no end of the last one.
    (tmp_path / "a.txt").write_text("\n" + "\n\n".join(sentences))
    for name in ("a.csv", "a.txt"):
        found = Sentences(tokenizer, tmp_path / name)
        labels = [found[i]["tokens"].tolist() for i in range(len(found))]
        assert labels == tokenizer.encode_as_ids(sentences)


def test_text_that_is_not_there_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such text"):
        Sentences(None, tmp_path / "a.txt")
    (tmp_path / "a.txt").write_text("\n")
    with pytest.raises(ValueError, match="holds no text"):
        Sentences(None, tmp_path / "a.txt")


def test_it_can_be_copied_as_a_folder(saved, tmp_path):
    shutil.copytree(saved[0], tmp_path / "copy")
    assert isinstance(load_lm(tmp_path / "copy"), LanguageModel)
