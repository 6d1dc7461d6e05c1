"""How many samples an evaluation takes, beside the training that it judges."""

from __future__ import annotations

import types
from typing import Any

import pytest

from diffcompress import recipe as recipes
from diffcompress.evaluation.features import aside
from diffcompress.evaluation.proportion import SHARE, Calls, in_proportion
from diffcompress.records.protocol import Protocol

SPACE: Any = types.SimpleNamespace(dimension=64)
PROTOCOL = Protocol(feature_space="demo", sampler="ddim", sampler_steps=25, num_samples=1024, seed=0, aside_samples=256)


def recipe(steps: int) -> recipes.Recipe:
    return recipes.load("demo", ("stages.0.num_steps=0", f"stages.1.num_steps={steps}"))


def test_calls_are_counted_by_hand():
    assert Calls(1, 10, drawn=True).training(recipe(100)) == 3 * 32 * 100
    sampled, walks, once = 25 * (1024 + 2 * 256), 2 * 16 * 25 * 11, 16 * 25 * 11 + 128 * 10 * 12
    assert Calls(1, 10, drawn=True).evaluation(PROTOCOL) == sampled + walks + once
    teachers = 25 * (1024 + 16) * 10
    assert Calls(1, 10, drawn=False).evaluation(PROTOCOL) == sampled + teachers + walks + once
    guided = PROTOCOL.model_copy(update={"guidance": 2.0})
    assert Calls(1, 10, drawn=True).evaluation(guided) == 2 * (sampled + walks) + once
    assert Calls(1, 10, drawn=False).evaluation(guided) == 2 * (sampled + teachers + walks) + once
    fewest = PROTOCOL.model_copy(update={"agreement_images": 16})
    assert Calls(1, 10, drawn=True).evaluation(fewest) == sampled + walks / 4 + 16 * 25 * 11 + 16 * 10 * 12
    shown = [Calls(1, 10, drawn=drawn, picture=3).evaluation(PROTOCOL) for drawn in (True, False)]
    plain = [Calls(1, 10, drawn=drawn).evaluation(PROTOCOL) for drawn in (True, False)]
    pictures = 1024 + 2 * 256 + 16
    assert [one - other for one, other in zip(shown, plain, strict=True)] == [3 * pictures, 3 * (pictures + 1024)]


@pytest.mark.parametrize(("steps", "expected"), [(10**5, 1024), (2000, 896), (1400, 512), (10, 512)])
def test_a_quarter_of_the_training_is_spent_where_that_is_enough(steps, expected):
    calls = Calls(1, 7, drawn=True)
    found = in_proportion(PROTOCOL, recipe(steps), SPACE, calls)
    assert found.num_samples == expected
    assert found.aside_samples == aside(expected, SPACE)
    assert found.agreement_images == {10**5: 128, 10: 16}.get(steps, 64)
    if steps != 10:
        assert calls.evaluation(found) <= SHARE * calls.training(recipe(steps))


def test_an_interval_that_is_asked_for_decides_it_alone():
    asked = recipes.load("demo", ("evaluation.interval=0.05", "stages.1.num_steps=10"))
    assert in_proportion(PROTOCOL, asked, SPACE, Calls(1, 7, drawn=True)) == PROTOCOL


def test_few_samples_stay_as_they_are():
    few = PROTOCOL.model_copy(update={"num_samples": 200, "aside_samples": None})
    assert in_proportion(few, recipe(1), SPACE, Calls(1, 7, drawn=True)) == few
    without = PROTOCOL.model_copy(update={"num_samples": 2048})
    assert in_proportion(without, recipe(1), None, Calls(1, 7, drawn=False)).num_samples == 256


@pytest.mark.parametrize(
    ("count", "dimension", "expected"),
    [(128, 64, None), (130, 64, 128), (1024, 64, 256), (1024, None, 256), (5000, 2048, 4096), (4096, 2048, None)],
)
def test_what_stands_beside_takes_a_quarter_or_what_a_distance_takes(count, dimension, expected):
    space: Any = None if dimension is None else types.SimpleNamespace(dimension=dimension)
    assert aside(count, space) == expected
