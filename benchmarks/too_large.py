"""Teachers that this machine does not hold: planned, asked and taught from, with their layers left on disk.

A pipeline of random weights in bfloat16 is written shard by shard, with encoders and an autoencoder of a few thousand
weights. Then `plan`, and `shrink` until its student has taken its steps: bank, start and steps of a real run, whose
evaluation is not waited for. What it says is noise; what it takes of time and memory is not.

    python benchmarks/too_large.py tests/teachers/sd3-medium.json tests/teachers/flux1-dev.json
    python benchmarks/too_large.py tests/teachers/sd3-medium.json --t5
"""

import argparse
import json
import math
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import T5Config, T5EncoderModel

from diffcompress.families import registry
from diffcompress.families.base import complete
from diffcompress.student.size import build
from tests.families import pipe_flux, pipe_sd3

T5_XXL: dict[str, Any] = {
    "d_model": 4096,
    "d_ff": 10240,
    "d_kv": 64,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
}
SHARD_BYTES, POOL = 2 << 30, 1 << 24
# Latents of 8 x 8 and prompts of 16 tokens: at 128 x 128 a call of the larger teacher takes a CPU most of an hour.
SETTINGS = {
    "bank.sample_size": 8,
    "bank.text_length": 16,
    "bank.num_samples": 2,
    "bank.num_prompts": 2,
    "bank.sampler_steps": 2,
    "training.batch_size": 2,
    "targets.pool_size": 2,
    "training.warmup_steps": 0,
    "training.preview_every_steps": 1000,
    "stages.0.num_steps": 1,
    "stages.1.num_steps": 1,
    "evaluation.num_samples": 2,
    "evaluation.sampler_steps": 1,
}
# `diffcompress` on a machine that has only so many bytes for it, as far as it asks.
LIMITED = """
import sys, types, psutil
from diffcompress.__main__ import main
most, told = float(sys.argv.pop(1)), psutil.virtual_memory
def memory():
    own = psutil.Process().memory_full_info().uss
    return types.SimpleNamespace(available=int(max(0, min(told().available, most - own))))
psutil.virtual_memory = memory
sys.argv[0] = "diffcompress"
main()
"""


def tensors(shapes: dict[str, tuple[int, ...]]) -> Iterator[tuple[str, Tensor]]:
    """Of random numbers in bfloat16, pieces of one row of them: drawing billions would take minutes."""
    own = torch.Generator().manual_seed(0)
    pool = (0.02 * torch.randn(POOL, generator=own)).bfloat16()
    for name, shape in shapes.items():
        size = math.prod(shape)
        start = int(torch.randint(POOL // 2, (), generator=own))
        piece = pool[start:].repeat(-(-size // (POOL - start)))[:size]
        yield name, piece.reshape(shape).contiguous()


def write_denoiser(folder: Path, config: dict) -> int:
    """The denoiser of `config` into `folder`; returns its bytes."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    family = registry.find(config["_class_name"])
    return write(folder, "diffusion_pytorch_model", build(family, complete(family.class_name, config), "meta"))


def write_t5(folder: Path) -> int:
    """The text encoder of Stable Diffusion 3 and Flux in its published size into `folder`; returns its bytes."""
    shutil.rmtree(folder)
    config = T5Config(**T5_XXL)
    config.architectures = ["T5EncoderModel"]
    config.save_pretrained(folder)
    with torch.device("meta"):
        model = T5EncoderModel(config)
    return write(folder, "model", model)


def write(folder: Path, stem: str, model: nn.Module) -> int:
    """Random weights for `model`, which is on the meta device, in shards; returns their bytes."""
    twice = getattr(model, "_tied_weights_keys", None) or ()
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items() if name not in twice}
    total = 2 * sum(map(math.prod, shapes.values()))
    count, index, shard, done = -(-total // SHARD_BYTES), dict[str, str](), dict[str, Tensor](), 0
    for name, value in tensors(shapes):
        number = done * count // total
        shard[name], done = value, done + value.nbytes
        if done * count // total > number:  # the next one begins in another shard
            file = f"{stem}-{number + 1:05d}-of-{count:05d}.safetensors"
            save_file(shard, folder / file, {"format": "pt"})
            index.update(dict.fromkeys(shard, file))
            shard.clear()
    told = {"metadata": {"total_size": total}, "weight_map": index}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(told))
    return total


def pipeline(folder: Path, config: dict, *, t5: bool) -> int:
    """A whole pipeline with small parts around the denoiser of `config`; returns the bytes of that one. t5: its T5 is
    of the published size."""
    sizes = ("joint_attention_dim", "pooled_projection_dim", "in_channels")
    changes = {name: config[name] for name in sizes}
    around = pipe_flux if config["_class_name"].startswith("Flux") else pipe_sd3
    around.pipeline(**changes).save_pretrained(folder)
    shutil.rmtree(folder / "transformer")
    if t5:
        write_t5(folder / ("text_encoder_2" if around is pipe_flux else "text_encoder_3"))
    return write_denoiser(folder / "transformer", config)


def resident(pid: int) -> dict[str, int]:
    """Bytes: the most that was resident so far, and what of memory is no file now."""
    text = Path(f"/proc/{pid}/status").read_text()
    lines = dict(line.split(":", 1) for line in text.splitlines())
    return {name: int(lines[name].split()[0]) << 10 for name in ("VmHWM", "RssAnon") if name in lines}


def run(arguments: list[str], folder: Path, memory: float) -> dict[str, float]:
    """Of a run until its student is trained: GB, and seconds of its parts."""
    trained, started = folder / "stage-2-place" / "final", time.monotonic()
    process = psutil.Popen([sys.executable, "-c", LIMITED, str(memory), "shrink", *arguments, "--output", str(folder)])
    found, seconds = {"VmHWM": 0, "RssAnon": 0}, {}
    while process.poll() is None and not trained.exists():
        time.sleep(0.2)
        spent = process.cpu_times()
        seconds = {"run": time.monotonic() - started, "run, cpu": spent.user + spent.system}
        found = {name: max(size, found[name]) for name, size in (found | resident(process.pid)).items()}
    process.send_signal(signal.SIGTERM)
    process.wait()
    seconds |= json.loads((folder / "timings.json").read_text())
    return {"resident_gb": found["VmHWM"] / 1e9, "own_gb": found["RssAnon"] / 1e9} | seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", type=Path, nargs="+", help="of denoisers of Stable Diffusion 3 and Flux")
    parser.add_argument("--ratio", default="0.01")
    parser.add_argument("--t5", action="store_true", help="with the text encoder's published size")
    parser.add_argument("--memory", type=float, default=10e9, help="bytes that the run may think it has")
    parser.add_argument("--work", type=Path, default=Path("build/too-large"))
    options = parser.parse_args()
    for config in options.configs:
        work = options.work / config.stem
        shutil.rmtree(work, ignore_errors=True)
        started = time.monotonic()
        size = pipeline(work / "teacher", json.loads(config.read_text()), t5=options.t5)
        written = time.monotonic()
        sets = [text for key, value in SETTINGS.items() for text in ("--set", f"{key}={value}")]
        arguments = [str(work / "teacher"), "--ratio", options.ratio, *sets]
        told = subprocess.run(
            [sys.executable, "-m", "diffcompress", "plan", *arguments, "--json", "--quiet"],
            check=True,
            stdout=subprocess.PIPE,
        )
        planned, done_planning = json.loads(told.stdout), time.monotonic()
        done = run(arguments, work / "run", options.memory)
        told_gb = {
            "teacher_gb": size / 1e9,
            "student_params": planned["params"],
            "planned_gb": planned["peak_memory_bytes"] / 1e9,
        }
        seconds = {"writing": written - started, "plan": done_planning - written}
        print(json.dumps({"teacher": config.stem, **told_gb, **seconds, **done, "card": planned["card"]}), flush=True)
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
