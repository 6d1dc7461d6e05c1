"""What every family promises, on tiny real U-Nets of every shape that UNet2DModel knows."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from diffcompress.errors import UsageError
from diffcompress.families.unet2d import FAMILY
from diffcompress.student.size import build
from tests import tiny

WIDE = {"block_out_channels": (16, 16, 32), "sample_size": 8, "layers_per_block": 2}
PLAIN = {"down_block_types": ("DownBlock2D",) * 3, "up_block_types": ("UpBlock2D",) * 3}
RESNET = {
    "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"),
    "downsample_type": "resnet",
    "upsample_type": "resnet",
}
SHAPES = {
    "tiny": {},
    "demo": tiny.DEMO,
    "one_head": {"attention_head_dim": None},
    "classes": {"num_class_embeds": 5},
    "tied_levels": {**WIDE, **PLAIN, "add_attention": False},
    "resnet_samplers": {**WIDE, **RESNET},
    "scale_shift": {**WIDE, **PLAIN, "resnet_time_scale_shift": "scale_shift"},
    "attn_groups": {"resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 2},
    "learned_time": {"time_embedding_type": "learned", "num_train_timesteps": 50},
    "no_mid": {"mid_block_type": None},
    "rectangle": {"sample_size": (8, 16), "in_channels": 3, "out_channels": 3, "time_embedding_dim": 40},
}


@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES.keys())
def test_rules_name_every_tensor_once_with_its_shape(changes):
    teacher = {**tiny.UNET, **changes}
    student = _smallest(teacher)
    for config in (teacher, student):
        rules = FAMILY.tensor_rules(teacher, config)
        state = build(FAMILY, config, "meta").state_dict()
        assert sorted(rule.student for rule in rules.rules) == sorted(state)
        assert {rule.student: rule.shape for rule in rules.rules} == {k: tuple(v.shape) for k, v in state.items()}
    names = set(build(FAMILY, teacher, "meta").state_dict())
    assert {rule.teacher for rule in rules.rules if rule.teacher is not None} <= names


@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES.keys())
def test_students_keep_the_interface_and_predict_in_sample_shape(changes):
    teacher = {**tiny.UNET, **changes}
    student = build(FAMILY, _smallest(teacher), "cpu").eval()
    inputs = FAMILY.example_inputs(teacher, 2)
    with torch.no_grad():
        prediction = FAMILY.predict(student, inputs.pop("noisy"), inputs.pop("timestep"), inputs)
    assert prediction.shape == (2, *FAMILY.sample_shape(teacher))
    for key in ("in_channels", "out_channels", "sample_size", "down_block_types", "up_block_types", "num_class_embeds"):
        assert student.config.get(key) == build(FAMILY, teacher, "meta").config.get(key)
    assert student.config["dropout"] == 0


def test_feature_blocks_pair_up_between_teacher_and_student():
    teacher = {**tiny.UNET, **WIDE, **RESNET}
    shapes = []
    for config in (teacher, _smallest(teacher)):
        model = build(FAMILY, config, "cpu").eval()
        found: list[Any] = []
        for name in FAMILY.blocks(model):
            keep = found.append
            model.get_submodule(name).register_forward_hook(lambda _m, _i, out, keep=keep: keep(out.shape[2:]))
        inputs = FAMILY.example_inputs(config)
        with torch.no_grad():
            FAMILY.predict(model, inputs["noisy"], inputs["timestep"], {})
        shapes.append(found)
    assert shapes[0] == shapes[1] == [(8, 8), (4, 4), (2, 2), (2, 2), (2, 2), (4, 4), (8, 8)]


def test_class_labels_reach_the_model():
    model = tiny.unet(num_class_embeds=5)
    noisy, timestep = torch.randn(2, 1, 8, 8), torch.tensor([3, 3])
    first, last = (FAMILY.predict(model, noisy, timestep, {"class_labels": torch.tensor([k, k])}) for k in (0, 4))
    assert not torch.allclose(first, last, atol=1e-3)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"up_block_types": ("AttnSkipUpBlock2D", "UpBlock2D")}, "AttnSkipUpBlock2D"),
        ({"class_embed_type": "timestep"}, "timestep"),
        ({"time_embedding_type": "fourier"}, "infinite at 0"),
    ],
)
def test_what_cannot_shrink_is_named(changes, word):
    with pytest.raises(UsageError, match=word):
        FAMILY.variants({**tiny.UNET, **changes}, channels_per_group=4)


@pytest.mark.parametrize("size", ["big", 0, [3, 16, 16]])
def test_a_sample_size_that_is_none_is_named(size):
    with pytest.raises(UsageError, match=r"sample_size .* is no height and width"):
        FAMILY.sample_shape({**tiny.UNET, "sample_size": size})


def _smallest(teacher):
    """The smallest student of the first variant that halves the groups."""
    variants = FAMILY.variants(teacher, channels_per_group=4)
    variant = next(v for v in variants if v.fixed["groups"] == 2)
    choice = {**variant.fixed, **{knob.name: knob.values[0] for knob in variant.knobs}}
    assert variant.knobs[0].values[0] >= 8
    return FAMILY.shrunk_config(teacher, choice)
