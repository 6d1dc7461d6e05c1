"""Shapes of a denoiser's tensors, from its config alone: built on the meta device, remembered."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import lru_cache

from diffcompress.families.base import Config


@dataclass(frozen=True)
class Shapes:
    """tensors: shape of each entry of the state dict; parameters: the names of those that are no buffers."""

    tensors: dict[str, tuple[int, ...]]
    parameters: frozenset[str]

    @property
    def num_parameters(self) -> int:
        return sum(math.prod(self.tensors[name]) for name in self.parameters)

    def elements_of(self, modules: tuple[str, ...]) -> int:
        """Elements of all tensors whose names begin with one of `modules`."""
        return sum(math.prod(shape) for name, shape in self.tensors.items() if name.startswith(modules))


def shapes(class_name: str, config: Config) -> Shapes:
    """Shapes of the diffusers class `class_name` built from `config`."""
    plain = {key: value for key, value in config.items() if not key.startswith("_") and key != "quantization_config"}
    return _shapes(class_name, json.dumps(plain, sort_keys=True, default=list))


@lru_cache(maxsize=256)
def _shapes(class_name: str, config: str) -> Shapes:
    import diffusers
    import torch

    with torch.device("meta"):
        model = getattr(diffusers, class_name).from_config(json.loads(config))
    tensors = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    return Shapes(tensors, frozenset(name for name, _ in model.named_parameters()) & tensors.keys())
