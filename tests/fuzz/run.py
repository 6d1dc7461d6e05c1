"""Seeded inputs of every kind through the command line, each in a forked process, judged by what no input may do.

    python -m tests.fuzz.run --inputs 3000 --workers 2
    python -m tests.fuzz.run --seed 7 --only configs-123 --show     one input again

Input i of a kind follows from (seed, i) alone. No traceback, no word of a fault of ours, no signal, no hang, nothing
written outside or into what was read, nothing left behind by what was refused.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import stat
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from benchmarks import forked

KINDS = (
    "configs.make", "configs.alone", "weights.make", "folders.make", "texts.recipe", "texts.single_values",
    "texts.prompts", "texts.gates", "options.make", "images.make", "runs.make",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=None, help="stop early")
    parser.add_argument("--only", help="one input, such as configs.make-17, or one kind")
    parser.add_argument("--show", action="store_true", help="what it printed, and keep its folder")
    asked = parser.parse_args()
    with world() as templates:
        if asked.show:
            kind, _, number = asked.only.rpartition("-")
            _show(templates, asked.seed, kind, int(number))
            return
        kinds = [kind for kind in KINDS if asked.only in (None, kind)]
        until = time.monotonic() + 60 * asked.minutes if asked.minutes else float("inf")
        share = [range(worker, asked.inputs, asked.workers) for worker in range(asked.workers)]
        pids = [_fork(partial(_work, templates, asked.seed, kinds, numbers, until)) for numbers in share]
        bad = sum(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids)
    sys.exit(1 if bad else 0)


@contextlib.contextmanager
def world() -> Iterator[Path]:
    """Libraries loaded, and templates of everything that inputs are made from."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        os.environ |= {"HF_HOME": f"{folder}/hf", "HOME": folder}
        forked.preload()
        templates = Path(folder) / "templates"
        make_templates(templates)
        yield templates


def make_templates(templates: Path) -> None:
    from tests import tiny
    from tests.families import pipe_dit, pipe_stable_diffusion
    from tests.fuzz.runs import again

    blocks: dict[str, Any] = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    tiny.save_pipeline(templates / "ddpm", num_train_timesteps=50, **blocks)
    tiny.save_pipeline(templates / "classes", num_train_timesteps=50, num_classes=3, **blocks)
    pipe_stable_diffusion.pipeline().save_pretrained(templates / "sd")
    pipe_dit.pipeline(4).save_pretrained(templates / "dit")
    made = forked.run(again(templates / "ddpm", templates / "run"), seconds=600)
    if made.code:
        sys.exit(f"no run to damage: {made.stderr}")


def tried(templates: Path, seed: int, kind: str, number: int, root: Path) -> tuple[forked.Outcome, list[str], str]:
    """One input: what came of it, its faults, and the command."""
    from importlib import import_module

    from tests.fuzz.place import Case, Place, snapshot

    random, place = Random(f"{seed} {kind} {number}"), Place(root, templates)
    module, _, name = kind.partition(".")
    make: Callable[[Random, Place], Case] = getattr(import_module(f"tests.fuzz.{module}"), name)
    case = make(random, place)
    outside, inputs, before = (snapshot(f) for f in (place.outside, place.inputs, place.work))
    stopped: list[int] = []

    def stop(pid: int, _age: float) -> None:
        if case.accepted is not None and not stopped and os.path.exists(case.accepted):
            stopped.append(pid)
            os.kill(pid, signal.SIGTERM)

    def prepare() -> None:
        os.chdir(place.work)
        tempfile.tempdir = str(place.temporary)

    outcome = forked.run(case.arguments, seconds=case.seconds, prepare=prepare, meanwhile=stop)
    faults = list(outcome.faults)
    if outcome.code not in (0, 1, 2, 3, 4, 5, 75) and outcome.code >= 0:
        faults.append(f"exit code {outcome.code}")
    faults += ["wrote outside"] if snapshot(place.outside) != outside else []
    faults += ["changed what it read"] if snapshot(place.inputs) != inputs else []
    left = [name for name in os.listdir(place.temporary) if not name.startswith(".")]
    faults += [f"left {left}"] if left else []
    after = snapshot(place.work)
    made = sorted(set(after) - set(before))
    if kind != "runs.make" and "--overwrite" not in case.arguments:
        pipes = (name for name, (mode, *_) in before.items() if stat.S_ISFIFO(mode))
        faults += [f"replaced {name}" for name in pipes if not stat.S_ISFIFO(after.get(name, (0,))[0])]
    faults += [f"left {name}" for name in made if name.endswith((".part", ".old", ".holder"))]
    if outcome.code in (2, 4) and made and kind != "runs.make":
        faults.append(f"refused, and made {made[:3]}")
    return outcome, faults, " ".join(case.arguments)


def _work(templates: Path, seed: int, kinds: list[str], numbers: range, until: float) -> int:
    """The inputs of one worker; the number of those with faults, at most 100."""
    codes: Counter[str] = Counter()
    bad, started = 0, time.monotonic()
    for number in numbers:
        if time.monotonic() > until:
            break
        kind = kinds[number % len(kinds)]
        with _root() as root:
            outcome, faults, command = tried(templates, seed, kind, number, root)
        codes[str(outcome.code)] += 1
        if faults:
            bad += 1
            told = " | ".join(line[:400] for line in outcome.stderr.splitlines()[-3:])
            print(f"{kind}-{number}: {', '.join(faults)}\n    {command[:300]}\n    {told}", flush=True)
    seconds = time.monotonic() - started
    print(
        f"{sum(codes.values())} inputs in {seconds:.0f} s, exit codes {dict(sorted(codes.items()))}, {bad} with faults"
    )
    return min(bad, 100)


def _show(templates: Path, seed: int, kind: str, number: int) -> None:
    root = Path(tempfile.mkdtemp(prefix="fuzz-one-"))
    outcome, faults, command = tried(templates, seed, kind, number, root)
    print(
        f"{command}\nin {root}\n{outcome.stdout}{outcome.stderr}exit {outcome.code}, {outcome.seconds:.1f} s, {faults}"
    )


@contextlib.contextmanager
def _root() -> Iterator[Path]:
    root = Path(tempfile.mkdtemp(prefix="fuzz-one-"))
    try:
        yield root
    finally:
        for folder, _, _ in os.walk(root):
            with contextlib.suppress(OSError):
                os.chmod(folder, stat.S_IRWXU)
        shutil.rmtree(root, ignore_errors=True)


def _fork(body: Callable[[], int]) -> int:
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        code = 101
        try:
            code = body()
        finally:
            sys.stdout.flush()
            os._exit(code)
    return pid


if __name__ == "__main__":
    main()
