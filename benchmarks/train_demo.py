"""Train the demo teacher: a DDPM U-Net on Fashion-MNIST (`make demo-teacher`).

Resumable: run the same command again, today or another day. Seeded: batch, timesteps and noise of step i follow
from (seed, i) alone, so neither interruptions nor the number of processes change what is drawn. The learning rate
stays constant and falls linearly to zero over the last quarter of `--epochs`, so more epochs can be asked for until
the fall begins. The denoising loss is weighted by the root of min(SNR, 5) / (SNR abar): min(SNR, 5) / SNR (Hang et al.
2023, arXiv 2303.09556) teaches little below t = 120, and the plain loss little above 600, where errors of the noise are
errors of the image many times as large; with the roots of both, all noise levels weigh alike.

    torchrun --nproc_per_node 2 benchmarks/train_demo.py --epochs 11.75
"""

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from benchmarks import fashion_mnist
from diffcompress.recipe import TrainingSection
from diffcompress.training.optim import Optimizer

SEED = 0
BATCH_SIZE = 32
LEARNING_RATE = 2e-3
WARMUP_STEPS = 300
EMA_DECAY = 0.9995
SNR_LIMIT = 5.0
DECAY_FRACTION = 0.25


def build_denoiser() -> UNet2DModel:
    torch.manual_seed(SEED)
    return UNet2DModel(
        sample_size=28,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(24, 48, 96),
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        attention_head_dim=16,
        norm_num_groups=8,
    )


def learning_rate(step: int, num_steps: int) -> float:
    left = (num_steps - step) / (DECAY_FRACTION * num_steps)
    return LEARNING_RATE * min(1.0, (step + 1) / WARMUP_STEPS, left)


def write_checkpoint(folder: Path, step: int, denoiser: nn.Module, ema: dict[str, Tensor], optimizer: Any) -> None:
    tensors = {f"model.{k}": v for k, v in denoiser.state_dict().items()}
    tensors |= {f"ema.{k}": v for k, v in ema.items()}
    tensors |= {f"optimizer.{k}": v for k, v in optimizer.tensors().items()}
    part = folder / "checkpoint.part"
    save_file({k: v.detach().contiguous() for k, v in tensors.items()}, part, metadata={"step": str(step)})
    os.replace(part, folder / "checkpoint.safetensors")


def read_checkpoint(path: Path, denoiser: nn.Module, ema: dict[str, Tensor], optimizer: Any) -> int:
    tensors = load_file(path)
    denoiser.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})
    ema.update({k[4:]: v for k, v in tensors.items() if k.startswith("ema.")})
    optimizer.load({k[10:]: v for k, v in tensors.items() if k.startswith("optimizer.")})
    with safe_open(path, framework="pt") as file:
        return int(file.metadata()["step"])


def export(folder: Path, denoiser: UNet2DModel, ema: dict, scheduler: DDPMScheduler) -> None:
    copy = UNet2DModel.from_config(denoiser.config)
    copy.load_state_dict(ema)
    DDPMPipeline(copy.half(), scheduler).save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=float, default=11.75)
    parser.add_argument("--work", type=Path, default=Path("build/demo-teacher"))
    options = parser.parse_args()

    torch.set_num_threads(1) if not torch.cuda.is_available() else None
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    images, _ = fashion_mnist.load("train")
    # Samplers clip what they predict of the image. At 1, its own range, they bend the samples (docs/benchmarks.md).
    scheduler = DDPMScheduler(num_train_timesteps=1000, clip_sample_range=1.25)
    alphas = scheduler.alphas_cumprod
    snr = alphas / (1 - alphas)
    weights = (snr.clamp(max=SNR_LIMIT) / (snr * alphas)).sqrt()

    denoiser = build_denoiser()
    optimizer = Optimizer(denoiser, TrainingSection(optimizer="muon", weight_decay=0.0, betas=(0.9, 0.99)))
    ema = {k: v.clone() for k, v in denoiser.state_dict().items()}
    options.work.mkdir(parents=True, exist_ok=True)
    checkpoint = options.work / "checkpoint.safetensors"
    first = read_checkpoint(checkpoint, denoiser, ema, optimizer) if checkpoint.exists() else 0
    model = accelerator.prepare(denoiser)
    ema = {k: v.to(accelerator.device) for k, v in ema.items()}

    steps_per_epoch = len(images) // BATCH_SIZE
    num_steps = int(options.epochs * steps_per_epoch)
    share = slice(
        accelerator.process_index * BATCH_SIZE // accelerator.num_processes,
        (accelerator.process_index + 1) * BATCH_SIZE // accelerator.num_processes,
    )
    started, saved, running = time.time(), time.time(), 0.0
    for step in range(first, num_steps):
        epoch, position = divmod(step, steps_per_epoch)
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(SEED + 1000 + epoch))
        generator = torch.Generator().manual_seed((SEED + 1) * 10_000_000 + step)
        index = order[position * BATCH_SIZE : (position + 1) * BATCH_SIZE][share]
        timesteps = torch.randint(0, 1000, (BATCH_SIZE,), generator=generator)[share]
        noise = torch.randn(BATCH_SIZE, 1, 28, 28, generator=generator)[share]
        clean = images[index]
        noisy = scheduler.add_noise(clean, noise, timesteps).to(accelerator.device)
        weight = weights[timesteps].to(accelerator.device)

        prediction = model(noisy, timesteps.to(accelerator.device)).sample
        loss = (weight * (prediction - noise.to(accelerator.device)).pow(2).mean((1, 2, 3))).mean()
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step(learning_rate(step, num_steps))
        optimizer.zero_grad()
        decay = min(EMA_DECAY, (1 + step) / (10 + step))
        with torch.no_grad():
            current = denoiser.state_dict()
            for name, value in ema.items():
                value.lerp_(current[name].float(), 1 - decay)

        done = step + 1
        running += loss.item()
        if accelerator.is_main_process:
            if done % 100 == 0:
                row = {
                    "step": done,
                    "epoch": done / steps_per_epoch,
                    "loss": running / 100,
                    "seconds": time.time() - started,
                }
                print(json.dumps(row), flush=True)
                running = 0.0
            if time.time() - saved > 120 or done == num_steps:
                write_checkpoint(options.work, done, denoiser, ema, optimizer)
                saved = time.time()
            if done % steps_per_epoch == 0 or done == num_steps:
                export(options.work / f"epoch-{done / steps_per_epoch:.0f}", denoiser, ema, scheduler)
    accelerator.wait_for_everyone()
    accelerator.end_training()


if __name__ == "__main__":
    main()
