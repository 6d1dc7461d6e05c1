"""A few inputs of every kind; `make fuzz` tries thousands."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests import warm

ROOT = Path(__file__).parents[2]


def test_no_input_does_what_none_may() -> None:
    command = [warm.interpreter(), "-m", "tests.fuzz.run", "--inputs", "22", "--workers", "1", "--seed", "12"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=1500)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("22 inputs in ") and done.stdout.endswith(" 0 with faults\n"), done.stdout
