"""Transformer students have channels to spare beside the values of a token, where the ratio allows it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import DiTTransformer2DModel

import diffcompress.demo
from diffcompress.errors import DoesNotFitError
from diffcompress.families.dit import FAMILY
from diffcompress.student.plan import plan

FOLDER = Path(diffcompress.demo.__file__).parent
DIT = json.loads((FOLDER / "dit" / "transformer" / "config.json").read_text(encoding="utf-8"))
VALUES = 2 * 2 * 4  # of one token: patches of 2 x 2 latents of 4 channels
WIDE = VALUES * 3 // 2


def width(config):
    return config["num_attention_heads"] * config["attention_head_dim"]


@pytest.mark.parametrize("ratio", [0.5, 0.1, 0.05, 0.0163])
def test_students_have_room_beside_the_values_of_a_token(ratio):
    found = plan(FAMILY, DIT, ratio=ratio)
    assert width(found.config) >= WIDE
    assert not any("values of a token" in note for note in found.notes)


def test_a_ratio_without_such_a_student_takes_one_that_holds_a_token():
    found = plan(FAMILY, DIT, ratio=0.0087)
    assert VALUES <= width(found.config) < WIDE
    assert any(f"leave little room beside the {VALUES} values of a token" in note for note in found.notes)


def test_a_ratio_that_only_a_narrow_student_reaches_says_what_it_costs():
    found = plan(FAMILY, DIT, ratio=0.02061)
    assert width(found.config) < VALUES
    assert any(f"fewer than the {VALUES} values of a token" in note for note in found.notes)


def test_an_unreachable_ratio_points_to_a_student_that_is_wide_enough():
    with pytest.raises(DoesNotFitError, match=f"{WIDE} channels or more") as caught:
        plan(FAMILY, DIT, ratio=0.02)
    assert caught.value.hint is not None
    offered = float(caught.value.hint.split()[-1])
    assert width(plan(FAMILY, DIT, ratio=offered).config) >= WIDE


def test_what_a_narrow_student_loses():
    """The rank of what goes into the blocks is that of the width: noise in 16 values does not pass through 12."""
    narrow = DiTTransformer2DModel.from_config({**DIT, "num_attention_heads": 1, "attention_head_dim": 12})
    embedding = narrow.pos_embed.proj.weight.flatten(1)
    assert torch.linalg.matrix_rank(embedding) < VALUES
