"""What diffcompress makes of one GPU, within ten minutes: random weights at real size, no network.

Ceilings of the card; the teacher's call and the student's step of four students against them, as they are and compiled;
how often a step makes its host wait; peak memory against what `plan` says; whether batches come while the card
computes; training that is repeated and resumed, number for number; `make demo` from end to end. Prints one table and
writes JSON. All of it is the product's own code: `load`, `update`, `train`, `plan`, the command line. What fails is
told in its row, and the rest goes on; then the exit code is 1.

    python benchmarks/gpu.py                # one card
    python benchmarks/gpu.py --tiny         # the script itself, on a CPU, with tiny models
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from functools import partial
from multiprocessing.spawn import get_executable
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import runs
from benchmarks.gpu_students import STUDENTS, Subject, compiled, planned_memory, student_step, teacher_call
from benchmarks.measuring import Session
from diffcompress import recipe as recipes
from diffcompress.bank import bank as banks
from diffcompress.bank.bank import Bank
from diffcompress.errors import RunStopped
from diffcompress.jobs.run import Run
from diffcompress.jobs.train import starting_student, train
from diffcompress.pipeline.load import load
from diffcompress.records import shapes
from diffcompress.records.run_files import read_json
from diffcompress.records.run_folder import RunFolder
from diffcompress.runtime import Progress, dtype_name, environment, start
from diffcompress.sources.resolve import resolve
from diffcompress.student.plan import plan

MINUTES = 9.0
# The shortest run that passes through every step.
SHORT: tuple[str, ...] = ("bank.num_samples=4", "bank.sampler_steps=2", "training.batch_size=2", "stages.0.num_steps=1")
SHORT += ("stages.1.num_steps=2", "evaluation.num_samples=4", "evaluation.sampler_steps=2", "targets.pool_size=8")
SHORT += ("student.importance=magnitude", "student.refit=false")
# Enough steps for rounding to show, and a place to stop at.
REPEATED: tuple[str, ...] = (
    "bank.num_samples=16",
    "bank.sampler_steps=8",
    "training.log_every_steps=1",
)
REPEATED += ("stages.0.num_steps=4", "stages.1.num_steps=16", "student.importance=magnitude", "student.refit=false")
STOPS_AT = 9


def ceilings(session: Session) -> None:
    """The most that products, attention and copies reach here."""
    device, tiny = session.device, session.tiny
    size = 128 if tiny else 8192
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        one = torch.randn(size, size, device=device, dtype=dtype)
        speed = 2 * size**3 / session.seconds(partial(torch.matmul, one, one)) / 1e12
        session.most[dtype_name(dtype)] = speed
        session.tell("ceiling", f"product, {dtype_name(dtype)}", speed, "TFLOP/s", size=size)
    length = 64 if tiny else 4096
    for head in (40, 64, 72, 80, 128):
        query = torch.randn(2, 16, length, head, device=device, dtype=torch.bfloat16)
        attend = partial(torch.nn.functional.scaled_dot_product_attention, query, query, query)
        speed = 4 * 32 * length**2 * head / session.seconds(attend) / 1e12
        session.tell("ceiling", f"attention, head of {head}", speed, "TFLOP/s", length=length)
    rows = torch.randn((1 if tiny else 256) * 2**18)
    kinds = {"on the device": rows.to(device), "to the device, pageable": rows}
    if device.type == "cuda":
        kinds["to the device, pinned"] = rows.pin_memory()
    for name, given in kinds.items():
        there = torch.empty_like(rows, device=device)
        moved = rows.nbytes * (2 if name == "on the device" else 1)
        speed = moved / session.seconds(partial(there.copy_, given, non_blocking=True)) / 1e9
        session.tell("ceiling", f"copy {name}", speed, "GB/s")


class StopsOnce(Progress):
    """Asks the run to stop, as SIGTERM does, when so many steps of a stage are done."""

    def __init__(self, run: Run) -> None:
        self.run, self.asked = run, False

    def update(self, task: str, done: int, total: int, **values: float) -> None:
        if task == "place" and done == STOPS_AT and not self.asked:
            self.asked, self.run.runtime.stop.signal = True, signal.SIGTERM


def repeated(session: Session) -> None:
    """Training of the demo's student: once more, stopped and resumed, and its first loss on the CPU."""
    recipe = recipes.load("demo", (*REPEATED, f"training.batch_size={4 if session.tiny else 16}"))

    def run_in(name: str, device: str) -> tuple[Run, Bank]:
        teacher = load(resolve("demo"), device)
        student = plan(teacher.family, teacher.config, ratio=0.05, section=recipe.student, noise=teacher.noise)
        run = runs.run_for(teacher, student, recipe, RunFolder(session.work / name), device=device)
        # One bank for all of them: what is compared is the training.
        bank = banks.fill(session.work / "bank", teacher, recipe.bank, recipe.seed, None, run.runtime, run.progress)
        return run, bank

    def trained(name: str, *, stops: bool = False) -> dict[str, Tensor]:
        run, bank = run_in(name, str(session.device))
        begun = starting_student(run, bank)
        if stops:
            try:
                train(replace(run, progress=StopsOnce(run)), begun, bank)
                raise AssertionError("the run was not stopped")
            except RunStopped:
                run.runtime.stop.signal = None
        return {name: value.cpu() for name, value in train(run, begun, bank)[1].state_dict().items()}

    first = trained("first")
    for name, other in (("repeated", trained("again")), ("stopped and resumed", trained("resumed", stops=True))):
        apart = max((value - other[key]).abs().max().item() for key, value in first.items())
        size = max(value.abs().max().item() for value in first.values())
        session.tell("training", f"{name}: largest change of a weight", apart, "", of=size, bit_equal=apart == 0)
    run, bank = run_in("cpu", "cpu")
    train(run, starting_student(run, bank), bank)
    here, there = (_first_loss(session.work / name) for name in ("first", "cpu"))
    session.tell("training", "first loss, beside that on the CPU", here, "", cpu=there, relative=abs(here / there - 1))


def _first_loss(run: Path) -> float:
    log = next(run.glob("stage-1-*/metrics.jsonl"))
    return json.loads(log.read_text(encoding="utf-8").splitlines()[0])["loss"]


def demo(session: Session) -> None:
    """What `make demo` does."""
    place = session.work / "demo"
    sets = [text for value in SHORT if session.tiny for text in ("--set", value)]
    asked = ["shrink", "demo", "--ratio", "0.05", "--output", str(place), "--device", str(session.device), *sets]
    started = time.monotonic()
    done = subprocess.run(
        [os.fsdecode(get_executable()), "-m", "diffcompress", *asked, "--json", "--quiet"],
        capture_output=True,
        text=True,
        check=False,
        timeout=max(60.0, session.left()),
    )
    if done.returncode:
        raise RuntimeError(done.stderr.strip()[-500:])
    session.tell("demo", "make demo, start of Python included", time.monotonic() - started, "s")
    for name, seconds in read_json(RunFolder(place).timings, kind=shapes.Timings).items():
        session.tell("demo", name, seconds, "s")
    for name in ("fd_demo", "agreement"):
        measured = json.loads(done.stdout)["metrics"].get(name)
        if measured is not None:
            session.tell("demo", name, measured["value"], "", samples=measured["samples"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="on a CPU, to try this script")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="after which nothing more is begun")
    parser.add_argument("--output", type=Path, default=Path("build/gpu.json"))
    options = parser.parse_args()
    runtime = start("cpu" if options.tiny else "cuda")
    print("| part | what | value | unit | |\n|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        session = Session(runtime.device, options.tiny, Path(folder), time.monotonic() + 60 * options.minutes)
        session.attempt("ceiling", partial(ceilings, session))
        session.attempt("demo", partial(demo, session))
        session.attempt("training", partial(repeated, session))
        subjects = [Subject(session, name, ratio) for name, ratio in STUDENTS]
        once = (teacher_call, student_step, planned_memory)
        for measures, chosen in ((once, subjects), ((compiled,), subjects[:2] if options.tiny else subjects)):
            for subject in chosen:
                for measured in measures:
                    session.attempt(subject.name, partial(measured, subject))
                subject.forget()
    options.output.parent.mkdir(parents=True, exist_ok=True)
    told = {"environment": environment(runtime), "tiny": options.tiny, "rows": session.rows}
    options.output.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    print(f"written to {options.output}", file=sys.stderr)
    sys.exit(1 if any("failed" in row for row in session.rows) else 0)


if __name__ == "__main__":
    main()
