"""Every family from a saved pipeline to an exported student that vanilla diffusers loads and samples from."""

from __future__ import annotations

import importlib
import json
import pkgutil
from pathlib import Path

import diffusers
import pytest
import torch

import diffcompress
import tests.families
from diffcompress.errors import DoesNotFitError
from diffcompress.families import registry
from diffcompress.records.run_files import read_json
from diffcompress.records.run_folder import RunFolder
from diffcompress.sources.resolve import resolve
from tests import tiny

PIPES = sorted(m.name for m in pkgutil.iter_modules(tests.families.__path__) if m.name.startswith("pipe_"))


def reachable(teacher: str) -> float:
    """A ratio that this tiny class can be shrunk to."""
    try:
        return diffcompress.plan(teacher, ratio=0.5)["ratio"]
    except DoesNotFitError as error:
        return float(error.hint.rpartition(" ")[2])


# One of each kind in every run; `make test-all` takes all.
QUICK = ("pipe_dit", "pipe_sd3", "pipe_stable_diffusion_xl", "pipe_wan")


@pytest.mark.parametrize("name", [p if p in QUICK else pytest.param(p, marks=pytest.mark.slow) for p in PIPES])
def test_a_teacher_of_any_family_becomes_a_student(name: str, tmp_path: Path) -> None:
    pipeline = importlib.import_module(f"tests.families.{name}").pipeline()
    teacher = str(tmp_path / "teacher")
    pipeline.save_pretrained(teacher)
    reference = resolve(teacher)
    shape = registry.find(reference.class_name).sample_shape(reference.complete_config)
    # Importance by gradients is the dearest part here: class- and text-conditional have it once each.
    ranked = "taylor" if name in ("pipe_dit", "pipe_sd3") else "magnitude"
    overrides = (*tiny.SHORTEST, f"student.importance={ranked}") + (("bank.sample_size=8",) if shape[-1] > 16 else ())
    result = diffcompress.shrink(teacher, ratio=reachable(teacher), output=str(tmp_path / "run"), overrides=overrides)

    params = result["student"]["params"]
    assert 0 < params < result["teacher"]["params"]
    exported = Path(result["pipeline"])
    index = json.loads((exported / "model_index.json").read_text())
    assert index["_class_name"] == type(pipeline).__name__
    part = reference.denoiser_part
    student = getattr(diffusers, index[part][1]).from_pretrained(exported / part)
    assert sum(p.numel() for p in student.parameters()) == params
    proof = read_json(RunFolder(tmp_path / "run").proof)
    assert proof["passed"] and proof["image_difference"] is not None, proof
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["metrics"]["agreement"]["value"] is not None
    log = (tmp_path / "run" / "stage-2-place" / "metrics.jsonl").read_text()
    rows = [json.loads(line) for line in log.splitlines()]
    assert all(torch.isfinite(torch.tensor(row["loss"])) for row in rows)
