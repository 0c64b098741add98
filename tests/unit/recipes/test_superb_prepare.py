"""Tests of the data preparation of tasks that label utterances."""

import csv
import runpy
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechbrain_ee.analysis.verification import read_trials

RECIPE = Path(__file__).parents[3] / "recipes" / "SUPERB"
SCRIPT = runpy.run_path(RECIPE / "superb_prepare.py")
prepare_superb = SCRIPT["prepare_superb"]
prepare_trials = SCRIPT["prepare_trials"]
prepare_phones = SCRIPT["prepare_phones"]

LABELS = ["action", "speaker"]


def write(folder, split, rows):
    """The CSV of a split."""
    with open(folder / f"{split}.csv", "w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def read(folder, split):
    with open(folder / f"{split}.csv", newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture
def data(tmp_path):
    """Three splits of two speakers, a tenth of a second longer each time."""
    folder = tmp_path / "data"
    for split in ("train", "valid", "test"):
        rows = []
        for k in range(4):
            speaker = "anna" if k % 2 else "ben"
            path = Path(speaker) / split / f"{k}.wav"
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            wave = np.full(8000 + 1600 * k, 0.1)
            soundfile.write(folder / path, wave, 16000)
            rows.append(
                {
                    "ID": f"{split}{k}",
                    "wav": f"$data_root/{path}",
                    "action": "open" if k < 2 else "close",
                    "speaker": speaker,
                }
            )
        write(folder, split, rows)
    return folder


@pytest.fixture
def prepare(data, tmp_path):
    """Prepares them; returns where."""

    def prepare(**options):
        settings = {"label_columns": LABELS, "data_folder": data, **options}
        files = [data / f"{split}.csv" for split in ("train", "valid", "test")]
        save_folder = tmp_path / "save"
        prepare_superb(*files[:2], files[2:], save_folder, **settings)
        return save_folder

    return prepare


def change(data, split, number, **values):
    """Change a row of a split."""
    rows = read(data, split)
    rows[number].update(values)
    write(data, split, rows)


def test_durations_are_read_from_the_files(prepare, data):
    change(data, "test", 0, ID="test0")
    rows = read(prepare(), "test")
    assert [row["ID"] for row in rows] == ["test0", "test1", "test2", "test3"]
    assert [row["duration"] for row in rows] == ["0.5", "0.6", "0.7", "0.8"]
    assert rows[1]["wav"] == "$data_root/anna/test/1.wav"
    assert list(rows[0]) == ["ID", "duration", "wav", *LABELS]


def test_pieces_last_as_long_as_they_say(prepare, data):
    rows = [{**row, "start": "", "stop": ""} for row in read(data, "train")]
    rows[0].update(start=1600, stop=4800)
    write(data, "train", rows)
    found = read(prepare(), "train")
    assert [row["duration"] for row in found] == ["0.2", "0.6", "0.7", "0.8"]
    for stop in ("1600", "8001", "x"):
        change(data, "train", 0, stop=stop)
        with pytest.raises(
            ValueError, match="train0 goes from '1600' to .*800"
        ):
            prepare()


def test_what_is_up_to_date_is_left_alone(prepare, data):
    file = prepare() / "train.csv"
    file.write_text("untouched")
    prepare()
    assert file.read_text() == "untouched"
    change(data, "train", 0, action="close")
    prepare()
    assert read(file.parent, "train")[0]["action"] == "close"
    prepare(min_duration=0.55)
    assert len(read(file.parent, "train")) == 3


def test_damaged_audio_is_left_out_and_found_again(prepare, data, caplog):
    (data / "anna" / "train" / "1.wav").write_bytes(b"RIFF")
    for _ in range(2):
        caplog.clear()
        assert len(read(prepare(), "train")) == 3
        assert "1 of 4 audio files cannot be read" in caplog.text


def test_a_label_said_once_is_told(prepare, data, caplog):
    for k in range(3):
        change(data, "train", k, action="open")
    prepare()
    assert "1 values of action have a single utterance" in caplog.text


def unknown_label(data):
    change(data, "test", 0, action="shut")


def no_label(data):
    change(data, "valid", 2, speaker=" ")


def no_column(data):
    rows = read(data, "valid")
    for row in rows:
        del row["action"]
    write(data, "valid", rows)


def one_class(data):
    for split in ("train", "valid", "test"):
        for k in range(4):
            change(data, split, k, speaker="anna")


def same_id(data):
    change(data, "train", 1, ID="train0")


def no_rows(data):
    file = data / "valid.csv"
    file.write_text(file.read_text().splitlines()[0] + "\n")


def no_file(data):
    (data / "test.csv").unlink()


def no_audio(data):
    (data / "ben" / "valid" / "2.wav").unlink()


def other_rate(data):
    soundfile.write(data / "ben" / "valid" / "2.wav", np.ones(8000), 8000)


def too_few_fields(data):
    with open(data / "train.csv", "a") as stream:
        stream.write("train9,x.wav\n")


def not_text(data):
    (data / "train.csv").write_bytes(b"ID,wav,action,speaker\n\xff,b,c,d\n")


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (unknown_label, ValueError, "test.csv: 1 values of action .* shut"),
        (no_label, ValueError, "valid.csv: speaker of valid2 is empty: fill"),
        (no_column, ValueError, "valid.csv has no column 'action', only ID"),
        (one_class, ValueError, "the speaker 'anna', so that .* nothing to"),
        (same_id, ValueError, "1 IDs more than once, such as train0: give"),
        (no_rows, ValueError, "valid.csv has no rows: add utterances"),
        (no_file, FileNotFoundError, "no .*test.csv: give a CSV with the col"),
        (no_audio, FileNotFoundError, "1 audio files are missing, such as .*2"),
        (other_rate, ValueError, "2.wav is sampled at 8000 Hz: resample"),
        (too_few_fields, ValueError, "train.csv, line 6 or later, .* quote"),
        (not_text, ValueError, "train.csv is not encoded in UTF-8"),
    ],
)
def test_errors_name_file_and_remedy(prepare, data, damage, error, message):
    damage(data)
    with pytest.raises(error, match=message):
        prepare()


def test_sets_need_names_of_their_own(data, tmp_path):
    files = [data / "train.csv", data / "valid.csv", [data / "valid.csv"]]
    with pytest.raises(ValueError, match="2 sets are called valid: give each"):
        prepare_superb(*files, tmp_path)
    with pytest.raises(ValueError, match="train.csv would be overwritten"):
        prepare_superb(*files[:2], [], data)


def test_tests_of_verification_need_no_labels(prepare, data):
    rows = [{k: row[k] for k in ("ID", "wav")} for row in read(data, "test")]
    write(data, "test", rows)
    with pytest.raises(ValueError, match="test.csv has no column 'action'"):
        prepare()
    assert len(read(prepare(unseen_labels=True), "test")) == 4


@pytest.fixture
def trials(prepare, data):
    """Prepares trials of the test set from some text."""

    def trials(text, **options):
        save_folder = prepare()
        (data / "list.txt").write_text(text)
        settings = {"valid_trials": None, "num_valid_trials": 6, **options}
        settings.setdefault("test_trials", [data / "list.txt"])
        prepare_trials(
            save_folder, data / "valid.csv", [data / "test.csv"], **settings
        )
        return {
            split: read_trials(save_folder / f"trials_{split}.txt")
            for split in ("valid", "test")
        }

    return trials


def test_trials_name_utterances_by_id_or_path(trials):
    found = trials("1 test0 ben/test/2.wav\n0 test/1.wav 0.wav\n")
    assert found["test"] == [
        (True, "test0", "test2"),
        (False, "test1", "test0"),
    ]
    drawn = {trial[1:] for trial in found["valid"] if trial.same}
    assert drawn == {("valid0", "valid2"), ("valid1", "valid3")}


def test_a_trial_of_an_unknown_utterance_is_told(trials):
    with pytest.raises(
        ValueError,
        match=r"list.txt: 1 utterances are not .* such as anna/x.wav: .* "
        r"test0 or ben/test/0.wav",
    ):
        trials("1 test0 test2\n0 test0 anna/x.wav\n")


def test_a_trial_that_may_be_two_utterances_is_told(trials, data):
    change(data, "test", 3, wav="$data_root/ben/test/0.wav")
    with pytest.raises(ValueError, match="0.wav may be test0 or test3: name"):
        trials("1 test0 test2\n0 test1 0.wav\n")


def test_there_must_be_a_list_for_each_set(trials):
    with pytest.raises(ValueError, match="0 lists of trials, test_csvs 1 sets"):
        trials("", test_trials=[])


def test_words_become_phones(tmp_path):
    (tmp_path / "lexicon.txt").write_text("NO N OW1\nON AA1 N\n")
    write(tmp_path, "dev", [{"ID": "a", "wrd": "ON NO"}])
    settings = {"splits": ["dev"], "lexicon": [tmp_path / "lexicon.txt"]}
    prepare_phones(tmp_path, **settings)
    (row,) = read(tmp_path, "phones_dev")
    assert row == {
        "ID": "a",
        "wrd": "AA1 N N OW1",
        "words": "ON NO",
        "unit": "phone",
    }
    write(tmp_path, "dev", [{"ID": "a", "wrd": "ON NOW"}])
    with pytest.raises(ValueError, match="1 words have no phones .* NOW"):
        prepare_phones(tmp_path, **settings)
