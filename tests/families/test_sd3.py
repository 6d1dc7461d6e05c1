"""SD3: against recorded runs of its own pipeline, and what is special about it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from diffcompress.families.sd3 import FAMILY
from diffcompress.pipeline.trace import trace
from diffcompress.student.inherit import inherit
from diffcompress.student.size import build
from tests.families.pipe_sd3 import medium, pipeline
from tests.families.recording import assert_reproduced, record
from tests.families.test_contract import lively, predictions

PROMPTS = ["a cat walks", "rain"]


@pytest.mark.parametrize("make", [pipeline, medium])
def test_predict_is_what_the_pipeline_hands_its_scheduler(make: Callable[[], Any]) -> None:
    pipe = make()
    call = {"prompt": PROMPTS, "height": 16, "width": 12, "generator": torch.Generator().manual_seed(0)}
    recording = record(pipe, "transformer", num_inference_steps=3, guidance_scale=3.0, **call)
    conditioning, null = trace(pipe, FAMILY, PROMPTS, (4, 8, 6))
    assert set(conditioning) == set(FAMILY.text_conditioning(pipe.transformer.config))
    given, _ = recording.calls[0]
    for name, value in conditioning.items():
        assert torch.equal(given[name], torch.cat([null[name].expand_as(value), value])), name
        assert not torch.equal(value[0], value[1])
    assert_reproduced(FAMILY, pipe.transformer, recording, conditioning, null, 3.0)


def sources(student: dict[str, Any], teacher: dict[str, Any]) -> list[int]:
    """The teacher block that each block of a student starts from."""
    rules = {rule.student: rule.teacher for rule in FAMILY.tensor_rules(teacher, student).rules}
    names = [rules[f"transformer_blocks.{block}.attn.to_q.weight"] for block in range(student["num_layers"])]
    return [int(name.split(".")[1]) for name in names if name]


@pytest.mark.parametrize("layers", [1, 2, 5, 12])
def test_last_blocks_start_from_the_last_and_dual_ones_from_dual_ones(layers: int) -> None:
    teacher = FAMILY.tiny_config() | {"num_layers": 12, "dual_attention_layers": list(range(7))}
    student = FAMILY.shrunk_config(teacher, {"heads": 2, "head_dim": 8, "num_layers": layers})
    order, dual = sources(student, teacher), student["dual_attention_layers"]
    assert order[-1] == 11 and order == sorted(set(order))
    assert dual == [block for block, source in enumerate(order) if source < 7]
    assert len(dual) == pytest.approx(7 / 12 * layers, abs=1)
    model = build(FAMILY, student, "cpu")
    state = lively(build(FAMILY, teacher, "cpu")).state_dict()
    model.load_state_dict(inherit(FAMILY.tensor_rules(teacher, student), state))


@pytest.mark.parametrize("normed", [True, False])
def test_smaller_heads_keep_the_same_channels_in_all_that_meets(normed: bool) -> None:
    """With qk norm, one vector scales all heads, so that all keep the same positions; without, attention stays the
    same where the dropped channels of queries and keys are zero."""
    teacher = FAMILY.tiny_config() | {"qk_norm": "rms_norm" if normed else None, "dual_attention_layers": []}
    student = FAMILY.shrunk_config(teacher, {"heads": 4, "head_dim": 4, "num_layers": 4})
    rules = FAMILY.tensor_rules(teacher, student)
    heads = [index for name, index in rules.sets.items() if name.endswith(".heads")]
    assert {index.positions for index in heads} == ({(0, 2, 4, 6)} if normed else {None})
    scales = {rule.scale for rule in rules.rules if "to_q." in rule.student or "add_q_proj." in rule.student}
    assert scales == ({1.0} if normed else {0.5**0.5})
    model = build(FAMILY, student, "cpu")
    model.load_state_dict(inherit(rules, lively(build(FAMILY, teacher, "cpu")).state_dict()))
    assert torch.isfinite(predictions(FAMILY, model.eval(), teacher)).all()
