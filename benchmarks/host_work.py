"""What the host does for one training step, for students of real depth: operations started, and CPU time.

A GPU's step takes at least as long as its host needs to start its kernels. Here the student of each teacher has its
real blocks, layers and tensors, but widths and images so small that computing is next to nothing. An operation on a
list of tensors counts as one, as on a GPU; a CPU walks through the list, so that its milliseconds are an upper bound.
One thread; medians; the batch lies ready.

    python benchmarks/host_work.py
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.launches import Launches
from diffcompress import recipe as recipes
from diffcompress import runtime as runtimes
from diffcompress.bank.batch import Batch
from diffcompress.families import registry
from diffcompress.runtime import Progress
from diffcompress.student.plan import plan
from diffcompress.student.size import build
from diffcompress.training.ema import Ema
from diffcompress.training.objective import Trainee
from diffcompress.training.optim import Optimizer
from diffcompress.training.stage import Job, update
from diffcompress.training.state import TrainingState

STUDENTS = (("sd15", 0.25), ("sdxl-base", 0.25), ("sd3-medium", 0.02), ("dit-xl-2-256", 0.05))
TOKENS = 4


def narrow(config: dict) -> dict:
    """The same blocks and layers, a sixty-fourth as wide, for images of a few pixels."""
    small = dict(config)
    if "block_out_channels" in config:
        small |= {"block_out_channels": [max(4, width // 64) for width in config["block_out_channels"]]}
        small |= {"norm_num_groups": 1, "attention_head_dim": 1, "cross_attention_dim": 16, "sample_size": 8}
        small |= {"time_embedding_dim": 32}
        if config.get("addition_embed_type"):
            small |= {"addition_time_embed_dim": 4, "projection_class_embeddings_input_dim": 4 * 6 + 16}
        return small
    small |= {"num_attention_heads": 1, "attention_head_dim": 8, "sample_size": 4}
    wanted = {"joint_attention_dim": 16, "pooled_projection_dim": 16, "caption_projection_dim": 8}
    return small | {key: value for key, value in wanted.items() if key in config}


def measure(name: str, ratio: float, folder: Path, repeats: int) -> dict:
    config = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    family = registry.find(config["_class_name"])
    recipe = recipes.load(family.recipe)
    small = narrow(plan(family, config, ratio=ratio, section=recipe.student).config)
    torch.manual_seed(0)
    trainee = Trainee(build(family, small, "cpu"), family).train()
    state = TrainingState(trainee, Ema(trainee, 80), Optimizer(trainee, recipe.training))
    inputs = {
        name: value[:, :TOKENS] if value.dim() == 3 else value
        for name, value in family.example_inputs(small, 2).items()
    }
    noisy, timestep = torch.randn(inputs.pop("noisy").shape), inputs.pop("timestep")
    with torch.no_grad():
        prediction = trainee(noisy, timestep, inputs)[0]
    batch = Batch(noisy, timestep, prediction + 1, None, inputs)
    unasked: Any = None  # a step of these stages asks neither teacher nor targets
    job = Job(recipe, unasked, trainee, state, unasked, runtimes.start("cpu"), Progress(), lambda step: None)
    seconds = []
    for step in range(repeats + 2):
        started = time.process_time()
        update(job, recipe.stages[-1], step, batch)
        seconds.append(time.process_time() - started)
    with Launches() as whole:
        update(job, recipe.stages[-1], repeats + 2, batch)
    for parameter in state.optimizer.parameters:
        parameter.grad = torch.zeros_like(parameter)
    with Launches() as last:
        state.optimizer.step(1e-3)
        state.ema.update(repeats + 3)
    return {
        "student": f"{name} {ratio}",
        "tensors": len(state.optimizer.parameters),
        "cpu_ms": round(1000 * statistics.median(seconds[2:]), 1),
        "operations": whole.total,
        "of them optimizer and average": last.total,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teachers", type=Path, default=Path("tests/teachers"))
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.backends.mkldnn.set_flags(False)  # it compiles a kernel for each shape, which a GPU's host does not
    for name, ratio in STUDENTS:
        print(json.dumps(measure(name, ratio, options.teachers, options.repeats)), flush=True)


if __name__ == "__main__":
    main()
