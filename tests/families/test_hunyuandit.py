"""HunyuanDiT: against recorded runs of its own pipeline, and what is special about it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from diffcompress.errors import DoesNotFitError, UsageError
from diffcompress.families.hunyuandit import FAMILY, TOLD, _rotary, mirrored
from diffcompress.families.transformer_rules import nearest_positions
from diffcompress.pipeline.trace import trace
from diffcompress.student.plan import plan
from diffcompress.student.size import build
from tests.families.pipe_hunyuandit import pipeline
from tests.families.recording import assert_reproduced, record

PROMPTS = ["a cat walks", "rain"]


@pytest.mark.parametrize("told", [False, True])
@pytest.mark.parametrize("size", [(8, 8), (10, 4), (6, 12)])
def test_predict_is_what_the_pipeline_hands_its_scheduler(told: bool, size: tuple[int, int]) -> None:
    pipe = pipeline(told=told)
    call = {"prompt": PROMPTS, "height": 8 * size[0], "width": 8 * size[1]}
    call |= {"use_resolution_binning": False, "generator": torch.Generator().manual_seed(0)}
    recording = record(pipe, "transformer", num_inference_steps=2, guidance_scale=3.0, **call)
    conditioning, null = trace(pipe, FAMILY, PROMPTS, (4, *size))
    assert set(TOLD) <= set(conditioning) if told else not set(TOLD) & set(conditioning)
    given, _ = recording.calls[0]
    for name, value in conditioning.items():
        assert torch.equal(given[name], torch.cat([null[name].expand_as(value), value])), name
    rotary = _rotary(pipe.transformer, recording.steps[0][2])
    for ours, theirs in zip(rotary, given["image_rotary_emb"], strict=True):
        assert torch.equal(ours, theirs)
    assert_reproduced(FAMILY, pipe.transformer, recording, conditioning, null, 3.0)


def test_half_a_head_keeps_every_other_frequency_of_rows_and_of_columns() -> None:
    config = FAMILY.tiny_config() | {"attention_head_dim": 16, "hidden_size": 64}
    student = FAMILY.shrunk_config(config, {"heads": 2, "head_dim": 8, "num_layers": 2})
    positions = FAMILY.tensor_rules(config, student).sets["blocks.0.attn1.heads"].positions
    assert positions == (0, 1, 4, 5, 8, 9, 12, 13) == nearest_positions([8, 8], [4, 4], pair=2)
    noisy = torch.zeros(1, 4, 8, 8)
    for ours, theirs in zip(*(_rotary(build(FAMILY, c, "cpu"), noisy) for c in (student, config)), strict=True):
        torch.testing.assert_close(ours, theirs[:, positions])


@pytest.mark.parametrize("teacher", [2, 6, 40])
def test_blocks_joined_by_a_skip_start_from_blocks_joined_by_a_skip(teacher: int) -> None:
    for student in range(2, teacher + 1, 2):
        blocks = mirrored(student, teacher)
        assert blocks == sorted(set(blocks)) and len(blocks) == student
        assert (blocks[0], blocks[-1]) == (0, teacher - 1)
        for block in range(student // 2 + 1, student):  # those that take a skip: from the mirrored block
            assert blocks[block] > teacher // 2
            assert blocks[student - 1 - block] == teacher - 1 - blocks[block]
    assert mirrored(teacher, teacher) == list(range(teacher))


def test_an_odd_number_of_blocks_is_refused() -> None:
    with pytest.raises(UsageError, match="pairs its blocks"):
        plan(FAMILY, FAMILY.tiny_config() | {"num_layers": 1}, ratio=0.5)


def test_a_student_that_is_told_sizes_starts_from_the_columns_that_read_them() -> None:
    config = FAMILY.tiny_config() | {"use_style_cond_and_image_meta_size": True}
    student = FAMILY.shrunk_config(config, {"heads": 2, "head_dim": 8, "num_layers": 2})
    rules = {rule.student: rule for rule in FAMILY.tensor_rules(config, student).rules}
    rule = rules["time_extra_emb.extra_embedder.linear_1.weight"]
    assert rule.axes[1] == ("pooled", "sizes", "residual") and rule.shape[1] == 8 + 6 * 256 + 16


def test_what_cannot_be_reached_is_told_with_what_never_shrinks() -> None:
    config = json.loads((Path(__file__).parent.parent / "teachers" / "hunyuandit-1.2.json").read_text())
    told = r"smallest student .* 38,797,201, 38,631,456 of them .*text_embedder"
    with pytest.raises(DoesNotFitError, match=told) as error:
        plan(FAMILY, config, ratio=0.02)
    assert error.value.hint == "ask for ratio 0.02587"
