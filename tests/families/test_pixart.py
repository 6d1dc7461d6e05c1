"""PixArt: against recorded runs of its own pipelines, and what is special about it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from diffcompress.families.pixart import FAMILY, SIZES
from diffcompress.pipeline.trace import trace
from diffcompress.student.inherit import inherit, magnitude_scores, pick
from diffcompress.student.size import build
from tests.families.pipe_pixart import alpha_1024, pipeline
from tests.families.recording import assert_reproduced, record
from tests.families.test_contract import lively, predictions

PROMPTS = ["a cat walks", "rain"]


@pytest.mark.parametrize("make", [pipeline, alpha_1024])
def test_predict_is_what_the_pipeline_hands_its_scheduler(make: Callable[[], Any]) -> None:
    pipe = make()
    call = {"prompt": PROMPTS, "height": 16, "width": 24, "generator": torch.Generator().manual_seed(0)}
    plain = {"use_resolution_binning": False, "clean_caption": False}
    recording = record(pipe, "transformer", num_inference_steps=3, guidance_scale=3.0, **plain, **call)
    conditioning, null = trace(pipe, FAMILY, PROMPTS, (4, 8, 12))
    assert set(conditioning) == set(FAMILY.text_conditioning(pipe.transformer.config))
    assert (make is alpha_1024) == (set(SIZES) < set(conditioning))
    given, _ = recording.calls[0]
    for name, value in conditioning.items():
        seen = given["added_cond_kwargs"][name.partition(".")[2]] if "." in name else given[name]
        assert torch.equal(seen, torch.cat([null[name].expand_as(value), value])), name
    assert conditioning["encoder_attention_mask"].sum(1).tolist() == [13, 6]  # a space, letters, the end
    assert_reproduced(FAMILY, pipe.transformer, recording, conditioning, null, 3.0)


def test_the_learned_variance_is_kept() -> None:
    config = FAMILY.tiny_config()
    inputs = FAMILY.example_inputs(config)
    with torch.no_grad():
        output = FAMILY.predict(
            lively(build(FAMILY, config, "cpu")), inputs.pop("noisy"), inputs.pop("timestep"), inputs
        )
    assert output.shape[1] == 2 * config["in_channels"]


@pytest.mark.parametrize("heads", [1, 2, 3])
def test_what_is_told_about_the_size_reaches_the_channels_it_did(heads: int) -> None:
    """Each third of the time embedding keeps the same channels, so that a student's is cut from its teacher's."""
    config = FAMILY.tiny_config()
    student = FAMILY.shrunk_config(config, {"heads": heads, "head_dim": 12, "num_layers": 3})
    rules = FAMILY.tensor_rules(config, student)
    teacher = lively(build(FAMILY, config, "cpu"))
    kept = pick(rules, magnitude_scores(teacher.state_dict()))
    third = torch.tensor([kept["third"].tolist()]) + torch.arange(0, 48, 16)[:, None]
    assert torch.equal(kept["residual"], third.flatten())
    model = build(FAMILY, student, "cpu").eval()
    model.load_state_dict(inherit(rules, teacher.state_dict()))
    # With the hidden layer whole, what comes out is exactly a part of what came out.
    for name in ("resolution_embedder", "aspect_ratio_embedder"):
        ours, theirs = (m.get_submodule(f"adaln_single.emb.{name}.linear_2") for m in (model, teacher))
        assert torch.equal(ours.get_parameter("bias"), theirs.get_parameter("bias")[kept["third"]])


def test_widths_suit_the_position_embedding_and_the_size_embedders() -> None:
    for told, step in ((True, 12), (False, 4)):
        config = FAMILY.tiny_config() | {"use_additional_conditions": told, "attention_head_dim": 10}
        config |= {"num_attention_heads": 12, "cross_attention_dim": 120}
        for variant in FAMILY.variants(config, channels_per_group=1):
            widths = [heads * variant.fixed["head_dim"] for heads in variant.knobs[0].values]
            assert widths and all(width % step == 0 for width in widths)


def test_cross_attention_reads_its_own_width_only_where_captions_are_projected() -> None:
    config, choice = FAMILY.tiny_config(), {"heads": 2, "head_dim": 12, "num_layers": 2}
    assert FAMILY.shrunk_config(config, choice)["cross_attention_dim"] == 24
    direct = config | {"caption_channels": None, "cross_attention_dim": 8}
    student = FAMILY.shrunk_config(direct, choice)
    assert student["cross_attention_dim"] == 8
    rules = {rule.student: rule for rule in FAMILY.tensor_rules(direct, student).rules}
    assert rules["transformer_blocks.0.attn2.to_k.weight"].axes == (("transformer_blocks.0.attn2.heads",), ())
    assert torch.isfinite(predictions(FAMILY, lively(build(FAMILY, student, "cpu")), direct)).all()
