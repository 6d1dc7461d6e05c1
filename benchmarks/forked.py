"""The command line in forked copies of this process: libraries are loaded once, and every copy may be killed, starved
or limited. For benchmarks/hostile.py and benchmarks/fuzz.py."""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

LONGEST_LINE = 1000


@dataclass(frozen=True)
class Outcome:
    """code: the exit code, negative for a signal; hung: it was killed after its time."""

    code: int
    stdout: str
    stderr: str
    seconds: float
    hung: bool = False

    @property
    def faults(self) -> list[str]:
        """What no input and no accident may lead to."""
        found = re.findall(r"Traceback|unexpected \w+: .{0,80}|report this as a bug", self.stderr)
        if self.hung:
            found.append(f"hung for {self.seconds:.0f} s")
        elif self.code < 0:
            found.append(f"signal {-self.code}")
        if (
            self.code not in (0, 3)
            and not self.hung
            and "error: " not in self.stderr.lower()
            and self.code != -signal.SIGKILL
        ):
            found.append("no sentence")
        longest = max(map(len, self.stderr.splitlines()), default=0)
        return [*found, *([f"a line of {longest} characters"] if longest > LONGEST_LINE else [])]


def preload() -> None:
    """Import what commands import, before any fork."""
    os.environ |= {
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "TQDM_DISABLE": "1",
        "DIFFUSERS_VERBOSITY": "error",
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    import diffusers
    import torch

    torch.set_num_threads(1)
    for name in ("deliver", "estimate", "several", "train"):
        importlib.import_module(f"diffcompress.jobs.{name}")
    _ = diffusers.DDPMPipeline, diffusers.UNet2DModel, diffusers.StableDiffusionPipeline  # which are lazy
    # Else every fork's garbage collector walks, and so copies, all that is loaded here.
    gc.collect()
    gc.freeze()


def run(
    arguments: Sequence[object],
    *,
    seconds: float = 60.0,
    prepare: Callable[[], object] | None = None,
    meanwhile: Callable[[int, float], object] | None = None,
) -> Outcome:
    """`diffcompress *arguments` in a forked process.

    prepare: called in it first; meanwhile: called here over and over with its id and its age in seconds. It is killed,
    with all that it started, after `seconds`.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        started = time.monotonic()
        pid = os.fork()
        if pid == 0:
            _become(arguments, out.fileno(), err.fileno(), prepare)
        hung, status = False, None
        while status is None:
            done, value = os.waitpid(pid, os.WNOHANG)
            if done:
                status = value
                break
            age = time.monotonic() - started
            if age > seconds:
                hung = True
                _end(pid)
            if meanwhile is not None:
                meanwhile(pid, age)
            time.sleep(0.002)
        age = time.monotonic() - started
        _end(pid)
        texts = []
        for stream in (out, err):
            stream.seek(0)
            texts.append(stream.read().decode("utf-8", "replace"))
    return Outcome(os.waitstatus_to_exitcode(status), texts[0], texts[1], age, hung)


def _end(pid: int) -> None:
    """A process and all of its group, some of which may have outlived it."""
    for kill in (os.killpg, os.kill):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            kill(pid, signal.SIGKILL)


def _become(arguments: Sequence[object], out: int, err: int, prepare: Callable[[], object] | None) -> None:
    """The rest of this process: one command, and no word about it to the parent's own streams."""
    code = 70
    try:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(out, 1)
        os.dup2(err, 2)
        sys.stdout = os.fdopen(1, "w", buffering=1, encoding="utf-8", errors="backslashreplace")
        sys.stderr = os.fdopen(2, "w", buffering=1, encoding="utf-8", errors="backslashreplace")
        if prepare is not None:
            prepare()
        from diffcompress.cli.app import app

        try:
            app([str(a) for a in arguments], prog_name="diffcompress")
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)


def inside(folder: Path) -> dict[str, tuple[int, int]]:
    """Every entry below `folder` with its kind and size, to see what a command has changed."""
    found = {}
    for root, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(root) / name
            stat = path.lstat()
            found[str(path.relative_to(folder))] = (stat.st_mode >> 12, 0 if path.is_dir() else stat.st_size)
    return found
