"""DiT: against a recorded run of its own pipeline, and what is special about it."""

from __future__ import annotations

import torch

from diffcompress.families.dit import FAMILY
from diffcompress.pipeline.conditions import without_text
from diffcompress.student.inherit import inherit
from diffcompress.student.size import build
from tests.families.pipe_dit import CLASSES, pipeline
from tests.families.recording import assert_reproduced, record
from tests.families.test_contract import lively

LABELS = [3, 998]


def test_predict_is_what_the_pipeline_hands_its_scheduler() -> None:
    pipe = pipeline()
    generator = torch.Generator().manual_seed(0)
    recording = record(
        pipe, "transformer", class_labels=LABELS, num_inference_steps=3, guidance_scale=3.0, generator=generator
    )
    assert len(recording.steps) == 3
    conditions = without_text(FAMILY, pipe.transformer.config)
    assert conditions.null == CLASSES
    conditioning, null = conditions.rows(torch.tensor(LABELS)), conditions.rows(conditions.nulls(1))
    given = recording.calls[0][0]["class_labels"]
    assert torch.equal(given, torch.cat([conditioning["class_labels"], null["class_labels"].expand(2)]))
    # The pipeline steps every sample twice.
    assert_reproduced(
        FAMILY, pipe.transformer, recording, conditioning, null, 3.0, unpack=lambda latents: latents[: len(LABELS)]
    )


def test_the_learned_variance_is_kept() -> None:
    config = FAMILY.tiny_config()
    inputs = FAMILY.example_inputs(config)
    model = lively(build(FAMILY, config, "cpu"))
    with torch.no_grad():
        output = FAMILY.predict(model, inputs.pop("noisy"), inputs.pop("timestep"), inputs)
    assert output.shape[1] == 2 * config["in_channels"]


def test_students_see_every_label_while_they_are_trained() -> None:
    config = FAMILY.tiny_config()
    model = lively(build(FAMILY, config, "cpu"))
    inputs = FAMILY.example_inputs(config, 64)
    noisy, timestep = inputs.pop("noisy"), inputs.pop("timestep")
    with torch.no_grad():
        steady = FAMILY.predict(model, noisy, timestep, inputs)
        assert torch.equal(FAMILY.predict(model.train(), noisy, timestep, inputs), steady)


def test_half_the_width_keeps_every_other_channel_of_the_position_embedding() -> None:
    config = FAMILY.tiny_config()
    student = FAMILY.shrunk_config(config, {"heads": 2, "head_dim": 8, "num_layers": 2})
    rules = FAMILY.tensor_rules(config, student)
    assert rules.sets["residual"].positions == tuple(range(0, 32, 2))
    ours, theirs = (build(FAMILY, c, "cpu").pos_embed.pos_embed for c in (student, config))
    torch.testing.assert_close(ours, theirs[..., ::2])
    teacher = lively(build(FAMILY, config, "cpu")).state_dict()
    cut = inherit(rules, teacher)
    assert torch.equal(cut["pos_embed.proj.weight"], teacher["pos_embed.proj.weight"][::2])
