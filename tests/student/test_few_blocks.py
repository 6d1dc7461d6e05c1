"""What deep stacks of alike blocks cost is counted on few of them, and is what all of them do."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from torch import nn

from diffcompress.families import registry
from diffcompress.families.base import Family
from diffcompress.student import costs

TRANSFORMERS = [family for family in registry.FAMILIES if family.kind == "transformer"]


def deep(family: Family) -> dict[str, Any]:
    return family.tiny_config() | {stack.key: 6 * stack.step for stack in family.stacks}


@pytest.fixture
def calls(monkeypatch):
    """How many blocks each denoiser has that is called, by its first stack."""
    found = []
    predicted = costs._predicted

    def counted(family, config, denoiser, rows):
        found.append(config[family.stacks[0].key])
        return predicted(family, config, denoiser, rows)

    monkeypatch.setattr(costs, "_predicted", counted)
    costs._counted.cache_clear()
    yield found
    costs._counted.cache_clear()


def told(family: Family, config: dict[str, Any]) -> list[Any]:
    found: list[Any] = [costs.count(family, config)]
    for alone in (True, False):
        found.append(costs.training_memory(family, config, alone=alone))
    with contextlib.suppress(ValueError):  # HunyuanDiT cannot
        found.append(costs.training_memory(family, config, alone=True, recompute=True))
    return found


@pytest.mark.parametrize("family", TRANSFORMERS, ids=lambda family: family.class_name)
def test_few_blocks_tell_what_all_do(monkeypatch, calls, family):
    config, step = deep(family), family.stacks[0].step
    if "dual_attention_layers" in config:
        config["dual_attention_layers"] = []
    few = told(family, config)
    assert set(calls) == {2 * step, 3 * step}
    monkeypatch.setattr(costs, "FEW", 100)
    costs._counted.cache_clear()
    assert told(family, config) == few
    assert calls[-1] == 6 * step


def test_blocks_of_two_kinds_are_counted_by_few_of_each(monkeypatch, calls):
    """Stable Diffusion 3.5 medium has a second attention in its first thirteen."""
    (family,) = [one for one in TRANSFORMERS if one.class_name == "SD3Transformer2DModel"]
    config = deep(family) | {"num_layers": 9, "dual_attention_layers": [0, 1, 2, 3]}
    few = told(family, config)
    assert set(calls) == {4, 5}
    monkeypatch.setattr(costs, "FEW", 100)
    costs._counted.cache_clear()
    assert told(family, config) == few
    assert calls[-1] == 9


def test_blocks_that_differ_otherwise_are_all_counted(monkeypatch, calls):
    """What few of them have is not what all have then."""
    (family,) = [one for one in TRANSFORMERS if one.class_name == "DiTTransformer2DModel"]
    built = costs.build
    monkeypatch.setattr(costs, "build", lambda *given: widened(built(*given), given[1]["num_layers"]))
    costs.count(family, deep(family))
    assert calls == [6]


def widened(denoiser, number):
    """With a tensor in its last block that grows with its depth."""
    denoiser.transformer_blocks[-1].register_parameter("more", nn.Parameter(torch.zeros(number**2, device="meta")))
    return denoiser
