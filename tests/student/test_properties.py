"""Whatever is asked of a plan, it is kept to within its tolerance or refused with what can be had."""

from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from diffcompress.errors import DoesNotFitError
from diffcompress.families import registry
from diffcompress.families.base import Family
from diffcompress.families.unet2d import FAMILY
from diffcompress.student.plan import plan
from diffcompress.student.size import build, num_parameters
from diffcompress.student.student_plan import StudentPlan
from tests import tiny

DIT = registry.find("DiTTransformer2DModel")
RATIOS = st.lists(st.integers(20, 900).map(lambda value: value / 1000), min_size=2, max_size=2)
FEW = settings(max_examples=6)


@st.composite
def unets(draw: st.DrawFn) -> dict[str, object]:
    """Teachers of two or three levels with whole norm groups."""
    groups = draw(st.sampled_from([4, 8]))
    widths = sorted(draw(st.lists(st.sampled_from([16, 24, 32, 48, 64]), min_size=2, max_size=3)))
    attends = draw(st.lists(st.booleans(), min_size=len(widths), max_size=len(widths)))
    return tiny.UNET | {
        "sample_size": 16,
        "block_out_channels": tuple(widths),
        "down_block_types": tuple("AttnDownBlock2D" if flag else "DownBlock2D" for flag in attends),
        "up_block_types": tuple("AttnUpBlock2D" if flag else "UpBlock2D" for flag in reversed(attends)),
        "norm_num_groups": groups,
        "layers_per_block": draw(st.integers(1, 2)),
    }


@st.composite
def dits(draw: st.DrawFn) -> dict[str, object]:
    return DIT.tiny_config() | {
        "num_attention_heads": draw(st.integers(4, 12)),
        "attention_head_dim": draw(st.sampled_from([8, 16, 32])),
        "num_layers": draw(st.integers(4, 12)),
    }


def planned(family: Family, config: dict[str, object], ratio: float) -> StudentPlan:
    """The plan for `ratio`, or for the one that is named where none fits, which then must."""
    try:
        return plan(family, config, ratio=ratio)
    except DoesNotFitError as error:
        named = float(error.hint.split()[-1])
        return plan(family, config, ratio=named)


def check(family: Family, config: dict[str, object], ratios: list[float]) -> list[StudentPlan]:
    """Both students hold what they were asked for and say what they are; parameters grow with the ratio."""
    small, large = found = [planned(family, config, ratio) for ratio in sorted(ratios)]
    for one in found:
        assert abs(one.ratio / one.requested_ratio - 1) <= (0.01 if family.kind == "unet" else 0.05)
        assert one.params == num_parameters(build(family, one.config, "meta")) < one.teacher_params
        assert one.teacher_params == num_parameters(build(family, config, "meta"))
        assert StudentPlan.from_json(json.loads(json.dumps(one.to_json()))) == one
    if large.requested_ratio > 1.11 * small.requested_ratio:  # further apart than two students of 5 % tolerance
        assert large.params > small.params
    return found


@FEW
@given(unets(), RATIOS)
def test_students_of_unets(config, ratios):
    for one in check(FAMILY, config, ratios):
        assert min(one.config["block_out_channels"]) // one.config["norm_num_groups"] >= 2


@FEW
@given(dits(), RATIOS)
def test_students_of_transformers(config, ratios):
    for one in check(DIT, config, ratios):
        if one.config["attention_head_dim"] != config["attention_head_dim"]:
            assert abs(one.ratio / one.requested_ratio - 1) <= 0.01
