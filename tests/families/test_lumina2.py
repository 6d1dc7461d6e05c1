"""Lumina 2: against a recorded run of its own pipeline, and what is special about it."""

from __future__ import annotations

import torch

from diffcompress.families.base import complete
from diffcompress.families.lumina2 import FAMILY
from diffcompress.families.shapes import shapes
from diffcompress.pipeline.trace import trace
from diffcompress.student import costs
from diffcompress.student.inherit import inherit, magnitude_scores, pick
from diffcompress.student.size import build
from tests.families.pipe_lumina2 import pipeline
from tests.families.recording import assert_reproduced, record
from tests.families.test_contract import lively

PROMPTS = ["a cat walks", "rain"]  # of different lengths


def test_predict_is_what_the_pipeline_hands_its_scheduler() -> None:
    pipe = pipeline()
    shape = FAMILY.sample_shape(pipe.transformer.config)
    call = {"prompt": PROMPTS, "height": 64, "width": 64, "cfg_normalization": False, "generator": torch.Generator()}
    recording = record(pipe, "transformer", num_inference_steps=2, guidance_scale=3.0, **call)
    assert recording.steps[0][2].shape == (2, *shape)
    conditioning, null = trace(pipe, FAMILY, PROMPTS, shape)
    (first, _), (second, _) = recording.calls[:2]
    for name in FAMILY.text_conditioning(pipe.transformer.config):
        assert torch.equal(conditioning[name], first[name])
        assert torch.equal(null[name], second[name][:1])
    lengths = conditioning["encoder_attention_mask"].sum(1)
    assert lengths[0] > lengths[1] > null["encoder_attention_mask"].sum()
    assert_reproduced(FAMILY, pipe.transformer, recording, conditioning, null, 3.0)


def test_key_heads_follow_their_query_heads() -> None:
    config = FAMILY.tiny_config()  # 8 heads of 12 channels, two and two of them share a key head
    student = FAMILY.shrunk_config(config, {"heads": 4, "head_dim": 6, "num_layers": 3, "num_refiner_layers": 2})
    assert (student["num_kv_heads"], student["axes_dim_rope"]) == (2, [2, 2, 2])
    rules = FAMILY.tensor_rules(config, student)
    teacher = lively(build(FAMILY, config, "cpu")).state_dict()
    at = "layers.1.attn"
    # The second and the last group of query heads matter most; the first key head has the largest weights.
    for group in (1, 3):
        teacher[f"{at}.to_q.weight"][24 * group : 24 * (group + 1)] *= 10
    teacher[f"{at}.to_k.weight"][:12] *= 100
    kept = pick(rules, magnitude_scores(teacher))
    pairs = [0, 1, 4, 5, 8, 9]  # of each axis the first of two frequencies
    expected = [12 * head + channel for head in (1, 3) for channel in pairs]
    assert kept[f"{at}.keys"].tolist() == expected
    assert kept[f"{at}.heads"].tolist() == [12 * head + channel for head in (2, 3, 6, 7) for channel in pairs]
    cut = inherit(rules, teacher)
    for name in ("to_k", "to_v"):
        rows = teacher[f"{at}.{name}.weight"][expected][:, kept["residual"]]
        assert torch.equal(cut[f"{at}.{name}.weight"], rows)
    assert torch.equal(cut[f"{at}.norm_k.weight"], teacher[f"{at}.norm_k.weight"][pairs])


def test_the_feed_forward_width_of_a_narrow_student_keeps_its_proportion() -> None:
    config = complete(FAMILY.class_name, {})  # of the published model: 9216 for a width of 2304
    choice = {"heads": 3, "head_dim": 96, "num_layers": 1, "num_refiner_layers": 1}
    student = shapes(FAMILY.class_name, FAMILY.shrunk_config(config, choice)).tensors
    assert student["layers.0.feed_forward.linear_1.weight"] == (4 * 288, 288)
    same = FAMILY.shrunk_config(config, {"heads": 24, "head_dim": 96, "num_layers": 1, "num_refiner_layers": 1})
    assert same["multiple_of"] == 256


def test_a_student_runs_without_weights_though_the_class_reads_its_mask() -> None:
    config = FAMILY.tiny_config()
    assert costs.check(FAMILY, config, config).predicted == (1, *FAMILY.sample_shape(config))
