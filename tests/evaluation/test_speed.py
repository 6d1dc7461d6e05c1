"""Cost of a denoiser call: counts that can be checked by hand."""

from __future__ import annotations

import re

import torch
from rich.console import Console
from torch import nn

from diffcompress.cli import tables
from diffcompress.evaluation import speed
from diffcompress.evaluation.cache import SampleCache
from diffcompress.evaluation.features import protocol_for
from diffcompress.evaluation.score import Contest, evaluate_pipeline
from diffcompress.records.evaluation import Evaluation
from diffcompress.runtime import Progress, start
from tests.evaluation import models


def macs_by_hooks(model, *inputs):
    """Multiply-accumulates of convolutions and linear layers, from the shapes that they see, and of the attention."""
    total = 0

    def count(module, args, output):
        nonlocal total
        total += output.numel() * module.weight[0].numel()

    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(count)
    model(*inputs)
    # Queries times keys, weights times values, in each attention: all lie at half the image's side.
    num_attentions = sum(type(module).__name__ == "Attention" for module in model.modules())
    tokens, channels = 14 * 14, 8
    return total + num_attentions * 2 * tokens * tokens * channels


def test_measures_a_tiny_unet(tmp_path):
    pipeline = models.loaded(tmp_path, size=28)
    cost = speed.measure(pipeline)
    assert cost.params == sum(p.numel() for p in pipeline.denoiser.parameters())
    assert cost.size_bytes == 4 * cost.params
    assert cost.macs == macs_by_hooks(pipeline.denoiser, torch.zeros(1, 1, 28, 28), torch.zeros(1))
    assert 0 < cost.latency_ms[1] < cost.latency_ms[16]
    assert cost.threads == torch.get_num_threads()
    # The widest moment: the up block's concatenation of 16 channels at 28x28 with what it is made of, and a few more.
    assert 4 * cost.params + 4 * 32 * 784 < cost.memory_bytes < 4 * cost.params + 4 * 100 * 784


def test_precisions_that_differ_stand_beside_the_figures(tmp_path, monkeypatch):
    """On the CPU all is float32: the teacher is halved by hand, as a large one is on an accelerator."""
    monkeypatch.setattr(speed, "SECONDS", 0.0)
    student = models.loaded(tmp_path / "student")
    teacher = models.loaded(tmp_path / "teacher", seed=1)
    protocol = protocol_for(None, teacher, sampler_steps=2, num_samples=4)
    contest = Contest(student, teacher, protocol, None)
    cache = SampleCache(tmp_path / "cache", start("cpu"), Progress())
    alike = evaluate_pipeline(contest, cache)
    teacher.denoiser.bfloat16()
    halved = evaluate_pipeline(contest, cache)
    for name in ("latency_ms", "latency_ms_batch16", "memory_bytes"):
        assert "dtypes" not in alike.metrics[name].to_json()
        assert halved.metrics[name].dtypes == {"student": "float32", "teacher": "bfloat16"}
    told = Evaluation(student={"id": "s", "name": "small"}, teacher={"id": "t"}, **dict(halved))
    for shown in (tables.evaluated(told), tables.compared([told])):
        with (console := Console(width=200)).capture() as seen:
            console.print(*shown)
        row = next(line for line in seen.get().splitlines() if line.startswith("latency_ms "))
        assert re.search(r" in float32\b.* in bfloat16\b", row)
