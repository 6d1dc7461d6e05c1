"""The denoiser in other formats: dtypes, one safetensors file, ONNX."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path

import diffusers
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from diffcompress.errors import DiffCompressError, UsageError
from diffcompress.export import formats, onnx
from diffcompress.export.weights import export_pipeline
from diffcompress.families import registry
from diffcompress.pipeline.load import LoadedPipeline
from diffcompress.recipe import ExportSection
from diffcompress.records.run_files import write_checked
from diffcompress.records.run_folder import RunFolder
from tests import tiny
from tests.report.synthetic_run import write_run

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
CODES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


@pytest.fixture
def run(tmp_path: Path, teacher: LoadedPipeline, student: diffusers.UNet2DModel) -> RunFolder:
    found = write_run(tmp_path / "run")
    export_pipeline(student, teacher, found, dtype=torch.float16, provenance={"seed": 7})
    return found


@pytest.mark.parametrize("dtype", CODES)
def test_the_header_tells_the_dtype(
    tmp_path: Path, teacher: LoadedPipeline, student: diffusers.UNet2DModel, dtype: torch.dtype
) -> None:
    folder = export_pipeline(student, teacher, write_run(tmp_path / "run"), dtype=dtype)
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        assert {file.get_slice(key).get_dtype() for key in file.keys()} == {CODES[dtype]}  # noqa: SIM118
    assert diffusers.DiffusionPipeline.from_pretrained(folder, torch_dtype=dtype).unet.dtype == dtype
    assert json.loads((folder / "diffcompress.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")


def test_nothing_is_written_unasked(run: RunFolder, teacher: LoadedPipeline, student: diffusers.UNet2DModel) -> None:
    assert formats.write_formats(student, teacher, run, ExportSection(), dtype=torch.float16) is None
    assert not run.exports.exists()


def test_one_file_is_enough_to_rebuild_the_denoiser(
    run: RunFolder, teacher: LoadedPipeline, student: diffusers.UNet2DModel
) -> None:
    section = ExportSection(single_file=True)
    record = formats.write_formats(student, teacher, run, section, dtype=torch.float16)
    file = run.exports / "denoiser.safetensors"
    assert set(record["files"]) == {file.name}
    with safe_open(file, framework="pt") as opened:
        header = opened.metadata()
    again = getattr(diffusers, header["class_name"]).from_config(json.loads(header["config"]))
    again.load_state_dict(load_file(file))
    shipped = load_file(run.pipeline / WEIGHTS)
    assert all(torch.equal(again.state_dict()[name].half(), value) for name, value in shipped.items())
    assert json.loads(header["scheduler"])["_class_name"] == "DDPMScheduler"
    before = file.stat().st_mtime_ns
    record["asked"] = {"onnx": False, "single_file": True}  # as a version wrote it that knew two formats
    write_checked(run.export_record, record)
    assert formats.write_formats(student, teacher, run, section, dtype=torch.float16) == record
    assert file.stat().st_mtime_ns == before


def test_onnx_computes_what_torch_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    student = tiny.unet(seed=1, block_out_channels=(4, 8), norm_num_groups=2, num_class_embeds=3)
    family, config, file = registry.find("UNet2DModel"), dict(student.config), tmp_path / "denoiser.onnx"
    told = onnx.export_onnx(family, student, config, file)
    assert told["inputs"] == {"sample": ["batch", 1, 8, 8], "timestep": ["batch"], "class_labels": ["batch"]}
    assert told["difference"] <= told["tolerance"] == 1e-4
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    inputs = {
        "sample": torch.randn(5, 1, 8, 8),
        "timestep": torch.tensor([1, 10, 100, 500, 999]),
        "class_labels": torch.tensor([0, 1, 2, 1, 0]),
    }
    (found,) = session.run(None, {name: value.numpy() for name, value in inputs.items()})
    with torch.no_grad():
        expected = student(**inputs).sample
        torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-5)
        student.conv_out.bias.add_(0.01)

    class Earlier:
        """The file of before the bias changed."""

        def save(self, path: str, **options: object) -> None:
            shutil.copy(file, path)

    monkeypatch.setattr(torch.onnx, "export", lambda *arguments, **options: Earlier())
    with pytest.raises(DiffCompressError, match="does not compute what torch does"):
        onnx.export_onnx(family, student, config, tmp_path / "other.onnx")

    def fail(*arguments: object, **options: object) -> None:
        raise torch.onnx.OnnxExporterError("an operator\nis missing")

    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(DiffCompressError, match="does not write a UNet2DModel as ONNX: OnnxExporterError") as caught:
        onnx.export_onnx(family, student, config, tmp_path / "other.onnx")
    assert "export.onnx=false" in caught.value.hint


def test_lists_of_tensors_are_refused() -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    for name in ("ZImageTransformer2DModel", "HunyuanDiT2DModel", "SD3Transformer2DModel"):
        family = registry.find(name)
        with pytest.raises(UsageError, match="lists of tensors") if "SD3" not in name else contextlib.nullcontext():
            formats.check(ExportSection(onnx=True), family, family.tiny_config())
    tensors, fixed = onnx._split({"a": {"b": torch.zeros(1), "c": 3}, "d": 4}, registry.find("UNet2DModel"))
    assert (set(tensors), fixed) == ({"a.b"}, {"a": {"c": 3}, "d": 4})


def test_the_extra_is_asked_for_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    family = registry.find("UNet2DModel")
    formats.check(ExportSection(single_file=True), family, tiny.UNET)
    monkeypatch.setattr(onnx.importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else object())
    with pytest.raises(UsageError, match="onnxruntime") as caught:
        formats.check(ExportSection(onnx=True), family, tiny.UNET)
    assert "diffcompress[onnx]" in caught.value.hint
