"""Wan: against a recorded run of its own pipeline, and what is special about it."""

from __future__ import annotations

import pytest
import torch

from diffcompress.errors import UsageError
from diffcompress.families.base import complete
from diffcompress.families.wan import FAMILY
from diffcompress.pipeline.load import describe
from diffcompress.pipeline.trace import trace
from diffcompress.sources.resolve import resolve
from diffcompress.student.inherit import inherit, magnitude_scores, pick
from diffcompress.student.plan import plan
from diffcompress.student.size import build
from tests.families.pipe_wan import pipeline
from tests.families.recording import assert_reproduced, record
from tests.families.test_contract import lively

PROMPTS = ["a cat walks", "rain"]


def test_predict_is_what_the_pipeline_hands_its_scheduler() -> None:
    pipe = pipeline()
    shape = FAMILY.sample_shape(pipe.transformer.config)
    call = {"prompt": PROMPTS, "height": 80, "width": 80, "num_frames": 17, "generator": torch.Generator()}
    recording = record(pipe, "transformer", num_inference_steps=2, guidance_scale=3.0, **call)
    assert recording.steps[0][2].shape == (2, *shape)
    conditioning, null = trace(pipe, FAMILY, PROMPTS, shape)
    (first, _), (second, _) = recording.calls[:2]
    assert torch.equal(conditioning["encoder_hidden_states"], first["encoder_hidden_states"])
    assert torch.equal(null["encoder_hidden_states"], second["encoder_hidden_states"][:1])
    assert_reproduced(FAMILY, pipe.transformer, recording, conditioning, null, 3.0)


def test_every_teacher_frequency_that_a_smaller_head_keeps_is_its_own() -> None:
    # Of 36 channels 12 turn with each of frame, row and column; half the head keeps every other pair of each.
    config = FAMILY.tiny_config() | {"attention_head_dim": 36, "num_attention_heads": 2}
    student = FAMILY.shrunk_config(config, {"heads": 1, "head_dim": 18, "num_layers": 2})
    rules = FAMILY.tensor_rules(config, student)
    every_other = [start + pair for start in range(0, 36, 4) for pair in (0, 1)]
    positions = rules.sets["blocks.0.attn1.heads"].positions
    assert positions is not None and list(positions) == every_other
    ours, theirs = (build(FAMILY, c, "cpu").rope.freqs_cos for c in (student, config))
    torch.testing.assert_close(ours, theirs[:, every_other])


def test_no_frequency_is_kept_twice() -> None:
    for config in (FAMILY.tiny_config(), complete(FAMILY.class_name, {})):
        heads, head_dim = FAMILY.size(config)
        for size in [head_dim, *FAMILY._other_sizes(config, head_dim)]:
            student = FAMILY.shrunk_config(config, {"heads": heads, "head_dim": size, "num_layers": 1})
            kept = FAMILY.rules(config, student).widths["head"].positions
            assert kept is not None and len(set(kept)) == size and max(kept) < head_dim


def test_queries_keys_and_the_vectors_that_normalise_them_keep_the_same_channels() -> None:
    config = FAMILY.tiny_config()
    student = FAMILY.shrunk_config(config, {"heads": 2, "head_dim": 8, "num_layers": 3})
    rules = FAMILY.tensor_rules(config, student)
    teacher = lively(build(FAMILY, config, "cpu")).state_dict()
    kept = pick(rules, magnitude_scores(teacher))
    cut = inherit(rules, teacher)
    for name in ("attn1", "attn2"):
        source = {rule.student: rule.teacher for rule in rules.rules}[f"blocks.1.{name}.norm_k.weight"]
        channels = kept[f"blocks.1.{name}.{'heads' if name == 'attn1' else 'cross'}"]
        assert torch.equal(cut[f"blocks.1.{name}.norm_k.weight"], teacher[source][channels])
        rows = teacher[source.replace("norm_k", "to_k")][channels][:, kept["residual"]]
        assert torch.equal(cut[f"blocks.1.{name}.to_k.weight"], rows)


@pytest.mark.parametrize("change", [{"image_dim": 8}, {"added_kv_proj_dim": 8}, {"in_channels": 4}])
def test_image_to_video_is_refused(change: dict) -> None:
    with pytest.raises(UsageError, match="image"):
        plan(FAMILY, FAMILY.tiny_config() | change, ratio=0.5)


def test_two_denoisers_are_refused_without_sending_the_user_to_one_of_them(tmp_path):
    """A folder of one denoiser has no text encoders, and would send the user back to the pipeline."""
    whole = pipeline()
    whole.register_modules(transformer_2=whole.transformer)
    whole.register_to_config(boundary_ratio=0.875)
    whole.save_pretrained(tmp_path)
    with pytest.raises(UsageError, match=r"second denoiser, transformer_2; .* neither draws samples") as refused:
        describe(resolve(str(tmp_path)))
    assert "one denoiser" in refused.value.hint and "folder" not in refused.value.hint
