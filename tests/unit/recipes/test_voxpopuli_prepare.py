"""Tests of the data preparation for VoxPopuli."""

import csv
import logging
import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from speechbrain.dataio import audio_io
from speechbrain.dataio.dataio import load_data_csv

from speechbrain_ee.corpora.voxpopuli import make_voxpopuli

RECIPE = Path(__file__).parents[3] / "recipes" / "VoxPopuli"
SCRIPT = runpy.run_path(RECIPE / "voxpopuli_prepare.py")
prepare_voxpopuli = SCRIPT["prepare_voxpopuli"]
normalize_text = SCRIPT["normalize_text"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_voxpopuli(
        tmp_path_factory.mktemp("made"), {"train": 5, "dev": 2}
    )


@pytest.fixture
def corpus(made, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(made, tmp_path / "corpus")


@pytest.fixture
def english(corpus):
    return corpus / "transcribed_data" / "en"


@pytest.fixture
def save_folder(tmp_path):
    return tmp_path / "save"


def table(folder, split="train"):
    text = (folder / f"asr_{split}.tsv").read_text(encoding="utf-8")
    header, *lines = text.splitlines()
    columns = header.split("\t")
    return [dict(zip(columns, line.split("\t"), strict=True)) for line in lines]


def write_table(folder, rows, split="train"):
    lines = [rows[0].keys(), *(row.values() for row in rows)]
    text = "".join("\t".join(line) + "\n" for line in lines)
    (folder / f"asr_{split}.tsv").write_text(text, encoding="utf-8")


def audio_of(folder, row):
    return folder / row["id"][:4] / f"{row['id']}.ogg"


def prepared(save_folder, split="train", language="en"):
    file = save_folder / f"voxpopuli-{language}-{split}.csv"
    with open(file, newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def ids(save_folder):
    return [row["ID"] for row in prepared(save_folder)]


@pytest.mark.parametrize("language", ["en", "de"])
def test_every_row_with_text_becomes_an_utterance(
    corpus, save_folder, language
):
    prepare_voxpopuli(corpus, save_folder, language, ["train", "dev"])
    file = save_folder / f"voxpopuli-{language}-train.csv"
    data = load_data_csv(file, {"data_root": corpus})
    *rows, empty = table(corpus / "transcribed_data" / language)
    assert len(data) == 5 and empty["id"] not in data
    for row in rows:
        utterance = data[row["id"]]
        wave, _ = audio_io.load(utterance["wav"])
        assert utterance["duration"] == pytest.approx(wave.numel() / 16000)
        assert utterance["wrd"] == row["normalized_text"]
        assert utterance["spk_id"] == row["speaker_id"]
    assert str(corpus) not in file.read_text(encoding="utf-8")
    assert len(prepared(save_folder, "dev", language)) == 2


def test_letters_of_the_language_are_kept(corpus, save_folder):
    german = corpus / "transcribed_data" / "de"
    rows = table(german)
    rows[0]["normalized_text"] = "Größere Züge fahren ÖFTER"
    write_table(german, rows)
    prepare_voxpopuli(corpus, save_folder, "de", ["train"])
    words = {r["ID"]: r["wrd"] for r in prepared(save_folder, language="de")}
    assert words[rows[0]["id"]] == "größere züge fahren öfter"


@pytest.mark.parametrize(
    ("released", "words"),
    [
        ("takve politike.", "takve politike"),
        ("Mr PRESIDENT", "mr president"),
        ("in 2012 some 20%", "in 2012 some 20"),
        ("a so-called (good) deal…", "a so called good deal"),
        ('"yes" „ja“ «oui» ‘sì’', "yes ja oui sì"),
        ("don’t say 'no' to members'", "don't say no to members"),
        ("e\u0301tat", "\u00e9tat"),  # composed
        ("ė\u0303 \u0303", "ė\u0303 \u0303"),  # there is no letter for it
        ("par\u00adlia\u200bment", "parliament"),
        ("under_score  and\u00a0space ", "under score and space"),
        ("žluťoučký ελλάδα", "žluťoučký ελλάδα"),
        (" -- … ' ", ""),
    ],
)
def test_what_the_release_has_left_in_texts_is_cleaned(released, words):
    assert normalize_text(released) == words


def test_gold_splits_have_gold_transcripts_only(corpus, save_folder, caplog):
    silver, *gold, _ = table(corpus / "transcribed_data" / "en")
    prepare_voxpopuli(corpus, save_folder, "en", ["train", "dev"])
    assert set(ids(save_folder)) == {r["id"] for r in (silver, *gold)}
    # Other settings must not find the old file up to date.
    prepare_voxpopuli(corpus, save_folder, "en", ["train", "dev"], ["train"])
    assert set(ids(save_folder)) == {row["id"] for row in gold}
    assert f"1 rows are not gold and are left out, such as {silver['id']}" in (
        caplog.text
    )
    assert len(prepared(save_folder, "dev")) == 2


def test_limits_of_train_leave_the_other_splits_whole(corpus, save_folder):
    splits = ["train", "dev"]
    prepare_voxpopuli(corpus, save_folder, "en", splits)
    whole, dev = prepared(save_folder), prepared(save_folder, "dev")
    durations = sorted(float(row["duration"]) for row in whole)

    def prepare(**limits):
        prepare_voxpopuli(corpus, save_folder, "en", splits, **limits)
        assert prepared(save_folder, "dev") == dev
        return prepared(save_folder)

    kept = prepare(max_duration=durations[1])
    assert sorted(float(row["duration"]) for row in kept) == durations[:2]
    rates = {r["ID"]: len(r["wrd"]) / float(r["duration"]) for r in whole}
    fastest = max(rates, key=rates.get)
    kept = prepare(max_characters_per_second=rates[fastest] - 0.01)
    assert {row["ID"] for row in kept} == set(rates) - {fastest}


def test_prepares_only_what_is_needed(corpus, save_folder, english):
    prepare_voxpopuli(corpus, save_folder, skip_prep=True)
    assert not save_folder.exists()

    csv_file = save_folder / "voxpopuli-en-train.csv"
    prepare_voxpopuli(corpus, save_folder, "en", ["train"])
    csv_file.write_text("untouched")
    prepare_voxpopuli(corpus, save_folder, "en", ["train"])
    assert csv_file.read_text() == "untouched"

    rows = table(english)
    rows[0]["normalized_text"] = "another text"
    write_table(english, rows)
    prepare_voxpopuli(corpus, save_folder, "en", ["train"])
    assert "another text" in csv_file.read_text()


def no_text(folder, rows):
    rows[1]["normalized_text"] = " … "


def no_audio(folder, rows):
    audio_of(folder, rows[1]).unlink()


def in_the_folder_of_another_year(folder, rows):
    file = audio_of(folder, rows[1])
    shutil.move(file, folder / "2012" / file.name)


def a_tab_in_the_text(folder, rows):
    rows[1]["raw_text"] = "two\tfields"


def a_line_cut_off(folder, rows):
    rows[1] = {"id": rows[1]["id"], "raw_text": "Where is the r"}


def no_id(folder, rows):
    rows[1]["id"] = ""


@pytest.mark.parametrize(
    ("damage", "told", "name"),
    [
        (no_text, "2 rows have no text and are left out", None),
        (no_audio, "1 rows have no audio and are left out", None),
        (in_the_folder_of_another_year, "1 rows have no audio", None),
        (a_tab_in_the_text, "1 lines are malformed", "line 3"),
        (a_line_cut_off, "1 lines are malformed", "line 3"),
        (no_id, "1 lines are malformed", "line 3"),
    ],
)
def test_single_bad_rows_are_left_out_counted_and_named(
    corpus, english, save_folder, caplog, damage, told, name
):
    rows = table(english)
    bad = rows[1]["id"]
    damage(english, rows)
    write_table(english, rows)
    with caplog.at_level(logging.WARNING):
        prepare_voxpopuli(corpus, save_folder, "en", ["train"])
    assert len(ids(save_folder)) == 4 and bad not in ids(save_folder)
    (warning,) = [r.getMessage() for r in caplog.records if told in r.msg]
    assert "asr_train.tsv: " in warning and (name or bad) in warning


def test_quotation_marks_do_not_join_rows(corpus, english, save_folder):
    rows = table(english)
    for row in rows[:3]:
        row["raw_text"] = '"' + row["raw_text"]
        row["normalized_text"] = '"' + row["normalized_text"]
    write_table(english, rows)
    prepare_voxpopuli(corpus, save_folder, "en", ["train"])
    assert sorted(ids(save_folder)) == sorted(row["id"] for row in rows[:-1])
    assert '"' not in "".join(row["wrd"] for row in prepared(save_folder))


def test_the_last_of_rows_with_one_id_is_taken(
    corpus, english, save_folder, caplog
):
    rows = table(english)
    write_table(english, [*rows, {**rows[0], "normalized_text": "the last"}])
    prepare_voxpopuli(corpus, save_folder, "en", ["train"])
    words = {row["ID"]: row["wrd"] for row in prepared(save_folder)}
    assert len(words) == 5 and words[rows[0]["id"]] == "the last"
    told = "1 rows have an id that comes again and are left out, such as "
    assert told + rows[0]["id"] in caplog.text


def test_audio_without_a_row_is_named(corpus, english, save_folder, caplog):
    row = table(english, "dev")[0]
    # What get_asr_data reads, which may have been left beside its tables.
    (english / "asr_en.tsv").write_text("id_|session_id|vad\n")
    prepare_voxpopuli(corpus, save_folder, "en", ["train"])
    assert "no row" not in caplog.text  # that of dev has its row in dev
    shutil.copy(audio_of(english, row), english / "2009" / "2009-stray.ogg")
    prepare_voxpopuli(corpus, save_folder, "en", ["train"])
    assert "en: 1 audio files have no row in a table" in caplog.text
    assert "2009/2009-stray.ogg" in caplog.text


def zero_length(file):
    file.write_bytes(b"")


def cut_off(file):
    file.write_bytes(file.read_bytes()[:-1000])


def no_samples(file):
    soundfile.write(file, np.zeros(0), 16000)


def stereo(file):
    samples, rate = soundfile.read(file)
    soundfile.write(file, np.stack([samples, samples], axis=1), rate)


@pytest.mark.parametrize("damage", [zero_length, cut_off, no_samples, stereo])
def test_damaged_audio_is_left_out_with_a_warning(
    corpus, english, save_folder, caplog, damage
):
    row = table(english)[1]
    damage(audio_of(english, row))
    for _ in range(2):  # The second one finds the CSV file up to date.
        caplog.clear()
        prepare_voxpopuli(corpus, save_folder, "en", ["train"])
        assert "1 of 5 audio files cannot be read and are left" in caplog.text
        assert f"{row['id']}.ogg (" in caplog.text
        assert len(ids(save_folder)) == 4 and row["id"] not in ids(save_folder)


def test_most_audio_damaged_is_an_error(corpus, english, save_folder):
    for row in table(english)[:3]:
        cut_off(audio_of(english, row))
    with pytest.raises(ValueError, match="3 of 5 .* again with .*get_asr_data"):
        prepare_voxpopuli(corpus, save_folder, "en", ["train"])


def no_folder(corpus):
    shutil.rmtree(corpus)


def not_yet_made(corpus):
    (corpus / "transcribed_data").rename(corpus / "raw_audios")


def no_language(corpus):
    (corpus / "transcribed_data" / "en").rename(
        corpus / "transcribed_data" / "en_accented"
    )


def no_table(corpus):
    (corpus / "transcribed_data" / "en" / "asr_train.tsv").unlink()


def not_text(corpus):
    file = corpus / "transcribed_data" / "en" / "asr_train.tsv"
    file.write_bytes(file.read_bytes() + b"\xff")


def zeros(corpus):
    file = corpus / "transcribed_data" / "en" / "asr_train.tsv"
    file.write_bytes(file.read_bytes() + bytes(200_000))


def no_column(corpus):
    folder = corpus / "transcribed_data" / "en"
    rows = table(folder)
    for row in rows:
        row["text"] = row.pop("normalized_text")
    write_table(folder, rows)


def only_a_header(corpus):
    file = corpus / "transcribed_data" / "en" / "asr_train.tsv"
    file.write_text(file.read_text().splitlines()[0] + "\n")


def an_empty_file(corpus):
    (corpus / "transcribed_data" / "en" / "asr_train.tsv").write_text("")


def most_audio_missing(corpus):
    shutil.rmtree(corpus / "transcribed_data" / "en" / "2009")
    shutil.rmtree(corpus / "transcribed_data" / "en" / "2010")


def wrong_rate(corpus):
    folder = corpus / "transcribed_data" / "en"
    soundfile.write(audio_of(folder, table(folder)[0]), np.zeros(8000), 8000)


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (no_folder, FileNotFoundError, "corpus does not exist: set data_fol"),
        (not_yet_made, FileNotFoundError, "get_asr_data, with --root .* en"),
        (no_language, FileNotFoundError, "no language 'en'.*: de, en_accented"),
        (no_table, FileNotFoundError, "no asr_train.tsv in .*only asr_dev"),
        (not_text, ValueError, "asr_train.tsv is damaged.*again with"),
        (zeros, ValueError, "asr_train.tsv is damaged.*again with"),
        (no_column, ValueError, "train.tsv has no column 'normalized_text'"),
        (only_a_header, ValueError, "train.tsv has no utt.*it has no rows"),
        (an_empty_file, ValueError, "no column 'id', only an empty line"),
        (most_audio_missing, FileNotFoundError, "have no audio.* get_asr_da"),
        (wrong_rate, ValueError, ".ogg is sampled at 8000 Hz: resample"),
    ],
)
def test_errors_name_file_and_remedy(
    corpus, save_folder, damage, error, message
):
    damage(corpus)
    with pytest.raises(error, match=message):
        prepare_voxpopuli(corpus, save_folder, "en", ["train"])
    assert not any(save_folder.glob("*"))


@pytest.mark.parametrize("inside", ["transcribed_data", "transcribed_data/en"])
def test_a_folder_too_deep_is_told(corpus, save_folder, inside):
    with pytest.raises(FileNotFoundError, match=f"mean data_folder {corpus}?"):
        prepare_voxpopuli(corpus / inside, save_folder, "en", ["train"])


def test_gold_that_cannot_be_had_is_told(corpus, english, save_folder):
    def prepare(gold):
        prepare_voxpopuli(corpus, save_folder, "en", ["train"], gold)

    with pytest.raises(ValueError, match="gold_splits has 'tset', which"):
        prepare(["tset"])
    rows = [{**row, "is_gold_transcript": "False"} for row in table(english)]
    write_table(english, rows)
    with pytest.raises(ValueError, match=r"6 rows are not gold.*gold_splits"):
        prepare(["train"])
    for row in rows:
        del row["is_gold_transcript"]
    write_table(english, rows)  # as the first release had them
    with pytest.raises(ValueError, match="no column 'is_gold_transcript': set"):
        prepare(["train"])
    prepare([])
    assert len(ids(save_folder)) == 5
