"""Qwen-Image: against recorded runs of its own pipeline, and what is special about it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from diffcompress.errors import UsageError
from diffcompress.families.mmdit_rules import pack, unpack
from diffcompress.families.qwenimage import FAMILY, UNSUPPORTED
from diffcompress.pipeline.trace import trace
from diffcompress.student.inherit import inherit
from diffcompress.student.size import build
from tests.families.pipe_qwenimage import pipeline
from tests.families.recording import assert_reproduced, record
from tests.families.test_contract import lively, predictions

PROMPTS = ["a cat walks", "rain"]


def rescaled(guided: Tensor, ours: Tensor) -> Tensor:
    """The pipeline gives each token of a guided prediction the length that it had without guidance."""
    long, short = pack(guided), pack(ours)
    return unpack(long * short.norm(dim=-1, keepdim=True) / long.norm(dim=-1, keepdim=True), *ours.shape[-2:])


def test_predict_is_what_the_pipeline_hands_its_scheduler() -> None:
    pipe = pipeline()
    call = {"prompt": PROMPTS, "height": 16, "width": 24, "generator": torch.Generator().manual_seed(0)}
    recording = record(
        pipe, "transformer", num_inference_steps=3, true_cfg_scale=3.0, negative_prompt=[" "] * 2, **call
    )
    conditioning, null = trace(pipe, FAMILY, PROMPTS, (4, 8, 12))
    (given, _), (nothing, _) = recording.calls[:2]
    for name, value in conditioning.items():
        assert torch.equal(given[name], value), name
    mask = conditioning["encoder_hidden_states_mask"]
    assert (mask[0].sum() - mask[1].sum()).item() == len(PROMPTS[0]) - len(PROMPTS[1])
    # The pipeline leaves out a mask that hides nothing.
    assert nothing["encoder_hidden_states_mask"] is None and null["encoder_hidden_states_mask"].all()
    assert torch.equal(nothing["encoder_hidden_states"][:1], null["encoder_hidden_states"])
    assert_reproduced(
        FAMILY,
        pipe.transformer,
        recording,
        conditioning,
        null,
        3.0,
        unpack=lambda latents: unpack(latents, 8, 12),
        rescale=rescaled,
    )


def test_padding_that_the_mask_hides_changes_nothing() -> None:
    config = FAMILY.tiny_config()
    model = lively(build(FAMILY, config, "cpu"))
    generator = torch.Generator().manual_seed(0)
    noisy, text = torch.randn(1, 4, 8, 8, generator=generator), torch.randn(1, 9, 12, generator=generator)
    time, mask = torch.full((1,), 300.0), torch.ones(1, 9, dtype=torch.long)
    mask[:, 5:] = 0
    with torch.no_grad():
        long = FAMILY.predict(model, noisy, time, {"encoder_hidden_states": text, "encoder_hidden_states_mask": mask})
        short = FAMILY.predict(
            model, noisy, time, {"encoder_hidden_states": text[:, :5], "encoder_hidden_states_mask": mask[:, :5]}
        )
    torch.testing.assert_close(long, short)


def test_smaller_heads_keep_pairs_and_frequencies() -> None:
    teacher = FAMILY.tiny_config()
    student = FAMILY.shrunk_config(teacher, {"heads": 2, "head_dim": 8, "num_layers": 2})
    assert student["axes_dims_rope"] == [2, 2, 4]
    rules = FAMILY.tensor_rules(teacher, student)
    # Of each axis every other frequency: a student axis half as long asks for just these.
    assert rules.sets["head"].positions == (0, 1, 4, 5, 8, 9, 12, 13)
    model, whole = (build(FAMILY, config, "cpu") for config in (student, teacher))
    own, wide = (m.pos_embed.pos_freqs for m in (model, whole))
    torch.testing.assert_close(own, wide[:, [0, 2, 4, 6]])
    model.load_state_dict(inherit(rules, lively(whole).state_dict()))
    assert torch.isfinite(predictions(FAMILY, model.eval(), teacher)).all()


@pytest.mark.parametrize("key", UNSUPPORTED)
def test_a_teacher_that_reads_more_than_a_prompt_is_refused(key: str) -> None:
    with pytest.raises(UsageError, match=key):
        FAMILY.variants(FAMILY.tiny_config() | {key: True}, channels_per_group=1)
