"""Tests of the data preparation for LibriSpeech."""

import csv
import json
import logging
import os
import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from speechbrain.dataio import audio_io
from speechbrain.dataio.dataio import load_data_csv

from speechbrain_ee.corpora.librispeech import make_librispeech

RECIPE = Path(__file__).parents[3] / "recipes" / "LibriSpeech"
prepare_librispeech = runpy.run_path(RECIPE / "librispeech_prepare.py")[
    "prepare_librispeech"
]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_librispeech(
        tmp_path_factory.mktemp("made"), {"train-a": 5, "train-b": 3, "dev": 2}
    )


@pytest.fixture
def corpus(made, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(made, tmp_path / "corpus")


@pytest.fixture
def save_folder(tmp_path):
    return tmp_path / "save"


def test_rows(corpus, save_folder):
    prepare_librispeech(corpus, save_folder, ["train-a", "dev"])
    data = load_data_csv(save_folder / "train-a.csv", {"data_root": corpus})
    assert list(data) == sorted(
        file.stem for file in corpus.glob("train-a/*/*/*.flac")
    )
    assert len(data) == 5
    for name, row in data.items():
        wave, _ = audio_io.load(row["wav"])
        assert Path(row["wav"]).stem == name
        assert row["duration"] == pytest.approx(wave.numel() / 16000)
        assert row["spk_id"] == name.split("-")[0]
        transcripts = next(Path(row["wav"]).parent.glob("*.trans.txt"))
        assert f"{name} {row['wrd']}\n" in transcripts.read_text()
    assert (save_folder / "dev.csv").is_file()
    assert str(corpus) not in (save_folder / "dev.csv").read_text()


def test_merging(corpus, save_folder):
    splits = ["train-a", "train-b"]
    for _ in range(2):  # Merging again must not add the rows again.
        prepare_librispeech(corpus, save_folder, splits, splits, "train.csv")
    merged = load_data_csv(save_folder / "train.csv", {"data_root": corpus})
    assert len(merged) == 8
    with pytest.raises(ValueError, match="dev.csv is the file of a split"):
        prepare_librispeech(corpus, save_folder, ["dev"], ["dev"], "dev.csv")


def test_duration_limits(corpus, save_folder):
    def prepare(**limits):
        prepare_librispeech(
            *(corpus, save_folder, ["train-a", "dev"]),
            *(["train-a"], "train.csv"),
            **limits,
        )
        data = load_data_csv(save_folder / "train-a.csv", {"data_root": ""})
        return {name: row["duration"] for name, row in data.items()}

    durations = prepare()
    shortest, *others, longest = sorted(durations.values())
    # New limits must not find the old file up to date.
    kept = prepare(min_duration=others[0], max_duration=others[-1])
    assert sorted(kept.values()) == others
    with pytest.raises(ValueError, match="change min_duration"):
        prepare(max_duration=shortest / 2)


def test_long_utterances_stay_in_test_sets(corpus, save_folder):
    splits = ["train-a", "dev"]
    prepare_librispeech(corpus, save_folder, splits)
    longest = {
        split: max(
            float(row["duration"]) for row in prepared(save_folder, split)
        )
        for split in splits
    }
    prepare_librispeech(
        *(corpus, save_folder, splits, ["train-a"], "train.csv"),
        max_duration=min(longest.values()) - 0.01,
    )
    assert len(prepared(save_folder, "train-a")) < 5
    assert len(prepared(save_folder, "dev")) == 2


def test_prepares_only_what_is_needed(corpus, save_folder):
    prepare_librispeech(corpus, save_folder, ["dev"], skip_prep=True)
    assert not save_folder.exists()

    csv_file = save_folder / "dev.csv"
    prepare_librispeech(corpus, save_folder, ["dev"])
    content = csv_file.read_text()
    csv_file.write_text("untouched")
    prepare_librispeech(corpus, save_folder, ["dev"])
    assert csv_file.read_text() == "untouched"

    transcripts = next(corpus.glob("dev/*/*/*.trans.txt"))
    name = transcripts.read_text().split()[0]
    transcripts.write_text(f"{name} ANOTHER TEXT\n")
    prepare_librispeech(corpus, save_folder, ["dev"])
    assert "ANOTHER TEXT" in csv_file.read_text()
    assert csv_file.read_text() != content


def test_left_out_with_a_warning(corpus, save_folder, caplog):
    first, second = sorted(corpus.glob("dev/*/*/*.trans.txt"))
    name = first.stem.removesuffix(".trans") + "-0000"
    first.write_text(f"{name}\n")  # an empty transcript
    unknown = second.parent / "stray.flac"
    shutil.copy(next(second.parent.glob("*.flac")), unknown)
    with caplog.at_level(logging.WARNING):
        prepare_librispeech(corpus, save_folder, ["dev"])
    assert "1 utterances with an empty transcript" in caplog.text
    assert name in caplog.text
    assert "1 utterances with no transcript" in caplog.text
    assert "stray" in caplog.text
    assert len((save_folder / "dev.csv").read_text().splitlines()) == 2


def no_folder(corpus):
    shutil.rmtree(corpus)


def no_split(corpus):
    shutil.rmtree(corpus / "dev")


def wrong_root(corpus):
    (corpus / "LibriSpeech").mkdir()
    (corpus / "dev").rename(corpus / "LibriSpeech" / "dev")


def no_transcripts(corpus):
    for file in corpus.glob("dev/*/*/*.trans.txt"):
        file.unlink()


def no_audio(corpus):
    next(corpus.glob("dev/*/*/*.flac")).unlink()


def wrong_rate(corpus):
    file = next(corpus.glob("dev/*/*/*.flac"))
    audio_io.save(file, torch.zeros(800), 8000)


@pytest.mark.parametrize(
    "damage, error, message",
    [
        (no_folder, FileNotFoundError, "corpus does not exist: set data_fol"),
        (no_split, FileNotFoundError, "'dev' in .* there: train-a, train-b"),
        (wrong_root, FileNotFoundError, "mean data_folder .*/LibriSpeech"),
        (no_transcripts, FileNotFoundError, "no transcripts in .*/dev: exp"),
        (no_audio, FileNotFoundError, "0000.flac is missing, but .*trans.txt"),
        (wrong_rate, ValueError, "0000.flac is sampled at 8000 Hz: resample"),
    ],
)
def test_errors_name_file_and_remedy(
    corpus, save_folder, damage, error, message
):
    damage(corpus)
    with pytest.raises(error, match=message):
        prepare_librispeech(corpus, save_folder, ["dev"])


@pytest.mark.parametrize("empty", ["corpus", "corpus/dev"])
def test_empty_folders(tmp_path, save_folder, empty):
    (tmp_path / empty).mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="there: none|no transcripts"):
        prepare_librispeech(tmp_path / "corpus", save_folder, ["dev"])
    assert not any(save_folder.glob("*"))


def test_transcripts_that_are_not_text_are_named(corpus, save_folder):
    file = next(corpus.glob("dev/*/*/*.trans.txt"))
    file.write_bytes(file.read_bytes() + b"\xff")
    with pytest.raises(ValueError, match=rf"{file.name} .* UTF-8"):
        prepare_librispeech(corpus, save_folder, ["dev"])


@pytest.fixture
def noises(tmp_path):
    """A corpus of ten files of three seconds, in which a test damages some."""
    folder = tmp_path / "noises" / "dev" / "1" / "2"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    lines = []
    for index in range(10):
        wave = 0.1 * rng.standard_normal(48000)
        soundfile.write(folder / f"1-2-{index:04d}.flac", wave, 16000)
        lines.append(f"1-2-{index:04d} WORDS\n")
    (folder / "1-2.trans.txt").write_text("".join(lines))
    return tmp_path / "noises"


def zero_length(file):
    file.write_bytes(b"")


def no_samples(file):
    soundfile.write(file, np.zeros(0), 16000)


def not_flac(file):
    file.write_bytes(b"<html>404: no such file</html>" * 100)


def only_the_head(file):
    file.write_bytes(file.read_bytes()[:100])


def cut_off(file):
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])


def hole(file):
    content = file.read_bytes()
    middle = len(content) // 2
    file.write_bytes(content[:middle] + bytes(4096) + content[middle + 4096 :])


def piece_lost(file):
    content = file.read_bytes()
    third = len(content) // 3
    file.write_bytes(content[:third] + content[2 * third :])


def bit_flipped(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def prepared(save_folder, split="dev"):
    with open(save_folder / f"{split}.csv", newline="") as stream:
        return list(csv.DictReader(stream))


def stereo(file):
    samples, rate = soundfile.read(file)
    soundfile.write(file, np.stack([samples, samples], axis=1), rate)


DAMAGES_OF_HEAD = [zero_length, no_samples, not_flac, stereo]
DAMAGES_OF_DATA = [only_the_head, cut_off, hole, piece_lost, bit_flipped]


@pytest.mark.parametrize("damage", DAMAGES_OF_HEAD + DAMAGES_OF_DATA)
def test_damaged_audio_is_left_out_with_a_warning(
    noises, save_folder, caplog, damage
):
    for index in (3, 5):
        damage(noises / "dev" / "1" / "2" / f"1-2-000{index}.flac")
    for run in range(2):  # The second one finds the CSV file up to date.
        caplog.clear()
        with caplog.at_level(logging.INFO):
            prepare_librispeech(noises, save_folder, ["dev"])
        assert ("up to date" in caplog.text) == (run == 1)
        warnings = [r for r in caplog.records if r.levelname == "WARNING"]
        (warning,) = [record.getMessage() for record in warnings]
        assert "2 of 10 audio files cannot be read and are left" in warning
        assert "1/2/1-2-0003.flac (" in warning and "-0005.flac (" in warning
        rows = prepared(save_folder)
        assert [row["ID"][-1] for row in rows] == list("01246789")
        for row in rows:
            audio_io.load(row["wav"].replace("$data_root", str(noises)))


@pytest.mark.parametrize("damage", DAMAGES_OF_DATA[1:])
def test_who_trusts_the_data_reads_heads_only(noises, save_folder, damage):
    damage(noises / "dev" / "1" / "2" / "1-2-0003.flac")
    prepare_librispeech(noises, save_folder, ["dev"], check_audio=False)
    assert len(prepared(save_folder)) == 10
    # Who changes their mind gets the file written anew.
    prepare_librispeech(noises, save_folder, ["dev"])
    assert len(prepared(save_folder)) == 9


@pytest.mark.parametrize("damage", DAMAGES_OF_HEAD)
def test_heads_are_always_read(noises, save_folder, damage):
    damage(noises / "dev" / "1" / "2" / "1-2-0003.flac")
    prepare_librispeech(noises, save_folder, ["dev"], check_audio=False)
    assert len(prepared(save_folder)) == 9


def test_a_repaired_file_is_found(noises, save_folder, tmp_path):
    file = noises / "dev" / "1" / "2" / "1-2-0003.flac"
    whole = shutil.copy(file, tmp_path)
    cut_off(file)
    prepare_librispeech(noises, save_folder, ["dev"])
    assert len(prepared(save_folder)) == 9
    shutil.copy(whole, file)
    prepare_librispeech(noises, save_folder, ["dev"])
    assert len(prepared(save_folder)) == 10


@pytest.mark.parametrize("damaged", [5, 6])
def test_more_than_half_damaged_is_an_error(noises, save_folder, damaged):
    for index in range(damaged):
        not_flac(noises / "dev" / "1" / "2" / f"1-2-000{index}.flac")
    if damaged == 5:
        prepare_librispeech(noises, save_folder, ["dev"])
        assert len(prepared(save_folder)) == 5
        return
    with pytest.raises(
        ValueError,
        match="6 of 10 audio files .* dev/1/2/1-2-0000.flac .*: set data",
    ):
        prepare_librispeech(noises, save_folder, ["dev"])
    assert not any(save_folder.glob("*"))


def test_signal_to_noise_ratios_become_a_column(tmp_path, save_folder):
    corpus = make_librispeech(
        tmp_path / "noisy", {"a": 3, "b": 2}, snrs=(None, 5)
    )
    with open(corpus / "UTTERANCES.tsv", newline="") as stream:
        table = list(csv.DictReader(stream, delimiter="\t"))
    prepare_librispeech(corpus, save_folder, ["a", "b"], ["a", "b"], "all.csv")
    expected = {row["id"]: row["snr"] or "clean" for row in table}
    assert set(expected.values()) == {"clean", "5"}
    rows = prepared(save_folder, "all")
    assert {row["ID"]: row["snr"] for row in rows} == expected

    # Other ratios must not find the old file up to date.
    content = (corpus / "UTTERANCES.tsv").read_text().replace("\t5\t", "\t7\t")
    (corpus / "UTTERANCES.tsv").write_text(content)
    prepare_librispeech(corpus, save_folder, ["a"])
    assert {row["snr"] for row in prepared(save_folder, "a")} <= {"clean", "7"}
    assert "7" in {row["snr"] for row in prepared(save_folder, "a")}


@pytest.mark.parametrize("table", [None, "id\tvoice\n", "id\tsnr\nother\t\n"])
def test_no_column_without_ratios(corpus, save_folder, table):
    (corpus / "UTTERANCES.tsv").unlink()
    if table:
        (corpus / "UTTERANCES.tsv").write_text(table)
    prepare_librispeech(corpus, save_folder, ["dev"])
    header = (save_folder / "dev.csv").read_text().splitlines()[0]
    assert header == "ID,duration,wav,spk_id,wrd"


def test_splits_with_and_without_ratios_can_be_joined(corpus, save_folder):
    lines = (corpus / "UTTERANCES.tsv").read_text().splitlines(True)
    kept = [line for line in lines if "\ttrain-b\t" not in line]
    (corpus / "UTTERANCES.tsv").write_text("".join(kept))
    splits = ["train-a", "train-b"]
    prepare_librispeech(corpus, save_folder, splits, splits, "train.csv")
    rows = prepared(save_folder, "train")
    assert [row["snr"] for row in rows] == ["clean"] * 5 + [""] * 3


def test_a_split_that_the_table_lists_in_part(corpus, save_folder):
    lines = (corpus / "UTTERANCES.tsv").read_text().splitlines(True)
    (corpus / "UTTERANCES.tsv").write_text("".join(lines[:-1]))
    missing = lines[-1].split()[0]
    with pytest.raises(ValueError, match=f"UTTERANCES.tsv .* not {missing}"):
        prepare_librispeech(corpus, save_folder, ["dev"])


def test_files_appear_when_they_are_whole(corpus, save_folder, monkeypatch):
    replaced = []

    def replace(source, target):
        replaced.append(Path(target).name)
        assert Path(source).parent == Path(target).parent
        assert not Path(target).exists()
        content = Path(source).read_text()
        # Whole already: JSON that can be read, or all rows.
        if target.suffix == ".json":
            assert json.loads(content)["utterances"] == 5
        else:
            assert len(content.splitlines()) == 6
        Path(source).rename(target)

    monkeypatch.setattr(os, "replace", replace)
    splits = ["train-a"]
    prepare_librispeech(corpus, save_folder, splits, splits, "train.csv")
    expected = ["train-a.csv", "train-a.options.json", "train.csv"]
    assert replaced == expected
    assert sorted(file.name for file in save_folder.iterdir()) == expected


def test_a_run_cut_short_is_made_up_for(corpus, save_folder, monkeypatch):
    prepare_librispeech(corpus, save_folder, ["train-a"])
    whole = (save_folder / "train-a.csv").read_text()
    longest = max(
        float(row["duration"]) for row in prepared(save_folder, "train-a")
    )
    replace = os.replace

    def cut_short(source, target):
        replace(source, target)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(os, "replace", cut_short)
        prepare_librispeech(
            *(corpus, save_folder, ["train-a"], ["train-a"], "train.csv"),
            max_duration=longest - 0.01,
        )
    assert (save_folder / "train-a.csv").read_text() != whole
    prepare_librispeech(corpus, save_folder, ["train-a"])
    assert (save_folder / "train-a.csv").read_text() == whole
