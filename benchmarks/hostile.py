"""Runs under kills, full disks, damaged files and too little memory, and whether each ends as an undisturbed one does.

    python benchmarks/hostile.py           100 kills, 40 full disks, 300 damaged folders, 20 memory limits
    python benchmarks/hostile.py --few     a handful of each; a test runs it

The teacher is tiny, everything else is the real command line, in forked processes on one core. Prints the table of
docs/reliability.md; exits 1 where a promise was not kept.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import forked
from tests.fuzz import odd

LONGEST = 300.0


@dataclass
class World:
    """A teacher, the run that nothing disturbed, and places to disturb others in."""

    root: Path
    random: Random
    teacher: Path = field(init=False)
    reference: Path = field(init=False)
    broken: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        from tests.jobs.tiny_teacher import save_teacher

        self.teacher, self.reference = save_teacher(self.root / "teacher"), self.root / "reference"
        tempfile.tempdir = os.environ["TMPDIR"] = str(self.root / "tmp")
        (self.root / "tmp").mkdir()
        done = self.shrink(self.reference)
        if done.code:
            sys.exit(f"an undisturbed run fails: {done.stderr}")

    def shrink(self, output: Path, **how: object) -> forked.Outcome:
        from tests.jobs.tiny_teacher import command

        return forked.run(command(self.teacher, output)[3:], **{"seconds": LONGEST, **how})  # type: ignore[arg-type]

    def fresh(self, like: Path | None = None) -> Path:
        """A folder for a run, empty or a copy of another one."""
        place = self.root / "run"
        shutil.rmtree(place, ignore_errors=True)
        return place if like is None else Path(shutil.copytree(like, place))

    def check(self, what: str, outcome: forked.Outcome, codes: tuple[int, ...], output: Path) -> None:
        """One disturbed command: its exit code, its words, what it left, and its student where it says that it has one."""
        found = [fault for fault in outcome.faults if -signal.SIGKILL not in codes or not fault.startswith("signal")]
        if outcome.code not in codes:
            found.append(f"exit code {outcome.code}: {outcome.stderr[-300:]!r}")
        if outcome.code == 0:
            found += differences(output, self.reference)
        if outcome.code != -signal.SIGKILL:
            found += [f"left {path.name}" for path in output.rglob("*") if path.suffix in (".part", ".old")]
        if found:
            self.broken.append(f"{what}: {'; '.join(found)}")
            print(self.broken[-1], flush=True)


def differences(run: Path, reference: Path) -> list[str]:
    """How a finished run differs from the undisturbed one; times and memory may."""
    found = []
    try:
        kept = (file for file in sorted((reference / "pipeline").rglob("*")) if file.is_file())
        for file in kept:
            same = file.read_bytes() == (run / "pipeline" / file.relative_to(reference / "pipeline")).read_bytes()
            if not same and file.name not in ("README.md", "diffcompress.json"):
                found.append(f"another {file.name}")
        stated, ours = (json.loads((one / "pipeline" / "diffcompress.json").read_text()) for one in (reference, run))
        metrics, others = (_lasting(json.loads((one / "metrics.json").read_text())) for one in (reference, run))
        found += ["another provenance"] if stated["files"] != ours["files"] else []
        found += ["other metrics"] if metrics != others else []
        found += [] if json.loads((run / "report.json").read_text())["finished"] else ["a report of an unfinished run"]
    except (OSError, ValueError, KeyError) as error:
        found.append(f"unreadable: {error}")
    return found


def _lasting(found: dict) -> dict:
    return {name: one for name, one in found["metrics"].items() if not name.startswith(("latency", "memory"))}


def kills(world: World, count: int) -> Iterator[str]:
    """SIGKILL at any moment, again and again, until the run is done; then another run."""
    output, alone = world.fresh(), 0.0
    while count > 0:
        limit = world.random.uniform(0.0, 12.0) * world.random.random()

        def strike(pid: int, age: float, limit: float = limit) -> None:
            if age > limit:
                os.kill(pid, signal.SIGKILL)

        outcome = world.shrink(output, meanwhile=strike)
        alone = max(alone, outcome.seconds)
        world.check(f"killed after {outcome.seconds:.2f} s", outcome, (-signal.SIGKILL, 0), output)
        if outcome.code == 0:
            output = world.fresh()
        else:
            count -= 1
            yield "killed"
    if output.exists():
        world.check("after the last kill", world.shrink(output), (0,), output)


def disks(world: World, count: int) -> Iterator[str]:
    """A disk that is full after some bytes, then has a little more, until the run fits; files that may not grow."""
    if not _mounted(world.root / "disk", 64):
        print("no tmpfs can be mounted here: only files that may not grow are tried", flush=True)
    else:
        try:
            yield from _small_disk(world, world.root / "disk" / "run", count - count // 4)
        finally:
            subprocess.run(["umount", "-l", world.root / "disk"], check=False)
    for number in range(count // 4):
        output, limit = world.fresh(), 1000 * 3 ** (number % 7) + number

        def small(limit: int = limit) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        outcome = world.shrink(output, prepare=small)
        world.check(f"files of {limit} bytes at most", outcome, (75, 0), output)
        yield "files that may not grow"
        if number == count // 4 - 1:
            world.check("with files that may grow again", world.shrink(output), (0,), output)


def _small_disk(world: World, output: Path, count: int) -> Iterator[str]:
    kilobytes = 64
    while count > 0:
        outcome = world.shrink(output)
        world.check(f"a disk of {kilobytes} kB", outcome, (75, 0), output)
        if outcome.code == 0:
            kilobytes = 40
            shutil.rmtree(output)
        else:
            count -= 1
            yield "full"
        kilobytes += world.random.randrange(60, 320)
        subprocess.run(["mount", "-o", f"remount,size={kilobytes}k", output.parent], check=True)
    subprocess.run(["mount", "-o", "remount,size=64m", output.parent], check=True)
    world.check("on a disk with room", world.shrink(output), (0,), output)


def _mounted(place: Path, kilobytes: int) -> bool:
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "none", str(place)]
    return (
        shutil.which("mount") is not None and subprocess.run(command, capture_output=True, check=False).returncode == 0
    )


def damages(world: World, count: int) -> Iterator[str]:
    """One file of a run emptied, cut, garbled, flipped, replaced or gone: six in seven of finished runs, the others
    of runs that have trained in part."""
    halfway = world.root / "halfway"
    stopped: list[int] = []

    def stop(pid: int, _age: float) -> None:
        if not stopped and any(halfway.glob("stage-2-place/metrics.jsonl")):
            stopped.append(pid)
            os.kill(pid, signal.SIGTERM)

    world.check("stopped halfway", world.shrink(halfway, meanwhile=stop), (75,), halfway)
    for number in range(count):
        output = world.fresh(halfway if number % 7 == 0 else world.reference)
        files = sorted(file for file in output.rglob("*") if file.is_file() and file.name != ".lock")
        file = files[world.random.randrange(len(files))] if number >= len(files) else files[number]
        name, told = file.relative_to(output), _harmed(world.random, file)
        outcome = world.shrink(output)
        world.check(f"{name}: {told}", outcome, (0, 1), output)
        if outcome.code and not (file.name in outcome.stderr or str(file.parent) in outcome.stderr):
            world.broken.append(f"{name}: {told}: not named in {outcome.stderr[-300:]!r}")
        if advised := re.search(r"^hint: delete (\S+) and run the same command", outcome.stderr, re.MULTILINE):
            place = Path(advised[1])
            shutil.rmtree(place) if place.is_dir() and not place.is_symlink() else place.unlink(missing_ok=True)
            world.check(f"{name}: {told}: after the hint", world.shrink(output), (0,), output)
        yield "made again" if outcome.code == 0 else "named"


def _harmed(random: Random, file: Path) -> str:
    """`odd.damage`, or numbers that are none in a file that is whole."""
    if file.suffix != ".safetensors" or random.random() < 0.7:
        return odd.damage(random, file)
    content = bytearray(file.read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    content[start : start + 4] = b"\x00\x00\xc0\x7f"
    file.write_bytes(bytes(content))
    return "NaN"


def memories(world: World, count: int) -> Iterator[str]:
    """Address space that ends a little above what a process with its libraries has, or below what imports need."""
    for number in range(count):
        output = world.fresh()
        if number % 5 == 4:
            outcome = _started(world, output, (200 + 150 * number) << 20)
        else:
            more = int(1.35**number * (8 << 20))

            def tight(more: int = more) -> None:
                pages = int(Path("/proc/self/statm").read_text().split()[0])
                resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more,) * 2)

            outcome = world.shrink(output, prepare=tight)
        # Compiled code that finds no memory for its own words may end the process: what it did must last even so.
        ended = outcome.code in (-signal.SIGABRT, -signal.SIGSEGV) or "OpenBLAS error" in outcome.stderr
        if not ended:
            world.check(f"memory limit {number}", outcome, (0, 5), output)
        yield "ended inside a library" if ended else "told" if outcome.code else "enough"
        if outcome.code:
            world.check(f"with memory again after limit {number}", world.shrink(output), (0,), output)


def _started(world: World, output: Path, limit: int) -> forked.Outcome:
    """In a process of its own, whose imports are under the limit too."""
    from tests.jobs.tiny_teacher import command, environment

    def tight() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    began = time.monotonic()
    done = subprocess.run(
        command(world.teacher, output), capture_output=True, text=True, check=False, env=environment(), preexec_fn=tight
    )
    return forked.Outcome(done.returncode, done.stdout, done.stderr, time.monotonic() - began)


KINDS: tuple[tuple[str, Callable[[World, int], Iterator[str]], int, int, str], ...] = (
    ("SIGKILL at any moment", kills, 100, 1, "the same command ends with the same student and metrics"),
    ("full disk", disks, 40, 4, "exit code 75; with more space the same command ends with the same student"),
    ("damaged file", damages, 300, 3, "made again, or exit code 1 and a sentence that names it; never another student"),
    ("too little memory", memories, 20, 1, "exit code 5 and one sentence, unless it ends inside a library that aborts"),
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--few", action="store_true")
    parser.add_argument("--only", help="one kind, by the first letters of its name")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    forked.preload()
    with tempfile.TemporaryDirectory(prefix="hostile-") as folder:
        world = World(Path(folder), Random(asked.seed))
        rows = []
        for name, disturb, many, few, promise in KINDS:
            if asked.only and not name.startswith(asked.only):
                continue
            began, before = time.monotonic(), len(world.broken)
            ends: dict[str, int] = {}
            for end in disturb(world, few if asked.few else many):
                ends[end] = ends.get(end, 0) + 1
            told = ", ".join(f"{number} {end}" for end, number in ends.items())
            kept = "all kept" if len(world.broken) == before else f"{len(world.broken) - before} broken"
            rows.append(f"| {name} | {told} | {promise} | {kept} | {time.monotonic() - began:.0f} s |")
            print(rows[-1], flush=True)
        # onnxruntime, which diffusers imports, keeps a hidden file of its own there.
        left = [path.name for path in (world.root / "tmp").iterdir() if not path.name.startswith(".")]
        tempfile.tempdir = None
    print("\n| what | how often | promise | held | time |\n| --- | --- | --- | --- | --- |", *rows, sep="\n")
    print(f"left in the folder for temporary files: {left or 'nothing'}")
    sys.exit(1 if world.broken or left else 0)


if __name__ == "__main__":
    main()
