"""Students that are no proportionally smaller teachers: fewer levels, no attention, wider here and narrower there."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from diffcompress.families import unet2d, unet2d_condition
from diffcompress.families.base import complete
from diffcompress.pipeline.load import load
from diffcompress.sources.resolve import resolve
from diffcompress.student.inherit import NEW, inherit, pick
from diffcompress.student.refit import refit
from diffcompress.student.scores import magnitude_scores
from diffcompress.student.size import build
from tests import tiny
from tests.families import pipe_stable_diffusion
from tests.families.test_contract import lively, predictions

PIXELS: dict[str, Any] = complete(
    "UNet2DModel",
    {
        **tiny.UNET,
        "block_out_channels": [8, 16, 24],
        "down_block_types": ["DownBlock2D", "DownBlock2D", "AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D", "UpBlock2D", "UpBlock2D"],
        "layers_per_block": 2,
        "time_embedding_dim": 20,
    },
)
TEXT: dict[str, Any] = complete("UNet2DConditionModel", {**pipe_stable_diffusion.UNET, "time_embedding_dim": 20})
TEACHERS = {"pixels": (unet2d.FAMILY, PIXELS), "text": (unet2d_condition.FAMILY, TEXT)}


def fewer(config: dict[str, Any], levels: int, **changes: Any) -> dict[str, Any]:
    """`config` with its finest levels alone."""
    cut = {name: config[name][:levels] for name in ("block_out_channels", "down_block_types")}
    cut["up_block_types"] = config["up_block_types"][-levels:]
    if isinstance(config["attention_head_dim"], list):
        cut["attention_head_dim"] = config["attention_head_dim"][:levels]
    return {**config, **cut, **changes}


def started(family: Any, teacher: dict[str, Any], student: dict[str, Any]) -> tuple[Any, Any]:
    """Teacher and student as models, the student inherited by magnitude."""
    model = lively(build(family, teacher, "cpu"))
    made = build(family, student, "cpu").eval()
    made.load_state_dict(inherit(family.tensor_rules(teacher, student), model.state_dict()))
    return model, made


@pytest.mark.parametrize("levels", [1, 2])
@pytest.mark.parametrize(("family", "teacher"), TEACHERS.values(), ids=TEACHERS)
def test_levels_that_are_left_are_the_teachers_of_the_same_resolution(family, teacher, levels):
    """Equal widths there, so that every tensor away from the join is the teacher's own."""
    model, student = started(family, teacher, fewer(teacher, levels))
    assert predictions(family, student, teacher).shape == predictions(family, model, teacher).shape
    theirs, dropped, compared = model.state_dict(), len(teacher["block_out_channels"]) - levels, 0
    for name, value in student.state_dict().items():
        source = name
        if name.startswith("up_blocks."):
            stack, number, rest = name.split(".", 2)
            source = f"{stack}.{int(number) + dropped}.{rest}"
        if name.startswith(("mid_block.", "up_blocks.0.resnets.0.")):
            continue
        compared += 1
        assert torch.equal(value, theirs[source]), name
    assert compared > 20
    # The join: what the teacher's coarser levels would have sent is read by the weights that it was read by.
    rules = family.tensor_rules(teacher, fewer(teacher, levels))
    rule = next(rule for rule in rules.rules if rule.student == "up_blocks.0.resnets.0.conv1.weight")
    assert rule.teacher == f"up_blocks.{dropped}.resnets.0.conv1.weight"
    assert rule.axes[1][0] == ("mid_block.out")
    assert rules.sets["mid_block.out"].teacher_size == teacher["block_out_channels"][levels]


@pytest.mark.parametrize(("family", "teacher"), TEACHERS.values(), ids=TEACHERS)
def test_narrow_students_of_fewer_levels_and_layers_start_too(family, teacher):
    heads = {"attention_head_dim": [1, 1]} if family is unet2d_condition.FAMILY else {}
    student = fewer(teacher, 2, layers_per_block=1, norm_num_groups=2, **heads)
    student["block_out_channels"] = [8, 4] if family is unet2d.FAMILY else [16, 4]
    if family is unet2d.FAMILY:
        student["attention_head_dim"] = 4
    _, made = started(family, teacher, student)
    assert torch.isfinite(predictions(family, made, teacher)).all()


@pytest.mark.parametrize(
    ("family", "teacher", "types"),
    [
        (unet2d.FAMILY, PIXELS, {"down_block_types": ["DownBlock2D"] * 3, "up_block_types": ["UpBlock2D"] * 3}),
        (unet2d_condition.FAMILY, TEXT, {"down_block_types": ["DownBlock2D"] * 3, "up_block_types": ["UpBlock2D"] * 3}),
    ],
    ids=TEACHERS,
)
def test_a_student_without_attention_in_its_levels_is_the_teacher_elsewhere(family, teacher, types):
    model, student = started(family, teacher, {**teacher, **types})
    theirs, ours = model.state_dict(), student.state_dict()
    assert len(ours) < len(theirs)
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_more_channels_than_the_teacher_has_are_new_and_nothing_hears_them_yet():
    """A wider time embedding, which no norm mixes, leaves the function exactly what it was."""
    model, student = started(unet2d.FAMILY, PIXELS, {**PIXELS, "time_embedding_dim": 32})
    assert student.time_embedding.linear_1.weight.shape == (32, 8)
    torch.testing.assert_close(
        predictions(unet2d.FAMILY, student, PIXELS), predictions(unet2d.FAMILY, model, PIXELS), atol=1e-5, rtol=1e-5
    )
    new = student.time_embedding.linear_1.weight[20:]
    assert new.std() > 0.1 * student.time_embedding.linear_1.weight[:20].std()
    assert student.time_embedding.linear_2.weight[:, 20:].abs().max() == 0


@pytest.mark.parametrize(("family", "teacher"), TEACHERS.values(), ids=TEACHERS)
def test_a_student_that_is_wider_in_one_level_and_narrower_in_another_starts(family, teacher):
    widths = [2 * teacher["block_out_channels"][0], *(width // 2 for width in teacher["block_out_channels"][1:])]
    student = {**teacher, "block_out_channels": widths}
    model, made = started(family, teacher, student)
    assert torch.isfinite(predictions(family, made, teacher)).all()
    rules = family.tensor_rules(teacher, student)
    kept = pick(rules, magnitude_scores(model.state_dict()))["conv_in"]
    groups = teacher["norm_num_groups"]
    # Each norm group has its teacher's channels, and as many new ones.
    assert torch.equal((kept == NEW).view(groups, -1).sum(1), torch.full((groups,), len(kept) // groups // 2))
    assert torch.equal(kept[kept != NEW], torch.arange(teacher["block_out_channels"][0]))
    assert torch.equal(made.conv_in.weight[kept != NEW], model.conv_in.weight)


@pytest.mark.parametrize(
    "changes",
    [
        fewer(tiny.DEMO, 2, block_out_channels=[16, 16], norm_num_groups=4),
        fewer(tiny.DEMO, 1, block_out_channels=[16], norm_num_groups=4, attention_head_dim=16),
        {"block_out_channels": [32, 16, 16], "norm_num_groups": 8},
    ],
    ids=["two levels", "one level", "wider and narrower"],
)
def test_refitting_brings_them_nearer_to_the_teacher(changes):
    """On the embedded teacher, in noise that they were not fitted on."""
    teacher = load(resolve("demo")).denoiser
    config = {**teacher.config, **changes}
    rules, state = unet2d.FAMILY.tensor_rules(teacher.config, config), teacher.state_dict()
    student = build(unet2d.FAMILY, config, "cpu").eval()
    student.load_state_dict(inherit(rules, state))
    own = torch.Generator().manual_seed(0)
    noisy, timestep = torch.randn(64, 1, 28, 28, generator=own), torch.randint(0, 1000, (64,), generator=own)
    with torch.no_grad():
        target = teacher(noisy[48:], timestep[48:]).sample
        before = (student(noisy[48:], timestep[48:]).sample - target).square().mean()
        fitted = refit(
            student,
            teacher,
            rules,
            pick(rules, magnitude_scores(state)),
            lambda model: model(noisy[:48], timestep[:48]),
        )
        after = (student(noisy[48:], timestep[48:]).sample - target).square().mean()
    assert fitted > 15
    assert after < before / 2
