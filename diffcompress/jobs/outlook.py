"""How long what is planned would take: on the device at hand if a timing is quick, else on the card that would do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from diffcompress.bank.drawing import calls_per_step
from diffcompress.bank.keeping import Kept
from diffcompress.evaluation.cache import is_shipped
from diffcompress.evaluation.features import FeatureSpace, aside, demo_space
from diffcompress.evaluation.proportion import Calls, in_proportion
from diffcompress.families.base import Family
from diffcompress.jobs.cards import Card
from diffcompress.jobs.deliver import SAMPLES_WITHOUT_SPACE, calls_of, protocol_in
from diffcompress.jobs.forecast import Work, expected, in_rounds
from diffcompress.jobs.pace import Pace, of_card, timed, timed_teacher
from diffcompress.jobs.stand_in import fits, is_demo, stand_in
from diffcompress.noise import NoiseProcess
from diffcompress.pipeline.codec import Codec, random_codec
from diffcompress.pipeline.load import LoadedPipeline
from diffcompress.recipe import Recipe
from diffcompress.records.planned import Expected
from diffcompress.records.protocol import Protocol
from diffcompress.runtime import default_device
from diffcompress.sources.reference import Reference
from diffcompress.student import costs
from diffcompress.student.student_plan import StudentPlan


@dataclass(frozen=True)
class Outlook:
    """Of students of one teacher. reference, noise: None for a config alone; stored: dtype of its weights."""

    reference: Reference | None
    family: Family
    noise: NoiseProcess | None
    stored: str
    recipe: Recipe

    def of(self, student: StudentPlan, card: Card | None, *, recomputed: bool = False) -> tuple[Expected, float] | None:
        """A run in one process, and the seconds of one of its steps; None where neither the device at hand nor `card`
        does. recomputed: whether activations are computed again on `card`."""
        recipe, batch_size = self.recipe, self.recipe.training.batch_size
        teacher = self._here(student)
        if teacher is not None:
            pace = timed(teacher, self._seconds, student, recipe, batch_size)
        elif card is not None:
            whole, own = (costs.count(self.family, config) for config in (student.teacher_config, student.config))
            pace = of_card(card, whole.macs, own, batch_size, recomputed=recomputed)
        else:
            return None
        return in_rounds(recipe, self._expected(student, teacher, pace)), pace.step

    def _here(self, student: StudentPlan) -> LoadedPipeline | None:
        """The teacher on the device at hand, with random weights; None where that would take long or does not fit."""
        macs = costs.count(self.family, student.teacher_config).macs
        if self.reference is None or not fits(self._device, student.teacher_params, macs):
            return None
        return self._stand_in

    @cached_property
    def _device(self) -> torch.device:
        return torch.device(default_device())

    @cached_property
    def _stand_in(self) -> LoadedPipeline:
        assert self.reference is not None and self.noise is not None
        return stand_in(self.reference, self.family, self.noise, self.stored, self._device, self.recipe.bank)

    @cached_property
    def _seconds(self) -> tuple[float, float]:
        return timed_teacher(self._stand_in, self._codec)

    @cached_property
    def _codec(self) -> Codec | None:
        return random_codec(self._stand_in.reference, self._device)

    def _expected(
        self, student: StudentPlan, teacher: LoadedPipeline | None, pace: Pace
    ) -> Callable[[Recipe], Expected]:
        """By the recipe of as many rounds; what all of them share is asked for once."""
        config, bank = student.teacher_config, self.recipe.bank
        if teacher is not None:
            shape, per_step = teacher.sample_shape, calls_per_step(teacher, bank)
        else:
            shape = self.family.sample_shape(config)
            per_step = 2 if bank.guidance != 1 and self._has_null(config) else 1
        space = demo_space() if self.reference is not None and is_demo(self.reference) else None
        asked = self._protocol(space, teacher, config)
        drawn = teacher is not None and is_shipped(teacher.fingerprint, asked)
        if teacher is not None:
            calls = calls_of(teacher, student.config, self._codec, drawn=drawn)
        else:
            own, whole = (costs.count(self.family, one).macs for one in (student.config, config))
            calls = Calls(own, whole, drawn)
        kept = Kept.of(shape, bank, Path.cwd())

        def of(recipe: Recipe) -> Expected:
            protocol = in_proportion(asked, recipe, space, calls)
            work = Work.of(recipe, student.ratio, shape, per_step, kept)
            return expected(work, recipe, protocol, pace, drawn=drawn)

        return of

    def _has_null(self, config: dict[str, object]) -> bool:
        return bool(self.family.text_conditioning(config)) or self.family.null_class(config) is not None

    def _protocol(
        self, space: FeatureSpace | None, teacher: LoadedPipeline | None, config: dict[str, object]
    ) -> Protocol:
        """What is known of it before weights are there: the counts are all that time depends on."""
        if teacher is not None:
            return protocol_in(space, teacher, self.recipe)
        section = self.recipe.evaluation
        count = min(section.num_samples, SAMPLES_WITHOUT_SPACE)
        return Protocol(
            feature_space=None,
            sampler="",
            sampler_steps=section.sampler_steps,
            guidance=section.guidance if self._has_null(config) else 1.0,
            num_samples=count,
            seed=0,
            aside_samples=aside(count, None),
        )
