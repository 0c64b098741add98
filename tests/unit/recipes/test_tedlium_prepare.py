"""Tests of the data preparation for TED-LIUM."""

import csv
import logging
import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechbrain_ee.corpora.tedlium import make_tedlium
from speechbrain_ee.experiment import make_datasets
from speechbrain_ee.tokenizer import train_tokenizer

RECIPE = Path(__file__).parents[3] / "recipes" / "TED-LIUM"
MODULE = runpy.run_path(RECIPE / "tedlium_prepare.py")
prepare_tedlium, clean_text = MODULE["prepare_tedlium"], MODULE["clean_text"]

RATE = 16000
NAME = "OneSpeaker_2018"


@pytest.fixture
def save_folder(tmp_path):
    return tmp_path / "save"


@pytest.fixture
def corpus(tmp_path):
    """A talk of ten seconds per split; each sample tells where it is."""
    for folder in ("data", "legacy/dev"):
        for kind in ("sph", "stm"):
            (tmp_path / "corpus" / folder / kind).mkdir(parents=True)
        write_sph(tmp_path / "corpus" / folder)
        write_stm(
            tmp_path / "corpus" / folder,
            "0.00 2.00 <o,f0,male> one",
            "2.00 4.00 <o,f0,male> two",
            "4.00 6.00 <o,f0,male> three",
            "6.00 8.00 <o,f0,male> four",
        )
    return tmp_path / "corpus"


def write_sph(folder, seconds=10, rate=RATE, channels=1, endian="FILE"):
    samples = np.arange(seconds * rate) % 30000
    samples = np.repeat(samples[:, None], channels, axis=1).astype("int16")
    file = folder / "sph" / f"{NAME}.sph"
    soundfile.write(
        file, samples, rate, format="NIST", subtype="PCM_16", endian=endian
    )
    return file


def write_stm(folder, *lines):
    """Lines without recording, channel and speaker, or whole ones."""
    file = folder / "stm" / f"{NAME}.stm"
    prefix = f"{NAME} 1 {NAME} "
    whole = [x if x.startswith((";", NAME)) else prefix + x for x in lines]
    file.write_text("".join(f"{line}\n" for line in whole))
    return file


def prepare(corpus, save_folder, **limits):
    """The rows of the training and the dev split."""
    prepare_tedlium(
        corpus, save_folder, "tedlium-train", ["tedlium-dev"], **limits
    )
    return [read(save_folder, name) for name in ("train", "dev")]


def read(save_folder, name):
    with open(save_folder / f"tedlium-{name}.csv", newline="") as stream:
        return list(csv.DictReader(stream))


def words(rows):
    return [row["wrd"] for row in rows]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("it 's what i don 't know", "IT'S WHAT I DON'T KNOW"),
        ("the boys ' toys", "THE BOYS' TOYS"),
        ("'cause we 'd", "'CAUSE WE'D"),
        ("a <unk> b", "A B"),
        ("the <unk> 's book", "THE BOOK"),
        ("it <sil> 's", "IT'S"),
        ("i read(2) {NOISE} it {BREATH}", "I READ IT"),
        ("what(3) 's that (AlGore-1.2-3.4)", "WHAT'S THAT"),
        ("<UNK> {SMACK}", ""),
    ],
)
def test_transcripts_become_the_words_that_are_spoken(given, expected):
    assert clean_text(given) == expected


@pytest.mark.parametrize("endian", ["LITTLE", "BIG"])
def test_datasets_read_the_pieces_that_the_rows_name(
    corpus, save_folder, endian
):
    write_sph(corpus / "data", endian=endian)
    train, dev = prepare(corpus, save_folder)
    assert words(train) == words(dev) == ["ONE", "TWO", "THREE", "FOUR"]
    assert train[1] == {
        "ID": f"{NAME}-0002",
        "duration": "2.0",
        "wav": f"$data_root/data/sph/{NAME}.sph",
        "start": "32000",
        "stop": "64000",
        "spk_id": NAME,
        "wrd": "TWO",
    }
    assert dev[0]["wav"] == f"$data_root/legacy/dev/sph/{NAME}.sph"
    path = save_folder / "tedlium-train.csv"
    labels = {"pad_id": 0, "unk_id": 1}
    tokenizer = train_tokenizer(save_folder, 20, path, "wrd", "char", **labels)
    dataset, _, _ = make_datasets(tokenizer, corpus, path, path, {})
    pieces = [item["sig"].numpy() * 2**15 for item in dataset]
    expected = np.arange(8 * RATE) % 30000
    assert np.array_equal(np.concatenate(pieces), expected)


def test_the_layout_of_the_release(tmp_path, save_folder):
    made = make_tedlium(tmp_path / "made", {"train": 7, "dev": 5, "test": 4})
    sets = ["tedlium-dev", "tedlium-test"]
    prepare_tedlium(made, save_folder, "tedlium-train", sets)
    for name, folder in [("train", "data"), ("dev", "legacy/dev")]:
        expected = []
        for stm in sorted((made / folder / "stm").iterdir()):
            for line in stm.read_text().splitlines():
                if line.startswith(";;") or "inter_segment_gap" in line:
                    continue
                text = line.split(maxsplit=6)[6].replace(" '", "'").upper()
                kept = [w for w in text.split() if w != "<UNK>"]
                expected.append(" ".join(kept))
        assert words(read(save_folder, name)) == expected
    assert len(read(save_folder, "test")) == 4


def test_what_is_not_scored_has_no_row(corpus, save_folder):
    write_stm(
        corpus / "data",
        ';; LABEL "o" "Overall" "Overall results"',
        f"{NAME} 1 inter_segment_gap 0 1 <o,,unknown>",
        "1 2 <o,,unknown> ignore_time_segment_in_scoring",
        "2 3 <NA> IGNORE_TIME_SEGMENT_IN_SCORING",
        "3 4 <NA> spoken",
    )
    train, _ = prepare(corpus, save_folder)
    assert [(row["ID"], row["wrd"]) for row in train] == [
        (f"{NAME}-0005", "SPOKEN")
    ]


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("8.5 8.5 <NA> no time", "lasts 0 s"),
        ("9.0 8.5 <NA> backwards", "lasts -0.5 s"),
        ("-1.0 0.0 <NA> before", "starts at -1 s"),
        ("8.5 10.6 <NA> too late", "ends at 10.6 s, its recording at 10 s"),
        ("10.0 10.1 <NA> too late", "ends at 10.1 s, its recording at 10 s"),
        ("7.8 9.0 <NA> within", "starts at 7.8 s, within line 4"),
        ("8.5 9.0 <NA> <unk>", "no words"),
        ("8.5 9.0 <NA>", "no words"),
    ],
)
def test_a_faulty_segment_is_left_out_with_a_warning(
    corpus, save_folder, caplog, line, fault
):
    file = corpus / "data" / "stm" / f"{NAME}.stm"
    file.write_text(file.read_text() + f"{NAME} 1 {NAME} {line}\n")
    for run in range(2):  # The second one finds the CSV file up to date.
        caplog.clear()
        with caplog.at_level(logging.INFO):
            train, _ = prepare(corpus, save_folder)
        assert ("up to date" in caplog.text) == (run == 1)
        assert words(train) == ["ONE", "TWO", "THREE", "FOUR"]
        (warning,) = [r for r in caplog.records if r.levelname == "WARNING"]
        message = warning.getMessage()
        assert "1 of 5 segments are left out" in message
        assert f"{NAME}.stm, line 5 ({fault})" in message


def test_what_is_nearly_right_is_kept(corpus, save_folder, caplog):
    write_stm(
        corpus / "data",
        "6.00 8.00 <NA> not in order",
        "0.00 2.00 <NA> one",
        "1.95 4.00 <NA> touches",
        f"{NAME} 1 Somebody 3.00 5.00 <NA> another speaker",
        "8.00 10.40 <NA> cut at the end",
    )
    train, _ = prepare(corpus, save_folder)
    assert len(train) == 5 and "left out" not in caplog.text
    assert (train[-1]["stop"], train[-1]["duration"]) == ("160000", "2.0")
    assert train[3]["spk_id"] == "Somebody"


def test_most_segments_at_fault_is_an_error(corpus, save_folder):
    write_sph(corpus / "data", seconds=3)
    with pytest.raises(ValueError, match="3 of 4 segments .* extract the arch"):
        prepare(corpus, save_folder)
    assert not any(save_folder.glob("*"))


def test_limits_hold_for_what_is_trained_on(corpus, save_folder):
    lines = [
        "0.00 0.05 <NA> a",
        "1.00 2.00 <NA> b",
        "3.00 6.00 <NA> c",
        "6.00 7.00 <NA> this is what somebody else says",
    ]
    for folder in ("data", "legacy/dev"):
        write_stm(corpus / folder, *lines)
    train, dev = prepare(corpus, save_folder)
    assert len(train) == len(dev) == 4
    # New limits must not find the old files up to date.
    train, dev = prepare(
        corpus,
        save_folder,
        min_duration=0.1,
        max_duration=2,
        max_characters_per_second=20,
    )
    assert words(train) == ["B"]
    assert words(dev) == ["B", "C", "THIS IS WHAT SOMEBODY ELSE SAYS"]
    with pytest.raises(ValueError, match="None of the 4 .*change min_duration"):
        prepare(corpus, save_folder, min_duration=9)


def test_a_split_without_segments_is_an_error(corpus, save_folder):
    write_stm(corpus / "data", ";; only a comment")
    with pytest.raises(ValueError, match="no segments to score"):
        prepare(corpus, save_folder)


def test_prepares_only_what_is_needed(corpus, save_folder):
    prepare(corpus, save_folder)
    csv_file = save_folder / "tedlium-train.csv"

    def is_written_anew():
        csv_file.write_text("untouched")
        prepare_tedlium(corpus, save_folder, "tedlium-train", ["tedlium-dev"])
        return csv_file.read_text() != "untouched"

    assert not is_written_anew()
    write_sph(corpus / "data", seconds=9)
    assert is_written_anew() and not is_written_anew()
    write_stm(corpus / "data", "0.00 2.00 <NA> other words")
    assert is_written_anew() and not is_written_anew()
    assert "untouched" not in (save_folder / "tedlium-dev.csv").read_text()


def test_skipping_does_nothing(tmp_path, save_folder):
    prepare_tedlium(tmp_path, save_folder, "", [], skip_prep=True)
    assert not save_folder.exists()


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (f"{NAME} 1 {NAME} 1.0 2.0", "has 5 fields and not 6 before the words"),
        ("1.0 2.0 words but no label", "has 'words' where a label"),
        ("1.0 two <NA> words", "has 'two' where a time in seconds"),
        ("nan 2.0 <NA> words", "has 'nan' where a time in seconds"),
        (f"{NAME} 2 {NAME} 1.0 2.0 <NA> words", "is of channel 2"),
        (f"{NAME}X 1 {NAME} 1.0 2.0 <NA> words", "is of another rec"),
    ],
)
def test_a_malformed_line_is_named(corpus, save_folder, line, fault):
    write_stm(corpus / "data", ";; comment", "0.0 1.0 <NA> good", line)
    with pytest.raises(ValueError, match=f"Line 3 of .*{NAME}.stm {fault}"):
        prepare(corpus, save_folder)


def test_transcripts_that_are_not_text_are_named(corpus, save_folder):
    file = corpus / "data" / "stm" / f"{NAME}.stm"
    file.write_bytes(file.read_bytes() + b"\xff")
    with pytest.raises(ValueError, match=f"{NAME}.stm is damaged.* UTF-8"):
        prepare(corpus, save_folder)


def no_folder(corpus):
    shutil.rmtree(corpus)


def no_split(corpus):
    shutil.rmtree(corpus / "legacy")


def wrong_root(corpus):
    inner = corpus / "TEDLIUM_release-3"
    inner.mkdir()
    (corpus / "data").rename(inner / "data")


def no_recordings(corpus):
    for file in corpus.glob("data/*/*.*"):
        file.unlink()


def no_sph(corpus):
    (corpus / "data" / "sph" / f"{NAME}.sph").unlink()


def no_stm(corpus):
    (corpus / "data" / "stm" / f"{NAME}.stm").unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (no_folder, "corpus does not exist: set data_folder to .* TEDLIUM"),
        (no_split, "no folder legacy/dev in .* folders there: data"),
        (wrong_root, "data_folder .*/TEDLIUM_release-3"),
        (no_recordings, "no recordings in .*/data: expected files sph/TALK"),
        (no_sph, f"sph/{NAME}.sph is missing .* there is {NAME}.stm: extract"),
        (no_stm, f"stm/{NAME}.stm is missing .* there is {NAME}.sph: extract"),
    ],
)
def test_what_is_missing_is_named(corpus, save_folder, damage, message):
    damage(corpus)
    with pytest.raises(FileNotFoundError, match=message):
        prepare(corpus, save_folder)


def test_an_unknown_split_is_told_which_there_are(corpus, save_folder):
    with pytest.raises(ValueError, match="no split 'train': .* tedlium-train,"):
        prepare_tedlium(corpus, save_folder, "train", [])


def shortened(folder):
    """As the head of a recording that is compressed with shorten."""
    file = write_sph(folder)
    coding = b"sample_coding -s26 pcm,embedded-shorten-v2.00"
    content = file.read_bytes().replace(b"sample_coding -s3 pcm", coding)
    file.write_bytes(content)


def no_audio(folder):
    (folder / "sph" / f"{NAME}.sph").write_text("<html>404</html>" * 100)


def wrong_rate(folder):
    write_sph(folder, rate=8000)


def stereo(folder):
    write_sph(folder, channels=2)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shortened, r"shorten.* 'sph2pipe -f wav -p .*' or 'ffmpeg -i .*'"),
        (no_audio, "cannot be read .*: extract the archive again"),
        (wrong_rate, "is sampled at 8000 Hz: .* resample it to 16000 Hz"),
        (stereo, "has 2 channels: .* keep one of them"),
    ],
)
def test_a_recording_of_another_kind_is_named(
    corpus, save_folder, damage, message
):
    damage(corpus / "data")
    with pytest.raises(ValueError, match=f"{NAME}.sph .*{message}"):
        prepare(corpus, save_folder)


def test_a_recording_that_was_converted_as_told_is_read(corpus, save_folder):
    file = corpus / "data" / "sph" / f"{NAME}.sph"
    samples, _ = soundfile.read(file, dtype="int16")
    soundfile.write(file, samples, RATE, format="WAV")
    train, _ = prepare(corpus, save_folder)
    assert len(train) == 4
