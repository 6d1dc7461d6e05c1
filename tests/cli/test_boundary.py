"""Any exception becomes one message and its exit code."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys

import pytest

from diffcompress.cli.app import explain
from diffcompress.errors import AccessError, DoesNotFitError, RunInterrupted, RunStopped, UsageError
from tests.cli.command import run, spawn


class OutOfMemoryError(RuntimeError):
    """As torch names its own."""


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("bad", "mend"), 2),
        (AccessError("gated"), 4),
        (DoesNotFitError("small"), 5),
        (RunStopped("stop"), 75),
        (RunInterrupted("ctrl-c"), 130),
        (KeyboardInterrupt(), 130),
        (MemoryError(), 5),
        (OutOfMemoryError("CUDA out of memory"), 5),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), 5),
        (OSError(errno.ENOSPC, "No space left on device"), 75),
        (RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"), 75),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), 2),
        (OSError(errno.ENAMETOOLONG, "File name too long", "/x"), 2),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), 5),
        (ImportError("libgomp.so: cannot allocate memory in static TLS block"), 5),
        (OSError("libx.so: failed to map segment from shared object"), 5),
        (
            RuntimeError(
                "Failed to import onnx_utils because of the following error:\nException caught: std::bad_alloc"
            ),
            5,
        ),
        (RuntimeError("could not create a primitive"), 5),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), 5),
        (ImportError("No module named 'x'"), 1),
        (ValueError("surprise"), 1),
    ],
)
def test_exit_codes(error, code):
    message, _, status = explain(error)
    assert int(status) == code
    assert message


def test_no_line_of_a_message_is_endless():
    """Many values, none of them long, as a list in a config has."""
    message = UsageError(f"bad betas {[10**250] * 40}\n  second line").message
    assert [len(line) < 1000 for line in message.split("\n")] == [True, True] and message.endswith("\n  second line")


def test_the_unexpected_names_its_type_and_the_way_to_more():
    message, hint, _ = explain(KeyError("lost"))
    assert "KeyError" in message
    assert "lost" in message
    assert "--traceback" in hint


def test_an_endless_path_is_cut_in_what_the_system_says_of_it(tmp_path):
    result = run("shrink", "demo", "--ratio", "0.1", "--output", str(tmp_path / "run"), "--data", "y" * 5000)
    assert result.code == 2 and "too long" in result.stderr
    assert max(map(len, result.stderr.splitlines())) < 1000


def test_a_bug_in_a_job_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr("diffcompress.recipe.builtin_names", lambda: 1 / 0)
    outcome = run("recipes", "list")
    assert outcome.code == 1
    assert outcome.stderr == "error: unexpected ZeroDivisionError: division by zero\nhint: --traceback shows more\n"
    assert "builtin_names" in run("recipes", "list", "--traceback").stderr


def test_true_exit_codes_of_the_process():
    assert spawn("-m", "diffcompress", "recipes", "show", "nothing").returncode == 2
    done = spawn("-m", "diffcompress", "--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("diffcompress ")


def test_a_process_that_is_stopped_before_its_work_says_so(tmp_path):
    """Here while it waits for its recipe, as it may wait for imports or a download."""
    recipe = tmp_path / "recipe.yaml"
    os.mkfifo(recipe)
    command = [sys.executable, "-m", "diffcompress", "shrink", "demo", "--ratio", "0.1", "--recipe", str(recipe)]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    with recipe.open("w"):  # returns as soon as the other end reads
        process.send_signal(signal.SIGTERM)
        _, told = process.communicate(timeout=60)
    assert process.returncode == 75
    assert told.startswith("error: stopped by SIGTERM")
    assert "Traceback" not in told


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_process_that_is_stopped_while_it_starts_says_so(tmp_path, number, code):
    """Here while it imports the command line: its first import waits."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    (tmp_path / "typer.py").write_text(f"open({str(gate)!r}).read()\n")
    process = subprocess.Popen(
        [sys.executable, "-m", "diffcompress", "--version"],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
    )
    with gate.open("w"):
        process.send_signal(number)
        _, told = process.communicate(timeout=60)
    assert process.returncode == code
    assert told.startswith(f"error: stopped by {number.name}\nhint: ")


def test_what_a_library_prints_does_not_reach_stdout(monkeypatch):
    from diffcompress import recipe

    names = recipe.builtin_names()
    monkeypatch.setattr("diffcompress.recipe.builtin_names", lambda: (print("chatter"), names)[1])
    outcome = run("recipes", "list", "--json")
    assert outcome.stdout.startswith("[")
    assert "chatter" in outcome.stderr


def test_a_launcher_that_starts_one_process_is_told_of(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    assert "torchrun" in run("shrink", "nowhere", "--ratio", "0.1").stderr
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "torchrun" not in run("shrink", "nowhere", "--ratio", "0.1").stderr


def test_other_processes_of_a_launch_keep_silent(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    outcome = run("recipes", "list")
    assert (outcome.code, outcome.stdout, outcome.stderr) == (0, "", "")
    outcome = run("recipes", "show", "nothing")
    assert (outcome.code, outcome.stdout, outcome.stderr) == (2, "", "")


def test_offline_reaches_the_libraries(monkeypatch):
    import json

    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    assert json.loads(run("env", "--json").stdout)["offline"] is False
    assert json.loads(run("env", "--json", "--offline").stdout)["offline"] is True
