"""AuraFlow: against recorded runs of its own pipeline, and what is special about it."""

from __future__ import annotations

import pytest
import torch

from diffcompress.families.auraflow import FAMILY
from diffcompress.families.shapes import shapes
from diffcompress.pipeline.trace import trace
from tests.families.pipe_auraflow import pipeline
from tests.families.recording import assert_reproduced, record

PROMPTS = ["a cat walks", "rain"]


def test_predict_is_what_the_pipeline_hands_its_scheduler() -> None:
    pipe = pipeline()
    call = {"prompt": PROMPTS, "height": 16, "width": 12, "generator": torch.Generator().manual_seed(0)}
    recording = record(pipe, "transformer", num_inference_steps=3, guidance_scale=3.0, **call)
    conditioning, null = trace(pipe, FAMILY, PROMPTS, (4, 8, 6))
    given, _ = recording.calls[0]
    for name, value in conditioning.items():
        assert torch.equal(given[name], torch.cat([null[name].expand_as(value), value])), name
    assert_reproduced(FAMILY, pipe.transformer, recording, conditioning, null, 3.0)


@pytest.mark.parametrize("heads", [1, 2, 3, 5, 12])
def test_hidden_channels_are_rounded_as_the_class_does(heads: int) -> None:
    teacher = FAMILY.tiny_config() | {"num_attention_heads": 12, "attention_head_dim": 64}
    teacher |= {"caption_projection_dim": 768}
    student = FAMILY.shrunk_config(
        teacher, {"heads": heads, "head_dim": 64, "num_single_dit_layers": 1, "num_mmdit_layers": 1}
    )
    name = "single_transformer_blocks.0.ff.linear_1.weight"
    own, wide = (shapes(FAMILY.class_name, config).tensors[name][0] for config in (student, teacher))
    rules = {rule.student: rule for rule in FAMILY.tensor_rules(teacher, student).rules}
    assert rules[name].shape[0] == own
    assert bool(rules[name].axes[0]) == (own != wide)


def test_samples_are_no_larger_than_the_table_of_positions() -> None:
    config = FAMILY.tiny_config()
    assert FAMILY.sample_shape(config) == (4, 8, 8)
    assert FAMILY.sample_shape(config | {"pos_embed_max_size": 4096}) == (4, 128, 128)
    assert FAMILY.sample_shape(config | {"pos_embed_max_size": 9216}) == (4, 128, 128)
