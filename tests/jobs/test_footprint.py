"""What a run takes of a card, part by part, and which card has as much."""

from __future__ import annotations

from dataclasses import replace
from operator import attrgetter

import pytest

from diffcompress import recipe as recipes
from diffcompress.families import registry
from diffcompress.jobs.cards import CARDS
from diffcompress.jobs.footprint import Models, learns_alone, smallest
from diffcompress.jobs.pace import of_card
from diffcompress.memory import SHARE
from diffcompress.student import costs
from diffcompress.student.plan import plan
from tests import tiny


@pytest.fixture(scope="module")
def models():
    """Small weights, and images so large that a step of one takes gigabytes."""
    family, config = registry.find("UNet2DModel"), {**tiny.DEMO, "sample_size": 2048}
    recipe = recipes.load("default")
    student = plan(family, config, ratio=0.3, section=recipe.student)
    return Models(family, student, recipe.training, "float32", 0)


def test_activations_are_computed_again_on_a_card_that_holds_no_step_otherwise(models):
    small, large = models.on(CARDS[0]), models.on(CARDS[-1])
    assert small.recomputed and not large.recomputed
    assert small.step < large.step and large.step > SHARE * CARDS[0].bytes
    assert "step with activations computed again" in small.told() and "again" not in large.told()
    asked = replace(models, section=models.section.model_copy(update={"recompute": True}))
    assert asked.on(CARDS[-1]).step == small.step and asked.on(CARDS[-1]).recomputed
    student = costs.count(models.family, models.plan.config)
    steps = [of_card(CARDS[0], 10**9, student, 64, recomputed=again).step for again in (False, True)]
    assert steps[1] == pytest.approx(4 / 3 * steps[0])


def test_a_teacher_on_disk_leaves_room_for_all_else_and_one_that_leaves_for_its_student(models):
    heavy = replace(models, plan=replace(models.plan, teacher_params=30 * 10**9))
    card = smallest(heavy)
    assert card is not None and card.bytes >= 60e9
    assert smallest(heavy, attrgetter("apart")) == smallest(models)
    found = heavy.on(CARDS[-1])
    assert found.parted == found.teacher + max(found.encoders, found.call) < found.peak
    large = replace(models.on(CARDS[-1]), student=100 * 10**9)
    assert large.parted == large.student + max(large.step, large.update) == large.peak - large.teacher


@pytest.mark.parametrize(
    ("setting", "alone"),
    [(None, True), ("targets.trajectory_share=0.5", False), ("stages.1.weights.feature_kd=1", False)],
)
def test_students_that_learn_from_stored_calls_need_no_teacher(setting, alone):
    assert learns_alone(recipes.load("default", (setting,) if setting else ())) == alone
