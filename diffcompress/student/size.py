"""Sizes of students without weights: exact polynomials for the search, models on the meta device for the proof."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import diffusers
import numpy as np
import torch
from diffusers import ModelMixin
from torch import nn

from diffcompress.families.base import Config, Family, TensorRules

# What safetensors writes about a tensor besides its name: dtype, shape and offsets.
HEADER_BYTES = 66


@dataclass(frozen=True)
class SizePolynomial:
    """Parameter count as a quadratic of the knobs, exact wherever every tensor has at most two knobs in its shape.

    constant + linear @ d + d @ quadratic @ d, with d = knobs - centre.
    """

    centre: np.ndarray
    constant: float
    linear: np.ndarray
    quadratic: np.ndarray

    @classmethod
    def fit(cls, count: Callable[[Sequence[int]], int], centre: Sequence[int], steps: Sequence[int]) -> SizePolynomial:
        """The polynomial of a count by finite differences, exact in integers.

        `count` is asked (n + 1)(n + 2) / 2 times around `centre`.
        """
        middle, step = np.array(centre, dtype=np.int64), np.array(steps, dtype=np.int64)
        number = len(middle)
        unit = np.diag(step)

        def at(point: np.ndarray) -> int:
            return count([int(value) for value in point])

        base = at(middle)
        once = [at(middle + unit[i]) for i in range(number)]
        linear, quadratic = np.zeros(number), np.zeros((number, number))
        for i in range(number):
            second = at(middle + 2 * unit[i]) - 2 * once[i] + base
            quadratic[i, i] = second / (2 * step[i] ** 2)
            linear[i] = (once[i] - base - second / 2) / step[i]
            for j in range(i):
                mixed = at(middle + unit[i] + unit[j]) - once[i] - once[j] + base
                quadratic[i, j] = quadratic[j, i] = mixed / (2 * step[i] * step[j])
        return cls(middle.astype(float), float(base), linear, quadratic)

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Parameters `[N]` at knob values `[N, knobs]`."""
        offset = points - self.centre
        return self.constant + offset @ self.linear + ((offset @ self.quadratic) * offset).sum(-1)

    def roots(self, start: np.ndarray, direction: np.ndarray, target: float | np.ndarray) -> np.ndarray:
        """The larger s at which `start + s * direction` `[N, knobs]` has `target` parameters; NaN where none has."""
        value, one, two = (self(start + s * direction) for s in (0.0, 1.0, 2.0))
        square = (two - 2 * one + value) / 2
        slope, rest = one - value - square, value - target
        with np.errstate(invalid="ignore", divide="ignore"):
            curved = (-slope + np.sqrt(slope**2 - 4 * square * rest)) / (2 * square)
            return np.where(np.abs(square) < 1e-9, -rest / slope, curved)


def build(family: Family, config: Config, device: torch.device | str) -> ModelMixin:
    """The family's diffusers model from `config`, freshly initialised; on "meta" it has no weights."""
    with torch.device(device):
        return getattr(diffusers, family.class_name).from_config(dict(config))


def num_parameters(model: nn.Module) -> int:
    """How many parameters a model has, without buffers."""
    return sum(parameter.numel() for parameter in model.parameters())


def file_bytes(rules: TensorRules, dtype: torch.dtype) -> int:
    """Bytes of the safetensors file of a model with these tensors, within a few hundred."""
    header = sum(len(rule.student) + HEADER_BYTES for rule in rules.rules)
    return rules.num_elements * dtype.itemsize + header
