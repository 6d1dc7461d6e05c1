"""Each cause is provoked: by real tiny runs, by the probe's own lines on a real model, by features of real images."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import diffcompress
from diffcompress.evaluation import agreement, correction, spread
from diffcompress.evaluation.features import demo_space
from diffcompress.evaluation.material import Material
from diffcompress.evaluation.neighbours import add_metrics
from diffcompress.pipeline.load import LoadedPipeline
from diffcompress.pipeline.predicting import in_terms_of
from diffcompress.pipeline.sampling import sample
from diffcompress.recipe import Recipe
from diffcompress.records.evaluation import Measured, Metrics
from diffcompress.records.metrics import KINDS, Metric
from diffcompress.records.protocol import Protocol
from diffcompress.report import doctor
from tests.cli.command import run
from tests.evaluation.test_not_computed import drawn
from tests.jobs.tiny_teacher import save_teacher, settings


def shrunk(folder: Path, **changes: object) -> dict[str, dict[str, str]]:
    """The diagnosis of a real run of 30 steps from a random start, by cause."""
    values = {"student__start": "random", "evaluation__num_samples": 64} | changes
    told = [option.removeprefix("--set=") for option in settings(**values)]
    teacher = save_teacher(folder / "teacher", prediction_type="sample")
    result = diffcompress.shrink(str(teacher), ratio=0.3, output=str(folder / "run"), overrides=told)
    return {finding["cause"]: finding for finding in result["diagnosis"]}


def test_weights_that_do_not_move(tmp_path: Path) -> None:
    teacher = save_teacher(tmp_path / "teacher", prediction_type="sample")
    told = run("shrink", teacher, "--ratio", "0.3", "--output", tmp_path / "run", *settings(
        student__start="random", training__learning_rate=1e-7))  # fmt: skip
    assert "\ndiagnosis: weights not moving: after 30 steps" in told.stdout
    (found,) = json.loads((tmp_path / "run" / "report.json").read_text())["diagnosis"]  # it explains slope and gate
    assert found["cause"] == "weights not moving"
    assert found["advice"] == "raise the learning rate: --set training.learning_rate=1e-06"
    assert "after 30 steps at a learning rate of 1e-07" in found["evidence"]
    page = (tmp_path / "run" / "report.html").read_text()
    assert "What went wrong" in page and "weights not moving" in page


def test_a_shut_gate_and_a_slope_that_is_stuck(tmp_path: Path) -> None:
    found = shrunk(tmp_path, training__learning_rate=2e-4, stages__0__gate="global", stages__1__gate="global")
    assert {"gate shut", "slope stuck"} <= set(found)
    assert found["gate shut"]["advice"].startswith("use a gate that never shuts: --set stages.")
    assert found["gate shut"]["advice"].endswith(".gate=soft")
    assert "from 1 and was" in found["slope stuck"]["evidence"]


def test_gradients_that_are_clipped(tmp_path: Path) -> None:
    found = shrunk(tmp_path, training__max_grad_norm=1e-4, training__optimizer="adamw")
    assert "training.max_grad_norm 0.0001" in found["gradients clipped"]["evidence"]
    asked = float(found["gradients clipped"]["advice"].rpartition("=")[2])
    assert asked > 1e-3


def levels(student: LoadedPipeline, teacher: LoadedPipeline) -> dict[str, Measured]:
    clean = torch.randn(8, *teacher.sample_shape, generator=torch.Generator().manual_seed(0))
    found = agreement.measure({"student": student}, teacher, clean, {}, num_levels=10, seed=0)["student"]
    metrics = Metrics(not_computed=[])
    metrics.add(Metric(KINDS["agreement"]), {"student": found.agreement}, levels=list(found.levels))
    return metrics.measured


def test_one_noise_level_that_is_off(teacher: LoadedPipeline) -> None:
    """The teacher itself, its predictions halved at the fourth tenth of its timesteps alone."""
    size = teacher.noise.num_timesteps
    timestep = torch.arange(10) * (size // 10) + size // 20
    slope = torch.ones(10, 1)
    slope[3] = 0.5
    off = correction.corrected(teacher, correction.Correction(timestep, slope, torch.zeros(10, 1)))
    (found,) = doctor.diagnose(doctor.Case(Recipe(), [], levels(off, teacher)))
    assert found.cause == "one noise level off"
    assert found.evidence.startswith(f"at timesteps {3 * size // 10} to {4 * size // 10 - 1} predictions are 50 % off")
    assert found.advice.endswith("--set targets.trajectory_share=0")
    assert doctor.diagnose(doctor.Case(Recipe(), [], levels(teacher, teacher))) == []
    slope[4] = 0.5  # two that are off do not stand out: it is no single level that the student was not shown
    both = correction.corrected(teacher, correction.Correction(timestep, slope, torch.zeros(10, 1)))
    assert doctor.diagnose(doctor.Case(Recipe(), [], levels(both, teacher))) == []


def real_features(count: int) -> Tensor:
    real = demo_space().real
    assert real is not None and real.other is not None
    return real.other[:count]


def recall(student: Tensor, teacher: Tensor) -> dict[str, Measured]:
    """Of features, to those of real images; the pixels are of no use here."""
    space = demo_space()
    samples = {role: replace(drawn(2, 0), features=one) for role, one in (("student", student), ("teacher", teacher))}
    metrics = Metrics(not_computed=[])
    protocol = Protocol(feature_space="demo", sampler="ddim", sampler_steps=2, num_samples=len(student), seed=0)
    add_metrics(Material({}, samples, space, protocol), [Metric(KINDS["recall"], "demo")], metrics)
    return metrics.measured


def test_a_student_that_draws_few_of_the_things_that_its_teacher_draws() -> None:
    """Its samples: twenty real images, over and over, a little changed; its teacher's: as many different ones."""
    teacher = real_features(400)
    few = teacher[torch.arange(400) % 20]
    noise = torch.randn(few.shape, generator=torch.Generator().manual_seed(1))
    (found,) = doctor.diagnose(doctor.Case(Recipe(), [], recall(few + 0.01 * few.std() * noise, teacher)))
    assert found.cause == "recall low"
    assert found.advice == "take a larger student: a higher --ratio"
    assert doctor.diagnose(doctor.Case(Recipe(), [], recall(teacher, teacher))) == []


def test_samples_that_are_alike(teacher: LoadedPipeline) -> None:
    """The teacher itself, behind lines that leave a tenth of the images that it predicts."""
    sampled = {}
    for share in (1.0, 0.1):
        slope, timestep = torch.full((4, 1), share), teacher.noise.grid(4)[:, 0]
        told = in_terms_of(teacher, teacher.noise.predicting("sample"))
        student = correction.corrected(told, correction.Correction(timestep, slope, torch.zeros(4, 1)))
        sampled[share] = sample(student, range(16), seed=0, num_steps=4)
    metrics = Metrics(not_computed=[])
    kind = Metric(KINDS["sample_variance"])
    metrics.add(kind, {"student": spread.variance(sampled[0.1], sampled[1.0])}, samples=16)
    few = recall(*(real_features(400)[:n].repeat(400 // n, 1) for n in (20, 400)))
    (found,) = doctor.diagnose(doctor.Case(Recipe(), [], metrics.measured | few))
    assert found.cause == "samples alike"  # which explains a low recall
    assert found.evidence.startswith("pixels of 16 samples vary ")


def test_variance_over_samples() -> None:
    pixels = torch.randn(50, 1, 4, 4, generator=torch.Generator().manual_seed(2))
    around = pixels.mean(0) + 0.5 * (pixels - pixels.mean(0))
    found = spread.variance(around, pixels)
    assert found.value == pytest.approx(0.25, rel=1e-6)
    assert found.low < 0.25 < found.high
    few = pixels[:4].double()
    assert spread.variance(few, pixels).value == pytest.approx(
        (few.var(0).mean() / pixels.double().var(0).mean()).item()
    )
