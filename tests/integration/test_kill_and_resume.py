"""A run that is killed three times ends as if it had not been."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_a_killed_run_ends_as_if_nothing_had_happened():
    script = Path(__file__).with_name("kill_and_resume.py")
    done = subprocess.run(
        [sys.executable, script, "--kills=3"], capture_output=True, text=True
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    assert "equals the other bit for bit" in done.stdout
