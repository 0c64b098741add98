"""Speech without labels, from any CSVs."""

import numpy as np
import pytest
import soundfile
import torch

from speechbrain_ee.experiment import make_speech_dataset


@pytest.fixture
def ramp(tmp_path):
    """Two seconds in which a sample tells where it stands."""
    path = tmp_path / "ramp.wav"
    soundfile.write(path, np.arange(32000, dtype=np.int16), 16000)
    return path


def write_csv(path, *rows):
    path.write_text("\n".join(["ID,duration,wav,start,stop", *rows]) + "\n")
    return path


def positions(sig):
    return (sig * 2**15).round().long()


def test_long_utterances_are_cut_each_time_elsewhere(ramp, tmp_path):
    rows = f"a,2.0,{ramp},,", f"b,1.0,{ramp},8000,24000", f"c,.2,{ramp},,"
    files = [write_csv(tmp_path / "a.csv", *rows)]
    torch.manual_seed(0)
    cut = make_speech_dataset(files, tmp_path, 0.3, 0.5, random_crops=True)
    assert len(cut) == 2
    firsts = {name: set() for name in "ab"}
    for _ in range(50):
        for item in cut:
            heard = positions(item["sig"])
            assert torch.equal(heard, heard[0] + torch.arange(8000))
            firsts[item["id"]].add(int(heard[0]))
    assert len(firsts["a"]) > 40 and max(firsts["a"]) > 16000
    assert min(firsts["b"]) >= 8000 and max(firsts["b"]) <= 16000

    first = make_speech_dataset(files, tmp_path, max_seconds=0.5)
    assert [int(positions(x["sig"])[0]) for x in first] == [0, 8000, 0]
    assert [len(x["sig"]) for x in first] == [8000, 8000, 3200]
    whole = make_speech_dataset(files, tmp_path)
    assert [len(x["sig"]) for x in whole] == [32000, 16000, 3200]


def test_more_speech_needs_no_transcripts(ramp, tmp_path):
    one = write_csv(tmp_path / "one.csv", "a,2.0,$data_root/ramp.wav,,")
    two = tmp_path / "two.csv"
    two.write_text(f"ID,duration,wav\nb,1.0,{ramp}\n")
    joined = make_speech_dataset([one, two], tmp_path)
    assert [(x["id"], len(x["sig"])) for x in joined] == [
        ("a", 32000),
        ("b", 16000),
    ]
    with pytest.raises(ValueError, match="one.csv: the ID a and 0 more"):
        make_speech_dataset([one, two, one], tmp_path)
    with pytest.raises(ValueError, match="as long as 3 s"):
        make_speech_dataset([one, two], tmp_path, min_seconds=3)
    two.write_text("ID,duration,file\nb,1.0,x\n")
    with pytest.raises(ValueError, match="two.csv: the columns ID, duration"):
        make_speech_dataset([two], tmp_path)
