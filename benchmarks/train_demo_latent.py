"""Train the latent demo teachers on Fashion-MNIST (`make demo-teachers`): `--teacher dit` or `--teacher mmdit`.

dit: class-conditional DiT that predicts the noise and the variance (Peebles and Xie 2023; Nichol and Dhariwal 2021).
mmdit: text-conditional rectified flow (Esser et al. 2024). Both in the latents of demo_vae.py, both guided: one sample
in ten is trained without its label or with the empty prompt.

Resumable and seeded by (seed, step), as train_demo.py is. The learning rate stays constant and falls linearly to zero
over the last quarter of `--epochs`; stop the process and start it again with other epochs to move the fall.

    python benchmarks/train_demo_latent.py --teacher dit --epochs 2.1
    python benchmarks/train_demo_latent.py --teacher dit --evaluate 2048

dit-cosine and dit-linear are not embedded: smaller DiTs with another schedule or the same, for measurements on more than one.
"""

from __future__ import annotations

import argparse
import json
import signal
import time
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from benchmarks import demo_latent_teachers, demo_vae
from benchmarks.train_demo import read_checkpoint, write_checkpoint
from diffcompress.evaluation.features import demo_space
from diffcompress.evaluation.frechet import frechet_distance
from diffcompress.recipe import TrainingSection
from diffcompress.training.optim import Optimizer

SEED = 0
BATCH_SIZE = 32
LEARNING_RATE = 1e-3
ADAMW = TrainingSection(optimizer="adamw", weight_decay=0.0, betas=(0.9, 0.99))
WARMUP_STEPS = 200
EMA_DECAY = 0.9995
DECAY_FRACTION = 0.25
VAE_STEPS = 1000
GUIDANCE = (1.0, 2.0)


def learning_rate(step: int, num_steps: int) -> float:
    left = (num_steps - step) / (DECAY_FRACTION * num_steps)
    return LEARNING_RATE * min(1.0, (step + 1) / WARMUP_STEPS, left)


def average(ema: dict[str, Tensor], model: nn.Module, step: int) -> None:
    decay = min(EMA_DECAY, (1 + step) / (10 + step))
    current = model.state_dict()
    torch._foreach_lerp_(list(ema.values()), [current[name] for name in ema], 1 - decay)


def train(teacher: demo_latent_teachers.Teacher, latents: Tensor, labels: Tensor, work: Path, epochs: float) -> None:
    model = teacher.model
    optimizer = Optimizer(model, ADAMW)
    ema = {k: v.clone() for k, v in model.state_dict().items()}
    checkpoint = work / "checkpoint.safetensors"
    first = read_checkpoint(checkpoint, model, ema, optimizer) if checkpoint.exists() else 0
    steps_per_epoch = len(latents) // BATCH_SIZE
    num_steps = int(epochs * steps_per_epoch)
    stop: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stop.append(number))
    started, saved, running = time.time(), time.time(), 0.0
    for step in range(first, num_steps):
        epoch, position = divmod(step, steps_per_epoch)
        order = torch.randperm(len(latents), generator=torch.Generator().manual_seed(SEED + 1000 + epoch))
        generator = torch.Generator().manual_seed((SEED + 1) * 10_000_000 + step)
        index = order[position * BATCH_SIZE : (position + 1) * BATCH_SIZE]
        loss = teacher.loss(latents[index], labels[index], generator)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step(learning_rate(step, num_steps))
        optimizer.zero_grad()
        average(ema, model, step)

        done = step + 1
        running += loss.item()
        if done % 100 == 0:
            row = {"step": done, "epoch": done / steps_per_epoch, "loss": running / 100}
            print(json.dumps(row | {"seconds": time.time() - started}), flush=True)
            running = 0.0
        if time.time() - saved > 120 or done == num_steps or stop:
            write_checkpoint(work, done, model, ema, optimizer)
            saved = time.time()
        if stop:
            return


def load_average(teacher: demo_latent_teachers.Teacher, work: Path) -> int:
    """Put the averaged weights of the checkpoint, rounded to half precision, into `teacher`; its steps."""
    ema: dict[str, Tensor] = {}
    optimizer = Optimizer(teacher.model, ADAMW)
    steps = read_checkpoint(work / "checkpoint.safetensors", teacher.model, ema, optimizer)
    teacher.model.load_state_dict({k: v.half().float() for k, v in ema.items()})
    return steps


@torch.no_grad()
def evaluate(teacher: demo_latent_teachers.Teacher, vae: AutoencoderKL, count: int, sheet: Path) -> dict:
    """Distances of `count` samples of 25 steps at every guidance scale; writes a sheet, a column for each class."""
    space, result, sheets = demo_space(), {}, []
    assert space.real is not None
    labels = torch.arange(count) % 10
    for guidance in GUIDANCE:
        started = time.time()
        latents = [teacher.sample(part, guidance, seed=i) for i, part in enumerate(labels.split(256))]
        images = demo_vae.decode(vae, torch.cat(latents))
        fd = frechet_distance(space.features(images), space.real.moments)
        right = (space.extractor(images).argmax(1) == labels).float().mean().item()
        result[f"guidance {guidance:g}"] = {"fd_demo": fd._asdict(), "as asked": right, "s": time.time() - started}
        sheets.append(images[:40])
        print(json.dumps(result), flush=True)
    write_sheet(torch.cat(sheets), sheet)
    return result


def write_sheet(images: Tensor, path: Path) -> None:
    """PNG of images `[N, 1, 28, 28]` in [-1, 1], ten to a row, twice their size."""
    from PIL import Image

    rows = images[:, 0].reshape(-1, 10, 28, 28).permute(0, 2, 1, 3).reshape(-1, 280)
    pixels = ((rows + 1) * 127.5).round().byte().numpy()
    Image.fromarray(pixels).resize((560, 2 * len(pixels)), Image.Resampling.NEAREST).save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", choices=demo_latent_teachers.NAMES, required=True)
    parser.add_argument("--epochs", type=float, default=5)
    parser.add_argument("--work", type=Path, default=Path("build"))
    parser.add_argument("--evaluate", type=int, metavar="SAMPLES", help="measure the checkpoint instead of training")
    parser.add_argument("--export", type=Path, metavar="FOLDER", help="write the pipeline instead of training")
    options = parser.parse_args()

    torch.set_num_threads(1)
    vae, latents, labels = demo_vae.prepare(options.work / "demo-latent", VAE_STEPS)
    teacher = demo_latent_teachers.build(options.teacher, vae)
    work = options.work / f"demo-{options.teacher}"
    work.mkdir(parents=True, exist_ok=True)
    if options.evaluate or options.export:
        steps = load_average(teacher, work)
        if options.evaluate:
            result = evaluate(teacher, vae, options.evaluate, work / f"samples-{steps}.png")
            (work / f"quality-{steps}.json").write_text(json.dumps(result, indent=1))
        if options.export:
            teacher.export(options.export)
        return
    print(json.dumps({"parameters": sum(p.numel() for p in teacher.model.parameters())}), flush=True)
    train(teacher, latents, labels, work, options.epochs)


if __name__ == "__main__":
    main()
