"""Run the command line in this process (quick, torch is loaded once) or in its own (true exit codes and imports)."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
from dataclasses import dataclass

from diffcompress.cli.app import app


@dataclass
class Outcome:
    code: int
    stdout: str
    stderr: str


def run(*arguments: object) -> Outcome:
    """`diffcompress *arguments` in this process, neither stream being a terminal."""
    out, err = io.StringIO(), io.StringIO()
    code = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            app([str(a) for a in arguments], prog_name="diffcompress")
        except SystemExit as stop:
            code = int(stop.code or 0)
    return Outcome(code, out.getvalue(), err.getvalue())


def spawn(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`python *arguments` in its own process."""
    import os

    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env={**os.environ, **environment}, timeout=600
    )
