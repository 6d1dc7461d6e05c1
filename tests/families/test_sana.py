"""Sana: against a recorded run of its own pipeline, and what is special about it."""

from __future__ import annotations

import math

import pytest
import torch

from diffcompress.errors import UsageError
from diffcompress.families.sana import FAMILY
from diffcompress.pipeline.trace import trace
from diffcompress.student.inherit import inherit, magnitude_scores, pick
from diffcompress.student.plan import plan
from diffcompress.student.size import build
from tests.families.pipe_sana import pipeline
from tests.families.recording import assert_reproduced, record
from tests.families.test_contract import lively, predictions

PROMPTS = ["a cat walks", "rain"]


def test_predict_is_what_the_pipeline_hands_its_scheduler() -> None:
    pipe = pipeline()
    call = {"prompt": PROMPTS, "height": 32, "width": 64, "generator": torch.Generator().manual_seed(0)}
    plain = {"use_resolution_binning": False}
    recording = record(pipe, "transformer", num_inference_steps=3, guidance_scale=3.0, **plain, **call)
    conditioning, null = trace(pipe, FAMILY, PROMPTS, (4, 8, 16))
    given, _ = recording.calls[0]
    for name in FAMILY.text_conditioning(pipe.transformer.config):
        assert torch.equal(given[name], torch.cat([null[name].expand_as(conditioning[name]), conditioning[name]])), name
    assert_reproduced(FAMILY, pipe.transformer, recording, conditioning, null, 3.0)


def test_value_and_gate_keep_the_same_hidden_channels() -> None:
    config = FAMILY.tiny_config()
    student = FAMILY.shrunk_config(config, {"heads": 3, "head_dim": 8, "num_layers": 2})
    rules = FAMILY.tensor_rules(config, student)
    teacher = lively(build(FAMILY, config, "cpu")).state_dict()
    kept = pick(rules, magnitude_scores(teacher))["transformer_blocks.0.ff.ffn"]
    hidden = int(2.5 * 48)
    assert len(kept) == int(2.5 * 24)
    cut = inherit(rules, teacher)
    name = "transformer_blocks.0.ff.conv_depth.weight"
    assert torch.equal(cut[name], teacher[name][torch.cat([kept, hidden + kept])])


def test_cross_attention_keeps_its_head_size_where_it_can_and_weighs_smaller_heads_as_whole_ones() -> None:
    config = FAMILY.tiny_config()
    sizes = {}
    for heads in range(1, 7):
        student = FAMILY.shrunk_config(config, {"heads": heads, "head_dim": 8, "num_layers": 2})
        sizes[heads] = student["num_cross_attention_heads"], student["cross_attention_head_dim"]
        assert math.prod(sizes[heads]) == heads * 8 == student["cross_attention_dim"]
        scales = {rule.student: rule.scale for rule in FAMILY.tensor_rules(config, student).rules}
        assert scales["transformer_blocks.0.attn2.to_q.weight"] == pytest.approx(math.sqrt(sizes[heads][1] / 12))
        assert scales["transformer_blocks.0.attn1.to_q.weight"] == 1
    assert sizes[6] == (4, 12) and sizes[3] == (2, 12)
    assert all(heads <= 4 and size <= 12 for heads, size in sizes.values())


def test_queries_and_keys_normalised_over_all_heads_keep_the_channels_of_their_heads() -> None:
    config = FAMILY.tiny_config() | {"qk_norm": "rms_norm_across_heads", "interpolation_scale": 1}
    student = plan(FAMILY, config, ratio=0.35)
    rules = student.rules(FAMILY)
    teacher = lively(build(FAMILY, config, "cpu"))
    kept, cut = pick(rules, magnitude_scores(teacher.state_dict())), inherit(rules, teacher.state_dict())
    name = "transformer_blocks.0.attn{}.norm_q.weight"
    for number, role in ((1, "heads"), (2, "cross")):
        channels = kept[f"transformer_blocks.0.attn{number}.{role}"]
        assert torch.equal(cut[name.format(number)], teacher.state_dict()[name.format(number)][channels])
    model = build(FAMILY, student.config, "cpu").eval()
    model.load_state_dict(cut)
    assert torch.isfinite(predictions(FAMILY, model, config)).all()


def test_a_guidance_scale_as_an_input_is_refused() -> None:
    with pytest.raises(UsageError, match="guidance_embeds"):
        plan(FAMILY, FAMILY.tiny_config() | {"guidance_embeds": True}, ratio=0.5)
