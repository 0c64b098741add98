"""Tests of the data preparation for LibriSpeech."""

import logging
import runpy
import shutil
from pathlib import Path

import pytest
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
        prepare_librispeech(corpus, save_folder, ["train-a"], **limits)
        data = load_data_csv(save_folder / "train-a.csv", {"data_root": ""})
        return {name: row["duration"] for name, row in data.items()}

    durations = prepare()
    shortest, *others, longest = sorted(durations.values())
    # New limits must not find the old file up to date.
    kept = prepare(min_duration=others[0], max_duration=others[-1])
    assert sorted(kept.values()) == others
    with pytest.raises(ValueError, match="change min_duration"):
        prepare(max_duration=shortest / 2)


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
