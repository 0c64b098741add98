"""Tests of the data preparation of MiniSUPERB's four tasks."""

import csv
import random
import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

RECIPE = Path(__file__).parents[3] / "recipes" / "MiniSUPERB"
recipe = SimpleNamespace(
    **runpy.run_path(str(RECIPE / "minisuperb_prepare.py"))
)


def write(path, seconds=0.5, rate=16000):
    """A file of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).standard_normal(round(seconds * rate))
    soundfile.write(path, 0.1 * noise, rate)


def read(folder, name):
    with open(folder / f"{name}.csv", newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def ids(folder, name):
    return [row["ID"] for row in read(folder, name)]


# Speech recognition


@pytest.fixture
def librilight(tmp_path):
    folder = tmp_path / "data"
    parts = [f"1h/{k}/clean" for k in (0, 1)] + ["9h/clean", "9h/other"]
    parts = [f"librispeech_finetuning/{part}" for part in parts]
    for speaker, part in enumerate([*parts, "dev-clean", "test-clean"], 10):
        target = folder / part / str(speaker) / "7"
        for index in range(2):
            write(target / f"{speaker}-7-{index:04d}.flac", 0.3 + 0.3 * index)
        lines = [f"{speaker}-7-{k:04d} IT'S {k} O'CLOCK\n" for k in range(2)]
        (target / f"{speaker}-7.trans.txt").write_text("".join(lines))
    return folder


def test_all_ten_hours_or_a_part_of_them(librilight, tmp_path):
    save = tmp_path / "save"
    for subset, speakers in [
        ("10h", [10, 11, 12, 13]),
        ("1h", [10, 11]),
        ("10min", [10]),
    ]:
        recipe.prepare_asr(librilight, save, subset)
        rows = read(save, "train")
        assert [int(row["spk_id"]) for row in rows[::2]] == speakers
    assert rows[1] == {
        "ID": "10-7-0001",
        "duration": "0.6",
        "wav": "$data_root/librispeech_finetuning/1h/0/clean/10/7/"
        "10-7-0001.flac",
        "spk_id": "10",
        "wrd": "IT'S 1 O'CLOCK",
        "unit": "character",
    }
    assert ids(save, "dev-clean") == ["14-7-0000", "14-7-0001"]
    recipe.prepare_asr(librilight, save, min_duration=0.5)
    assert len(ids(save, "train")) == 4 and len(ids(save, "test-clean")) == 2


def test_what_is_missing_of_libri_light_is_told(librilight, tmp_path):
    def fails(error, message, **options):
        with pytest.raises(error, match=message):
            recipe.prepare_asr(librilight, tmp_path / "save", **options)

    fails(ValueError, "subset: '5h' is none of 10min, 1h, 10h", subset="5h")
    fails(FileNotFoundError, "no split dev-other", valid_split="dev-other")
    part = librilight / "librispeech_finetuning" / "9h"
    (part / "other").rename(librilight / "other")
    again = librilight / "librispeech_finetuning" / "1h" / "2" / "clean"
    again.mkdir(parents=True)
    (part / "clean" / "12").rename(again / "12")
    (again / "10").symlink_to(
        librilight / "librispeech_finetuning/1h/0/clean/10"
    )
    fails(ValueError, "2 utterances .* two .* such as 10-7-0000", subset="1h")
    (part / "clean").rmdir()
    fails(FileNotFoundError, r"9h/\{clean,other\}, which the subset 10h needs")


# Speaker identification


@pytest.fixture
def voxceleb(tmp_path):
    folder = tmp_path / "data"
    lines = []
    for speaker in ("id10001", "id10002", "id10270"):
        part = "test" if speaker == "id10270" else "dev"
        for split, count in ((1, 6), (2, 2), (3, 1)):
            for index in range(count):
                path = f"{speaker}/video{split}/{index:05d}.wav"
                lines.append(f"{split} {path}\n")
                write(folder / part / "wav" / path, 0.1)
    (folder / "iden_split.txt").write_text("".join(lines))
    return folder


def test_as_many_utterances_of_each_speaker(voxceleb, tmp_path):
    save = tmp_path / "save"
    recipe.prepare_sid(voxceleb, save, utterances_per_speaker=4)
    rows = read(save, "train")
    assert [row["speaker"] for row in rows] == [
        *["id10001"] * 4,
        *["id10002"] * 4,
        *["id10270"] * 4,
    ]
    assert rows[-1]["wav"].startswith("$data_root/test/wav/id10270/video1/")
    assert len(ids(save, "dev")) == 6 and len(ids(save, "test")) == 3
    assert ids(save, "test")[0] == "id10001-video3-00000"

    first = ids(save, "train")
    recipe.prepare_sid(voxceleb, tmp_path / "b", utterances_per_speaker=4)
    assert ids(tmp_path / "b", "train") == first
    recipe.prepare_sid(voxceleb, save, utterances_per_speaker=4, seed=1)
    assert ids(save, "train") != first
    recipe.prepare_sid(voxceleb, save, utterances_per_speaker=None)
    assert len(ids(save, "train")) == 18


def test_speakers_with_few_utterances_are_told(voxceleb, tmp_path, caplog):
    recipe.prepare_sid(voxceleb, tmp_path / "save")
    assert "3 of 3 speakers have fewer than 11 utterances" in caplog.text
    assert len(ids(tmp_path / "save", "train")) == 18


def drop(folder, beginning):
    """Take lines out of the list."""
    file = folder / "iden_split.txt"
    lines = file.read_text().splitlines()
    kept = [line for line in lines if not line.startswith(beginning)]
    file.write_text("\n".join(kept) + "\n")


def only_the_others_learnt(folder):
    drop(folder, "1 id10270")


def one_speaker(folder):
    for speaker in ("id10002", "id10270"):
        for split in "123":
            drop(folder, f"{split} {speaker}")


def no_test(folder):
    drop(folder, "3")


def another_line(folder):
    with open(folder / "iden_split.txt", "a") as file:
        file.write("\n4 id10001/video1/00001.wav\n")


def two_files_lost(folder):
    for speaker in ("id10001", "id10002"):
        (folder / "dev" / "wav" / speaker / "video2" / "00001.wav").unlink()


def no_list(folder):
    (folder / "iden_split.txt").unlink()


def another_rate(folder):
    write(folder / "dev/wav/id10001/video2/00000.wav", rate=8000)


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        (
            only_the_others_learnt,
            ValueError,
            r"1 speakers of dev are not in train, such as id10270 \(2 utt",
        ),
        (one_speaker, ValueError, "the single speaker id10001"),
        (no_test, ValueError, "names no file for test"),
        (another_line, ValueError, "line 29: '4 id10001/video1/00001.wav'"),
        (
            two_files_lost,
            FileNotFoundError,
            "2 of the 27 files .* such as id10001/video2/00001.wav, id10002",
        ),
        (no_list, FileNotFoundError, "get iden_split.txt of VoxCeleb1"),
        (another_rate, ValueError, "00000.wav is sampled at 8000 Hz: resample"),
    ],
)
def test_faults_of_voxceleb_are_told(voxceleb, tmp_path, fault, error, message):
    fault(voxceleb)
    with pytest.raises(error, match=message):
        recipe.prepare_sid(voxceleb, tmp_path, utterances_per_speaker=None)


# Enhancement


@pytest.fixture
def voicebank(tmp_path):
    folder = tmp_path / "data"
    for part, speakers in (
        ("trainset_28spk_wav", ("p226", "p227", "p228", "p287")),
        ("testset_wav", ("p232", "p257")),
    ):
        for kind in ("clean", "noisy"):
            for speaker in speakers:
                for index in (1, 2, 3):
                    name = f"{speaker}_{index:03d}.wav"
                    write(folder / f"{kind}_{part}" / name)
    return folder


def test_noisy_speech_stands_beside_clean_speech(voicebank, tmp_path):
    save = tmp_path / "save"
    recipe.prepare_se(voicebank, save, num_train=4)
    rows = read(save, "test")
    assert rows[3] == {
        "ID": "p257_001",
        "duration": "0.5",
        "wav": "$data_root/noisy_testset_wav/p257_001.wav",
        "clean": "$data_root/clean_testset_wav/p257_001.wav",
        "spk_id": "p257",
    }
    valid = {row["spk_id"] for row in read(save, "valid")}
    assert valid == {"p226", "p287"} and len(ids(save, "valid")) == 6

    # As MiniSUPERB's script draws them: shuffle, take the first, sort.
    names = [f"p{s}_{k:03d}" for s in (227, 228) for k in (1, 2, 3)]
    random.seed(8830)
    random.shuffle(names)
    assert ids(save, "train") == sorted(names[:4])
    recipe.prepare_se(voicebank, save, num_train=None)
    assert len(ids(save, "train")) == 6


def test_a_set_that_is_too_small_is_taken_whole(voicebank, tmp_path, caplog):
    recipe.prepare_se(voicebank, tmp_path / "save")
    assert "num_train: there are only 6 utterances and not 1000" in caplog.text
    assert len(ids(tmp_path / "save", "train")) == 6


def test_resampled_folders_go_first(voicebank, tmp_path):
    for folder in list(voicebank.iterdir()):
        folder.rename(folder.with_name(f"{folder.name}_16k"))
        write(folder / "p226_001.wav", rate=48000)
    recipe.prepare_se(voicebank, tmp_path / "save")
    path = read(tmp_path / "save", "valid")[0]["wav"]
    assert path == "$data_root/noisy_trainset_28spk_wav_16k/p226_001.wav"


def as_published(folder):
    for file in folder.glob("*_testset_wav/*.wav"):
        write(file, rate=48000)


def one_of_another_rate(folder):
    write(folder / "clean_testset_wav" / "p257_003.wav", rate=8000)


def no_partner(folder):
    (folder / "clean_trainset_28spk_wav" / "p227_002.wav").unlink()
    (folder / "clean_trainset_28spk_wav" / "p228_001.wav").unlink()


def nothing_noisy(folder):
    (folder / "noisy_testset_wav" / "p232_001.wav").unlink()


def another_length(folder):
    write(folder / "clean_testset_wav" / "p232_001.wav", 0.4)


def cut_off(folder):
    """Which libsndfile takes for a short file."""
    file = folder / "clean_testset_wav" / "p232_001.wav"
    file.write_bytes(file.read_bytes()[:200])


def a_folder_less(folder):
    (folder / "clean_testset_wav").rename(folder / "elsewhere")


def empty_folders(folder):
    for file in folder.glob("*_testset_wav/*.wav"):
        file.unlink()


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        (as_published, ValueError, "48000 Hz, .* convert .* sox .* -r 16000"),
        (one_of_another_rate, ValueError, "p257_003.wav is sampled at 8000 Hz"),
        (
            no_partner,
            FileNotFoundError,
            "2 of 12 utterances have no file in .*clean_trainset_28spk_wav, "
            "such as p227_002.wav, p228_001.wav",
        ),
        (nothing_noisy, FileNotFoundError, "1 of 6 .*noisy_testset_wav, such"),
        (
            another_length,
            ValueError,
            r"files of 1 of 6 .*p232_001.wav 8000, .*_001.wav 6400\)",
        ),
        (cut_off, ValueError, r"p232_001.wav 8000, .*p232_001.wav 78\)"),
        (a_folder_less, FileNotFoundError, "extract clean_testset_wav.zip"),
        (empty_folders, FileNotFoundError, "no WAV files in .*noisy_testset"),
    ],
)
def test_faults_of_voicebank_are_told(
    voicebank, tmp_path, fault, error, message
):
    fault(voicebank)
    with pytest.raises(error, match=message):
        recipe.prepare_se(voicebank, tmp_path / "save")


@pytest.mark.parametrize(
    "speakers", [["p999"], ["p226", "p227", "p228", "p287"]]
)
def test_somebody_must_be_left_to_train_on(voicebank, tmp_path, speakers):
    with pytest.raises(ValueError, match="p226, p227.* set valid_speakers"):
        recipe.prepare_se(voicebank, tmp_path, valid_speakers=speakers)


def test_a_damaged_partner_is_left_out_and_found_again(
    voicebank, tmp_path, caplog
):
    file = voicebank / "clean_testset_wav" / "p232_001.wav"
    content = file.read_bytes()
    file.write_bytes(b"RIFF")
    save = tmp_path / "save"
    for _ in range(2):
        caplog.clear()
        recipe.prepare_se(voicebank, save)
        assert "1 of 12 audio files cannot be read" in caplog.text
        assert "such as clean_testset_wav/p232_001.wav" in caplog.text
        assert ids(save, "test")[0] == "p232_002"
    file.write_bytes(content)
    recipe.prepare_se(voicebank, save)
    assert ids(save, "test")[0] == "p232_001"


# Separation


@pytest.fixture
def librimix(tmp_path):
    folder = tmp_path / "Libri2Mix"
    for split, count in (("train-100", 6), ("dev", 3), ("test", 2)):
        for kind in ("mix_clean", "s1", "s2"):
            for index in range(count):
                name = f"1-1-000{index}_2-1-0000.wav"
                write(folder / "wav16k" / "min" / split / kind / name)
    return folder


def test_a_mixture_stands_beside_its_sources(librimix, tmp_path):
    save = tmp_path / "save"
    recipe.prepare_ss(librimix, save, num_train=4, num_valid=2)
    test = read(save, "test")
    assert len(test) == 2
    assert test[1] == {
        "ID": "1-1-0001_2-1-0000",
        "duration": "0.5",
        **{
            column: f"$data_root/wav16k/min/test/{kind}/1-1-0001_2-1-0000.wav"
            for column, kind in zip(
                ("wav", "s1", "s2"), ("mix_clean", "s1", "s2")
            )
        },
    }
    for name, total, count in (("train", 6, 4), ("valid", 3, 2)):
        names = [f"1-1-000{k}_2-1-0000" for k in range(total)]
        random.seed(7)
        random.shuffle(names)
        assert ids(save, name) == sorted(names[:count])
    recipe.prepare_ss(librimix, save, train_split="dev", num_valid=None)
    assert len(ids(save, "valid")) == len(ids(save, "train")) == 3


def test_faults_of_libri2mix_are_told(librimix, tmp_path):
    def fails(error, message, folder=librimix):
        with pytest.raises(error, match=message):
            recipe.prepare_ss(folder, tmp_path / "save")

    fails(FileNotFoundError, "did you mean data_folder .*Mix", tmp_path)
    fails(FileNotFoundError, "does not exist", tmp_path / "nowhere")
    dev = librimix / "wav16k" / "min" / "dev"
    (dev / "s2" / "1-1-0002_2-1-0000.wav").unlink()
    fails(FileNotFoundError, "1 of 3 utterances have no file in .*dev/s2, such")
    write(dev / "s2" / "1-1-0002_2-1-0000.wav", 0.6)
    fails(ValueError, "differ in their number of samples")
    write(dev / "s2" / "1-1-0002_2-1-0000.wav", rate=8000)
    fails(ValueError, "1-1-0002_2-1-0000.wav is sampled at 8000 Hz")


@pytest.mark.parametrize("task", recipe.TASKS)
def test_preparation_can_be_skipped(task, tmp_path):
    recipe.TASKS[task]("nowhere", tmp_path / "save", skip_prep=True)
    assert not (tmp_path / "save").exists()
