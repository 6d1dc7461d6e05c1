"""Every command in README.md works: the quick ones are run, the long ones must exist and say what they would do."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from diffcompress.cli.app import app
from tests.cli.command import run

ROOT = Path(__file__).parent.parent
LONG = {"shrink", "evaluate", "report"}


def commands() -> list[str]:
    """Lines after a `$ ` in the ```console blocks."""
    blocks = re.findall(r"```console\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    return [line.removeprefix("$ ") for block in blocks for line in block.splitlines() if line.startswith("$ ")]


def test_the_readme_shows_the_two_commands():
    assert {"make demo", "make test"} <= set(commands())


@pytest.mark.parametrize("command", commands())
def test_a_command_of_the_readme(command, tmp_path, monkeypatch):
    words = shlex.split(command, comments=True)
    if words[0] == "make":
        if shutil.which("make") is None:
            pytest.skip("make is not installed")
        done = subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return
    monkeypatch.chdir(tmp_path)
    words = words[words.index("diffcompress") + 1 :]
    if words[0] in LONG:
        options = set(re.findall(r"--[a-z-]+", run(words[0], "--help").stdout))
        assert {word for word in words if word.startswith("--")} <= options
    else:
        outcome = run(*words)
        assert outcome.code == 0, outcome.stderr
        assert outcome.stdout


def test_no_other_command_line_hides_in_the_text():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    named = {name for name in re.findall(r"`diffcompress ([a-z]+)", text)}
    known = {command.name or command.callback.__name__ for command in app.registered_commands}
    assert named <= known | {group.name for group in app.registered_groups}
