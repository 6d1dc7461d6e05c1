"""Half precision, on a CPU that is told to be a GPU which computes in bfloat16."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import nn

import diffcompress
from diffcompress.families import registry
from diffcompress.families.base import complete
from diffcompress.pipeline import precision
from diffcompress.pipeline.load import load
from diffcompress.runtime import exact_float32
from diffcompress.sources.resolve import resolve
from diffcompress.student.size import build
from tests import tiny
from tests.telling import Told

GPU, CPU, MPS = torch.device("cuda"), torch.device("cpu"), torch.device("mps")


@pytest.fixture
def halves(monkeypatch):
    """Every device computes in bfloat16."""
    for place in ("pipeline.precision", "training.objective"):
        monkeypatch.setattr(f"diffcompress.{place}.computes_bfloat16", lambda device: True)


@pytest.mark.parametrize(
    ("device", "bfloat16", "stored", "params", "expected"),
    [
        (GPU, True, torch.float32, 10**6, torch.bfloat16),
        (GPU, True, torch.float16, 10**10, torch.bfloat16),
        (GPU, False, torch.float16, 10**6, torch.float16),
        (GPU, False, torch.float32, 10**6, torch.float32),
        (GPU, False, torch.bfloat16, 10**6, torch.float32),
        (GPU, False, torch.bfloat16, 10**10, torch.bfloat16),
        (MPS, False, torch.float16, 10**6, torch.float32),
        (MPS, False, torch.float16, 10**10, torch.float16),
        (CPU, False, torch.float16, 10**10, torch.float32),
    ],
)
def test_what_a_device_computes_in(monkeypatch, device, bfloat16, stored, params, expected):
    monkeypatch.setattr(precision, "computes_bfloat16", lambda _device: bfloat16)
    assert precision.choose(device, stored, params) == expected


def test_a_cpu_computes_in_float32(tmp_path):
    teacher = load(resolve(str(tiny.save_pipeline(tmp_path, dtype=torch.float16))))
    assert teacher.precision == torch.float32 and teacher.dtype == torch.float16
    assert {value.dtype for value in teacher.denoiser.parameters()} == {torch.float32}


def test_a_teacher_in_half_precision_says_nearly_the_same_in_float32(tmp_path, halves):
    place, heard = resolve(str(tiny.save_pipeline(tmp_path, num_classes=3))), Told()
    half = load(place, progress=heard)
    whole = load(place, precision=torch.float32)
    assert half.precision == torch.bfloat16 and whole.precision == torch.float32 and not heard.warnings
    apart = precision.difference(half.examples(), whole.examples())
    assert 1e-4 < apart < precision.MOST_ROUNDING
    prediction = half.predict(
        torch.randn(2, *half.sample_shape), torch.tensor([3, 40]), half.conditions.rows(torch.tensor([0, 1]))
    )
    assert prediction.dtype == torch.float32


def test_a_teacher_that_rounding_changes_computes_in_float32_and_that_is_told(tmp_path, halves):
    """Attention that looks at one place alone looks at another where its products are rounded."""
    denoiser = tiny.unet()
    with torch.no_grad():
        for name, value in denoiser.named_parameters():
            value.mul_(100 if name.endswith("to_q.weight") else 10 if name.endswith("to_v.weight") else 1)
    place = tiny.save_pipeline(tmp_path / "teacher")
    denoiser.save_pretrained(place / "unet")
    heard = Told()
    teacher = load(resolve(str(place)), progress=heard)
    assert teacher.precision == torch.float32
    assert len(heard.warnings) == 1 and "computes in float32: in bfloat16 its predictions" in heard.warnings[0]


def test_parts_that_a_class_wants_in_float32_stay_so():
    family = next(one for one in registry.FAMILIES if one.class_name == "WanTransformer3DModel")
    config = complete(family.class_name, family.tiny_config())
    denoiser = precision.cast(build(family, config, "cpu"), torch.bfloat16)
    dtypes = {name: value.dtype for name, value in denoiser.named_parameters()}
    assert set(dtypes.values()) == {torch.float32, torch.bfloat16} and denoiser.dtype == torch.bfloat16
    wanted = {name for name, dtype in dtypes.items() if dtype == torch.float32}
    assert wanted == {n for n in dtypes if set(n.split(".")) & set(denoiser._keep_in_fp32_modules)}
    inputs = family.example_inputs(config, 1)
    given = {n: v.bfloat16() if v.is_floating_point() else v for n, v in inputs.items()}
    timestep = inputs["timestep"]
    given.pop("timestep")
    assert torch.isfinite(family.predict(denoiser, given.pop("noisy"), timestep, given).float()).all()


def test_a_whole_run_in_half_precision(tmp_path, halves, monkeypatch):
    """Bank, importance, refit, training, evaluation and proof, with student and teacher in one precision."""
    seen = set()
    plain = nn.Conv2d.forward

    def watched(self, given):
        seen.add(given.dtype)
        return plain(self, given)

    monkeypatch.setattr(nn.Conv2d, "forward", watched)
    teacher = tiny.save_pipeline(tmp_path / "teacher")
    result = diffcompress.shrink(str(teacher), ratio=0.3, output=tmp_path / "run", overrides=tiny.SHORTEST)
    assert torch.bfloat16 in seen
    measured = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert measured["protocol"]["precision"] == "bfloat16"
    assert "dtypes" not in measured["metrics"]["latency_ms"]
    assert json.loads((tmp_path / "run" / "export-proof.json").read_text())["passed"]
    assert result["metrics"]["agreement"]["value"] < 1


def test_products_are_exact_where_they_have_to_be():
    parts: Any = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [part.allow_tf32 for part in parts]
    try:
        for part in parts:
            part.allow_tf32 = True
        with exact_float32():
            assert [part.allow_tf32 for part in parts] == [False, False]
        assert [part.allow_tf32 for part in parts] == [True, True]
    finally:
        for part, allowed in zip(parts, before, strict=True):
            part.allow_tf32 = allowed
