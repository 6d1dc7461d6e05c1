"""Stable Diffusion's U-Nets: against recorded runs of their own pipelines, and what is special about them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diffcompress.errors import UsageError
from diffcompress.families import unet2d
from diffcompress.families.base import complete
from diffcompress.families.unet2d_condition import FAMILY, head_size
from diffcompress.pipeline.trace import trace
from diffcompress.student.inherit import inherit, magnitude_scores, pick
from diffcompress.student.plan import plan
from diffcompress.student.size import build
from tests.families import pipe_ldm, pipe_stable_diffusion, pipe_stable_diffusion_xl
from tests.families.recording import assert_reproduced, record
from tests.families.test_contract import lively, predictions

PROMPTS = ["a cat walks", "rain"]
PLAIN = complete(FAMILY.class_name, pipe_stable_diffusion.UNET)
# Like SSD-1B: no attention in the middle, its own number of transformer layers in each module.
NESTED = {
    **FAMILY.tiny_config(),
    "layers_per_block": 2,
    "mid_block_type": "UNetMidBlock2D",
    "transformer_layers_per_block": [1, [2, 2]],
    "reverse_transformer_layers_per_block": [[2, 2, 4], 1],
}
SHAPES: dict[str, dict[str, Any]] = {
    "plain": PLAIN,
    "xl": FAMILY.tiny_config(),
    "nested": NESTED,
    "no_mid": {**PLAIN, "layers_per_block": 1, "mid_block_type": None},
    "own_layers": {**PLAIN, "layers_per_block": [1, 2, 2], "attention_head_dim": [2, 4, 4]},
    "every_level": {
        **PLAIN,
        "down_block_types": ["CrossAttnDownBlock2D"] * 3,
        "up_block_types": ["CrossAttnUpBlock2D"] * 3,
        "transformer_layers_per_block": 2,
        "use_linear_projection": True,
        "time_embedding_dim": 40,
    },
}


@pytest.mark.parametrize("teacher", SHAPES.values(), ids=SHAPES.keys())
def test_every_shape_has_a_rule_for_each_tensor_and_reproduces_its_teacher(teacher: dict[str, Any]) -> None:
    model, copy = lively(build(FAMILY, teacher, "cpu")), build(FAMILY, teacher, "cpu").eval()
    copy.load_state_dict(inherit(FAMILY.tensor_rules(teacher, teacher), model.state_dict()))
    expected = predictions(FAMILY, model, teacher)
    assert torch.equal(predictions(FAMILY, copy, teacher), expected)
    for number, variant in enumerate(FAMILY.variants(teacher, channels_per_group=2)[:3]):
        values = {knob.name: knob.values[min(number, len(knob.values) - 1)] for knob in variant.knobs}
        config = FAMILY.shrunk_config(teacher, {**variant.fixed, **values})
        student = build(FAMILY, config, "cpu").eval()
        student.load_state_dict(inherit(FAMILY.tensor_rules(teacher, config), model.state_dict()))
        assert predictions(FAMILY, student, teacher).shape == expected.shape
        assert len(FAMILY.blocks(student)) == len(FAMILY.blocks(model))


@pytest.mark.parametrize("make", [pipe_stable_diffusion.pipeline, pipe_stable_diffusion_xl.pipeline])
def test_predict_is_what_the_pipeline_hands_its_scheduler(make: Any) -> None:
    pipe = make()
    call = {"prompt": PROMPTS, "height": 16, "width": 32, "generator": torch.Generator().manual_seed(0)}
    recording = record(pipe, "unet", num_inference_steps=3, guidance_scale=3.0, **call)
    conditioning, null = trace(pipe, FAMILY, PROMPTS, (4, 8, 16))
    given = _flat(recording.calls[0][0])
    for name in FAMILY.text_conditioning(pipe.unet.config):
        expected = torch.cat([null[name].expand_as(conditioning[name]), conditioning[name]])
        assert torch.equal(given[name], expected), name
    # Some solvers keep samples in another scale than the denoiser's.
    inputs = [args[0].chunk(2)[1] for args, _ in recording.calls]
    steps = [(output, time, noisy) for (output, time, _), noisy in zip(recording.steps, inputs, strict=True)]
    assert_reproduced(FAMILY, pipe.unet, replace(recording, steps=steps), conditioning, null, 3.0)


def test_predict_of_a_latent_unet_without_text_is_what_its_pipeline_hands_its_scheduler() -> None:
    pipe = pipe_ldm.pipeline()
    recording = record(pipe, "unet", batch_size=2, num_inference_steps=3, generator=torch.Generator().manual_seed(0))
    assert_reproduced(unet2d.FAMILY, pipe.unet, recording, {}, None, 1.0)


def test_feed_forward_values_and_gates_keep_the_same_channels() -> None:
    teacher, rules, kept = _cut_student(PLAIN)
    name = "mid_block.attentions.0.transformer_blocks.0.ff"
    channels, cut = kept[name], inherit(rules, teacher)
    expected = torch.cat([channels, channels + 4 * 32])
    assert torch.equal(cut[f"{name}.net.0.proj.bias"], teacher[f"{name}.net.0.proj.bias"][expected])


def test_whole_heads_are_kept_and_the_same_in_queries_keys_values_and_output() -> None:
    _, rules, kept = _cut_student(PLAIN)
    for number in (1, 2):
        name = f"down_blocks.1.attentions.0.transformer_blocks.0.attn{number}"
        channels = kept[f"{name}.heads"]
        assert torch.equal(channels.view(-1, 16), channels.view(-1, 16)[:, :1] + torch.arange(16))
        assert channels[0] % 16 == 0 and len(channels) == 16
        own = {rule.student.removeprefix(name): rule for rule in rules.rules if rule.student.startswith(name)}
        assert all(own[f".to_{part}.weight"].axes[0] == (f"{name}.heads",) for part in "qkv")
        assert own[".to_out.0.weight"].axes[1] == (f"{name}.heads",)
        assert {rule.scale for rule in own.values()} == {1.0}
    # The text's side is the interface.
    assert own[".to_k.weight"].axes[1] == () and own[".to_k.weight"].shape[1] == PLAIN["cross_attention_dim"]


def test_fewer_layers_start_from_the_first_and_the_last() -> None:
    """As BK-SDM maps them: the last layer on the way up takes the skip of the level below."""
    _, rules, _ = _cut_student(PLAIN)
    sources = {rule.student: rule.teacher for rule in rules.rules}
    for part, module in (("resnets", "norm1"), ("attentions", "norm")):
        assert sources[f"down_blocks.1.{part}.0.{module}.weight"] == f"down_blocks.1.{part}.0.{module}.weight"
        assert sources[f"up_blocks.1.{part}.0.{module}.weight"] == f"up_blocks.1.{part}.0.{module}.weight"
        assert sources[f"up_blocks.1.{part}.1.{module}.weight"] == f"up_blocks.1.{part}.2.{module}.weight"


def test_transformer_layers_shrink_by_level_and_keep_their_proportions() -> None:
    choice = {"groups": 4, "channels.0": 16, "channels.1": 32, "time": 64}
    student = FAMILY.shrunk_config(NESTED, {**choice, "layers": 1, "transformers.1": 2})
    assert student["transformer_layers_per_block"] == [1, [1]]
    assert student["reverse_transformer_layers_per_block"] == [[1, 2], 1]
    rules = FAMILY.tensor_rules(NESTED, student)
    sources = {rule.student: rule.teacher for rule in rules.rules}
    last = "up_blocks.0.attentions.{}.transformer_blocks.{}.norm1.weight"
    assert sources[last.format(1, 1)] == last.format(2, 3)


def test_large_students_of_xl_lose_transformer_layers_first_and_small_ones_width_too() -> None:
    teacher = _published("sdxl-base")
    large, small = (plan(FAMILY, teacher, ratio=ratio).config for ratio in (0.5, 0.05))
    assert min(large["block_out_channels"]) >= 0.85 * 320 and large["layers_per_block"] == 2
    assert 4 <= large["transformer_layers_per_block"][-1] <= 6
    assert small["layers_per_block"] == 2 and 3 <= small["transformer_layers_per_block"][-1] <= 5


@pytest.mark.parametrize("name", ["sd15", "sd21-base", "sdxl-base"])
@pytest.mark.parametrize("ratio", [0.25, 0.02])
def test_heads_are_such_as_fused_attention_takes_and_no_larger_than_the_teachers(name: str, ratio: float) -> None:
    teacher = _published(name)
    student = plan(FAMILY, teacher, ratio=ratio)
    assert student.ratio == pytest.approx(ratio, rel=0.01)
    heads = teacher["attention_head_dim"]
    heads = [heads] * 4 if isinstance(heads, int) else heads
    old = [w // h for w, h in zip(teacher["block_out_channels"], heads, strict=True)]
    new = zip(student.config["block_out_channels"], student.config["attention_head_dim"], strict=True)
    attends = [level for level, kind in enumerate(teacher["down_block_types"]) if "Attn" in kind]
    sizes = [width // number for width, number in new]
    assert all(sizes[level] % 8 == 0 and 32 <= sizes[level] <= old[level] for level in attends)


@pytest.mark.parametrize(
    ("width", "teacher", "expected"), [(320, 40, 40), (224, 160, 112), (96, 40, 32), (12, 8, 6), (7, 8, 7)]
)
def test_a_head_is_as_near_the_teachers_as_the_width_allows(width: int, teacher: int, expected: int) -> None:
    assert head_size(width, teacher) == expected


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"up_block_types": ["SimpleCrossAttnUpBlock2D", "UpBlock2D"]}, "SimpleCrossAttnUpBlock2D"),
        ({"mid_block_type": "UNetMidBlock2DSimpleCrossAttn"}, "UNetMidBlock2DSimpleCrossAttn"),
        ({"encoder_hid_dim": 16}, "encoder_hid_dim"),
        ({"addition_embed_type": "image"}, "addition_embed_type 'image'"),
        ({"class_embed_type": "timestep"}, "class_embed_type 'timestep'"),
        ({"time_cond_proj_dim": 256}, "time_cond_proj_dim"),
        ({"attention_type": "gated"}, "attention_type 'gated'"),
        ({"dual_cross_attention": True}, "dual_cross_attention"),
        ({"only_cross_attention": [True, False]}, "only_cross_attention"),
        ({"mid_block_only_cross_attention": True}, "mid_block_only_cross_attention"),
        ({"num_class_embeds": 10}, "num_class_embeds 10"),  # no pipeline gives it labels
        ({"in_channels": 9}, "takes 9 channels and predicts 2"),
    ],
)
def test_what_cannot_be_distilled_is_named(changes: dict[str, Any], word: str) -> None:
    with pytest.raises(UsageError, match=word):
        FAMILY.variants({**FAMILY.tiny_config(), **changes}, channels_per_group=4)


def _published(name: str) -> dict[str, Any]:
    file = Path(__file__).parents[1] / "teachers" / f"{name}.json"
    return complete(FAMILY.class_name, json.loads(file.read_text()))


def _cut_student(config: dict[str, Any]) -> tuple[dict[str, Tensor], Any, dict[str, Tensor]]:
    """The teacher's tensors, the rules of a student of half the width and layers, and the channels that it keeps."""
    choice = {"groups": 4, "channels.0": 8, "channels.1": 16, "time": 32, "layers": 1}
    teacher = lively(build(FAMILY, config, "cpu")).state_dict()
    rules = FAMILY.tensor_rules(config, FAMILY.shrunk_config(config, choice))
    return teacher, rules, pick(rules, magnitude_scores(teacher))


def _flat(call: dict[Any, Any]) -> dict[str, Tensor]:
    """Nested keyword tensors by names with a dot."""
    found: dict[str, Tensor] = {}
    for name, value in call.items():
        found |= {f"{name}.{key}": inner for key, inner in value.items()} if isinstance(value, dict) else {name: value}
    return found
