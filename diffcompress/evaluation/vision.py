"""DINOv2 and CLIP as feature spaces, through transformers: model folders as the Hub lays them out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffcompress.errors import UsageError

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_OPENAI = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


class Dino(nn.Module):
    """Class token of DINOv2 behind its last norm: the space of FD-DINOv2 (Stein et al. 2023)."""

    side = 224

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.dimension = int(model.config.hidden_size)

    def features(self, images: Tensor) -> Tensor:
        """`[N, dimension]` of images `[N, 1 or 3, H, W]` in [-1, 1]."""
        return self.model(pixel_values=_prepared(images, self.side, _IMAGENET)).pooler_output


class Clip(nn.Module):
    """Image and text embeddings of CLIP, each of length 1."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        super().__init__()
        self.model, self.tokenizer = model, tokenizer
        self.dimension, self.side = int(model.config.projection_dim), int(model.config.vision_config.image_size)

    def features(self, images: Tensor) -> Tensor:
        """`[N, dimension]` of images `[N, 1 or 3, H, W]` in [-1, 1]."""
        pixels = _prepared(images, self.side, _OPENAI)
        pooled = self.model.vision_model(pixel_values=pixels).pooler_output
        return F.normalize(self.model.visual_projection(pooled), dim=-1)

    @property
    def scale(self) -> float:
        """What cosines are multiplied with, as it was learned."""
        return float(self.model.logit_scale.exp())

    @torch.no_grad()
    def text_features(self, prompts: Sequence[str], batch_size: int = 256) -> Tensor:
        """`[N, dimension]` of prompts, on the CPU; those longer than CLIP reads are cut."""
        parts = []
        for start in range(0, len(prompts), batch_size):
            batch = list(prompts[start : start + batch_size])
            tokens = self.tokenizer(batch, padding=True, truncation=True, return_tensors="pt").to(self.model.device)
            pooled = self.model.text_model(
                input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
            ).pooler_output
            parts.append(F.normalize(self.model.text_projection(pooled), dim=-1).cpu())
        return torch.cat(parts)


MODEL_TYPES = {"dinov2": "dinov2", "dinov2_with_registers": "dinov2", "clip": "clip"}


def read_folder(folder: Path, model_type: str) -> nn.Module:
    """The extractor in a transformers model folder, in evaluation mode and float32; raises UsageError when damaged."""
    try:
        from transformers import AutoModel, AutoTokenizer
    except ImportError as error:
        raise UsageError(
            f"reading {folder} takes the transformers library, which is not installed",
            "pip install transformers",
        ) from error
    try:
        model, told = AutoModel.from_pretrained(
            folder, local_files_only=True, output_loading_info=True, dtype=torch.float32, use_safetensors=True
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True) if model_type == "clip" else None
    except Exception as error:  # of many kinds, by what is missing
        raise UsageError(
            f"cannot read the {model_type} model in {folder}: {' '.join(str(error).split())}",
            "name a complete model folder with safetensors weights",
        ) from error
    missing = sorted(told["missing_keys"])
    if missing:
        raise UsageError(
            f"the {model_type} model in {folder} lacks {len(missing)} tensor(s), first {missing[0]}",
            "check that the download is complete",
        )
    extractor = Clip(model, tokenizer) if model_type == "clip" else Dino(model)
    return extractor.eval().requires_grad_(False)


def _prepared(images: Tensor, side: int, normalisation: tuple[tuple[float, ...], tuple[float, ...]]) -> Tensor:
    """`[N, 3, side, side]`, normalised; resized as a whole, not cropped, so that every pixel counts."""
    levels = ((images.clamp(-1, 1) + 1) * 127.5).round().expand(-1, 3, -1, -1) / 255
    pixels = F.interpolate(levels, (side, side), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    mean, deviation = (torch.tensor(values, device=pixels.device).view(1, 3, 1, 1) for values in normalisation)
    return (pixels - mean) / deviation
