"""A few steps with a teacher of real size and random weights: seconds and memory against what `plan` says.

Quality means nothing here; shapes, memory and speed do. The teacher is built from a configuration alone (a U-Net as
DDPMPipeline, a DiT as DiTPipeline with a small autoencoder), written in half precision, and given to the command line.

    python benchmarks/real_size.py tests/teachers/dit-xl-2-256.json --ratio 0.02 --batch-size 64
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import diffusers
import torch

STEPS = {"stages.0.num_steps": 2, "stages.1.num_steps": 2}
# Small enough for a CPU; samples of 8 noise levels fill one batch. Importance by magnitude: of random weights by their
# gradients it would mean as little, and take hundreds of teacher gradients.
SETTINGS = STEPS | {
    "student.importance": "magnitude",
    "bank.sampler_steps": 8,
    "evaluation.num_samples": 4,
    "evaluation.sampler_steps": 2,
    "training.preview_every_steps": 1000,
}


def build(config: dict, folder: Path) -> None:
    """A pipeline of random weights, none of them zero, so that no gradient vanishes."""
    torch.manual_seed(0)
    denoiser = getattr(diffusers, config["_class_name"]).from_config(config)
    with torch.no_grad():
        for weight in denoiser.parameters():
            if weight.dim() > 1:
                weight.normal_(std=0.02)
    scheduler = diffusers.DDIMScheduler(clip_sample=False)
    if isinstance(denoiser, diffusers.DiTTransformer2DModel):
        blocks = {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
        vae = diffusers.AutoencoderKL(
            block_out_channels=(8, 8, 8, 8), latent_channels=config["in_channels"], norm_num_groups=4, **blocks
        )
        pipeline: diffusers.DiffusionPipeline = diffusers.DiTPipeline(denoiser, vae, scheduler)
    else:
        pipeline = diffusers.DDPMPipeline(denoiser, scheduler)
    pipeline.to(torch.float16).save_pretrained(folder)


def command_line(*arguments: str) -> dict:
    """What `diffcompress ... --json` prints."""
    told = subprocess.run(
        [sys.executable, "-m", "diffcompress", *arguments, "--json", "--quiet"], check=True, stdout=subprocess.PIPE
    )
    return json.loads(told.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--ratio", default="0.02")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--work", type=Path, default=Path("build/real-size"))
    options = parser.parse_args()

    teacher, run = options.work / options.config.stem, options.work / f"{options.config.stem}-run"
    if not teacher.exists():
        build(json.loads(options.config.read_text(encoding="utf-8")), teacher)
    shutil.rmtree(run, ignore_errors=True)
    batch = {"training.batch_size": options.batch_size, "targets.pool_size": options.batch_size}
    settings = SETTINGS | batch | {"bank.num_samples": -(-options.batch_size // 8)}
    sets = [text for key, value in settings.items() for text in ("--set", f"{key}={value}")]
    asked = (str(teacher), "--ratio", options.ratio, *sets)
    planned = command_line("plan", *asked)
    started = time.monotonic()
    done = command_line("shrink", *asked, "--output", str(run))
    seconds = json.loads((run / "timings.json").read_text(encoding="utf-8"))
    steps = sum(stage["seconds"] for stage in done["stages"]) / sum(STEPS.values())
    print(
        json.dumps(
            {
                "teacher": options.config.stem,
                "teacher_params": done["teacher"]["params"],
                "student_params": done["student"]["params"],
                "batch_size": options.batch_size,
                "threads": torch.get_num_threads(),
                "planned_peak_gb": round(planned["peak_memory_bytes"] / 1e9, 2),
                "peak_gb": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e9, 2),
                "seconds_per_step": round(steps, 2),
                "seconds": round(time.monotonic() - started, 1),
                "timings": seconds,
            }
        )
    )


if __name__ == "__main__":
    main()
