"""A student that is asked for in its original layout: refused before a run, or written and read by others."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import SD3Transformer2DModel
from safetensors import safe_open
from safetensors.torch import load_file

import diffcompress
from diffcompress.errors import UsageError
from diffcompress.families import registry
from diffcompress.jobs.several import shrink_several
from diffcompress.records.request import ShrinkOptions
from diffcompress.records.run_files import read_json
from diffcompress.runtime import Progress
from tests import tiny
from tests.families import pipe_sd3

ROOT = Path(__file__).parents[2]
# Heads of 64 channels, as many as layers: what the layout of Stable Diffusion 3 takes for granted.
SHAPE = {
    "attention_head_dim": 64,
    "caption_projection_dim": 192,
    "dual_attention_layers": [0],
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 3,
    "num_attention_heads": 3,
}
ASKED = (*tiny.SHORTEST, "student.importance=magnitude", "export.original=true")
GGUF = (*ASKED, "export.gguf=true")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("original") / "teacher"
    pipe_sd3.pipeline(**SHAPE).save_pretrained(folder)
    return str(folder)


def test_a_student_whose_shape_can_be_said(teacher: str, tmp_path: Path) -> None:
    assert any("can say this shape" in note for note in diffcompress.plan(teacher, ratio=0.3)["notes"])
    run = tmp_path / "run"
    diffcompress.shrink(teacher, ratio=0.3, output=run, overrides=GGUF)
    record, file = read_json(run / "exports" / "exports.json"), run / "exports" / "original.safetensors"
    assert record["original"] == {"file": file.name, "dtype": "float32", "prediction_type": "flow_prediction"}
    assert file.name in (run / "report.html").read_text()
    with safe_open(file, framework="pt") as opened:
        assert opened.metadata()["class_name"] == "SD3Transformer2DModel"
    # What a program finds by the tensors is the student's shape.
    found = load_file(file)
    width = len(found["model.diffusion_model.x_embedder.proj.weight"])
    blocks = {name.split(".")[3] for name in found if ".joint_blocks." in name}
    assert (width, len(blocks)) == (128, 2)
    # diffusers, without us.
    student = SD3Transformer2DModel.from_pretrained(run / "pipeline" / "transformer").state_dict()
    loaded = SD3Transformer2DModel.from_single_file(str(file), config=str(run / "pipeline"), subfolder="transformer")
    assert set(loaded.state_dict()) == set(student)
    assert all(torch.equal(value, student[name]) for name, value in loaded.state_dict().items())
    # The same in 8 bits: its matrices are left so, and it predicts what the student does.
    told = record["gguf"]
    assert "denoiser.gguf" in (run / "report.html").read_text() and 20 < told["quantised"] < told["tensors"]
    assert 0.002 < told["difference"] < 0.01
    whole = SD3Transformer2DModel.from_pretrained(run / "pipeline" / "transformer")
    page = (ROOT / "docs" / "release.md").read_text(encoding="utf-8")
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "GGUF" in block)
    names: dict[str, Any] = {}
    exec(code.replace('"run/', f'"{run}/').replace("bfloat16", "float32"), names)
    coarse = names["denoiser"]
    assert coarse.transformer_blocks[0].attn.to_q.weight.dtype == torch.uint8
    inputs = registry.find("SD3Transformer2DModel").example_inputs(whole.config)
    inputs = {name: torch.randn(value.shape) for name, value in inputs.items() if name != "timestep"}
    given = {"hidden_states": inputs.pop("noisy"), "timestep": torch.tensor([500]), **inputs}
    with torch.no_grad():
        expected, found = whole(**given).sample, coarse(**given).sample
    assert 1e-4 < (found - expected).norm() / expected.norm() < 0.03


def test_a_shape_that_cannot_be_said_is_refused_before_anything_is_made(teacher: str, tmp_path: Path) -> None:
    told = "export.original cannot write this student: its attention_head_dim is 52, not 64"
    run = tmp_path / "run"
    assert any("cannot say this shape" in note for note in diffcompress.plan(teacher, ratio=0.2)["notes"])
    with pytest.raises(UsageError, match=told) as caught:
        diffcompress.plan(teacher, ratio=0.2, overrides=ASKED)
    assert "export.original=false" in caught.value.hint
    with pytest.raises(UsageError, match=told):
        diffcompress.shrink(teacher, ratio=0.2, output=run, overrides=ASKED)
    each = [ShrinkOptions(teacher, ratio=ratio, output=run, overrides=ASKED) for ratio in (0.3, 0.2)]
    with pytest.raises(UsageError, match=told):
        shrink_several(each, Progress())
    assert not run.exists()


def test_gguf_is_of_the_same_shapes_of_two_classes(teacher: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    asked = (*tiny.SHORTEST, "export.gguf=true")
    told = "export.gguf cannot write this student: its attention_head_dim is 52, not 64"
    with pytest.raises(UsageError, match=told):
        diffcompress.shrink(teacher, ratio=0.2, output=run, overrides=asked)
    each = [ShrinkOptions(teacher, ratio=ratio, output=run, overrides=asked) for ratio in (0.3, 0.2)]
    with pytest.raises(UsageError, match=told):
        shrink_several(each, Progress())
    folder = tiny.save_pipeline(tmp_path / "pixels")
    with pytest.raises(UsageError, match="a UNet2DModel is none of SD3"):
        diffcompress.shrink(str(folder), ratio=0.5, output=run, overrides=asked)
    assert not run.exists()


def test_a_family_without_an_original_layout_is_refused(tmp_path: Path) -> None:
    folder = str(tiny.save_pipeline(tmp_path / "teacher"))
    assert not any("original layout" in note for note in diffcompress.plan(folder, ratio=0.5)["notes"])
    with pytest.raises(UsageError, match="a UNet2DModel has no original layout that is known"):
        diffcompress.plan(folder, ratio=0.5, overrides=["export.original=true"])
