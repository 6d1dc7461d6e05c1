"""What the multimodal transformers share: text, image and time keep channels of their own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from diffcompress.families import auraflow, flux, qwenimage, sd3
from diffcompress.families.base import Family, TensorRules
from diffcompress.families.mmdit_rules import image_positions, pack, unpack
from diffcompress.families.transformer import Transformer
from diffcompress.student.inherit import inherit
from diffcompress.student.size import build
from tests.families.test_contract import inputs_of, lively, predictions

FAMILIES = pytest.mark.parametrize(
    "family", [sd3.FAMILY, flux.FAMILY, auraflow.FAMILY, qwenimage.FAMILY], ids=lambda family: family.class_name
)


@FAMILIES
def test_a_student_hidden_in_a_teacher_is_found_whole(family: Family) -> None:
    """Its weights lie at random heads and channels of a teacher that is zero elsewhere, the same wherever they meet."""
    teacher = family.tiny_config()
    if family is auraflow.FAMILY:  # wide enough that its hidden channels, multiples of 256, shrink too
        teacher |= {"attention_head_dim": 32, "caption_projection_dim": 128}
    variant = family.variants(teacher, channels_per_group=1)[0]
    depths = {knob.name: knob.teacher for knob in variant.knobs if knob.kind == "depth"}
    small = family.shrunk_config(teacher, {**variant.fixed, **depths, "heads": 2})
    hidden = lively(build(family, small, "cpu")).state_dict()
    rules = family.tensor_rules(teacher, small)
    found = inherit(rules, hide(rules, hidden, build(family, teacher, "cpu").state_dict()))
    assert set(found) == set(hidden)
    for name, value in hidden.items():
        assert torch.equal(found[name], value), name
    spaces = {name.rpartition(".")[2] for name in rules.sets}
    assert {"residual", "time", "heads", "ffn"} <= spaces
    assert ("text" in spaces) == (family in (sd3.FAMILY, qwenimage.FAMILY))


def hide(rules: TensorRules, hidden: dict[str, Tensor], teacher: dict[str, Tensor]) -> dict[str, Tensor]:
    generator, picks = torch.Generator().manual_seed(0), {}
    for name, index in rules.sets.items():
        grouped = index.teacher_groups > 1
        whole, kept = (index.teacher_groups, index.groups) if grouped else (index.teacher_size, index.size)
        wide = index.teacher_size // index.teacher_groups if grouped else 1
        chosen = torch.randperm(whole, generator=generator)[:kept].sort().values
        picks[name] = (chosen[:, None] * wide + torch.arange(wide)).flatten()
    state = {name: torch.zeros_like(value) for name, value in teacher.items()}
    for rule in rules.rules:
        value = hidden[rule.student]
        for axis, names in enumerate(rule.axes):
            if not names:
                continue
            parts, start = [], 0
            for name in names:
                parts.append(picks[name] + start)
                start += rules.sets[name].teacher_size
            shape = (*value.shape[:axis], start, *value.shape[axis + 1 :])
            value = torch.zeros(shape).index_copy(axis, torch.cat(parts), value)
        assert rule.teacher is not None and rule.scale == 1.0
        state[rule.teacher] = value
    return state


@pytest.mark.parametrize("family", [flux.FAMILY, auraflow.FAMILY], ids=lambda family: family.class_name)
def test_where_there_are_no_single_blocks_features_are_the_image_of_the_double_ones(family: Transformer) -> None:
    config = family.tiny_config() | {family.stacks[0].key: 0}
    model, seen = build(family, config, "cpu").eval(), []
    for name in family.blocks(model):
        model.get_submodule(name).register_forward_hook(lambda *call: seen.append(family.feature(call[2])))
    predictions(family, model, config)
    tokens = inputs_of(family, config, 1)["noisy"][0, 0].numel() // 4
    assert seen and all(feature.shape[2] == tokens for feature in seen)


def test_latents_are_packed_as_the_pipelines_do() -> None:
    from diffusers import FluxPipeline

    latents = torch.randn(2, 3, 6, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(pack(latents), FluxPipeline._pack_latents(latents, 2, 3, 6, 4))
    assert torch.equal(unpack(pack(latents), 6, 4), latents)
    theirs = FluxPipeline._prepare_latent_image_ids(2, 3, 2, torch.device("cpu"), torch.float32)
    assert torch.equal(image_positions(6, 4, torch.device("cpu")).float(), theirs)
