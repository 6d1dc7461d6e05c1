"""More pixel teachers for measurements of student shapes, so that no rule is derived from `demo` alone.

`grey16`: Fashion-MNIST averaged to 16x16, three levels. `colour24`: three channels at 24x24, garment and background each in a
colour of their own, four levels, attention in two. `grey20`: 20x20, two layers a block; made when the rule stood. `colour16`: images
as of `colour24` for the net of `grey16`. `emoji24`: pictures in colour (emoji.py). `wide16`: `grey16` with twice its widths. All are under-trained on purpose (minutes on one CPU thread): students
are judged by their distance to what real images have and by their teacher's own, in the features of a small classifier
trained beside each. Writes WORK/<name>/{model_index.json, ...} and WORK/<name>-space.safetensors; seeded.

    python benchmarks/shape_teachers.py --teacher grey16 --minutes 12
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from benchmarks import emoji, fashion_mnist
from diffcompress.evaluation.features import FeatureSpace, RealImages
from diffcompress.evaluation.frechet import Moments
from diffcompress.recipe import TrainingSection
from diffcompress.records.fingerprints import sha256
from diffcompress.training.optim import Optimizer

WORK = Path("build/shape-teachers")
SEED = 0
BATCH_SIZE = 32
LEARNING_RATE = 2e-3
WARMUP_STEPS = 200
EMA_DECAY = 0.998
CONFIGS: dict[str, dict[str, Any]] = {
    "grey16": {
        "sample_size": 16,
        "in_channels": 1,
        "out_channels": 1,
        "layers_per_block": 1,
        "block_out_channels": (32, 64, 96),
        "down_block_types": ("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        "attention_head_dim": 16,
        "norm_num_groups": 8,
    },
    "grey20": {
        "sample_size": 20,
        "in_channels": 1,
        "out_channels": 1,
        "layers_per_block": 2,
        "block_out_channels": (24, 48, 72),
        "down_block_types": ("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        "attention_head_dim": 24,
        "norm_num_groups": 8,
    },
    "colour24": {
        "sample_size": 24,
        "in_channels": 3,
        "out_channels": 3,
        "layers_per_block": 1,
        "block_out_channels": (20, 40, 60, 80),
        "down_block_types": ("DownBlock2D", "DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        "attention_head_dim": 20,
        "norm_num_groups": 4,
    },
}
CONFIGS["colour16"] = CONFIGS["grey16"] | {"in_channels": 3, "out_channels": 3}
CONFIGS["emoji24"] = CONFIGS["colour16"] | {"sample_size": 24}
CONFIGS["wide16"] = CONFIGS["grey16"] | {"block_out_channels": (64, 128, 192), "attention_head_dim": 32}


def place_of(name: str) -> str:
    """What a teacher's name resolves to: those made here lie in their work folder."""
    return str(WORK / name) if name in CONFIGS else name


def images(name: str, split: str) -> tuple[Tensor, Tensor]:
    """Images `[N, C, H, W]` in [-1, 1] and labels `[N]`."""
    side = CONFIGS[name]["sample_size"]
    if name.startswith("emoji"):
        return emoji.load(split, side)
    grey, labels = fashion_mnist.load(split)
    small = functional.interpolate(functional.pad(grey, (2, 2, 2, 2), value=-1.0), (side, side), mode="area")
    if CONFIGS[name]["in_channels"] == 1:
        return small, labels
    stream = torch.Generator().manual_seed(SEED + (split == "test"))
    bright = 0.3 + 0.7 * torch.rand(len(small), 3, 1, 1, generator=stream)
    dark = 0.4 * torch.rand(len(small), 3, 1, 1, generator=stream)
    share = (small + 1) / 2
    return 2 * (share * bright + (1 - share) * dark) - 1, labels


class Classifier(nn.Module):
    """Of images of any size; the features are its last convolution's 64 channels, averaged."""

    dimension = 64

    def __init__(self, channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in ((channels, 24), (24, 48), (48, self.dimension)):
            layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
            layers += [nn.MaxPool2d(2)]
        self.body, self.head = nn.Sequential(*layers[:-1]), nn.Linear(self.dimension, 10)

    def features(self, batch: Tensor) -> Tensor:
        return self.body(batch.clamp(-1, 1)).mean((2, 3))


def train_space(name: str, path: Path) -> None:
    torch.manual_seed(SEED)
    found, labels = images(name, "train")
    model = Classifier(found.shape[1]).train()
    num_steps = max(900, 2 * (len(found) // 128))
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=num_steps)
    order = torch.cat([torch.randperm(len(found)) for _ in range(num_steps * 128 // len(found) + 1)])
    for step in range(num_steps):
        index = order[step * 128 : (step + 1) * 128]
        loss = functional.cross_entropy(model.head(model.features(found[index])), labels[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    save_file(model.eval().state_dict(), path)


def space(name: str, work: Path = WORK) -> FeatureSpace:
    """The teacher's own feature space, with the real training images as reference and the test images held out."""
    path = work / f"{name}-space.safetensors"
    if not path.exists():
        train_space(name, path)
    model = Classifier(CONFIGS[name]["in_channels"])
    model.load_state_dict(load_file(path))
    digest = sha256(path)
    plain = FeatureSpace("own", digest, model.eval().requires_grad_(False))
    real = {}
    for split in ("train", "test"):
        features = plain.features(images(name, split)[0])
        real[split] = RealImages(split, digest, Moments.of(features), features[:2048], len(features))
    return FeatureSpace("own", digest, plain.extractor, real["train"], real["test"])


def train_teacher(name: str, folder: Path, minutes: float) -> None:
    torch.manual_seed(SEED)
    found, _ = images(name, "train")
    scheduler = DDPMScheduler(num_train_timesteps=1000, clip_sample_range=1.25)
    alphas = scheduler.alphas_cumprod
    snr = alphas / (1 - alphas)
    weights = (snr.clamp(max=5.0) / (snr * alphas)).sqrt()
    denoiser = UNet2DModel(**CONFIGS[name]).to(memory_format=torch.channels_last)
    optimizer = Optimizer(denoiser, TrainingSection(optimizer="muon"))
    ema = {key: value.clone() for key, value in denoiser.state_dict().items()}
    started, step, share = time.time(), 0, 0.0
    while share < 1:
        share = (time.time() - started) / (60 * minutes)
        stream = torch.Generator().manual_seed(10_000_000 + step)
        clean = found[torch.randint(0, len(found), (BATCH_SIZE,), generator=stream)]
        timesteps = torch.randint(0, 1000, (BATCH_SIZE,), generator=stream)
        noise = torch.randn(clean.shape, generator=stream)
        error = denoiser(scheduler.add_noise(clean, noise, timesteps), timesteps).sample - noise
        loss = (weights[timesteps] * error.pow(2).mean((1, 2, 3))).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(denoiser.parameters(), 1.0)
        optimizer.step(LEARNING_RATE * min(1.0, (step + 1) / WARMUP_STEPS, max(0.0, 1 - share) / 0.4))
        optimizer.zero_grad()
        decay = min(EMA_DECAY, (1 + step) / (10 + step))
        for key, value in denoiser.state_dict().items():
            ema[key].lerp_(value, 1 - decay)
        step += 1
        if step % 100 == 0:
            print(json.dumps({"step": step, "loss": round(loss.item(), 4), "share": round(share, 3)}), flush=True)
    copy = UNet2DModel(**CONFIGS[name])
    copy.load_state_dict(ema)
    DDPMPipeline(copy, scheduler).save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", choices=sorted(CONFIGS), required=True)
    parser.add_argument("--minutes", type=float, default=12.0)
    parser.add_argument("--work", type=Path, default=WORK)
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.work.mkdir(parents=True, exist_ok=True)
    space(options.teacher, options.work)
    if not (options.work / options.teacher).is_dir():
        train_teacher(options.teacher, options.work / options.teacher, options.minutes)


if __name__ == "__main__":
    main()
