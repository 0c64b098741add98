"""Damaged Ogg files, which libsndfile reads as if they were shorter.

What else preparations share is tested through those of the recipes.
"""

import numpy as np
import pytest
import soundfile

from speechbrain_ee.preparation import look_at_audio, write_csv


@pytest.fixture
def ogg(tmp_path):
    """Three seconds of noise in several pages."""
    wave = 0.1 * np.random.default_rng(0).standard_normal(48000)
    soundfile.write(tmp_path / "noise.ogg", wave, 16000)
    content = (tmp_path / "noise.ogg").read_bytes()
    assert content.count(b"OggS") > 4
    return tmp_path / "noise.ogg"


def last_byte_lost(content):
    return content[:-1]


def cut_between_pages(content):
    return content[: content.rfind(b"OggS")]


def cut_within_a_head(content):
    return content[: content.rfind(b"OggS") + 5]


def half_lost(content):
    return content[: len(content) // 2]


def piece_lost(content):
    third = len(content) // 3
    return content[:third] + content[2 * third :]


def hole(content):
    middle = len(content) // 2
    return content[:middle] + bytes(4096) + content[middle + 4096 :]


def bit_flipped_at_the_end(content):
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.mark.parametrize(
    "damage",
    [
        last_byte_lost,
        cut_between_pages,
        cut_within_a_head,
        half_lost,
        piece_lost,
        hole,
        bit_flipped_at_the_end,
    ],
)
def test_an_ogg_file_that_has_lost_something_is_found(ogg, damage):
    assert look_at_audio(ogg) == (48000, 16000, "")
    ogg.write_bytes(damage(ogg.read_bytes()))
    frames, _, fault = look_at_audio(ogg)
    assert frames == 0 and fault.startswith("cut off after ")
    # Its head alone does not tell.
    assert look_at_audio(ogg, decode=False)[2] == ""


def test_who_speaks_too_fast_is_left_out_with_a_warning(tmp_path, caplog):
    rows = [
        {"ID": name, "duration": duration, "wrd": "ten times."}
        for name, duration in (("fast", 0.49), ("slow", 0.5))
    ]
    write_csv(tmp_path / "a.csv", rows, max_characters_per_second=20)
    kept = (tmp_path / "a.csv").read_text().splitlines()
    assert kept == ["ID,duration,wrd", "slow,0.5,ten times."]
    assert "1 of 2 utterances have more than 20 characters" in caplog.text
    with pytest.raises(ValueError, match="change max_characters_per_second"):
        write_csv(tmp_path / "a.csv", rows, max_characters_per_second=10)
