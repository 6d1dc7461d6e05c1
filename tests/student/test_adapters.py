"""Which of a teacher's LoRA layers fit: held against the shapes of real models."""

from __future__ import annotations

import re

import pytest

from diffcompress.families import registry
from diffcompress.student.adapters import fitting, told
from diffcompress.student.plan import plan
from diffcompress.student.size import build
from diffcompress.student.student_plan import StudentPlan

SD3 = registry.find("SD3Transformer2DModel")
CONFIG = {**SD3.tiny_config(), "num_layers": 6, "dual_attention_layers": []}


def shapes(config: dict) -> dict:
    state = build(SD3, config, "meta").state_dict()
    return {name: value.shape for name, value in state.items() if name.endswith(".weight") and value.dim() in (2, 4)}


def test_without_depth_all_that_is_left_fits_under_another_name() -> None:
    student = SD3.shrunk_config(CONFIG, {"heads": 4, "head_dim": 8, "num_layers": 3})
    rules = SD3.tensor_rules(CONFIG, student)
    ours, theirs = shapes(student), shapes(CONFIG)
    names = {rule.student: rule.teacher for rule in rules.rules}
    assert all(shape == theirs[str(names[name])] for name, shape in ours.items())
    moved = [name for name in ours if names[name] != name]
    found = {f"{student}.weight": f"{teacher}.weight" for student, teacher in fitting(rules).items()}
    assert found == {name: names[name] for name in ours}
    said = told(rules)
    assert said.startswith(f"LoRA adapters of the teacher fit in shape {len(ours)} of the {len(ours)} layers")
    assert f"diffusers would load {len(moved)} into other layers" in said and moved
    pair = re.search(r"own: (\S+) here is (\S+) there", said)
    assert pair and names[pair[1] + ".weight"] == pair[2] + ".weight" != pair[1] + ".weight"


@pytest.mark.parametrize("heads", [1, 3])
def test_with_other_widths_none_fits(heads: int) -> None:
    student = SD3.shrunk_config(CONFIG, {"heads": heads, "head_dim": 8, "num_layers": 6})
    rules = SD3.tensor_rules(CONFIG, student)
    alike = [name for name, shape in shapes(student).items() if shape == shapes(CONFIG)[name]]
    assert (
        not alike
        and not fitting(rules)
        and told(rules).startswith(f"no LoRA adapter of the teacher fits: all {len(shapes(student))}")
    )


def test_plans_of_text_conditional_teachers_say_so_and_no_others() -> None:
    found = plan(SD3, CONFIG, ratio=0.5)
    assert any("LoRA" in note for note in found.notes) and StudentPlan.from_json(found.to_json()) == found
    unet = registry.find("UNet2DModel")
    assert not any("LoRA" in note for note in plan(unet, unet.tiny_config(), ratio=0.3).notes)
