"""Muon or AdamW, as one optimizer, and the learning-rate schedule, which runs once over all stages."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from diffcompress.recipe import TrainingSection
from diffcompress.training.muon import Muon


class Optimizer:
    """All that has a gradient in `model`. Recipe value `adamw`: AdamW; `muon`: Muon for the weights of linear and
    convolution layers, AdamW for the rest (tables, norms, biases, weights of one row or column).
    """

    def __init__(self, model: nn.Module, section: TrainingSection) -> None:
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        matrices = _matrices(model) if section.optimizer == "muon" else set()
        orthogonal = [p for p in self.parameters if p in matrices]
        rest = [p for p in self.parameters if p not in matrices]
        decay = section.weight_decay
        self._parts: dict[str, torch.optim.Optimizer] = {}
        if rest:
            self._parts["adamw"] = torch.optim.AdamW(rest, betas=section.betas, weight_decay=decay, fused=True)
        if orthogonal:
            self._parts["muon"] = Muon(orthogonal, weight_decay=decay)

    def step(self, learning_rate: float) -> None:
        """One update from the parameters' gradients, which stay."""
        for part in self._parts.values():
            for group in part.param_groups:
                group["lr"] = learning_rate
            part.step()

    def zero_grad(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    def tensors(self) -> dict[str, Tensor]:
        """The moments, by a flat name."""
        return {
            f"{name}.{index}.{key}": value
            for name, part in self._parts.items()
            for index, state in part.state_dict()["state"].items()
            for key, value in state.items()
        }

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take up what `tensors` gave, for a model of the same parameters."""
        for name, part in self._parts.items():
            state: dict[int, dict[str, Tensor]] = {}
            for key, value in tensors.items():
                owner, index, moment = key.split(".")
                if owner == name:
                    state.setdefault(int(index), {})[moment] = value
            part.load_state_dict(part.state_dict() | {"state": state})
            for parameter, moments in part.state.items():
                # Fused updates walk through memory: moments must lie as their parameters do.
                like = {key: value for key, value in moments.items() if value.shape == parameter.shape}
                moments |= {key: torch.empty_like(parameter).copy_(value) for key, value in like.items()}


def _matrices(model: nn.Module) -> set[Tensor]:
    """Weights of linear and convolution layers with more than one row and column."""
    layers = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    weights = {module.weight for module in model.modules() if isinstance(module, layers)}
    return {weight for weight in weights if min(weight.flatten(1).shape) > 1}


def learning_rate(section: TrainingSection, step: int, num_steps: int) -> float:
    """Linear warm-up, then constant or a cosine to zero at `num_steps`."""
    warmup = min(1.0, (step + 1) / section.warmup_steps) if section.warmup_steps else 1.0
    if section.schedule == "constant":
        return section.learning_rate * warmup
    past = max(0, step - section.warmup_steps) / max(1, num_steps - section.warmup_steps)
    return section.learning_rate * warmup * 0.5 * (1 + math.cos(math.pi * min(1.0, past)))
