"""The autoencoder of the latent demo teachers: 1x28x28 images to 4x14x14 latents of unit variance, and back.

Trained once into `<work>/vae` (a diffusers folder); the latents of Fashion-MNIST's training set are kept beside it.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks import fashion_mnist
from diffcompress.evaluation.features import demo_space
from diffcompress.evaluation.frechet import frechet_distance

SEED = 7
BATCH_SIZE = 32
LEARNING_RATE = 3e-3
WARMUP_STEPS = 100
DECAY_FRACTION = 0.5
# Nats of the Kullback-Leibler term per latent value against squared error per pixel: what the latents may round away.
KL_WEIGHT = 5e-4


def build() -> AutoencoderKL:
    torch.manual_seed(SEED)
    return AutoencoderKL(
        in_channels=1,
        out_channels=1,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(16, 32),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=28,
        shift_factor=0.0,
    )


def train(folder: Path, num_steps: int) -> None:
    """Train from nothing and write `folder`, its weights in half precision and its scaling factor measured."""
    images, _ = fashion_mnist.load("train")
    vae = build()
    optimizer = torch.optim.AdamW(vae.parameters(), lr=LEARNING_RATE, weight_decay=0.0, betas=(0.9, 0.99))
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(SEED))
    started = time.time()
    for step in range(num_steps):
        generator = torch.Generator().manual_seed((SEED + 1) * 10_000_000 + step)
        batch = images[order[(torch.arange(BATCH_SIZE) + step * BATCH_SIZE) % len(order)]]
        posterior = vae.encode(batch).latent_dist
        decoded = vae.decode(posterior.sample(generator=generator)).sample
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        error = F.mse_loss(decoded, batch)
        left = (num_steps - step) / (DECAY_FRACTION * num_steps)
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, (step + 1) / WARMUP_STEPS, left)
        (error + 0.1 * F.l1_loss(decoded, batch) + KL_WEIGHT * kl).backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % 50 == 0:
            row = {"vae_step": step + 1, "mse": error.item(), "kl": kl.item(), "seconds": time.time() - started}
            print(json.dumps(row), flush=True)
    vae = vae.half().float().eval()
    vae.register_to_config(scaling_factor=1.0 / encode(vae, images[:4096]).std().item())
    vae.half().save_pretrained(folder)


@torch.no_grad()
def encode(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Means of the latents `[N, 4, 14, 14]` of images `[N, 1, 28, 28]`, not scaled."""
    return torch.cat([vae.encode(part).latent_dist.mode().contiguous() for part in images.split(256)]).contiguous()


@torch.no_grad()
def decode(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """Images `[N, 1, 28, 28]` in [-1, 1] of latents `[N, 4, 14, 14]` of unit variance."""
    return torch.cat(
        [vae.decode(part / vae.config["scaling_factor"]).sample.clamp(-1, 1) for part in latents.split(256)]
    )


def prepare(work: Path, num_steps: int) -> tuple[AutoencoderKL, Tensor, Tensor]:
    """The autoencoder, and the scaled latents and labels of the training set; both made when they are not there."""
    folder, cache = work / "vae", work / "latents.safetensors"
    if not (folder / "config.json").is_file():
        train(folder, num_steps)
    vae = AutoencoderKL.from_pretrained(folder).eval().requires_grad_(False)
    if not cache.is_file():
        images, labels = fashion_mnist.load("train")
        save_file({"latents": encode(vae, images) * vae.config["scaling_factor"], "labels": labels}, cache)
        print(json.dumps(quality(vae)), flush=True)
    tensors = load_file(cache)
    return vae, tensors["latents"], tensors["labels"]


def quality(vae: AutoencoderKL) -> dict[str, float]:
    """Distances of test images and of their reconstructions to the training images; squared error per pixel."""
    images, _ = fashion_mnist.load("test")
    rebuilt = decode(vae, encode(vae, images) * vae.config["scaling_factor"])
    space = demo_space()
    assert space.real is not None
    real, ours = (frechet_distance(space.features(x), space.real.moments).value for x in (images, rebuilt))
    return {"fd_real": real, "fd_reconstructed": ours, "mse": F.mse_loss(rebuilt, images).item()}
