"""What large teachers cost in memory: encoded prompts, inheriting from shards, Taylor importance.

Each measurement has a process of its own. "own": peak of its anonymous memory beyond what stood there after imports;
"files": peak of mapped pages of files, which the system takes back when it needs them. Once with everything in memory
"at once", as prompts and importance were until this was measured, and once "as needed", as it is done.

    python benchmarks/memory.py
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import diffusers
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from diffcompress.families.sd3 import FAMILY
from diffcompress.pipeline.conditions import Conditions
from diffcompress.pipeline.stored_rows import StoredRows, stored_table
from diffcompress.recipe import StudentSection
from diffcompress.sources.state import StoredState
from diffcompress.sources.weights import weight_files
from diffcompress.student.inherit import start_student
from diffcompress.student.plan import plan
from diffcompress.student.scores import taylor_scores

PROMPTS, TOKENS, CHANNELS, SHARD, BATCH, BATCHES = 512, 333, 4096, 16, 32, 32
# Stable Diffusion 3 medium with five of its blocks: 1 GB in bfloat16.
TEACHER = {
    "sample_size": 128,
    "num_layers": 5,
    "num_attention_heads": 24,
    "attention_head_dim": 64,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048,
    "out_channels": 16,
    "pos_embed_max_size": 192,
}
RATIO = 0.1


def resident() -> tuple[int, int]:
    """Bytes of anonymous memory and of mapped pages of files."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["RssAnon"].split()[0]) << 10, int(lines["RssFile"].split()[0]) << 10


@contextmanager
def watched(found: dict[str, float]) -> Iterator[None]:
    """Peaks of the block, in MB beyond its start, looked at every two milliseconds."""
    start, peak, done = resident(), [0, 0], threading.Event()

    def look() -> None:
        while not done.wait(0.002):
            peak[:] = map(max, peak, resident())

    thread = threading.Thread(target=look)
    thread.start()
    yield
    done.set()
    thread.join()
    found["own"], found["files"] = ((most - first) / 1e6 for most, first in zip(peak, start, strict=True))


def make(folder: Path) -> None:
    (folder / "prompts").mkdir()
    for number in range(PROMPTS // SHARD):
        own = torch.Generator().manual_seed(number)
        rows = torch.randn(SHARD, TOKENS, CHANNELS, generator=own).bfloat16()
        save_file({"encoder_hidden_states": rows}, shard(folder, number))
    torch.set_default_dtype(torch.bfloat16)
    diffusers.SD3Transformer2DModel(**TEACHER).save_pretrained(folder / "teacher", max_shard_size="250MB")


def shard(folder: Path, number: int) -> Path:
    return folder / "prompts" / f"shard-{number:05d}.safetensors"


def prompts(folder: Path, at_once: bool) -> dict[str, float]:
    found: dict[str, float] = {}
    files = [shard(folder, number) for number in range(PROMPTS // SHARD)]
    for file in files:  # out of the system's cache
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    with watched(found):
        start = time.perf_counter()
        table: Mapping[str, Tensor | StoredRows]
        if at_once:
            parts = [load_file(file) for file in files]
            table = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
            del parts
        else:
            table = stored_table(files)
        conditions = Conditions(table, PROMPTS)
        found["seconds to open"] = time.perf_counter() - start
        for run in ("first", "again"):
            start = time.perf_counter()
            for number in range(BATCHES):
                conditions.rows(conditions.draw(range(number * BATCH, (number + 1) * BATCH), 0))
            found[f"rows/s {run}"] = BATCHES * BATCH / (time.perf_counter() - start)
    return found


def inherit(folder: Path, at_once: bool) -> dict[str, float]:
    found: dict[str, float] = {}
    config = {"_class_name": "SD3Transformer2DModel"} | json.loads((folder / "teacher" / "config.json").read_text())
    with watched(found):
        start = time.perf_counter()
        state = StoredState(weight_files(folder / "teacher"))
        student_plan = plan(FAMILY, config, ratio=RATIO)
        tensors = {name: value.clone() for name, value in state.items()} if at_once else state
        student = start_student(FAMILY, student_plan, StudentSection(), tensors)
        found["seconds"] = time.perf_counter() - start
    found["student, MB"] = sum(value.nbytes for value in student.state_dict().values()) / 1e6
    return found


def taylor(folder: Path, at_once: bool) -> dict[str, float]:
    found: dict[str, float] = {}
    model = diffusers.SD3Transformer2DModel.from_pretrained(folder / "teacher", torch_dtype=torch.float32)
    model.load_state_dict({name: value.clone() for name, value in model.state_dict().items()}, assign=True)
    model.eval().requires_grad_(False)
    noisy, target = torch.randn(2, 1, 16, 16, 16)  # small, so that next to no memory is activations
    given = {"encoder_hidden_states": torch.randn(1, 16, 4096), "pooled_projections": torch.randn(1, 2048)}
    batches = [(noisy, torch.tensor([500.0]), given, target)] * 2

    def predict(noisy: Tensor, timestep: Tensor, conditioning: Mapping[str, Tensor]) -> Tensor:
        return FAMILY.predict(model, noisy, timestep, conditioning)

    with watched(found):
        start = time.perf_counter()
        if at_once:
            model.requires_grad_(True)
            weights = dict(model.named_parameters())
            scores = {name: torch.zeros(value.shape) for name, value in weights.items()}
            for noisy, timestep, given, target in batches:
                value = functional.mse_loss(predict(noisy, timestep, given), target)
                gradients = torch.autograd.grad(value, list(weights.values()), allow_unused=True)
                for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
                    if gradient is not None:
                        scores[name] += (weight.detach() * gradient).abs().float()
        else:
            taylor_scores(model, predict, batches)
        found["seconds"] = time.perf_counter() - start
    return found


PARTS = {"prompts": prompts, "inherit": inherit, "taylor": taylor}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=PARTS, help="one of the measurements")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.child:
        name, when, folder = options.child
        found: dict[str, float] = {}
        if name == "make":
            make(Path(folder))
        else:
            found = PARTS[name](Path(folder), when == "at once")
        print(json.dumps(found))
        return
    with tempfile.TemporaryDirectory() as folder:

        def child(*which: str) -> dict[str, float]:
            command = [sys.executable, __file__, "--child", *which, folder]
            return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)

        child("make", "both")
        sizes = {part: sum(f.stat().st_size for f in Path(folder, part).iterdir()) for part in ("prompts", "teacher")}
        print(f"prompts {sizes['prompts'] / 1e6:.0f} MB, teacher {sizes['teacher'] / 1e6:.0f} MB")
        for name in [options.only] if options.only else PARTS:
            for when in ("at once", "as needed"):
                row = " ".join(f"| {key} {value:,.1f} " for key, value in child(name, when).items())
                print(f"| {name} | {when} {row}|", flush=True)


if __name__ == "__main__":
    main()
