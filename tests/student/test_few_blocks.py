"""What deep stacks of alike blocks cost is counted on few of them, and is what all of them do."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest

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
    config, step = deep(family) | {"dual_attention_layers": []}, family.stacks[0].step
    if family.class_name != "SD3Transformer2DModel":
        config.pop("dual_attention_layers")
    few = told(family, config)
    assert set(calls) == {2 * step, 3 * step}
    monkeypatch.setattr(costs, "FEW", 100)
    costs._counted.cache_clear()
    assert told(family, config) == few
    assert calls[-1] == 6 * step


def test_blocks_that_differ_are_all_counted(calls):
    """Stable Diffusion 3.5 medium has a second attention in its first thirteen."""
    (family,) = [one for one in TRANSFORMERS if one.class_name == "SD3Transformer2DModel"]
    found = costs.count(family, deep(family) | {"dual_attention_layers": [0, 1, 2, 3]})
    assert calls == [6]
    assert found.params > costs.count(family, deep(family) | {"dual_attention_layers": [0, 1, 2]}).params
