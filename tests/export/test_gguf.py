"""A transformer as GGUF: the authors' names, matrices in 8 bits, everything else as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from diffusers import FluxTransformer2DModel

from diffcompress.errors import DiffCompressError, UsageError
from diffcompress.export import formats
from diffcompress.export import gguf as export
from diffcompress.families import registry
from diffcompress.recipe import ExportSection
from tests.families.test_contract import lively
from tests.sources.originals import flux

NAME = "FluxTransformer2DModel"
CONFIG: dict[str, Any] = {
    "_class_name": NAME,
    "in_channels": 64,
    "num_layers": 1,
    "num_single_layers": 1,
    "num_attention_heads": 1,
    "attention_head_dim": 128,
    "joint_attention_dim": 32,
    "pooled_projection_dim": 40,
    "guidance_embeds": True,
}


@pytest.fixture
def student() -> FluxTransformer2DModel:
    return lively(FluxTransformer2DModel.from_config(CONFIG))


def test_matrices_are_quantised_and_nothing_else(student: FluxTransformer2DModel, tmp_path: Path) -> None:
    state = student.state_dict()
    state["transformer_blocks.0.attn.to_out.0.weight"] *= 1e-9  # too small for a scale in half precision
    told = export.export_gguf(state, CONFIG, tmp_path / "a.gguf")
    reader = gguf.GGUFReader(tmp_path / "a.gguf")
    assert reader.fields["general.architecture"].contents() == "flux"
    expected, found = flux(state), {one.name: one for one in reader.tensors}
    assert found.keys() == expected.keys()
    coarse = {name for name, one in found.items() if one.tensor_type == gguf.GGMLQuantizationType.Q8_0}
    assert coarse == {
        name
        for name, value in expected.items()
        if value.ndim == 2 and value.shape[1] % 32 == 0 and name != "double_blocks.0.img_attn.proj.weight"
    }
    assert "vector_in.in_layer.weight" not in coarse  # of 40 columns
    for name, one in found.items():
        value = expected[name].numpy()
        again = gguf.quants.dequantize(one.data, one.tensor_type).reshape(value.shape)
        # Half a step of the scale of 32 values, which is rounded itself.
        most = np.abs(value.reshape(-1, 32)).max(1).repeat(32) / 127 * 0.57 if name in coarse else 0
        assert (np.abs(again - value).ravel() <= most).all(), name
    assert (told["quantised"], told["tensors"]) == (len(coarse), len(expected))
    assert 0.003 < told["difference"] < 0.01


def test_values_that_are_not_finite_are_noticed(student: FluxTransformer2DModel, tmp_path: Path) -> None:
    state = student.state_dict()
    state["x_embedder.bias"][0] = torch.nan
    with pytest.raises(DiffCompressError, match="does not hold what the student does"):
        export.export_gguf(state, CONFIG, tmp_path / "a.gguf")


def test_the_extra_is_asked_for_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    formats.check(ExportSection(gguf=True), registry.find(NAME), CONFIG)
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="gguf, which is not installed") as caught:
        formats.check(ExportSection(gguf=True), registry.find(NAME), CONFIG)
    assert "diffcompress[gguf]" in caught.value.hint
