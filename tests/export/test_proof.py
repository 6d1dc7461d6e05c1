from __future__ import annotations

import json
from pathlib import Path

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file

from diffcompress.errors import DiffCompressError
from diffcompress.export import proof
from diffcompress.export.weights import export_pipeline
from diffcompress.teacher.load import LoadedPipeline, load
from diffcompress.teacher.reference import resolve
from tests.export.models import make_model
from tests.export.synthetic_run import write_run


def test_a_fresh_process_computes_the_same_and_a_changed_weight_is_caught(
    tmp_path: Path, teacher: LoadedPipeline, student: diffusers.UNet2DModel
) -> None:
    run = write_run(tmp_path / "run")
    export_pipeline(student, teacher, run, dtype=torch.float16)
    found = proof.prove(run, student, teacher, dtype=torch.float16, threads=1)
    assert found == json.loads(run.proof.read_text())
    assert found["passed"]
    assert found["prediction_difference"] < 1e-4
    assert found["image_difference"] < 1e-4
    assert found["sampled_with"] == "DDPMPipeline.__call__"
    assert found["versions"]["diffusers"] == diffusers.__version__

    file = run.pipeline / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights["conv_out.bias"] += 0.01
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(DiffCompressError, match="does not compute"):
        proof.prove(run, student, teacher, dtype=torch.float16, threads=1)
    assert json.loads(run.proof.read_text())["passed"] is False


def test_class_conditional_students_are_proven_with_their_own_scheduler(tmp_path: Path) -> None:
    model = make_model(num_class_embeds=3)
    diffusers.DDIMPipeline(model, diffusers.DDIMScheduler()).save_pretrained(tmp_path / "teacher")
    teacher = load(resolve(str(tmp_path / "teacher")))
    run = write_run(tmp_path / "run")
    export_pipeline(model, teacher, run, dtype=torch.float32)
    found = proof.prove(run, model, teacher, dtype=torch.float32, threads=1)
    assert found["passed"]
    assert found["sampled_with"] == "DDIMScheduler.step"
    assert "class_labels=labels" in (run.pipeline / "README.md").read_text()


def test_the_fresh_process_cannot_import_diffcompress(
    tmp_path: Path, teacher: LoadedPipeline, student: diffusers.UNet2DModel
) -> None:
    """A pipeline that needs diffcompress must fail the proof even where diffcompress is installed."""
    run = write_run(tmp_path / "run")
    export_pipeline(student, teacher, run, dtype=torch.float32)
    index = json.loads((run.pipeline / "model_index.json").read_text())
    index["unet"] = ["diffcompress.families.unet2d", "UNet2D"]
    (run.pipeline / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(DiffCompressError, match=r"cannot load .*without diffcompress"):
        proof._elsewhere(run.pipeline, proof._inputs(teacher), 1)
