"""The tokenizer: its limits are explained, and it is whole or not there."""

import os
import re

import pytest
import sentencepiece
from speechbrain.tokenizers.SentencePiece import SentencePiece

from speechbrain_ee.tokenizer import train_tokenizer

SENTENCES = [
    "THE OLD MAN FOUND A RED BOAT",
    "SHE LOST IT",
    "OUR NEIGHBOR SOLD SEVEN APPLES",
    "LAST NIGHT THE TEACHER'S SON WANTED TO SEE AN EMPTY BOX",
]
LABELS_OF_CHARACTERS = 3 + len(set("".join(SENTENCES)) - {" "})


class Killed(BaseException):
    """Ends a run where it is raised."""


@pytest.fixture
def train(tmp_path):
    """Trains a tokenizer as the recipes do."""
    csv_file = tmp_path / "train.csv"
    write(csv_file, SENTENCES)

    def train(vocab_size, model_type="bpe", **settings):
        return train_tokenizer(
            model_dir=str(tmp_path / "save"),
            vocab_size=vocab_size,
            annotation_train=str(csv_file),
            model_type=model_type,
            **{"annotation_read": "wrd", "pad_id": 0, "unk_id": 1, **settings},
        )

    return train


def write(csv_file, sentences):
    rows = [f"{number},{words}" for number, words in enumerate(sentences)]
    csv_file.write_text("\n".join(["ID,wrd", *rows, ""]))


@pytest.mark.parametrize("model_type", ["bpe", "unigram", "char"])
def test_it_is_the_tokenizer_of_speechbrain(train, tmp_path, model_type):
    size = LABELS_OF_CHARACTERS + (model_type != "char")
    ours = train(size, model_type)
    theirs = SentencePiece(
        str(tmp_path / "theirs"),
        size,
        str(tmp_path / "train.csv"),
        "wrd",
        model_type,
        pad_id=0,
        unk_id=1,
    )
    assert ours.sp.vocab_size() == theirs.sp.vocab_size() == size
    for words in SENTENCES:
        labels = ours.sp.encode_as_ids(words)
        assert labels == theirs.sp.encode_as_ids(words)
        assert ours.sp.decode_ids(labels) == words


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
@pytest.mark.parametrize(("size", "word"), [(5000, "less"), (5, "more")])
def test_the_limits_that_the_text_sets_are_named_and_hold(
    train, tmp_path, model_type, size, word
):
    message = (
        rf"^output_neurons: {size} .*train.csv.* set it to (\d+) or {word}"
    )
    with pytest.raises(ValueError, match=message) as error:
        train(size, model_type)
    assert not any((tmp_path / "save").iterdir())
    limit = int(re.search(message, str(error.value))[1])
    assert train(limit, model_type).sp.vocab_size() == limit
    with pytest.raises(ValueError, match=f"set it to {limit} or {word}"):
        train(limit + (1 if word == "less" else -1), model_type)


def test_more_characters_than_labels_are_explained(train):
    least = LABELS_OF_CHARACTERS
    message = f"^output_neurons: {least - 1} .*set it to {least} or more"
    for _ in range(2):  # also when it is there already
        with pytest.raises(ValueError, match=message):
            train(least - 1, "char")
    assert train(least + 9, "char").sp.vocab_size() == least


def test_a_missing_text_is_named(train, tmp_path):
    (tmp_path / "train.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"train.csv, is missing: .*"):
        train(30)


@pytest.mark.parametrize("sentences", [[], ["", " "]])
def test_a_text_without_words_is_refused(train, tmp_path, sentences):
    write(tmp_path / "train.csv", sentences)
    with pytest.raises(
        ValueError, match=r"no text in the column 'wrd' of .*csv"
    ):
        train(30)


def test_a_column_that_is_not_there_is_refused(train):
    with pytest.raises(ValueError, match=r"no column 'text'.*only ID, wrd"):
        train(30, annotation_read="text")


def test_a_cut_text_is_refused(train, tmp_path):
    with open(tmp_path / "train.csv", "a") as file:
        file.write("5")
    with pytest.raises(ValueError, match=r"Row 5 of .*train.csv is cut"):
        train(30)


def test_a_second_run_takes_what_the_first_has_trained(train, monkeypatch):
    first = train(30)
    monkeypatch.delattr(sentencepiece.SentencePieceTrainer, "train")
    second = train(30)
    assert second.sp.serialized_model_proto() == (
        first.sp.serialized_model_proto()
    )


@pytest.mark.parametrize("moved", range(4))
def test_a_run_killed_at_any_move_leaves_no_cut_tokenizer(
    train, tmp_path, monkeypatch, moved
):
    left, replace = iter(range(moved)), os.replace

    def killed_later(*paths):
        if next(left, None) is None:
            raise Killed
        replace(*paths)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(os, "replace", killed_later)
        train(30)
    assert not (tmp_path / "save" / "30_bpe.model").exists()
    assert train(30).sp.vocab_size() == 30


def test_what_a_killed_run_left_is_not_used(train, tmp_path):
    leftover = tmp_path / "save" / ".partial-tokenizer-x"
    leftover.mkdir(parents=True)
    (leftover / "30_bpe.model").write_text("cut")
    (tmp_path / "save" / "train.txt").write_text("CUT TEXT\n")
    train(30)
    assert sorted(path.name for path in (tmp_path / "save").iterdir()) == [
        "30_bpe.json",
        "30_bpe.model",
        "30_bpe.vocab",
        "train.txt",
    ]
    text = (tmp_path / "save" / "train.txt").read_text()
    assert text.splitlines() == SENTENCES


def test_a_tokenizer_of_another_text_is_refused(train, tmp_path):
    train(30)
    write(tmp_path / "train.csv", SENTENCES[::-1])
    train(30)  # the same text in another order
    write(tmp_path / "train.csv", SENTENCES[1:])
    with pytest.raises(ValueError, match=r"30_bpe.model .*\(other text\)"):
        train(30)
    (tmp_path / "save" / "30_bpe.model").unlink()
    assert train(30).sp.vocab_size() == 30


def test_a_tokenizer_with_other_settings_is_refused(train):
    train(30)
    with pytest.raises(ValueError, match=r"other pad_id, unk_id"):
        train(30, pad_id=1, unk_id=0)
    assert train(31).sp.vocab_size() == 31  # a file of its own


def test_a_tokenizer_without_a_note_is_used_with_a_warning(
    train, tmp_path, caplog
):
    train(30)
    assert caplog.text.count("WARNING") == 0
    (tmp_path / "save" / "30_bpe.json").unlink()
    assert train(30).sp.vocab_size() == 30
    assert "30_bpe.model is used as it is" in caplog.text


def test_a_tokenizer_that_cannot_be_read_is_named(train, tmp_path):
    train(30)
    model = tmp_path / "save" / "30_bpe.model"
    model.write_bytes(model.read_bytes()[:-5])
    with pytest.raises(ValueError, match=r"30_bpe.model .*delete it"):
        train(30)


def test_a_tokenizer_of_another_size_is_named(train, tmp_path):
    train(30)
    for suffix in ("model", "json"):
        path = tmp_path / "save" / f"30_bpe.{suffix}"
        text = path.read_bytes().replace(b": 30", b": 31")
        path.with_name(f"31_bpe.{suffix}").write_bytes(text)
    with pytest.raises(ValueError, match=r"31_bpe.model has 30 labels and not"):
        train(31)


def test_a_tokenizer_of_others_is_taken_as_it_is(train, tmp_path):
    first = train(LABELS_OF_CHARACTERS, "char")
    model = tmp_path / "published" / "tokenizer.ckpt"
    model.parent.mkdir()
    os.rename(first.prefix_model_file + ".model", model)
    taken = train(LABELS_OF_CHARACTERS, "char", pretrained=model)
    assert taken.sp.encode_as_ids(SENTENCES[0]) == first.sp.encode_as_ids(
        SENTENCES[0]
    )
    train(LABELS_OF_CHARACTERS, "char", pretrained=str(model))  # once more
    other = tmp_path / "published" / "other.ckpt"
    other.write_bytes(model.read_bytes() + b"\n\0")
    with pytest.raises(ValueError, match="another tokenizer than .*other.ckpt"):
        train(LABELS_OF_CHARACTERS, "char", pretrained=other)
    with pytest.raises(FileNotFoundError, match="pretrained: .*nowhere"):
        train(30, "char", pretrained=tmp_path / "nowhere" / "tokenizer.ckpt")
