"""A run folder with real-looking content: curves from formulas, pictures of gratings, figures of a believable run."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from diffcompress.noise import generator
from diffcompress.recipe import Recipe
from diffcompress.records.run_files import write_json, write_text
from diffcompress.records.run_folder import RunFolder
from diffcompress.report.sheets import write_sheet

STAGES = (("lift", 0, 500), ("place", 500, 2000))
TIMINGS = {
    "bank": 81.4,
    "student-init": 1.9,
    "stage-1-lift": 61.2,
    "stage-2-place": 214.9,
    "evaluation": 96.3,
    "export": 9.1,
}


def write_run(path: Path, teacher: str = "demo") -> RunFolder:
    """Everything but the pipeline."""
    run = RunFolder(path)
    recipe = Recipe(seed=7)
    target = {"ratio": 0.05, "params": None, "size": None}
    write_json(
        run.marker.file,
        {"teacher": teacher, "target": target, "method": "lift-place", "recipe": recipe.model_dump(mode="json")},
    )
    write_text(run.recipe, recipe.to_yaml())
    config = {"_class_name": "UNet2DModel", "sample_size": 28, "block_out_channels": [8, 12, 20], "norm_num_groups": 4}
    sizes = {"params": 63402, "teacher_params": 1274331, "ratio": 0.04975, "requested_ratio": 0.05}
    write_json(
        run.plan,
        {"config": config, **sizes, "choice": {"channels.0": 8}, "notes": ["norm groups went from 8 to 4"]}
        | {"teacher_pipeline_bytes": 5_100_000},
    )
    for index, (name, first, last) in enumerate(STAGES):
        folder = run.stage(index, name)
        write_text(folder / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows(name, first, last)))
        write_json(
            folder / "final" / "state.json",
            {"step": last, "skipped": 1 + 2 * index, "rollbacks": index, "seconds": 61.2},
        )
    write_json(run.metrics, evaluation(teacher))
    write_json(run.timings, TIMINGS)
    write_json(run.warnings, ["the bank holds <fewer> images than asked"])
    write_json(
        run.environment, {"python": "3.12.1", "torch": "2.13.0", "diffusers": "0.42.1", "device": "cpu", "threads": 2}
    )
    run.samples.mkdir()
    for role, noise in (("teacher", 0.03), ("student", 0.15), ("untrained", 3.0)):
        save_file({"images": gratings(48, noise)}, run.samples / f"{role}.safetensors")
    for step in range(250, 2001, 250):
        write_sheet(gratings(16, 150 / step), run.samples / f"preview-{step:06d}.png")
    return run


def rows(name: str, first: int, last: int) -> list[dict[str, Any]]:
    """What training logs: one row every ten steps."""
    found = []
    for step in range(first, last, 10):
        wave = 0.12 * math.sin(step * 1.7) + 0.08 * math.sin(step * 0.37)
        decay = math.exp(-step / 400)
        row = {
            "step": step,
            "stage": name,
            "loss": (0.02 + 0.9 * decay) * (1 + wave),
            "coarse": 0.7 * decay + 0.01,
            "fine": 0.3 * decay + 0.05,
        }
        row |= {
            "slope": 1 - 0.8 * decay * (1 + wave),
            "intercept": 0.1 * decay * wave,
            "fine_weight": 1 - decay,
            "feature_kd": None,
        }
        row |= {
            "grad_norm": 0.2 + 2 * decay * (1 + wave),
            "learning_rate": 3e-3 * min(1, step / 50) * (0.5 + 0.5 * math.cos(math.pi * step / 2000)),
        }
        found.append(row | {"seconds": 0.14 * (step - first)})
    return found


def evaluation(teacher: str) -> dict[str, Any]:
    """metrics.json, in the shape that `evaluate` writes."""
    levels = [
        {
            "timestep_low": 100 * i,
            "timestep_high": 100 * i + 99,
            "error": 0.05 / (i + 1),
            "relative_error": 0.55 * math.exp(-i / 2.5) + 0.03,
            "slope": 1 - 0.25 * math.exp(-i / 2),
            "intercept": 0.02 * math.sin(i),
        }
        for i in range(10)
    ]
    metrics = {
        "params": metric(63402, "parameters", "lower", teacher=1274331),
        "macs": metric(6.1e6, "multiply-accumulates", "lower", teacher=104.2e6),
        "latency_ms": metric(1.42, "ms per call", "lower", teacher=9.31)
        | {"batch_size": 1, "device": "cpu", "threads": 2},
        "memory_bytes": metric(1.9e6, "bytes", "lower", teacher=14.2e6) | {"device": "cpu", "threads": 2},
        "fd_demo": metric(
            (9.31, 8.87, 9.76),
            "squared feature units",
            "lower",
            teacher=(2.04, 1.9, 2.2),
            untrained=(241.7, 239.1, 244.6),
            real=0.021,
        )
        | {"samples": 2048, "reference": "train"},
        "fd_demo_corrected": metric((4.0, 3.7, 4.3), "squared feature units", "lower", teacher=(2.04, 1.9, 2.2)),
        "failed_samples": metric(
            (0.0127, 0.009, 0.018),
            "share of samples",
            "lower",
            teacher=(0.001, 0.0003, 0.003),
            untrained=(1.0, 0.998, 1.0),
        )
        | {"samples": 2048},
        "agreement": metric((0.936, 0.931, 0.941), "", "higher", untrained=(0.22, 0.2, 0.24))
        | {"levels": levels, "samples": 128},
        "not_computed": [{"metric": "kd_demo", "why": "no reference features"}],
    }
    protocol = {
        "feature_space": "demo",
        "sampler": "ddim",
        "sampler_steps": 25,
        "eta": 0.0,
        "num_samples": 2048,
        "seed": 7,
    }
    return {
        "student": {"id": "demo-0.05/pipeline", "params": 63402},
        "teacher": {"id": teacher},
        "protocol": protocol,
        "metrics": metrics,
        "probe": {
            "metric": "fd_demo",
            "before": 9.31,
            "after": 4.0,
            "floor": 2.04,
            "explained": 0.73,
            "reading": "train longer",
            "sentence": "fd_demo 9.31 becomes 4 when a slope and an intercept correct it.",
        },
    }


def metric(value: Any, unit: str, better: str, **others: Any) -> dict[str, Any]:
    found = {
        role: None if other is None else _estimate(other)
        for role, other in ({"teacher": None, "untrained": None, "real": None} | others).items()
    }
    return {**_estimate(value), "unit": unit, "better": better, **found}


def gratings(count: int, noise: float) -> torch.Tensor:
    """`[count, 1, 28, 28]` in [-1, 1]: round windows onto stripes, with noise."""
    axis = torch.linspace(-1, 1, 28)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    images = []
    for i in range(count):
        angle, frequency = 0.7 * i, 4 + i % 5
        stripes = torch.sin(frequency * (x * math.cos(angle) + y * math.sin(angle)))
        window = torch.sigmoid(12 * (0.8 - (x**2 + y**2).sqrt()))
        images.append(
            window * (0.6 * stripes + 0.4) - (1 - window) + noise * torch.randn(28, 28, generator=generator(i))
        )
    return torch.stack(images).unsqueeze(1).clamp(-1, 1)


def _estimate(value: Any) -> dict[str, float | None]:
    low_high = value[1:] if isinstance(value, tuple) else (None, None)
    return {"value": value[0] if isinstance(value, tuple) else value, "low": low_high[0], "high": low_high[1]}
