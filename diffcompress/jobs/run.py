"""A run at work: its folder is claimed, its student planned and its teacher loaded."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from diffcompress import __version__
from diffcompress import runtime as runtimes
from diffcompress.errors import UsageError
from diffcompress.export import formats, hub
from diffcompress.export.rehearsal import rehearse
from diffcompress.images import hub_images, images
from diffcompress.images.texts import held_out_texts, texts_for
from diffcompress.jobs.footprint import Beside, learns_alone
from diffcompress.jobs.request import Request
from diffcompress.pipeline.encoding import with_prompts
from diffcompress.pipeline.load import LoadedPipeline, check_teacher, describe, load
from diffcompress.recipe import Recipe
from diffcompress.records import shapes
from diffcompress.records.run_files import kept, read_json, write_checked, write_json
from diffcompress.records.run_folder import RunFolder
from diffcompress.runtime import Progress, Runtime
from diffcompress.sources.fetch import fetch
from diffcompress.sources.licence import licence_of, unused
from diffcompress.sources.weights import require_parts
from diffcompress.student.plan import plan
from diffcompress.student.student_plan import StudentPlan
from diffcompress.training import trackers


@dataclass(frozen=True)
class Run:
    """What every step of a run needs to know. own: the user's images, where --data names some."""

    request: Request
    folder: RunFolder
    teacher: LoadedPipeline
    plan: StudentPlan
    own: images.Images | None
    runtime: Runtime
    progress: Progress

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add the seconds of a step to those of earlier calls; one that is stopped counts too."""
        started = time.monotonic()
        try:
            yield
        finally:
            before = self._timings().get(name, 0)
            self.set_seconds(name, before + time.monotonic() - started)

    def set_seconds(self, name: str, seconds: float) -> None:
        """All seconds that a step took so far."""
        if self.runtime.is_main:
            write_checked(self.folder.timings, self._timings() | {name: round(seconds, 2)})

    def _timings(self) -> dict[str, float]:
        return read_json(self.folder.timings, kind=shapes.Timings) if self.folder.timings.exists() else {}


@contextlib.contextmanager
def opened(request: Request, progress: Progress) -> Iterator[Run]:
    """The run that is asked for, while this process holds its folder. Everything that can be refused is refused before
    the folder is touched."""
    asked, reference, recipe = request.asked, request.reference, request.recipe
    family, noise = describe(reference)
    stored = check_teacher(reference)
    target: dict[str, Any] = asked.target | {"dtype": asked.dtype or stored}
    student_plan = plan(family, reference.complete_config, **target, section=recipe.student, noise=noise)
    folder = request.folder(student_plan.requested_ratio)
    runtime = runtimes.start(asked.device)
    _check(request, runtime, progress)
    formats.check(recipe.export, family, student_plan.config, student_plan.adapters)
    data = hub_images.pinned(None if asked.data is None else str(asked.data))
    request = replace(request, asked=replace(asked, data=data))
    fetch(reference, progress)
    if reference.pipeline is not None:
        require_parts(reference, (part for part in reference.parts if part != reference.denoiser_part))
    beside = Beside(reference, family, student_plan, recipe.training, stored or "float32", runtime.device)
    loaded = partial(load, reference, runtime.device, sample_size=recipe.bank.sample_size, progress=progress)
    may_leave = data is None and learns_alone(recipe)  # a bank of images has no stored calls
    teacher = loaded(beside=beside.encoding, asked=beside.encoding_alone if may_leave else None)
    texts = texts_for(teacher, recipe, data, asked.prompts, progress)
    held_out = held_out_texts(teacher, data, asked.prompts, texts)
    identity = request.identity(teacher.fingerprint)
    # With the text encoders, which are loaded once: they encode the prompts, and leave.
    whole = rehearse(teacher, progress) if runtime.is_main and not folder.bank.exists() else None
    runtime.stop.install()
    try:
        own = _own_images(data, request.recipe, teacher, texts, runtime, progress)
        claim = folder.claim(identity, overwrite=asked.overwrite, inputs=request.inputs, warn=progress.warn)
        with claim if runtime.is_main else contextlib.nullcontext():
            runtime.wait()
            length = recipe.bank.text_length
            teacher = with_prompts(teacher, texts, folder.conditions, runtime, progress, length, whole, held_out)
            whole = None
            gc.collect()
            if teacher.placed is not None:  # perhaps for its text encoders alone, which have left
                there = loaded(beside=beside, asked=beside.call if may_leave else None)
                teacher = replace(there, conditions=teacher.conditions)
            if teacher.placed is not None:
                student_plan = replace(student_plan, notes=(*student_plan.notes, teacher.placed))
            _tell_version(folder, progress)
            for note in (*reference.notes, *student_plan.notes):
                progress.note(note)
            if runtime.is_main:
                _mend(folder, request, progress)
                sizes = teacher.reference.whole.part_sizes()
                around = {"teacher_pipeline_bytes": None if sizes is None else sum(sizes.values())}
                write_checked(folder.plan, student_plan.to_json() | around)
                write_json(folder.environment, runtimes.environment(runtime))
            yield Run(request, folder, teacher, student_plan, own, runtime, progress)
    finally:
        runtime.stop.restore()


def _mend(folder: RunFolder, request: Request, progress: Progress) -> None:
    """Remove records of time that are damaged. What --max-time asks for now then counts as what was granted."""
    kept(folder.timings, partial(read_json, kind=shapes.Timings), progress.warn)
    begun = folder.budget.exists() and request.asked.max_time is not None
    if kept(folder.budget, partial(read_json, kind=shapes.Budget), progress.warn) is None and begun:
        write_checked(folder.budget, {"max_time": request.asked.max_time})


def _tell_version(folder: RunFolder, progress: Progress) -> None:
    made_by = folder.identity.get("version")
    if made_by != __version__:
        progress.warn(
            f"the run in {folder.path} was begun by diffcompress {made_by or 'of an earlier version'} and goes on with "
            f"{__version__}: what is already there stays"
        )


def _own_images(
    data: str | None,
    recipe: Recipe,
    teacher: LoadedPipeline,
    texts: list[str],
    runtime: Runtime,
    progress: Progress,
) -> images.Images | None:
    if data is None:
        return None
    own = images.read_for(data, teacher, texts, recipe.bank.num_samples, progress, runtime.stop)
    own.tell(progress)
    return own


def _check(request: Request, runtime: Runtime, progress: Progress) -> None:
    """Raise what would otherwise come up after hours, such as a push that cannot be."""
    asked, batch_size = request.asked, request.recipe.training.batch_size
    if batch_size % runtime.count:
        raise UsageError(
            f"a batch of {batch_size} cannot be shared out equally over {runtime.count} processes",
            f"--set training.batch_size={-(-batch_size // runtime.count) * runtime.count}",
        )
    trackers.check(request.recipe.training.trackers)
    licence = licence_of(request.reference, asked.license)
    if asked.license not in (None, licence.id):
        progress.warn(unused(licence, asked.license))
    if asked.push_to_hub is not None and runtime.is_main:
        hub.check(asked.push_to_hub, public=asked.public, licence=licence)
