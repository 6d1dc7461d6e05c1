from __future__ import annotations

import json
from pathlib import Path

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file

from diffcompress.errors import DiffCompressError
from diffcompress.export import probe, proof
from diffcompress.export.weights import export_pipeline
from diffcompress.pipeline.load import LoadedPipeline, load
from diffcompress.records.run_files import read_json
from diffcompress.sources.resolve import resolve
from tests import tiny
from tests.report.synthetic_run import write_run


def test_a_fresh_process_computes_what_memory_computes(
    tmp_path: Path, teacher: LoadedPipeline, student: diffusers.UNet2DModel
) -> None:
    run = write_run(tmp_path / "run")
    export_pipeline(student, teacher, run, dtype=torch.float16)
    found = proof.prove(run, student, teacher, dtype=torch.float16)
    assert found == read_json(run.proof)
    assert found["passed"]
    assert found["prediction_difference"] < 1e-4
    assert found["image_difference"] < 1e-4
    assert found["sampled_with"] == "DDPMPipeline.__call__"
    assert found["versions"]["diffusers"] == diffusers.__version__


def test_a_changed_weight_is_caught(tmp_path: Path) -> None:
    """Class-conditional, with the embedding of the last label changed: only what uses that label may differ."""
    model = tiny.unet(num_class_embeds=3)
    diffusers.DDIMPipeline(model, diffusers.DDIMScheduler()).save_pretrained(tmp_path / "teacher")
    teacher = load(resolve(str(tmp_path / "teacher")))
    run = write_run(tmp_path / "run")
    export_pipeline(model, teacher, run, dtype=torch.float32)
    assert "class_labels=labels" in (run.pipeline / "README.md").read_text()
    file = run.pipeline / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights["class_embedding.weight"][2] += 0.5
    save_file(weights, file, metadata={"format": "pt"})

    with pytest.raises(DiffCompressError, match="does not compute"):
        proof.prove(run, model, teacher, dtype=torch.float32)
    found = json.loads(run.proof.read_text())
    assert not found["passed"]
    assert found["prediction_difference"] > 1e-4
    assert found["image_difference"] < 1e-4
    assert found["sampled_with"] == "DDIMScheduler.step"


def test_a_folder_that_needs_diffcompress_is_caught(
    tmp_path: Path, teacher: LoadedPipeline, student: diffusers.UNet2DModel
) -> None:
    run = write_run(tmp_path / "run")
    export_pipeline(student, teacher, run, dtype=torch.float32)
    index = json.loads((run.pipeline / "model_index.json").read_text())
    index["unet"] = ["diffcompress.families.unet2d", "UNet2D"]
    (run.pipeline / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(DiffCompressError, match=r"cannot load .*diffcompress\.families"):
        proof.prove(run, student, teacher, dtype=torch.float32)


def test_the_fresh_process_blocks_diffcompress_alone() -> None:
    blocker = probe._Blocker()
    for name in ("diffcompress", "diffcompress.noise"):
        with pytest.raises(ImportError):
            blocker.find_spec(name)
    assert blocker.find_spec("diffusers") is None
