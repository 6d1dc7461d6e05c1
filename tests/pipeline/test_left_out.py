"""Which parts a pipeline runs without: asked of diffusers' own pipelines, and what becomes of them."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from diffcompress.errors import UsageError
from diffcompress.families import registry
from diffcompress.pipeline.left_out import leave_out, like_students
from diffcompress.pipeline.trace import trace
from diffcompress.sources.reference import Reference
from diffcompress.sources.resolve import resolve
from diffcompress.sources.weights import fingerprint, weight_files
from tests.families import pipe_sd3, pipe_stable_diffusion

FAMILY = registry.find("SD3Transformer2DModel")
ABSENT = {"text_encoder_3": None, "tokenizer_3": None}
WITH_TEXT = (
    "auraflow", "flux", "hunyuandit", "lumina2", "pixart", "qwenimage", "sana", "sd3", "stable_diffusion",
    "stable_diffusion_xl", "wan", "z_image",
)  # fmt: skip


def draws_without(pipe: Any, family: Any, encoder: str) -> bool:
    """Whether diffusers encodes prompts without `encoder` to what the denoiser takes."""
    absent: dict[str, Any] = {part: None for part in (encoder, encoder.replace("text_encoder", "tokenizer"))}
    denoiser = getattr(pipe, family.subfolder)
    config = dict(denoiser.config)
    shape = family.sample_shape(config)
    try:
        less = type(pipe)(**{**pipe.components, **absent})
        conditioning, _ = trace(less, family, ["a cat"], shape)
        family.predict(denoiser, torch.zeros(1, *shape), torch.tensor([1.0]), conditioning)
    except (UsageError, RuntimeError, KeyError, TypeError, ValueError, AttributeError):
        return False
    return True


@pytest.mark.parametrize("name", WITH_TEXT)
def test_the_encoders_that_a_family_does_without_are_those_that_diffusers_does(name: str) -> None:
    pipe = importlib.import_module(f"tests.families.pipe_{name}").pipeline()
    denoiser = getattr(pipe, "transformer", None) or pipe.unet
    family = registry.find(type(denoiser).__name__)
    encoders = [part for part, value in pipe.components.items() if part.startswith("text_encoder") and value]
    found = tuple(part for part in encoders if draws_without(pipe, family, part))
    assert encoders and found == family.optional_encoders


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    folder = tmp_path_factory.mktemp("left-out") / "sd3"
    pipe_sd3.pipeline().save_pretrained(folder)
    return resolve(str(folder))


def test_a_pipeline_without_an_encoder_is_another_teacher_with_fewer_parts(teacher: Reference) -> None:
    less = leave_out(teacher, FAMILY, ["text_encoder_3"])
    assert less == leave_out(teacher, FAMILY, ["tokenizer_3", "text_encoder_3", "text_encoder_3"])
    assert less == leave_out(less, FAMILY, ["text_encoder_3"])
    assert set(teacher.parts) - set(less.parts) == {"text_encoder_3", "tokenizer_3"}
    assert less.left_out == ["text_encoder_3", "tokenizer_3"] and less.whole.parts == teacher.parts
    before, after = teacher.part_sizes(), less.part_sizes()
    assert before and after and before.items() > after.items()
    files = weight_files(teacher.denoiser)
    assert fingerprint(less, files) != fingerprint(teacher, files) == fingerprint(less.whole, files)
    assert "asked without" in less.notes[-1]
    assert leave_out(teacher, FAMILY, []) is teacher


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("vae", "does not draw"),
        ("transformer", "does not draw"),
        ("scheduler", "does not draw"),
        ("text_encoder_2", "does not draw"),
        ("tokenizer_3", "does not draw"),
        ("text_encoder_4", "does not have"),
    ],
)
def test_a_part_that_is_needed_or_not_there_is_refused(teacher: Reference, name: str, what: str) -> None:
    with pytest.raises(UsageError, match=f"student.without names {name}, .* {what}") as caught:
        leave_out(teacher, FAMILY, ["text_encoder_3", name] if name != "tokenizer_3" else [name])
    assert caught.value.hint == "it can do without text_encoder_3"


def test_a_safety_checker_is_no_part_of_what_a_teacher_draws(tmp_path: Path) -> None:
    pipe_stable_diffusion.pipeline().save_pretrained(tmp_path / "sd")
    index = tmp_path / "sd" / "model_index.json"
    safety = {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"]}
    index.write_text(json.dumps(json.loads(index.read_text()) | safety))
    teacher = resolve(str(tmp_path / "sd"))
    family = registry.find(teacher.class_name)
    with pytest.raises(UsageError) as caught:
        leave_out(teacher, family, ["text_encoder"])
    assert caught.value.hint == "it can do without safety_checker"
    less, files = leave_out(teacher, family, ["safety_checker"]), weight_files(teacher.denoiser)
    assert less.index["safety_checker"] == [None, None] and "figure" not in less.notes[-1]
    assert fingerprint(less, files) == fingerprint(teacher, files)


def test_a_teacher_is_asked_as_its_students_are(teacher: Reference, tmp_path: Path) -> None:
    pipe_sd3.StableDiffusion3Pipeline(**pipe_sd3._parts() | ABSENT).save_pretrained(tmp_path / "less")
    less = resolve(str(tmp_path / "less"))
    assert like_students(teacher, {"a": teacher}) is teacher
    assert like_students(teacher, {"a": less, "b": less}).left_out == ["text_encoder_3", "tokenizer_3"]
    # A denoiser alone does not say what it was trained without.
    assert like_students(teacher, {"a": less, "b": resolve(str(tmp_path / "less" / "transformer"))}).without
    with pytest.raises(UsageError, match="of 'a' and 'b' one does without text_encoder_3"):
        like_students(teacher, {"a": less, "b": teacher})
