from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from diffcompress.errors import DiffCompressError
from diffcompress.export.weights import export_pipeline, rounded
from diffcompress.pipeline.load import LoadedPipeline, load
from diffcompress.sources.resolve import resolve
from tests import tiny
from tests.families import pipe_dit, pipe_stable_diffusion
from tests.report.synthetic_run import write_run

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def test_the_folder_is_the_teachers_pipeline_with_the_students_denoiser(
    tmp_path: Path, teacher: LoadedPipeline, student: diffusers.UNet2DModel
) -> None:
    run = write_run(tmp_path / "run")
    folder = export_pipeline(student, teacher, run, dtype=torch.float16, provenance={"seed": 7, "bank": "abc"})

    assert folder == run.pipeline
    source = teacher.reference.pipeline
    for verbatim in ("model_index.json", "scheduler/scheduler_config.json"):
        assert (folder / verbatim).read_bytes() == (source / verbatim).read_bytes()
    loaded = diffusers.DiffusionPipeline.from_pretrained(folder)
    assert type(loaded) is diffusers.DDPMPipeline
    for name, value in student.state_dict().items():
        assert torch.equal(loaded.unet.state_dict()[name], value.half().float())
    assert {value.dtype for value in load_file(folder / WEIGHTS).values()} == {torch.float16}
    assert next(student.parameters()).dtype == torch.float32
    assert not [p for p in folder.rglob("*") if p.suffix in (".bin", ".pt", ".ckpt", ".pkl")]


def test_the_users_own_files_stay_behind(
    tmp_path: Path, teacher_folder: Path, teacher: LoadedPipeline, student: diffusers.UNet2DModel
) -> None:
    (tmp_path / "secret").write_text("mine")
    (teacher_folder / "scheduler" / "notes.txt").write_text("mine")
    (teacher_folder / "scheduler" / "loop").symlink_to(teacher_folder)
    (teacher_folder / "LICENSE").symlink_to(tmp_path / "secret")
    (teacher_folder / "NOTICE").write_text("a notice")
    (teacher_folder / "prompts.txt").write_text("mine")
    folder = export_pipeline(student, teacher, write_run(tmp_path / "run"), dtype=torch.float32)
    found = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    own = ["NOTICE", "README.md", "diffcompress.json", "model_index.json", "scheduler/scheduler_config.json"]
    assert found == [*own, "unet/config.json", WEIGHTS]


def test_weights_of_one_variant_are_exported_under_plain_names(tmp_path: Path) -> None:
    pipeline = pipe_stable_diffusion.pipeline()
    pipeline.to(torch.float16).save_pretrained(tmp_path / "teacher", variant="fp16")
    teacher = load(resolve(str(tmp_path / "teacher")))
    folder = export_pipeline(teacher.denoiser, teacher, write_run(tmp_path / "run"), dtype=torch.float16)
    assert not [file for file in folder.rglob("*") if "fp16" in file.name]
    loaded = diffusers.DiffusionPipeline.from_pretrained(folder)
    for part in ("vae", "text_encoder", "unet"):
        expected = getattr(pipeline, part).state_dict()
        assert all(torch.equal(v, expected[n].to(v.dtype)) for n, v in getattr(loaded, part).state_dict().items())


def test_provenance_names_teacher_versions_and_hashes(
    tmp_path: Path, teacher: LoadedPipeline, student: diffusers.UNet2DModel
) -> None:
    folder = export_pipeline(
        student, teacher, write_run(tmp_path / "run"), dtype=torch.float32, provenance={"seed": 7, "bank": "abc"}
    )
    record = json.loads((folder / "diffcompress.json").read_text())
    assert record["seed"] == 7
    assert record["bank"] == "abc"
    assert record["teacher"]["fingerprint"] == teacher.fingerprint
    assert record["files"] == {WEIGHTS: hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()}
    assert record["versions"]["diffusers"] == diffusers.__version__


@pytest.mark.parametrize(
    ("scheduler", "expected"),
    [("DDPMScheduler", "DDPMPipeline"), ("DDIMScheduler", "DDIMPipeline"), ("PNDMScheduler", "DDIMPipeline")],
)
def test_a_denoiser_folder_gets_a_pipeline(
    tmp_path: Path, student: diffusers.UNet2DModel, scheduler: str, expected: str
) -> None:
    tiny.unet().save_pretrained(tmp_path / "denoiser")
    getattr(diffusers, scheduler)().save_pretrained(tmp_path / "noise")
    teacher = load(resolve(str(tmp_path / "denoiser"), str(tmp_path / "noise")))
    folder = export_pipeline(student, teacher, write_run(tmp_path / "run"), dtype=torch.float32)
    loaded: Any = diffusers.DiffusionPipeline.from_pretrained(folder)
    assert type(loaded).__name__ == expected
    loaded.set_progress_bar_config(disable=True)
    assert len(loaded(num_inference_steps=2).images) == 1


@pytest.mark.parametrize(
    ("front", "stated", "expected"),
    [
        ("license: mit\n", None, "mit"),
        ("license: mit\n", "apache-2.0", "mit"),
        ("license: other\nlicense_name: custom\n", None, "other"),
        ("license: other\nlicense_name: unknown\n", None, "unknown"),
        ("license: ''\n", None, "unknown"),
        ("license: [mit]\n", None, "mit"),
        ("tags: [a]\n", None, "unknown"),
        (None, None, "unknown"),
        (None, "apache-2.0", "apache-2.0"),
        ("license: [broken\n", None, "unknown"),
        ("title: a: b\nlicense: cc-by-nc-4.0\n", "apache-2.0", "cc-by-nc-4.0"),
        ("title: \xe9\nlicense: 'mit'\n", "apache-2.0", "mit"),
        ("license: [mit, openrail]\n", "apache-2.0", "unknown"),
        ("license: mit\nlicense: openrail\n", "apache-2.0", "unknown"),
        ("a: &a {b: c}\nd: {<<: *a}\nlicense: mit\n", "apache-2.0", "mit"),
        ("a: " + "[" * 5000 + "\nlicense: mit\n", "apache-2.0", "mit"),
        ("license: {a: b}\n", "apache-2.0", "unknown"),
        ("license:\n- mit\n", "apache-2.0", "mit"),
        ("title: a: b\nlicense: mit and openrail\n", "apache-2.0", "unknown"),
        ("tags: [a]\n---\nLicence: see below\n", "apache-2.0", "unknown"),
        ("license: other\nlicense_name: unknown\n", "apache-2.0", "apache-2.0"),
    ],
)
def test_the_licence_is_the_teachers_and_never_a_guess(
    tmp_path: Path,
    teacher_folder: Path,
    teacher: LoadedPipeline,
    student: diffusers.UNet2DModel,
    front: str | None,
    stated: str | None,
    expected: str,
) -> None:
    if front is not None:
        (teacher_folder / "README.md").write_bytes(f"\ufeff---\n{front}---\n# Andr".encode() + b"\xe9\n")
    (teacher_folder / "LICENSE-MODEL.md").write_text("the licence text")
    provenance = {"license": stated} if stated else {}
    folder = export_pipeline(student, teacher, write_run(tmp_path / "run"), dtype=torch.float32, provenance=provenance)
    card = ModelCard.load(folder / "README.md")
    assert card.data.license == ("other" if expected == "unknown" else expected)
    names = {"other": "custom", "unknown": "unknown"}
    assert card.data.to_dict().get("license_name") == names.get(expected)
    assert (folder / "LICENSE-MODEL.md").read_text() == "the licence text"
    assert ("**Unknown.**" in card.text) == (expected == "unknown")


def test_the_card_gives_every_quality_figure_with_interval_and_protocol(
    tmp_path: Path, teacher: LoadedPipeline, student: diffusers.UNet2DModel
) -> None:
    folder = export_pipeline(student, teacher, write_run(tmp_path / "run"), dtype=torch.float32)
    card = ModelCard.load(folder / "README.md")
    assert card.data.library_name == "diffusers"
    assert card.data.pipeline_tag == "unconditional-image-generation"
    assert card.data.base_model is None
    assert str(tmp_path) not in card.content
    for fact in (
        "9.31 [8.87, 9.76]",
        "2.04 [1.90, 2.20]",
        "242 [239, 245]",
        "2,048 samples",
        "seed 7",
        "kd_demo: no reference features",
        "<fewer>",
    ):
        assert fact in card.text
    rows = [line for line in card.text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in rows if "lower" in line or "higher" in line}) == 1


def test_nothing_is_left_when_the_weights_do_not_fit_the_dtype(
    tmp_path: Path, teacher: LoadedPipeline, student: diffusers.UNet2DModel
) -> None:
    run = write_run(tmp_path / "run")
    with torch.no_grad():
        student.conv_in.weight[0, 0, 0, 0] = 1e6
    with pytest.raises(DiffCompressError, match=r"conv_in.weight .* float16") as caught:
        export_pipeline(student, teacher, run, dtype=torch.float16)
    assert "float32" in caught.value.hint
    assert not run.pipeline.exists()
    assert not list(run.path.glob("pipeline*"))
    assert export_pipeline(student, teacher, run, dtype=torch.float32).is_dir()


def test_tables_of_positions_keep_their_precision_where_weights_are_rounded():
    """They are no part of the file, and whoever loads it to compute in float32 has them in float32."""
    student = pipe_dit.pipeline(10).transformer
    made = rounded(student, torch.float16)
    assert torch.equal(made.pos_embed.pos_embed, student.pos_embed.pos_embed)
    assert not torch.equal(made.pos_embed.pos_embed, student.pos_embed.pos_embed.half().float())
    weight = student.pos_embed.proj.weight
    assert torch.equal(made.pos_embed.proj.weight, weight.half().float())
