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


def spawn(*arguments: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """`python *arguments` in its own process, a warm one (see tests/warm.py)."""
    server = environment.get(warm.SOCKET, os.environ[warm.SOCKET])
    return _spawn(warm.interpreter(os.path.dirname(server)), *arguments, cwd=cwd, **environment)


def spawn_fresh(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The same in a new interpreter, where it matters what is loaded."""
    return _spawn(sys.executable, *arguments)


def _spawn(*command: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **environment}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=600)
