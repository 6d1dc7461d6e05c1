"""Z-Image: against a recorded run of its own pipeline, and what is special about it."""

from __future__ import annotations

import pytest
import torch

from diffcompress.errors import UsageError
from diffcompress.families.z_image import FAMILY
from diffcompress.pipeline.trace import trace
from diffcompress.student.plan import plan
from tests.families.pipe_z_image import pipeline
from tests.families.recording import assert_reproduced, record

PROMPTS = ["a cat walks", "rain"]  # of different lengths


def test_predict_is_what_the_pipeline_hands_its_scheduler() -> None:
    pipe = pipeline()
    shape = FAMILY.sample_shape(pipe.transformer.config)
    call = {"prompt": list(PROMPTS), "height": 32, "width": 32, "generator": torch.Generator()}
    recording = record(pipe, "transformer", num_inference_steps=2, guidance_scale=2.0, **call)
    assert recording.steps[0][2].shape == (2, *shape)
    conditioning, null = trace(pipe, FAMILY, PROMPTS, shape)
    captions = recording.calls[0][0][2]  # the prompts' first, then the empty ones
    given = [(conditioning, 0), (conditioning, 1), (null, 0)]
    for caption, (table, row) in zip(captions[:3], given, strict=True):
        length = int(table["cap_feats.length"][row])
        assert torch.equal(table["cap_feats"][row, :length], caption)
    # This pipeline adds guidance to the conditional prediction: 0 is none.
    assert_reproduced(FAMILY, pipe.transformer, recording, conditioning, null, 1 + 2.0)


def test_a_sample_does_not_depend_on_the_captions_beside_it() -> None:
    pipe = pipeline()
    conditioning, _ = trace(pipe, FAMILY, PROMPTS, (2, 16, 16))
    noisy = torch.randn(2, 2, 16, 16, generator=torch.Generator().manual_seed(0))
    time = torch.tensor([700.0, 20.0])
    with torch.no_grad():
        both = FAMILY.predict(pipe.transformer, noisy, time, conditioning)
        for row in (0, 1):
            one = {name: value[row : row + 1] for name, value in conditioning.items()}
            alone = FAMILY.predict(pipe.transformer, noisy[row : row + 1], time[row : row + 1], one)
            torch.testing.assert_close(alone[0], both[row], rtol=1e-4, atol=1e-5)


def test_refiners_of_both_streams_keep_first_and_last() -> None:
    config = FAMILY.tiny_config() | {"n_refiner_layers": 4}
    student = FAMILY.shrunk_config(config, {"heads": 2, "head_dim": 24, "n_layers": 2, "n_refiner_layers": 2})
    sources = {rule.student: rule.teacher for rule in FAMILY.tensor_rules(config, student).rules}
    for stack, last in (("noise_refiner", 3), ("context_refiner", 3), ("layers", 2)):
        assert sources[f"{stack}.0.attention.to_q.weight"] == f"{stack}.0.attention.to_q.weight"
        assert sources[f"{stack}.1.attention.to_q.weight"] == f"{stack}.{last}.attention.to_q.weight"


def test_a_head_of_half_the_size_keeps_every_other_frequency_of_each_axis() -> None:
    config = FAMILY.tiny_config()  # 8 channels of a head for each of caption position, row and column
    student = FAMILY.shrunk_config(config, {"heads": 4, "head_dim": 12, "n_layers": 3, "n_refiner_layers": 2})
    assert student["axes_dims"] == [4, 4, 4]
    rules = FAMILY.tensor_rules(config, student)
    for name in ("layers.0.attention.heads", "head"):
        assert rules.sets[name].positions == (0, 1, 4, 5, 8, 9, 12, 13, 16, 17, 20, 21)


def test_the_time_embedding_shrinks_only_below_its_own_width() -> None:
    wide = FAMILY.tiny_config() | {"dim": 768, "n_heads": 32, "n_kv_heads": 32}
    for heads, size in ((16, 256), (8, 192)):
        student = FAMILY.shrunk_config(wide, {"heads": heads, "head_dim": 24, "n_layers": 1, "n_refiner_layers": 1})
        rules = FAMILY.tensor_rules(wide, student)
        cut = {rule.student: rule.axes for rule in rules.rules}["layers.0.adaLN_modulation.0.weight"]
        assert cut[0] == ("residual",) * 4
        assert cut[1] == (() if size == 256 else ("time",))
        assert size == 256 or rules.sets["time"].size == size


@pytest.mark.parametrize("change", [{"siglip_feat_dim": 8}, {"all_patch_size": [4]}])
def test_what_its_pipeline_cannot_run_is_refused(change: dict) -> None:
    with pytest.raises(UsageError, match="not supported"):
        plan(FAMILY, FAMILY.tiny_config() | change, ratio=0.5)
