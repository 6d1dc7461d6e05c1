"""Original layouts: what our reader makes diffusers' of, written back, and read again, tensor for tensor."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from diffcompress.errors import UsageError
from diffcompress.families import registry
from diffcompress.families.base import complete
from diffcompress.recipe import StudentSection
from diffcompress.sources import originals as layouts
from diffcompress.sources.original_shapes import limit, notes
from diffcompress.sources.resolve import resolve
from diffcompress.sources.weights import check_state, open_state
from diffcompress.student.plan import plan
from tests.families.test_contract import lively
from tests.sources import originals

KNOWN = layouts.published()
SD1 = {
    "sample_size": 8,
    "block_out_channels": [16, 32, 32],
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    "layers_per_block": 2,
    "cross_attention_dim": 8,
    "attention_head_dim": 2,
    "norm_num_groups": 4,
}
TEACHERS = {
    "sd1": ("UNet2DConditionModel", SD1),
    **{name: (name, registry.find(name).tiny_config()) for name in layouts.TELLING},
    "flux-schnell": (
        "FluxTransformer2DModel",
        registry.find("FluxTransformer2DModel").tiny_config() | {"guidance_embeds": False},
    ),
    "sd3-medium": (
        "SD3Transformer2DModel",
        registry.find("SD3Transformer2DModel").tiny_config() | {"qk_norm": None, "dual_attention_layers": ()},
    ),
}
# Students of other widths, and of other depths, that can be built.
RATIOS = {
    "sd1": (0.7, 0.5),
    "UNet2DConditionModel": (0.7, 0.3),
    "SD3Transformer2DModel": (0.5, 0.2961),
    "FluxTransformer2DModel": (0.4, 0.25),
    "flux-schnell": (0.5, 0.4),
    "sd3-medium": (0.3, 0.25),
}
CASES = [(kind, ratio) for kind in TEACHERS for ratio in (None, *RATIOS[kind])]


def _config(kind: str, ratio: float | None) -> dict[str, Any]:
    name, config = TEACHERS[kind]
    family, whole = registry.find(name), complete(name, config)
    if ratio is not None:
        whole = dict(plan(family, whole, ratio=ratio, section=StudentSection()).config)
    return {**whole, "_class_name": name}


def _build(config: Mapping[str, Any], device: str = "cpu") -> Any:
    with torch.device(device):
        plain = {key: value for key, value in config.items() if not key.startswith("_")}
        return getattr(diffusers, config["_class_name"]).from_config(plain)


def _by_hand(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the tests' own inverse of the converters says."""
    if "layers_per_block" in config:
        return originals.unet(state, config["layers_per_block"])
    return originals.flux(state) if "guidance_embeds" in config else originals.sd3(state)


@pytest.mark.parametrize(("kind", "ratio"), CASES)
def test_there_and_back_again(tmp_path: Path, kind: str, ratio: float | None) -> None:
    config = _config(kind, ratio)
    model = lively(_build(config))
    state = model.state_dict()
    written = layouts.to_original(state, config)
    expected = _by_hand(config, state)
    assert set(written) == set(expected)
    assert all(torch.equal(written[name], value) for name, value in expected.items())

    file = tmp_path / "model.safetensors"
    save_file(written, file)
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "scheduler.json").write_text('{"_class_name": "DDIMScheduler"}')
    again = open_state(resolve(str(file), str(tmp_path / "scheduler.json")))
    check_state(again, model)
    assert set(again) == set(state)
    assert all(torch.equal(again[name], value) for name, value in state.items())
    # And what was read is written as it was.
    once_more = layouts.to_original(dict(again), config)
    assert all(torch.equal(once_more[name], value) for name, value in written.items())


@pytest.mark.parametrize("kind", KNOWN)
def test_published_models_are_written_as_they_are_published(kind: str) -> None:
    """In names and shapes."""
    config = KNOWN[kind]["config"]
    state = _build(config, "meta").state_dict()
    written = layouts.to_original(state, config)
    assert {n: v.shape for n, v in written.items()} == {n: v.shape for n, v in _by_hand(config, state).items()}
    assert limit(config["_class_name"], config) is None


def test_a_tensor_too_many_or_too_few_is_refused() -> None:
    for kind in layouts.TELLING:
        config = _config(kind, None)
        state = _build(config, "meta").state_dict()
        with pytest.raises(UsageError, match=r"1 tensor\(s\) have no place .* first one_more"):
            layouts.to_original(state | {"one_more": torch.zeros(1)}, config)
    # What a U-Net has, it has by what is asked for.
    del state["proj_out.bias"]
    with pytest.raises(UsageError, match=r"missing, first proj_out\.bias"):
        layouts.to_original(state, config)


def test_marks_say_what_a_scheduler_does() -> None:
    told = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    assert set(layouts.marks(told)) == {"v_pred", "ztsnr"}
    assert not layouts.marks({"prediction_type": "epsilon", "rescale_betas_zero_snr": False})


@pytest.mark.parametrize(
    ("kind", "changes", "why"),
    [
        ("v1", {"block_out_channels": [320, 320, 640, 640]}, None),
        ("v1", {"layers_per_block": 1, "time_embedding_dim": 1280}, None),
        ("v1", {"time_embedding_dim": 1200}, "its time embedding has 1200 values, not 1280"),
        ("v1", {"block_out_channels": [320, 576, 1280, 1280]}, "no whole multiples"),
        ("v1", {"norm_num_groups": 16}, "its norm_num_groups is 16, not 32"),
        ("v1", {"attention_head_dim": [8, 8, 4, 4]}, "it has 4 heads in 1280 channels, not 8"),
        ("v1", {"layers_per_block": [2, 2, 1, 1]}, "its levels differ"),
        ("v1", {"cross_attention_dim": 12}, "of no published model"),
        ("v2", {"block_out_channels": [320, 640, 640, 640], "attention_head_dim": [5, 10, 10, 10]}, None),
        ("v2", {"attention_head_dim": [5, 10, 10, 10]}, "10 heads in 1280 channels, not 20"),
        ("xl_base", {"transformer_layers_per_block": [1, 1, 4], "attention_head_dim": [1, 10, 20]}, None),
        ("sd3", {"num_layers": 12, "num_attention_heads": 12, "caption_projection_dim": 768}, None),
        ("sd3", {"num_layers": 11, "num_attention_heads": 12}, "it has 12 heads in 11 layers, not as many"),
        ("sd3", {"attention_head_dim": 48}, "its attention_head_dim is 48, not 64"),
        ("flux-dev", {"num_layers": 9, "num_single_layers": 18, "num_attention_heads": 11}, None),
        (
            "flux-dev",
            {"attention_head_dim": 64, "axes_dims_rope": [8, 28, 28]},
            "its attention_head_dim is 64, not 128",
        ),
    ],
)
def test_what_a_layout_can_say(kind: str, changes: dict[str, Any], why: str | None) -> None:
    config = KNOWN[kind]["config"] | changes
    name = config["_class_name"]
    found = limit(name, config)
    assert found is None if why is None else found is not None and why in found
    (note,) = notes(name, config)
    assert ("cannot say" in note) == (why is not None)


def test_most_classes_have_none() -> None:
    name = "DiTTransformer2DModel"
    config = registry.find(name).tiny_config()
    assert "no original layout" in str(limit(name, config)) and notes(name, config) == ()
