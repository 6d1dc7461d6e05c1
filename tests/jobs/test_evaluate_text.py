"""`evaluate` of a text-conditional latent pipeline: prompts, decoded pixels, CLIP."""

from __future__ import annotations

import hashlib
import json
import shutil

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import save_file

from diffcompress.errors import UsageError
from diffcompress.families import registry
from diffcompress.jobs.evaluate import evaluate
from diffcompress.pipeline.left_out import leave_out
from diffcompress.sources.resolve import resolve
from diffcompress.sources.weights import fingerprint, weight_files
from tests.evaluation.test_spaces import clip, dino
from tests.families import pipe_sd3
from tests.families.pipe_stable_diffusion import pipeline
from tests.telling import Told

__all__ = ["clip", "dino"]
COMMIT = "0" * 40
FAST = {"num_samples": 12, "sampler_steps": 2, "device": "cpu"}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("text")
    whole = pipeline()
    whole.unet.register_to_config(sample_size=16)  # pixels of 32x32, the least that extractors are looked for
    whole.save_pretrained(root / "teacher")
    (root / "student" / "student-init").mkdir(parents=True)
    save_file(whole.unet.state_dict(), root / "student" / "student-init" / "student.safetensors")
    with torch.no_grad():
        whole.unet.conv_out.weight.mul_(0.8)
        whole.unet.conv_out.bias.mul_(0.8)
    whole.save_pretrained(root / "student" / "pipeline")
    (root / "prompts.txt").write_text("a b\nc d\ne f\n")
    return root


@pytest.fixture(scope="module")
def result(root, clip):
    return evaluate(
        str(root / "student" / "pipeline"),
        teacher=str(root / "teacher"),
        prompts=str(root / "prompts.txt"),
        feature_weights=clip,
        **FAST,
    )


def test_prompts_are_part_of_the_protocol(result):
    assert result["protocol"]["conditions"] == hashlib.sha256(b"a b\nc d\ne f").hexdigest()
    assert result["protocol"]["feature_space"] == "clip"


def test_scores_of_a_text_pipeline(result):
    metrics = result["metrics"]
    score = metrics["clip_score"]
    assert -1e-9 <= score["low"] <= score["value"] <= score["high"] <= 100
    assert score["teacher"]["value"] is not None
    assert metrics["kd_teacher_clip"]["value"] != 0
    assert 0 < metrics["paired_distance"]["value"] < 2  # of pixels, not of latents
    assert metrics["paired_distance_corrected"]["value"] < 0.1 * metrics["paired_distance"]["value"]
    missing = {item["metric"] for item in metrics["not_computed"]}
    assert {"fd_clip", "kd_clip", "coverage_clip", "fd_teacher_clip"} <= missing
    assert "clip_score" not in missing


def test_without_clip_it_says_how_to_get_the_score(root, tmp_path):
    teacher, student = str(root / "teacher"), str(root / "student" / "pipeline")
    values = {"prompts": str(root / "prompts.txt"), "output": tmp_path, **FAST}
    found = evaluate(student, teacher=teacher, gates=("paired_distance<untrained",), **values)
    # This student began as its teacher, and is decoded as it is.
    assert found["metrics"]["paired_distance"]["untrained"]["value"] == pytest.approx(0, abs=1e-6)
    missing = {item["metric"]: item["why"] for item in found["metrics"]["not_computed"]}
    neighbours = ("precision", "recall", "density", "coverage")
    assert set(missing) == {
        "fd",
        "kd",
        "swd",
        "fd_teacher",
        "kd_teacher",
        "swd_teacher",
        *neighbours,
        "clip_score",
        "pick_score",
    }
    assert "evaluate --feature-weights` with a CLIP folder" in missing["clip_score"]


def test_clip_in_the_cache_scores_prompts_beside_another_space(root, result, dino, clip, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    pick = "yuvalkirstain--PickScore_v1"
    for folder, name in ((dino, "facebook--dinov2-small"), (clip, "openai--clip-vit-base-patch32"), (clip, pick)):
        place = tmp_path / "hub" / f"models--{name}"
        shutil.copytree(folder, place / "snapshots" / COMMIT)
        (place / "refs").mkdir()
        (place / "refs" / "main").write_text(COMMIT)
    teacher, student = str(root / "teacher"), str(root / "student" / "pipeline")
    again = {"teacher": teacher, "prompts": str(root / "prompts.txt"), "output": tmp_path / "out", **FAST}
    told = Told()
    found = evaluate(student, **again, progress=told)
    assert found["protocol"]["feature_space"] == "dinov2"
    assert "pick_score: by PickScore (yuvalkirstain/PickScore_v1, its card states no licence)" in " ".join(told.notes)
    assert found["protocol"]["pick"] == found["protocol"]["clip"] and "pick_score" in found["metrics"]
    assert found["protocol"]["clip"] == result["protocol"]["extractor"]
    assert found["metrics"]["clip_score"]["value"] == pytest.approx(result["metrics"]["clip_score"]["value"])
    assert found["metrics"]["kd_teacher_dinov2"]["value"] != 0
    assert evaluate(student, **again)["metrics"]["clip_score"] == found["metrics"]["clip_score"]  # from its own cache


def test_captioned_images_are_prompts_and_reference(root, clip, tmp_path):
    stream = np.random.default_rng(0)
    rows = []
    for i in range(12):
        Image.fromarray(stream.integers(0, 255, (20, 20, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
        rows.append(json.dumps({"file_name": f"{i}.png", "text": f"caption {'abc'[i % 3]}"}))
    (tmp_path / "metadata.jsonl").write_text("\n".join(rows))
    found = evaluate(
        str(root / "student" / "pipeline"),
        teacher=str(root / "teacher"),
        data=str(tmp_path),
        feature_weights=clip,
        output=tmp_path / "out",
        **FAST,
    )
    assert found["protocol"]["conditions"] == hashlib.sha256(b"caption a\ncaption b\ncaption c").hexdigest()
    assert found["metrics"]["kd_clip"]["reference"] == "data"
    assert found["metrics"]["cmmd"]["value"] > found["metrics"]["cmmd"]["low"] >= 0
    assert found["metrics"]["agreement"]["samples"] == 12
    assert found["metrics"]["agreement"]["value"] < 1


def test_prompts_for_a_model_without_text_are_refused(root, tmp_path):
    with pytest.raises(UsageError, match="'demo' takes no text"):
        evaluate("demo", prompts=str(root / "prompts.txt"), output=tmp_path / "out", **FAST)


def test_a_teacher_is_asked_without_what_its_student_was_made_without(tmp_path):
    parts = pipe_sd3._parts()
    pipe_sd3.StableDiffusion3Pipeline(**parts).save_pretrained(tmp_path / "teacher")
    absent = {"text_encoder_3": None, "tokenizer_3": None}
    pipe_sd3.StableDiffusion3Pipeline(**parts | absent).save_pretrained(tmp_path / "student")
    (tmp_path / "prompts.txt").write_text("a b\n")
    told, teacher = Told(), resolve(str(tmp_path / "teacher"))
    asked = {"prompts": str(tmp_path / "prompts.txt"), "output": tmp_path / "out", "device": "cpu", "progress": told}
    found = evaluate(
        str(tmp_path / "student"), teacher=str(tmp_path / "teacher"), num_samples=2, sampler_steps=1, **asked
    )
    less = leave_out(teacher, registry.find(teacher.class_name), ["text_encoder_3"])
    assert found["teacher"]["fingerprint"] == fingerprint(less, weight_files(teacher.denoiser))
    assert any("both asked without text_encoder_3 and tokenizer_3" in note for note in told.notes)
    assert found["metrics"]["paired_distance"]["value"] == pytest.approx(0, abs=1e-6)  # the same denoiser
