"""Tests of the preparation of ML-SUPERB."""

import csv
import logging
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import soundfile

FOLDER = Path(__file__).parents[3] / "recipes" / "ML-SUPERB"
recipe = SimpleNamespace(**runpy.run_path(FOLDER / "mlsuperb_prepare.py"))

TEXTS = {
    "mls/eng": "It's a [loud] dog.",
    "nchlt/eng": "Yes, sir!",
    "commonvoice/jpn": "犬 です。",
    "fleurs/cmn": "你好,OK.",
    "fleurs/dan": "En å?",
}


@pytest.fixture
def corpus(tmp_path):
    """Four utterances for training, of which two are in 10 minutes."""
    folder = tmp_path / "package"
    for where, text in TEXTS.items():
        dataset, language = where.split("/")
        (folder / where / "wav").mkdir(parents=True)
        prefix = {"commonvoice": "cv"}.get(dataset, dataset)
        numbers = (58, 71, 2, 3, 4, 5) if language == "dan" else range(6)
        ids = [f"{prefix}_{language}_{n:06d}" for n in numbers]
        for part, names in {
            "10min_train": ids[:2],
            "1h_train": ids[:4],
            "10min_dev": ids[4:5],
            "10min_test": ids[5:],
        }.items():
            write(folder / where, part, [f"{x} ignored {text}" for x in names])
        for x in ids:
            speak(folder / where / "wav" / f"{x}.wav", 0.5)
    return folder


def speak(file, seconds):
    samples = int(16000 * seconds)
    soundfile.write(file, [k % 90 / 99 for k in range(samples)], 16000)


def write(folder, part, lines):
    file = folder / f"transcript_{part}.txt"
    file.write_text("".join(f"{x}\n" for x in lines), encoding="utf-8")


def add_line(folder, part, line):
    with open(folder / f"transcript_{part}.txt", "a", encoding="utf-8") as file:
        file.write(f"{line}\n")


def prepare(corpus, track, **options):
    """The rows of each set."""
    folder = corpus.parent / "save"
    recipe.prepare_mlsuperb(corpus, folder, track, **options)
    found = {}
    for split in ("train", "dev", "test"):
        with open(folder / f"{split}.csv", encoding="utf-8") as file:
            found[split] = list(csv.DictReader(file))
    return found


def texts(rows):
    return {f"{row['dataset']}/{row['language']}": row["wrd"] for row in rows}


@pytest.fixture
def warnings(monkeypatch):
    told = []
    monkeypatch.setattr(recipe.logger, "warning", told.append)
    return told


@pytest.mark.parametrize(("duration", "count"), [("10min", 2), ("1h", 4)])
def test_one_language_is_tested_on_all_its_datasets(corpus, duration, count):
    rows = prepare(corpus, "monolingual", language="eng1", duration=duration)
    assert len(rows["train"]) == count
    for split in ("train", "dev"):
        assert texts(rows[split]) == {"mls/eng": "ITS A LOUD DOG"}
    assert texts(rows["test"]) == {
        "mls/eng": "ITS A LOUD DOG",
        "nchlt/eng": "YES SIR",
    }
    (row, _) = rows["test"]
    assert row["ID"] == "mls_eng_000005"
    assert row["wav"] == "$data_root/mls/eng/wav/mls_eng_000005.wav"
    assert (row["unit"], row["few_shot"]) == ("character", "False")
    assert float(row["duration"]) == 0.5


def test_any_dataset_and_language_can_be_a_setting(corpus):
    rows = prepare(corpus, "monolingual", language="fleurs/dan")
    assert {len(rows[x]) for x in ("train", "dev", "test")} == {4, 1}
    assert texts(rows["train"]) == {"fleurs/dan": "EN Å"}


def test_all_languages_are_trained_on_few_shot_ones_on_chosen_utterances(
    corpus,
):
    rows = prepare(corpus, "multilingual")
    assert texts(rows["test"]) == {
        "mls/eng": "ITS A DOG",
        "nchlt/eng": "YES SIR",
        "commonvoice/jpn": "犬 です。",
        "fleurs/cmn": "你好OK",
        "fleurs/dan": "EN Å",
    }
    danish = [x for x in rows["train"] if x["language"] == "dan"]
    assert [x["ID"] for x in danish] == [
        "fleurs_dan_000058",
        "fleurs_dan_000071",
    ]
    assert {x["few_shot"] for x in danish} == {"True"}
    assert len(rows["train"]) == 2 + 4 * 4
    # Errors are counted on all of theirs.
    assert len([x for x in rows["dev"] if x["language"] == "dan"]) == 1


def test_the_language_is_a_token(corpus):
    rows = prepare(corpus, "asr_lid")["test"]
    assert texts(rows)["fleurs/cmn"] == "[cmn] 你好OK"
    assert texts(rows)["nchlt/eng"] == "[eng] YES SIR"
    rows = prepare(corpus, "lid")["test"]
    assert {x["wrd"] for x in rows} == {"[eng]", "[jpn]", "[cmn]", "[dan]"}


def test_folders_are_called_by_their_language(corpus):
    (corpus / "commonvoice" / "jpn").rename(corpus / "commonvoice" / "org_jpn")
    fixed = prepare(corpus, "lid")["test"]
    assert "[jpn]" in {x["wrd"] for x in fixed}
    kept = prepare(corpus, "lid", label_fixes={})["test"]
    assert "[org_jpn]" in {x["wrd"] for x in kept}


def test_every_few_shot_language_has_five_utterances():
    assert len(recipe.FEW_SHOT) == 20
    for language in recipe.FEW_SHOT:
        ids = recipe.few_shot_ids(language)
        assert len(ids) == 5
        assert {x.split("_")[-2] for x in ids} == {language}
    assert "voxpopuli_lit_001707" in recipe.few_shot_ids("lit")
    assert "cv_dan_000158" in recipe.few_shot_ids("dan")
    assert recipe.few_shot_ids("eng") is None
    assert len(recipe.MONOLINGUAL) == 13


def test_mandarin_is_spelled_in_initials_and_finals(corpus):
    pytest.importorskip("pypinyin")
    rows = prepare(corpus, "monolingual", language="cmn")["train"]
    assert {x["wrd"] for x in rows} == {"n i3 h ao3 OK"}
    assert {x["unit"] for x in rows} == {"phone"}


def test_japanese_is_spelled_by_open_jtalk(corpus, monkeypatch):
    heard = []
    fake = SimpleNamespace(g2p=lambda x: heard.append(x) or "i n u pau d e s U")
    monkeypatch.setitem(sys.modules, "pyopenjtalk", fake)
    rows = prepare(corpus, "monolingual", language="jpn")["train"]
    assert {x["wrd"] for x in rows} == {"i n u pau d e s U"}
    assert {x["unit"] for x in rows} == {"phone"}
    assert set(heard) == {"犬 です。"}


@pytest.mark.parametrize(
    ("language", "package"), [("jpn", "pyopenjtalk"), ("cmn", "pypinyin")]
)
def test_without_their_package_they_are_characters(
    corpus, language, package, monkeypatch, warnings
):
    monkeypatch.setitem(sys.modules, package, None)
    rows = prepare(corpus, "monolingual", language=language)["train"]
    assert {x["unit"] for x in rows} == {"character"}
    assert any(f"pip install {package}" in x for x in warnings)


def test_long_utterances_are_left_out_of_training_only(corpus):
    wav = corpus / "mls" / "eng" / "wav"
    for number in (0, 4, 5):
        speak(wav / f"mls_eng_{number:06d}.wav", 21)
    rows = prepare(corpus, "monolingual")
    assert [len(rows[x]) for x in ("train", "dev", "test")] == [3, 1, 2]
    more = prepare(corpus, "monolingual", max_duration=None)
    assert len(more["train"]) == 4


def test_lines_without_audio_are_named_and_counted(corpus, warnings):
    folder = corpus / "mls" / "eng"
    (folder / "wav" / "mls_eng_000001.wav").unlink()
    rows = prepare(corpus, "monolingual")
    assert len(rows["train"]) == 3
    (told,) = warnings
    assert "1h_train.txt: 1 lines have no audio and are left out" in told
    assert "mls_eng_000001" in told
    with pytest.raises(FileNotFoundError, match="1 of 4 lines have no audio"):
        prepare(corpus, "monolingual", missing_audio="refuse")
    for number in (0, 2):
        (folder / "wav" / f"mls_eng_{number:06d}.wav").unlink()
    with pytest.raises(FileNotFoundError, match="3 of 4 lines .* unpack"):
        prepare(corpus, "monolingual")


def test_lines_that_cannot_be_used_are_left_out(corpus, warnings):
    folder = corpus / "mls" / "eng"
    add_line(folder, "1h_train", "mls_eng_000000 only-two")
    add_line(folder, "1h_train", "")
    add_line(folder, "1h_train", "mls_eng_000000 ignored again")
    add_line(folder, "1h_train", "mls_eng_000004 ignored ?!")
    assert len(prepare(corpus, "monolingual")["train"]) == 4
    told = "\n".join(warnings)
    assert "1 lines are malformed and are left out, such as line 5." in told
    assert "1 lines have an ID that comes again" in told
    assert "1 lines have no text and are left out, such as mls_eng_0" in told


def test_a_language_without_text_still_has_a_token(corpus):
    add_line(corpus / "mls" / "eng", "10min_test", "mls_eng_000004 ignored ?!")
    ids = {x["ID"] for x in prepare(corpus, "lid")["test"]}
    assert "mls_eng_000004" in ids


def test_languages_that_train_lacks_are_refused_or_left_out(corpus, warnings):
    write(corpus / "fleurs" / "dan", "1h_train", ["fleurs_dan_000002 x en å"])
    with pytest.raises(
        ValueError,
        match=r"1 languages of dev have no utterance in train \(dan\), which "
        "are 1 of its 5 utterances: .*unseen_languages: skip",
    ):
        prepare(corpus, "lid")
    rows = prepare(corpus, "lid", unseen_languages="skip")
    assert "[dan]" not in {x["wrd"] for x in rows["dev"] + rows["test"]}
    assert [x.split()[3] for x in warnings] == ["dev", "test"]


def test_damaged_audio_leaves_a_language_unseen(corpus):
    for number in (58, 71):
        speak(corpus / f"fleurs/dan/wav/fleurs_dan_{number:06d}.wav", 21)
    with pytest.raises(ValueError, match=r"no utterance in train \(dan\)"):
        prepare(corpus, "lid")


def test_missing_folders_say_where_the_data_is(corpus, tmp_path):
    with pytest.raises(FileNotFoundError, match="ftshijt/mlsuperb_8th"):
        prepare(tmp_path / "nowhere", "lid")
    with pytest.raises(FileNotFoundError, match="no DATASET/LANGUAGE/wav"):
        prepare(corpus / "mls", "lid")
    with pytest.raises(FileNotFoundError, match="swc/deu.*deu1.*fleurs/cmn"):
        prepare(corpus, "monolingual", language="deu1")
    (corpus / "mls" / "eng" / "transcript_10min_dev.txt").unlink()
    with pytest.raises(FileNotFoundError, match="no .*10min_dev.txt: unpack"):
        prepare(corpus, "monolingual")


@pytest.mark.parametrize(
    "wrong",
    [
        {"track": "asr"},
        {"track": "lid", "duration": "2h"},
        {"track": "lid", "missing_audio": "ignore"},
        {"track": "lid", "unseen_languages": "keep"},
    ],
)
def test_an_unknown_option_is_named(corpus, wrong):
    key, value = list(wrong.items())[-1]
    with pytest.raises(ValueError, match=f"{key}: '{value}' is none of"):
        prepare(corpus, **wrong)


def test_files_that_are_up_to_date_are_left_alone(corpus, caplog):
    prepare(corpus, "lid")
    before = (corpus.parent / "save" / "train.csv").stat().st_mtime_ns
    with caplog.at_level(logging.INFO):
        prepare(corpus, "lid")
    assert (corpus.parent / "save" / "train.csv").stat().st_mtime_ns == before
    rows = prepare(corpus, "lid", duration="10min")["train"]
    assert len(rows) == 2 + 4 * 2


def test_skip_prep_does_nothing(tmp_path):
    recipe.prepare_mlsuperb("", tmp_path / "save", "lid", skip_prep=True)
    assert not (tmp_path / "save").exists()
