"""Optimiser and learning-rate schedule; the schedule runs once over all stages."""

from __future__ import annotations

import math

import torch
from torch import nn

from diffcompress.recipe import TrainingSection


def make_optimizer(model: nn.Module, section: TrainingSection) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad],
        lr=section.learning_rate,
        betas=section.betas,
        weight_decay=section.weight_decay,
    )


def learning_rate(section: TrainingSection, step: int, num_steps: int) -> float:
    """Linear warm-up, then constant or a cosine to zero at `num_steps`."""
    warmup = min(1.0, (step + 1) / section.warmup_steps) if section.warmup_steps else 1.0
    if section.schedule == "constant":
        return section.learning_rate * warmup
    past = max(0, step - section.warmup_steps) / max(1, num_steps - section.warmup_steps)
    return section.learning_rate * warmup * 0.5 * (1 + math.cos(math.pi * min(1.0, past)))
