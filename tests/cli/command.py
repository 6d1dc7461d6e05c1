"""Run the command line in this process (quick, torch is loaded once) or in its own (true exit codes and imports)."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from diffcompress.cli.app import app
from tests import warm


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


def spawn(
    *arguments: str, cwd: Path | None = None, fresh: bool = False, **environment: str
) -> subprocess.CompletedProcess[str]:
    """`python *arguments` in its own process; fresh: of which nothing is loaded before (see tests/warm.py)."""
    return subprocess.run(
        [sys.executable if fresh else warm.interpreter(), *arguments],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=600,
    )
