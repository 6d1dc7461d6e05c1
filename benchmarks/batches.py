"""How many samples a call of a real teacher may hold, and a step of its student: counted on the meta device.

"Outputs": bytes of all modules' outputs together, by which batches were chosen before; "alive": what exists at once.
Batches on a card of 80 GB beside the teacher's weights, all in bfloat16. "Saved": what autograd keeps of one sample of
the student's step for its backward pass, in float32, against the growth by one sample that micro-batches follow from.
--resident holds the count of one teacher's call against the growth of this process's resident memory, on the CPU.

    python benchmarks/batches.py
    python benchmarks/batches.py --resident dit-xl-2-256
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import ModelMixin
from torch.autograd.graph import saved_tensors_hooks

from diffcompress import recipe as recipes
from diffcompress.families import registry
from diffcompress.families.base import Family, complete
from diffcompress.memory import FusedAttention, Need, peak
from diffcompress.pipeline.conditions import as_dtype
from diffcompress.pipeline.precision import cast
from diffcompress.student import costs
from diffcompress.student.plan import plan
from diffcompress.student.size import build, num_parameters

TEACHERS = {"sd15": 0.25, "sdxl-base": 0.25, "sd3-medium": 0.02, "dit-xl-2-256": 0.05}
TEACHERS |= {"pixart-alpha-1024": 0.02, "flux1-dev": 0.02}
CARD, META, MOST = 80 * 2**30, torch.device("meta"), 512

Call = Callable[[int], torch.Tensor]


def read(name: str) -> tuple[Family, dict]:
    config = json.loads(Path(f"tests/teachers/{name}.json").read_text(encoding="utf-8"))
    family = registry.find(config["_class_name"])
    return family, complete(family.class_name, config)


def call_of(family: Family, config: dict, denoiser: ModelMixin, dtype: torch.dtype) -> Call:
    """A denoiser call on so many rows, in `dtype`."""

    def call(rows: int) -> torch.Tensor:
        with denoiser.device:
            inputs = family.example_inputs(config, rows)
        noisy, timestep = inputs.pop("noisy").to(dtype), inputs.pop("timestep")
        return family.predict(denoiser, noisy, timestep, as_dtype(inputs, dtype))

    return call


def outputs(denoiser: ModelMixin, call: Call) -> int:
    """Bytes of the outputs of all modules of one sample."""
    seen = 0

    def count(_module: object, _inputs: object, output: object) -> None:
        nonlocal seen
        for value in output if isinstance(output, (tuple, list)) else (output,):
            seen += value.nbytes if isinstance(value, torch.Tensor) else 0

    handles = [module.register_forward_hook(count) for module in denoiser.modules()]
    call(1)
    for handle in handles:
        handle.remove()
    return seen


@torch.no_grad()
def teacher_row(name: str) -> str:
    family, config = read(name)
    denoiser = cast(build(family, config, "meta").eval(), torch.bfloat16)
    call = call_of(family, config, denoiser, torch.bfloat16)
    free = CARD - 2 * num_parameters(denoiser)
    before, need = outputs(denoiser, call), Need.of(call, META)
    former = 1 << max(1, free // 4 // before).bit_length() - 1
    rows = need.rows(free, 10**6)
    with FusedAttention():
        taken = peak(lambda: call(rows), META)
    shown = f"{min(former, MOST)} | {rows}"
    return f"| {name} | {before / 1e9:.2f} | {need.row / 1e9:.3f} | {shown} | {taken / free:.0%} |"


def student_row(name: str) -> str:
    family, config = read(name)
    recipe = recipes.load(family.recipe)
    student = plan(family, config, ratio=TEACHERS[name], section=recipe.student).config
    denoiser = build(family, student, "meta").train()
    call = call_of(family, student, denoiser, torch.float32)
    kept: dict[int, int] = {}
    own = {p.untyped_storage()._cdata for p in denoiser.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    sizes = []
    for rows in (1, 2):
        kept.clear()
        with saved_tensors_hooks(keep, lambda tensor: tensor), FusedAttention():
            prediction = call(rows)
        sizes.append(sum(kept.values()))
        del prediction  # held the graph, so that no storage's address came twice
    saved, need = sizes[1] - sizes[0], costs.training_memory(family, student)
    return f"| {name} {TEACHERS[name]} | {saved / 1e9:.3f} | {need.row / 1e9:.3f} | {need.row / saved:.2f} |"


@torch.no_grad()
def resident(name: str, rows: int) -> str:
    """Real weights are random; the peak of resident memory during one call, beyond what stood there before."""
    family, config = read(name)
    torch.manual_seed(0)
    denoiser = build(family, config, "cpu").eval()
    call = call_of(family, config, denoiser, torch.float32)
    call(1)

    def status(key: str) -> int:
        lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return int(lines[key].split()[0]) << 10

    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = status("VmRSS")
    call(rows)
    grown = status("VmHWM") - before
    counted = costs.call_memory(family, config).bytes(rows)
    return f"| {name} | {rows} | {counted / 1e9:.2f} | {grown / 1e9:.2f} | {counted / grown:.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resident", choices=TEACHERS, help="run a real call of this one")
    parser.add_argument("--rows", type=int, default=8)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.resident:
        print(resident(options.resident, options.rows))
        return
    print("| teacher | outputs, GB a sample | alive, GB a sample | batch before | now | of free memory |")
    for name in TEACHERS:
        print(teacher_row(name), flush=True)
    print("| student | saved, GB a sample | counted, GB a sample | ratio |")
    for name in TEACHERS:
        print(student_row(name), flush=True)


if __name__ == "__main__":
    main()
