"""What a run takes of a device's memory, part by part, from configs alone; and the smallest card that has as much."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from operator import attrgetter

import torch

from diffcompress.bank.targets import may_grow
from diffcompress.families.base import Family
from diffcompress.jobs.cards import CARDS, Card, card_of
from diffcompress.memory import SHARE, Need
from diffcompress.recipe import Recipe, TrainingSection
from diffcompress.sources.reference import Reference
from diffcompress.student import costs
from diffcompress.student.size import build
from diffcompress.student.student_plan import StudentPlan
from diffcompress.training import optim

# Of what activations take in float32, what they take under bfloat16 autocast, which keeps norms in float32.
MIXED = 0.6


@dataclass(frozen=True)
class Footprint:
    """Bytes of one sample at a time, which is the least that a run can do with. encoders: the text encoders; teacher:
    its weights; layer: the largest of its tensors; call: of it; student: weights, gradients, averages and the
    optimizer's moments; step: forward and backward pass; update: what the optimizer works with; recomputed: whether
    the student's activations are computed again for the backward pass."""

    encoders: int
    teacher: int
    layer: int
    call: int
    student: int
    step: int
    update: int
    recomputed: bool = False

    @property
    def peak(self) -> int:
        """The largest of what is there at once: the teacher with its text encoders, asked, or beside its student."""
        return self.teacher + max(self.encoders, self.beside)

    @property
    def parted(self) -> int:
        """The peak where the teacher leaves while its student trains."""
        return max(self.teacher + max(self.encoders, self.call), self.student + max(self.step, self.update))

    @property
    def apart(self) -> int:
        """The peak with the teacher's layers, and those of encoders that do not fit by themselves, left on disk."""
        return self.layer + self.beside

    @property
    def beside(self) -> int:
        """What is there beside the teacher at most, once its prompts are encoded."""
        return max(self.call, self.student + max(self.step, self.update))

    def told(self) -> str:
        parts = {
            "the teacher's weights": self.teacher,
            "one sample in it": self.call,
            "the student with gradients, average and moments": self.student,
            "one sample's step" + " with activations computed again" * self.recomputed: self.step,
            "the optimizer's update": self.update,
            "text encoders, which then leave,": self.encoders,
        }
        return ", ".join(f"{name} {size / 1e9:.2g} GB" for name, size in parts.items() if size)


@dataclass(frozen=True)
class Models:
    """What footprints are of. stored: dtype of the teacher's weights; encoders: bytes of its text encoders."""

    family: Family
    plan: StudentPlan
    section: TrainingSection
    stored: str
    encoders: int

    def half(self, card: Card | None) -> bool:
        """Whether the teacher computes in half precision there; None: on a CPU."""
        return card is not None and (card.bfloat16 or self.stored == "float16")

    def on(self, card: Card | None) -> Footprint:
        """As a run goes there: activations are computed again where a sample's step does not fit otherwise."""
        plain = self._at(card, self._step, recompute=self.section.recompute)
        room = math.inf if card is None else card.bytes - plain.teacher - plain.student
        if plain.recomputed or plain.step <= SHARE * room:
            return plain
        if card is not None and replace(plain, step=0).apart > card.bytes:
            return plain  # it does not fit either way, and counting takes seconds
        if self._recomputed is None:
            return plain
        again = self._at(card, self._recomputed, recompute=True)
        return again if again.step < plain.step else plain

    def _at(self, card: Card | None, step: Need, *, recompute: bool) -> Footprint:
        moments, working = self._optimizer
        mixed = card is not None and card.bfloat16 and self.section.precision == "bfloat16"
        half = self.half(card)
        teacher = costs.count(self.family, self.plan.teacher_config)
        return Footprint(
            encoders=self.encoders,
            teacher=(2 if half else 4) * self.plan.teacher_params,
            layer=(2 if half else 4) * max(map(math.prod, teacher.shapes.values())),
            call=teacher.call // (2 if half else 1),
            student=12 * self.plan.params + moments,
            step=step.fixed + int(step.row * (MIXED if mixed else 1.0)),
            update=working,
            recomputed=recompute,
        )

    @cached_property
    def _step(self) -> Need:
        recompute = self.section.recompute
        return costs.training_memory(self.family, self.plan.config, alone=True, recompute=recompute)

    @cached_property
    def _recomputed(self) -> Need | None:
        with contextlib.suppress(ValueError):  # the class cannot
            return costs.training_memory(self.family, self.plan.config, alone=True, recompute=True)
        return None

    @cached_property
    def _optimizer(self) -> tuple[int, int]:
        return optim.memory(build(self.family, self.plan.config, "meta"), self.section)


@dataclass(frozen=True)
class Beside:
    """Bytes that a run takes of `device` beside its teacher's weights, counted when they are asked for; encoding: while
    its text encoders are there."""

    reference: Reference
    family: Family
    plan: StudentPlan
    section: TrainingSection
    stored: str
    device: torch.device

    def __call__(self) -> int:
        return self._footprint.beside

    def encoding(self) -> int:
        return max(self(), self._footprint.encoders)

    def call(self) -> int:
        """Of a teacher that leaves while its student trains."""
        return self._footprint.call

    def encoding_alone(self) -> int:
        return max(self.call(), self._footprint.encoders)

    @cached_property
    def _footprint(self) -> Footprint:
        encoders = encoder_bytes(self.reference.part_sizes())
        models = Models(self.family, self.plan, self.section, self.stored, encoders)
        return models.on(card_of(self.device))


def encoder_bytes(parts: Mapping[str, int] | None) -> int:
    """Of the text encoders among `parts` of a pipeline, as far as they are known."""
    return sum(size for part, size in (parts or {}).items() if part.startswith("text_encoder"))


def smallest(models: Models, size: Callable[[Footprint], int] = attrgetter("peak")) -> Card | None:
    """The card with the least memory that has enough, by a `size` of footprints; None where one alone does not."""
    return next((card for card in CARDS if size(models.on(card)) <= card.bytes), None)


def learns_alone(recipe: Recipe) -> bool:
    """Whether students need no teacher while they train: stored calls may be all that they learn from."""
    return may_grow(recipe.targets) and not any(stage.weights.feature_kd > 0 for stage in recipe.stages)
