"""Students of real teachers, planned from their configurations alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from diffcompress.errors import DoesNotFitError, UsageError
from diffcompress.families import registry
from diffcompress.families.base import complete
from diffcompress.families.shapes import shapes
from diffcompress.student.plan import plan

CONFIGS = {path.stem: path for path in (Path(__file__).parent.parent / "teachers").glob("*.json")}
REFUSED = ("cogvideox-2b", "cogvideox-5b", "flux2-dev")
# Published parameter counts, as far as they are known to the last digit.
PUBLISHED = {"ddpm-cifar10-32": 35_746_307, "sd15": 859_520_964, "sdxl-base": 2_567_463_684, "sd21-base": 865_910_724}
RATIOS = [0.1, 0.02, *(pytest.param(ratio, marks=pytest.mark.slow) for ratio in (0.5, 0.25, 0.05, 0.01))]
# Below this its text encoder's projections alone are larger.
HUNYUANDIT_FLOOR = 0.026
TEACHERS = [
    # Those are published students: teachers as good as any, of the classes of the others.
    pytest.param(name, marks=pytest.mark.slow) if name.startswith("ref-") else name
    for name in sorted(CONFIGS)
    if name not in REFUSED
]


def read(name: str) -> dict:
    config = json.loads(CONFIGS[name].read_text())
    return complete(config["_class_name"], config) if name not in REFUSED else config


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("name", TEACHERS)
def test_a_real_teacher_has_a_student_within_tolerance(name: str, ratio: float) -> None:
    config = read(name)
    family = registry.find(config["_class_name"])
    if name == "hunyuandit-1.2" and ratio < HUNYUANDIT_FLOOR:
        with pytest.raises(DoesNotFitError, match="never shrink") as caught:
            plan(family, config, ratio=ratio)
        assert float(caught.value.hint.rpartition(" ")[2]) == pytest.approx(HUNYUANDIT_FLOOR, abs=0.001)
        return
    student = plan(family, config, ratio=ratio)
    if name in PUBLISHED:
        assert student.teacher_params == PUBLISHED[name]
    choice = student.choice
    tolerance = 0.01
    if family.kind == "transformer":
        kept = family.variants(config, channels_per_group=4)[0].fixed["head_dim"]
        if choice["head_dim"] == kept and choice["heads"] * kept % 16 == 0:
            tolerance = 0.05
        assert choice["head_dim"] % 2 == 0
    assert abs(student.ratio / ratio - 1) <= tolerance
    assert all(student.config[key] == value for key, value in config.items() if key in INTERFACE)


INTERFACE = [
    "in_channels",
    "out_channels",
    "sample_size",
    "patch_size",
    "joint_attention_dim",
    "caption_channels",
    "cap_feat_dim",
    "text_dim",
    "num_embeds_ada_norm",
    "num_class_embeds",
    "guidance_embeds",
    "cross_attention_dim_t5",
    "projection_class_embeddings_input_dim",
    "addition_embed_type",
]


@pytest.mark.parametrize("name", REFUSED)
def test_a_class_without_a_family_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(UsageError, match=read(name)["_class_name"]) as caught:
        registry.find(read(name)["_class_name"])
    assert "SD3Transformer2DModel" in caught.value.hint


@pytest.mark.parametrize("name", ["UNet2DModel", "UNet2DConditionModel", "SD3Transformer2DModel"])
def test_what_a_config_leaves_out_is_as_its_class_has_it(name: str) -> None:
    stated = {"_class_name": name, "sample_size": 64, "in_channels": 16, "out_channels": 16}
    config = complete(name, stated)
    assert registry.find(name).variants(config, channels_per_group=4)
    assert config.items() > stated.items()
    assert shapes(name, config) == shapes(name, stated)
    assert config == json.loads(json.dumps(config))
    assert plan(registry.find(name), stated, ratio=0.25) == plan(registry.find(name), config, ratio=0.25)
