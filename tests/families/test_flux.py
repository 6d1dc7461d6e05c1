"""Flux: against recorded runs of its own pipeline, and what is special about it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from diffcompress.errors import UsageError
from diffcompress.families.base import complete
from diffcompress.families.flux import FAMILY, GUIDANCE
from diffcompress.families.mmdit_rules import unpack
from diffcompress.pipeline.trace import trace
from diffcompress.student.inherit import inherit
from diffcompress.student.size import build
from tests.families.pipe_flux import pipeline, schnell
from tests.families.recording import assert_reproduced, record
from tests.families.test_contract import lively, predictions

PROMPTS = ["a cat walks", "rain"]


@pytest.mark.parametrize("make", [pipeline, schnell])
def test_predict_is_what_the_pipeline_hands_its_scheduler(make: Callable[[], Any]) -> None:
    pipe = make()
    call = {"prompt": PROMPTS, "height": 16, "width": 24, "generator": torch.Generator().manual_seed(0)}
    recording = record(pipe, "transformer", num_inference_steps=3, guidance_scale=GUIDANCE, **call)
    conditioning, null = trace(pipe, FAMILY, PROMPTS, (4, 8, 12))
    assert null == {}
    assert set(conditioning) == set(FAMILY.text_conditioning(pipe.transformer.config))
    given, _ = recording.calls[0]
    assert (make is pipeline) == ("guidance" in conditioning) == (given["guidance"] is not None)
    for name, value in conditioning.items():
        assert torch.equal(given[name], value), name
    assert_reproduced(
        FAMILY, pipe.transformer, recording, conditioning, None, 1.0, unpack=lambda latents: unpack(latents, 8, 12)
    )


def frequencies(axes: list[int]) -> torch.Tensor:
    """Of each channel of a head, one axis after the other: what the class turns a query by, at position 1."""
    from diffusers.models.transformers.transformer_flux import FluxPosEmbed

    cosine, sine = FluxPosEmbed(10000, axes)(torch.ones(1, len(axes)))
    return torch.atan2(sine, cosine)[0]


def test_halved_heads_keep_their_frequencies() -> None:
    teacher = complete(FAMILY.class_name, {})
    student = FAMILY.shrunk_config(teacher, {"heads": 2, "head_dim": 64, "num_layers": 1, "num_single_layers": 1})
    assert student["axes_dims_rope"] == [8, 28, 28]
    (positions,) = {i.positions for n, i in FAMILY.tensor_rules(teacher, student).sets.items() if n == "head"}
    assert positions is not None
    kept = frequencies(teacher["axes_dims_rope"])[list(positions)]  # type: ignore[arg-type]
    torch.testing.assert_close(kept, frequencies(student["axes_dims_rope"]))


def test_smaller_heads_inherit_and_run() -> None:
    teacher = FAMILY.tiny_config()
    sizes = [variant.fixed["head_dim"] for variant in FAMILY.variants(teacher, channels_per_group=1)]
    assert sizes == [16, 8]
    student = FAMILY.shrunk_config(teacher, {"heads": 2, "head_dim": 8, "num_layers": 1, "num_single_layers": 2})
    rules = FAMILY.tensor_rules(teacher, student)
    model = build(FAMILY, student, "cpu").eval()
    model.load_state_dict(inherit(rules, lively(build(FAMILY, teacher, "cpu")).state_dict()))
    assert torch.isfinite(predictions(FAMILY, model, teacher)).all()
    assert any("guidance 3.5" in note for note in rules.notes)


def test_a_teacher_that_edits_images_is_refused() -> None:
    with pytest.raises(UsageError, match="reads 32 channels and predicts 16"):
        FAMILY.variants(FAMILY.tiny_config() | {"in_channels": 32, "out_channels": 16}, channels_per_group=1)
