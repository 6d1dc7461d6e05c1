"""How a student starts where its teacher does not let itself be ranked."""

import copy
from dataclasses import replace

import pytest
import torch

from diffcompress import recipe as recipes
from diffcompress.bank import bank as banks
from diffcompress.jobs.students import initial_student, ranked
from diffcompress.pipeline.load import load
from diffcompress.runtime import Progress, start
from diffcompress.sources.resolve import resolve
from diffcompress.student.plan import plan
from tests import tiny
from tests.telling import Told


@pytest.mark.parametrize("broken", [False, True])
def test_a_teacher_whose_gradients_are_not_finite_is_ranked_by_magnitude_and_that_is_told(tmp_path, broken):
    teacher = load(resolve(str(tiny.save_pipeline(tmp_path / "teacher"))))
    recipe = recipes.load("default", (*tiny.SHORTEST, "student.refit=false"))
    bank = banks.fill(tmp_path / "bank", teacher, recipe.bank, 0, None, start("cpu"), Progress())
    if broken:  # as float16 breaks them, whose largest number is 65,504
        denoiser = copy.deepcopy(teacher.denoiser)
        denoiser.mid_block.register_full_backward_hook(lambda _m, given, _o: tuple(g * torch.inf for g in given))
        teacher = replace(teacher, denoiser=denoiser)
    student_plan, heard = plan(teacher.family, teacher.config, ratio=0.3), Told()
    by_magnitude = recipe.model_copy(update={"student": recipe.student.model_copy(update={"importance": "magnitude"})})
    runtime = start("cpu")
    scores = ranked(teacher, recipe, bank, runtime, heard)
    assert (scores is None) == broken
    inherited = initial_student(teacher, student_plan, recipe, bank, scores=scores).state_dict()
    assert ranked(teacher, by_magnitude, bank, runtime, heard) is None
    magnitude = initial_student(teacher, student_plan, by_magnitude, bank).state_dict()
    assert all(torch.equal(inherited[name], value) for name, value in magnitude.items()) == broken
    assert [text.endswith("is not finite; they are ranked by magnitude") for text in heard.warnings] == [True] * broken
