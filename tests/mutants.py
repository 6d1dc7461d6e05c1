"""Mutants: one-line changes of the package, each of which a test must notice. `make mutants` tells which do not.

    python -m tests.mutants [WORD ...]    # only those with a word in their name or file

The list is mutants.yaml. Each mutant is applied to a copy of the package in a temporary folder and its tests run
there, in a fork of one process that has imported torch and diffusers already; the checkout is never touched. First all
tests must pass on the copy as it is.
"""

from __future__ import annotations

import importlib
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent
LIST = Path(__file__).with_suffix(".yaml")
COPIED = ("diffcompress", "recipes", "tests", "docs", "pyproject.toml")
# Whose import takes seconds, and that no mutant changes.
SHARED = ("torch", "diffusers", "accelerate", "transformers", "pytest")
# Of processor time for the tests of one mutant: longer is endless, which is noticed too.
SECONDS = 60
PASSED, FAILED, ENDLESS = 0, 1, -signal.SIGXCPU


@dataclass(frozen=True)
class Mutant:
    """name: what is wrong, in words; file: below diffcompress/; change: the one place of `old` there becomes `new`;
    tests: node ids that should fail."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def apply(self, root: Path) -> str:
        """Mutate the package below `root`; returns the file's text as it was. ValueError if `old` is not there once."""
        path = root / "diffcompress" / self.file
        text = path.read_text(encoding="utf-8")
        if text.count(self.old) != 1:
            raise ValueError(f"{self.file} has {text.count(self.old)} places {self.old!r}, not one: mend {LIST.name}")
        path.write_text(text.replace(self.old, self.new), encoding="utf-8")
        return text


def read() -> list[Mutant]:
    """The list; tests of a mutant may be named once for several, by a YAML anchor."""
    entries = yaml.safe_load(LIST.read_text(encoding="utf-8"))
    return [Mutant(**{**entry, "tests": tuple(entry["tests"])}) for entry in entries]


def main(words: Sequence[str] = ()) -> int:
    """0 when every mutant is noticed, 1 when some survive, 2 when the list or the package as it is has a fault."""
    mutants = [one for one in read() if not words or any(word in f"{one.name} {one.file}" for word in words)]
    for name in SHARED:
        importlib.import_module(name)
    with tempfile.TemporaryDirectory() as name:
        root = _copy(Path(name))
        tests = sorted({test for mutant in mutants for test in mutant.tests})
        if outcome(root, tests) != PASSED:
            print((root / "output").read_text(), "\ntests fail on the package as it is", file=sys.stderr)
            return 2
        survivors = [mutant for mutant in mutants if not noticed(root, mutant)]
    print(f"{len(mutants) - len(survivors)} of {len(mutants)} mutants noticed")
    for mutant in survivors:
        print(f"survived: {mutant.name} ({mutant.file})")
    return 1 if survivors else 0


def noticed(root: Path, mutant: Mutant) -> bool:
    """Whether one of its tests fails. RuntimeError when they do not even run, which says nothing of the mutant."""
    started = time.monotonic()
    before = mutant.apply(root)
    try:
        found = outcome(root, mutant.tests, SECONDS)
    finally:
        (root / "diffcompress" / mutant.file).write_text(before, encoding="utf-8")
    if found not in (PASSED, FAILED, ENDLESS):
        raise RuntimeError(f"{mutant.name}: pytest ended with {found}\n{(root / 'output').read_text()}")
    print(
        f"{time.monotonic() - started:6.1f} s  {'SURVIVED' if found == PASSED else 'noticed '}  {mutant.name}",
        flush=True,
    )
    return found != PASSED


def outcome(root: Path, tests: Iterable[str], seconds: int | None = None) -> int:
    """pytest's exit status on the copy in `root`; what it said is in `root/output`. -SIGXCPU when it took longer."""
    child = os.fork()
    if child == 0:
        _run_tests(root, list(tests), seconds)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _run_tests(root: Path, tests: list[str], seconds: int | None) -> None:
    """In the child: everything of the package comes from the copy, also in processes that tests start."""
    import pytest

    status = 3
    try:
        with (root / "output").open("w") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        if seconds is not None:
            used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
            resource.setrlimit(resource.RLIMIT_CPU, (int(used) + seconds, resource.RLIM_INFINITY))
        os.chdir(root)
        os.environ |= {"PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
        sys.dont_write_bytecode = True  # a file and its mutant may have the same size and time
        sys.path.insert(0, str(root))
        for name in [name for name in sys.modules if name.partition(".")[0] in ("diffcompress", "tests")]:
            del sys.modules[name]
        # Plugins of pytest import what is imported here already, such as anyio.
        quiet = ["-p", "no:cacheprovider", "-W", "ignore:Module already imported:pytest.PytestAssertRewriteWarning"]
        status = pytest.main(["-x", "-q", *quiet, "-m", "slow or not slow", *tests])
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(int(status))


def _copy(folder: Path) -> Path:
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder / name)
    return folder


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
