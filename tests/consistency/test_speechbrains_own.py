"""This tree keeps the rules that SpeechBrain's own tests check.

Authors
 * SpeechBrain-EE contributors 2026
"""

import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

# The newest source distribution that holds tests/.
RELEASE = "speechbrain==1.0.2"


def test_speechbrains_own(tmp_path):
    fetched = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "download", "--quiet"),
            *("--no-deps", "--no-binary", "speechbrain"),
            *("--dest", str(tmp_path), RELEASE),
        ],
        capture_output=True,
        text=True,
    )
    if fetched.returncode:
        pytest.skip(f"{RELEASE} cannot be fetched: {fetched.stderr[-200:]}")
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        opened.extractall(tmp_path, filter="data")
    run = subprocess.run(
        [
            sys.executable,
            str(Path(__file__).with_name("speechbrains_own.py")),
            str(tmp_path / RELEASE.replace("==", "-")),
        ],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]
    assert "All hold." in run.stdout
