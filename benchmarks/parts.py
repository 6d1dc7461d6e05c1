"""What remains of a whole pipeline around a small student, from the classes' published configs; nothing is allocated.

python benchmarks/parts.py
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from diffcompress.families import registry
from diffcompress.student.plan import plan

RATIO = 0.02
CLIP_L: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
}
CLIP_G: dict[str, Any] = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
}
T5_XXL: dict[str, Any] = {"d_model": 4096, "d_kv": 64, "d_ff": 10_240, "num_layers": 24, "num_heads": 64}
VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
}


@dataclass(frozen=True)
class Teacher:
    """others: parameters of the parts beside the denoiser; width: bytes of a stored one; spare: what it goes without."""

    name: str
    config: str
    width: int
    others: Mapping[str, int]
    spare: str | None = None


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def teachers() -> list[Teacher]:
    with torch.device("meta"):
        clip = count(CLIPTextModel(CLIPTextConfig(**CLIP_L, vocab_size=49_408)))
        projected = [
            count(CLIPTextModelWithProjection(CLIPTextConfig(**size, vocab_size=49_408, projection_dim=width)))
            for size, width in ((CLIP_L, 768), (CLIP_G, 1280))
        ]
        t5 = count(T5EncoderModel(T5Config(**T5_XXL, vocab_size=32_128, feed_forward_proj="gated-gelu")))
        vae = count(AutoencoderKL(**VAE, latent_channels=4))
        wide = count(AutoencoderKL(**VAE, latent_channels=16, use_quant_conv=False, use_post_quant_conv=False))
    third = {"text_encoder": projected[0], "text_encoder_2": projected[1], "text_encoder_3": t5, "vae": wide}
    return [
        Teacher("Stable Diffusion 1.5, float32, no safety checker", "sd15", 4, {"text_encoder": clip, "vae": vae}),
        Teacher(
            "Stable Diffusion XL base, float32",
            "sdxl-base",
            4,
            {"text_encoder": clip, "text_encoder_2": projected[1], "vae": vae},
        ),
        Teacher("Stable Diffusion 3 medium, float16", "sd3-medium", 2, third, "text_encoder_3"),
    ]


def main() -> None:
    print("| teacher, as stored | whole | student of 2 % | with `export.half_parts` | with `student.without` |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for teacher in teachers():
        config = json.loads(Path(f"tests/teachers/{teacher.config}.json").read_text(encoding="utf-8"))
        student = plan(registry.find(config["_class_name"]), config, ratio=RATIO)
        others, width = sum(teacher.others.values()), teacher.width
        whole, ours = width * (student.teacher_params + others), width * student.params
        sizes = {"student": ours + width * others}
        sizes["half"] = ours + 2 * others
        if teacher.spare is not None:
            sizes["without"] = ours + width * (others - teacher.others[teacher.spare])
        told = {name: f"{size / 1e9:.3g} ({size / whole:.0%})" for name, size in sizes.items()}
        cells = [told.get(name, "–") for name in ("student", "half", "without")]
        print(f"| {teacher.name} | {whole / 1e9:.3g} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
