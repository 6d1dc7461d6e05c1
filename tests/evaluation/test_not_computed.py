"""Every metric of a feature space is computed, or named with the reason: none goes missing in silence."""

from __future__ import annotations

import importlib
import inspect
from dataclasses import replace

import pytest
import torch

from diffcompress.evaluation.cache import Drawn
from diffcompress.evaluation.features import demo_space
from diffcompress.evaluation.material import Material
from diffcompress.evaluation.score import measure
from diffcompress.evaluation.variation import total_variation
from diffcompress.noise import generator
from diffcompress.records.evaluation import Metrics
from diffcompress.records.metrics import KINDS, TABLE
from diffcompress.records.protocol import Protocol

SPACE = demo_space()


def drawn(count: int, seed: int, *, broken: bool = False) -> Drawn:
    images = torch.randn(count, 1, 28, 28, generator=generator(seed))
    if broken:
        images[0] = torch.nan
    return Drawn(images, total_variation(images), SPACE.features(images.nan_to_num()), images)


@pytest.mark.parametrize("space", [SPACE, None])
@pytest.mark.parametrize("prompts", [None, ["a"] * 130])
@pytest.mark.parametrize(
    ("count", "broken", "why"),
    [
        (130, (), None),
        (130, ("student",), "1 of 130 samples are not finite"),
        (130, ("teacher",), "the teacher's samples are not finite"),
        (20, (), "--num-samples of 128 or more"),
        (2, (), "2 images are too few for nearest neighbours"),
    ],
)
@pytest.mark.parametrize("roles", [("student", "teacher"), ("student",)])
def test_computed_or_named_once(space, prompts, count, broken, why, roles):
    found = {role: drawn(count, i, broken=role in broken) for i, role in enumerate(roles)}
    metrics, perceptual = Metrics(not_computed=[]), [kind for kind in TABLE if kind.is_perceptual]
    protocol = Protocol(feature_space=None, sampler="ddim", sampler_steps=2, num_samples=count, seed=0)
    measure(Material({}, found, space, protocol, prompts), metrics, perceptual)
    end = "" if space is None else "_demo"
    wanted = {f"{kind.name}{end}" for kind in perceptual if kind.in_space}
    wanted |= {"fd_demo_held_out"} if space else set()
    wanted |= {"clip_score", "pick_score"} if prompts else set()
    named = [one.metric for one in metrics.not_computed]
    assert sorted([*metrics.measured, *named]) == sorted(wanted)
    reasons = " ".join(one.why for one in metrics.not_computed)
    if why is not None and space is not None and set(broken) <= set(roles):
        assert why in reasons
    assert ("no teacher was given" in reasons) == ("teacher" not in roles)
    assert ("hf download yuvalkirstain/PickScore_v1" in reasons) == (prompts is not None)
    assert ("with a CLIP folder" in reasons) == (prompts is not None)
    assert ("no feature weights" in reasons) == (space is None)


def test_cmmd_is_of_clips_embeddings_alone():
    """The demo's extractor under the names of two spaces."""
    protocol = Protocol(feature_space=None, sampler="ddim", sampler_steps=2, num_samples=20, seed=0)
    for name, expected in (("clip", True), ("dinov2", False)):
        metrics, space = Metrics(not_computed=[]), replace(SPACE, name=name)
        measure(Material({}, {"student": drawn(20, 0)}, space, protocol), metrics, [KINDS["cmmd"]])
        assert ("cmmd" in metrics, metrics.not_computed) == (expected, [])


@pytest.mark.parametrize("module", sorted({kind.measured_in for kind in TABLE}))
def test_every_module_that_the_table_names_adds_metrics(module):
    found = importlib.import_module(f"diffcompress.evaluation.{module}")
    assert list(inspect.signature(found.add_metrics).parameters) == ["material", "wanted", "metrics"]
