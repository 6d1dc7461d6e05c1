"""`plan`: what would be built, and what it costs, from configs and safetensors headers alone; no weights are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import Any

from diffcompress import recipe as recipes
from diffcompress.bank.keeping import Kept
from diffcompress.errors import DoesNotFitError, UsageError
from diffcompress.export import formats
from diffcompress.families import registry
from diffcompress.families.base import Family, complete
from diffcompress.jobs.cards import CARDS
from diffcompress.jobs.footprint import Footprint, Models, encoder_bytes, learns_alone, smallest
from diffcompress.jobs.outlook import Outlook
from diffcompress.jobs.signature import as_function
from diffcompress.noise import NoiseProcess
from diffcompress.pipeline.left_out import leave_out
from diffcompress.pipeline.load import check_teacher, describe, hollow
from diffcompress.recipe import Recipe
from diffcompress.records.planned import Planned
from diffcompress.records.report import Part, PipelineSize
from diffcompress.records.request import PlanOptions
from diffcompress.report import evidence
from diffcompress.runtime import Progress
from diffcompress.sources import original_shapes
from diffcompress.sources.halves import saving
from diffcompress.sources.licence import licence_of
from diffcompress.sources.model_index import DENOISERS, check_config
from diffcompress.sources.reference import Reference
from diffcompress.sources.resolve import denoiser_config, resolve
from diffcompress.student import costs
from diffcompress.student import plan as planning
from diffcompress.student.student_plan import StudentPlan


@dataclass(frozen=True)
class _Teacher:
    """What a plan needs of a teacher. noise: its process, None for a config alone; dtype: of its stored weights, None
    when no file tells; ours: bytes of the parts that the student will come with, and theirs: of all parts of the
    teacher's pipeline, None when there is no pipeline; encoders: bytes of the text encoders that it is asked
    with, as far as they are known; reference: None for a config alone."""

    id: str
    family: Family
    config: Mapping[str, Any]
    noise: NoiseProcess | None
    dtype: str | None
    ours: Mapping[str, int] | None
    theirs: Mapping[str, int] | None
    encoders: int
    notes: tuple[str, ...]
    reference: Reference | None = None

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one call at batch 1."""
        return costs.count(self.family, self.config).macs


def run(asked: PlanOptions, progress: Progress) -> Planned | list[Planned]:
    """What `plan --json` prints: one object, or a list when `ratio` is a list.

    Exactly one of ratio, params and size sets the target; dtype (default: the teacher's) is that of the file. Of
    several ratios an unreachable one has `ratio` None and a note; asked alone it raises DoesNotFitError. UsageError for
    a bad teacher, target or recipe.
    """
    teacher, settings = _find(asked)
    stored = asked.dtype or teacher.dtype or "float32"
    outlook = Outlook(teacher.reference, teacher.family, teacher.noise, teacher.dtype or "float32", settings)

    def row(ratio: float | None) -> Planned:
        target: dict[str, Any] = {"ratio": ratio, "params": asked.params, "size": asked.size, "dtype": stored}
        section, noise = settings.student, teacher.noise
        student = planning.plan(teacher.family, teacher.config, **target, section=section, noise=noise)
        formats.check(settings.export, teacher.family, student.config, student.adapters)
        return _row(teacher, student, outlook, stored)

    if asked.ratio is None or isinstance(asked.ratio, (int, float)):
        return row(asked.ratio)
    rows = []
    for number, ratio in enumerate(asked.ratio, 1):
        try:
            rows.append(row(ratio))
        except DoesNotFitError as error:
            rows.append(_unreachable(teacher, ratio, error))
        progress.update("plan", number, len(asked.ratio))
    return rows


plan = as_function("plan", PlanOptions, run, "dict[str, Any] | list[dict[str, Any]]")


def _row(teacher: _Teacher, student: StudentPlan, outlook: Outlook, dtype: str) -> Planned:
    recipe = outlook.recipe
    cost = costs.count(teacher.family, student.config)
    size = cost.file_bytes(dtype)
    models = Models(teacher.family, student, recipe.training, outlook.stored, teacher.encoders)
    card = smallest(models)
    footprint = models.on(card or CARDS[-1])
    known = evidence.lookup(teacher.family.class_name, student.ratio)
    expected, step = outlook.of(student, card, recomputed=footprint.recomputed) or (None, None)
    parts, whole = _pipeline(teacher, size)
    return Planned(
        teacher=teacher.id,
        family=teacher.family.class_name,
        ratio=student.ratio,
        requested_ratio=student.requested_ratio,
        params=cost.params,
        size_bytes=size,
        config=dict(student.config),
        prediction_type=student.prediction_type,
        macs=cost.macs,
        macs_ratio=cost.macs / teacher.macs,
        pipeline_bytes=whole.bytes,
        pipeline_ratio=whole.ratio,
        parts=parts,
        peak_memory_bytes=footprint.peak,
        card=card and card.name,
        seconds_per_step=step,
        expected=expected,
        evidence=known,
        notes=[
            *teacher.notes,
            *student.notes,
            *original_shapes.notes(teacher.family.class_name, student.config),
            _memory(models, footprint, recipe),
            *_kept(teacher, recipe),
            known.told if known else evidence.NOTHING_KNOWN,
        ],
    )


def _memory(models: Models, footprint: Footprint, recipe: Recipe) -> str:
    card = smallest(models)
    least = f"the smallest card that would do: {card.name} ({card.gib} GB)" if card else "no card alone has as much"
    ways = {"the teacher's layers left on disk, which is slower": attrgetter("apart")}
    if learns_alone(recipe):
        ways = {"the teacher away while its student trains": attrgetter("parted"), **ways}
    for how, size in ways.items():
        if (found := smallest(models, size)) is not None and found != card:
            least, card = f"{least}, with {how}, {found.name} ({found.gib} GB)", found
    return (
        f"{least}; peak memory is an estimate, of one sample at a time (larger batches where memory holds them): "
        f"{footprint.told()}"
    )


def _kept(teacher: _Teacher, recipe: Recipe) -> list[str]:
    shape = teacher.family.sample_shape(teacher.config)
    kept = Kept.of(shape, recipe.bank, Path.cwd())
    return [] if kept == Kept.in_memory(shape, recipe.bank) else [kept.sentence(shape, recipe.bank)]


def _pipeline(teacher: _Teacher, denoiser_bytes: int) -> tuple[list[Part] | None, PipelineSize]:
    """All parts around a student whose denoiser is stored in `denoiser_bytes`."""
    if teacher.ours is None or teacher.theirs is None:
        return None, PipelineSize.of(None, None)
    ours = {name: denoiser_bytes if name in DENOISERS else size for name, size in teacher.ours.items()}
    return Part.listed(ours, DENOISERS), PipelineSize.of(sum(ours.values()), sum(teacher.theirs.values()))


def _unreachable(teacher: _Teacher, ratio: float, error: DoesNotFitError) -> Planned:
    told = f"{error.message}; {error.hint}" if error.hint else error.message
    known: dict[str, Any] = {"teacher": teacher.id, "family": teacher.family.class_name, "requested_ratio": ratio}
    return Planned(**dict.fromkeys(Planned.model_fields) | known | {"notes": [*teacher.notes, told]})


def _find(asked: PlanOptions) -> tuple[_Teacher, Recipe]:
    """The teacher that is asked for, as the recipe beside it has it."""
    text = str(asked.teacher)
    path = Path(text).expanduser()
    if path.suffix == ".json" and path.is_file():
        teacher = _from_config(text, path)
        name, settings = _recipe(asked, teacher.family)
        if settings.student.without:
            told = ", ".join(settings.student.without)
            raise UsageError(f"student.without names {told}, and '{text}' has no pipeline", "name a pipeline folder")
    else:
        reference = resolve(text, asked.scheduler)
        name, settings = _recipe(asked, registry.find(reference.class_name))
        teacher = _from_reference(reference, settings)
    doubts = recipes.doubts(name, teacher.family.class_name, teacher.family.recipe)
    return replace(teacher, notes=(*teacher.notes, *doubts)), settings


def _recipe(asked: PlanOptions, family: Family) -> tuple[str, Recipe]:
    name = asked.recipe or recipes.default_for(str(asked.teacher), family.recipe)
    return name, recipes.load(name, tuple(asked.overrides))


def _from_reference(reference: Reference, recipe: Recipe) -> _Teacher:
    family, noise = describe(reference)
    asked = leave_out(reference, family, recipe.student.without)
    dtype = check_teacher(asked)
    notes, licence = asked.notes, licence_of(asked)
    if not licence.is_known:
        notes = (*notes, f"the licence is unknown ({licence.source}); before a push to the Hub, {licence.advice}")
    config, ours, theirs = asked.complete_config, asked.part_sizes(), reference.part_sizes()
    encoders = encoder_bytes(ours)
    if recipe.export.half_parts and ours is not None:
        ours = {part: size - (saving(asked, part) if part != asked.denoiser_part else 0) for part, size in ours.items()}
    return _Teacher(reference.id, family, config, noise, dtype, ours, theirs, encoders, notes, asked)


def _from_config(text: str, path: Path) -> _Teacher:
    """A bare denoiser config, enough for a plan."""
    config = denoiser_config(path)
    if "_class_name" not in config:
        raise UsageError(f"{path} is not a denoiser config: it has no _class_name", "name a denoiser's config.json")
    family = registry.find(config["_class_name"])
    check_config(config, text)
    hollow(family, config, text, buffers=False)
    config = complete(family.class_name, config)
    return _Teacher(text, family, config, None, None, None, None, 0, ("sizes in float32: a config alone",))
