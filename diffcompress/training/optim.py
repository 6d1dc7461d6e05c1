"""Muon or AdamW, as one optimizer, and the learning-rate schedule, which runs once over all stages."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from diffcompress.memory import peak
from diffcompress.recipe import TrainingSection
from diffcompress.training.muon import Muon
from diffcompress.training.sharding import Sharding


class Optimizer:
    """All that has a gradient in `model`. Recipe value `adamw`: AdamW; `muon`: Muon for the weights of linear and
    convolution layers, AdamW for the rest (tables, norms, biases, weights of one row or column).
    """

    def __init__(self, model: nn.Module, section: TrainingSection, sharding: Sharding | None = None) -> None:
        """sharding: who takes the steps of which parameters; None: this process, of all."""
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self._sharding = sharding
        matrices = _matrices(model) if section.optimizer == "muon" else set()
        orthogonal = self._own([p for p in self.parameters if p in matrices])
        rest = self._own([p for p in self.parameters if p not in matrices])
        # The numbers of their moments in a checkpoint: those that they have among all, whoever keeps them.
        self._numbers = {"adamw": list(rest), "muon": list(orthogonal)}
        decay, betas = section.weight_decay, section.betas
        self._adamw = (
            torch.optim.AdamW(list(rest.values()), betas=betas, weight_decay=decay, fused=True) if rest else None
        )
        self._muon = Muon(orthogonal.values(), weight_decay=decay) if orthogonal else None

    def _own(self, parameters: list[nn.Parameter]) -> dict[int, nn.Parameter]:
        sharding = self._sharding
        return {n: p for n, p in enumerate(parameters) if sharding is None or sharding.mine(p)}

    def step(self, learning_rate: float, finite: Tensor | None = None) -> None:
        """One update from the parameters' gradients. Where `finite` (bool, 0-d, on their device) is False nothing
        changes; the host does not wait to know."""
        if finite is None:
            finite = torch.ones((), dtype=torch.bool, device=self.parameters[0].device)
        if self._adamw is not None:
            for group in self._adamw.param_groups:
                group["lr"] = learning_rate
            # As torch's GradScaler tells a fused optimizer, by an attribute that its class does not declare.
            setattr(self._adamw, "found_inf", 1.0 - finite.float())  # noqa: B010
            # Apple's devices take that attribute and do not look at it.
            if finite.device.type != "mps" or bool(finite):
                self._adamw.step()
        if self._muon is not None:
            self._muon.step(learning_rate, finite)
        if self._sharding is not None:
            self._sharding.spread()

    def zero_grad(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    def tensors(self) -> dict[str, Tensor]:
        """The moments that this process keeps, by a flat name."""
        parts = {"adamw": self._adamw.state_dict()["state"] if self._adamw is not None else {}}
        parts["muon"] = self._muon.tensors() if self._muon is not None else {}
        return {
            f"{name}.{self._numbers[name][index]}.{key}": value
            for name, part in parts.items()
            for index, state in part.items()
            for key, value in state.items()
        }

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take up what `tensors` of all processes together gave, for a model of the same parameters."""
        states: dict[str, dict[int, dict[str, Tensor]]] = {"adamw": {}, "muon": {}}
        places = {part: {n: place for place, n in enumerate(own)} for part, own in self._numbers.items()}
        for key, value in tensors.items():
            part, number, moment = key.split(".")
            if int(number) in places[part]:
                states[part].setdefault(places[part][int(number)], {})[moment] = value
        if self._adamw is not None:
            self._adamw.load_state_dict(self._adamw.state_dict() | {"state": states["adamw"]})
            for parameter, moments in self._adamw.state.items():
                # Fused updates walk through memory: moments must lie as their parameters do.
                like = {key: value for key, value in moments.items() if value.shape == parameter.shape}
                moments |= {key: torch.empty_like(parameter).copy_(value) for key, value in like.items()}
        if self._muon is not None and states["muon"]:
            self._muon.load(states["muon"])


def memory(model: nn.Module, section: TrainingSection) -> tuple[int, int]:
    """Bytes that the optimizer of `model`, on the meta device, keeps between steps, and works with beside them."""
    matrices = list(_matrices(model)) if section.optimizer == "muon" else []
    orthogonal = sum(matrix.numel() for matrix in matrices)
    kept = 4 * orthogonal + 8 * (sum(p.numel() for p in model.parameters()) - orthogonal)
    if not matrices:
        return kept, 0
    for matrix in matrices:
        matrix.grad = torch.empty_like(matrix)
    muon, finite = Muon(matrices), torch.ones((), dtype=torch.bool, device="meta")
    return kept, peak(lambda: muon.step(1.0, finite), torch.device("meta"))


def _matrices(model: nn.Module) -> set[Tensor]:
    """Weights of linear and convolution layers with more than one row and column."""
    layers = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    weights = {module.weight for module in model.modules() if isinstance(module, layers)}
    return {weight for weight in weights if min(weight.flatten(1).shape) > 1}


def rate_share(section: TrainingSection, ratio: float) -> float:
    """Of the learning rate, for a student with `ratio` of its teacher's parameters: a large one starts near its
    teacher, and long steps lose that (docs/benchmarks.md, learning rates of large students)."""
    return 1.0 if section.tuned_ratio is None else math.sqrt(min(1.0, section.tuned_ratio / ratio))


def learning_rate(section: TrainingSection, step: int, num_steps: int) -> float:
    """Linear warm-up, then constant or a cosine to zero at `num_steps`."""
    warmup = min(1.0, (step + 1) / section.warmup_steps) if section.warmup_steps else 1.0
    if section.schedule == "constant":
        return section.learning_rate * warmup
    past = max(0, step - section.warmup_steps) / max(1, num_steps - section.warmup_steps)
    return section.learning_rate * warmup * 0.5 * (1 + math.cos(math.pi * min(1.0, past)))
