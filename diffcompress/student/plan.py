"""Find the student: a diffusers config of the asked size, searched on the meta device; no weights are read."""

from __future__ import annotations

from dataclasses import replace

from diffcompress.families.base import Config, Family, complete
from diffcompress.noise import NoiseProcess
from diffcompress.recipe import StudentSection
from diffcompress.student.stack_plan import plan_stack
from diffcompress.student.student_plan import StudentPlan
from diffcompress.student.target import Target
from diffcompress.student.unet_plan import plan_unet


def plan(
    family: Family,
    config: Config,
    *,
    ratio: float | None = None,
    params: int | None = None,
    size: int | None = None,
    dtype: str | None = None,
    section: StudentSection | None = None,
    noise: NoiseProcess | None = None,
) -> StudentPlan:
    """The student of `config` with `ratio` of its parameters, `params` parameters, or `size` bytes stored as `dtype`.

    dtype: a torch name, "float32" if None; section: how students are built; noise: the teacher's, None where only its
    config is known. Raises UsageError unless exactly one target is given and lies below the teacher; DoesNotFitError,
    naming the nearest ratio that can be reached, when no student comes within 1 % (a transformer that keeps its
    teacher's head size: 5 %).
    """
    section = section or StudentSection()
    config = complete(family.class_name, config)
    variants = family.variants(config, channels_per_group=section.channels_per_group)
    target = Target.of(family, config, variants[0], ratio=ratio, params=params, size=size, dtype=dtype)
    found = plan_stack(target, variants) if family.kind == "transformer" else plan_unet(target, variants, section)
    if noise is None:
        return found
    predicts = noise.prediction_type if section.prediction == "teacher" else noise.velocity
    note = f"prediction_type: {noise.prediction_type} -> {predicts} (student.prediction)"
    notes = found.notes if predicts == noise.prediction_type else (*found.notes, note)
    return replace(found, prediction_type=predicts, notes=notes)
