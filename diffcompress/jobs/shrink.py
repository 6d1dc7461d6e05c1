"""`shrink`: the whole story, one call for each step: plan, bank, inherit, train, evaluate, export, report."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from diffcompress import recipe as recipes
from diffcompress import runtime as runtimes
from diffcompress.data import bank as banks
from diffcompress.data.targets import Targets
from diffcompress.evaluation.doubts import beats_teacher
from diffcompress.evaluation.features import FeatureSpace, find_space
from diffcompress.evaluation.protocol import Protocol
from diffcompress.evaluation.score import evaluate_pipeline
from diffcompress.export import formats
from diffcompress.export import hub as publishing
from diffcompress.export.formats import write_formats
from diffcompress.export.licence import licence_of
from diffcompress.export.proof import prove
from diffcompress.export.provenance import relicense
from diffcompress.export.report import write_report
from diffcompress.export.sheets import write_sheet
from diffcompress.export.weights import export_pipeline
from diffcompress.jobs.setting import texts_for
from diffcompress.jobs.students import as_student, averaged_student, copy_student, initial_student
from diffcompress.recipe import Recipe
from diffcompress.run_folder import RunFolder, discard, read_json, write_atomically, write_json, write_text
from diffcompress.runtime import Progress, Runtime
from diffcompress.sampling import automatic_batch_size, sample
from diffcompress.student.plan import StudentPlan, plan
from diffcompress.teacher.encoding import with_prompts
from diffcompress.teacher.load import LoadedPipeline, describe, load
from diffcompress.teacher.reference import resolve
from diffcompress.teacher.weights import stored_dtype
from diffcompress.training import budget, micro
from diffcompress.training.ema import Ema
from diffcompress.training.objective import Trainee, make_adapters
from diffcompress.training.optim import make_optimizer
from diffcompress.training.stage import Job, run_stage
from diffcompress.training.state import Checkpoints, TrainingState

PREVIEW_SAMPLES = 16
# Without a feature space no distance is estimated, and fewer samples tell the rest.
SAMPLES_WITHOUT_SPACE = 256
ALONE = (
    "this launch asked for several processes but started one: `accelerate launch --cpu` needs MPI for more; "
    "`torchrun --nproc_per_node 2 -m diffcompress ...` starts two"
)
RESULT_FIELDS = (
    "run",
    "pipeline",
    "report",
    "teacher",
    "student",
    "stages",
    "metrics",
    "warnings",
    "seconds",
    "pushed",
)


def shrink(
    teacher: str,
    *,
    ratio: float | None = None,
    params: int | None = None,
    size: int | None = None,
    output: str | None = None,
    overwrite: bool = False,
    data: str | None = None,
    prompts: str | None = None,
    method: str = "lift-place",
    max_time: float | None = None,
    recipe: str | None = None,
    overrides: tuple[str, ...] = (),
    seed: int = 0,
    device: str | None = None,
    dtype: str | None = None,
    license: str | None = None,
    scheduler: str | None = None,
    push_to_hub: str | None = None,
    public: bool = False,
    shared: Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Compress `teacher` and return what `shrink --json` prints. The same call again resumes.

    Exactly one of ratio (0 < ratio < 1), params (a count) and size (bytes of the exported denoiser) sets the target;
    max_time is in seconds of training; push_to_hub (owner/name) is pushed to in the end, private unless `public`.
    shared: see RunFolder. Raises DiffCompressError subclasses, each with its exit status.
    """
    reference = resolve(teacher, scheduler)
    family, _ = describe(reference)
    recipe = recipe or recipes.default_for(reference.id, family.recipe)
    asked = recipes.load(recipe, tuple(overrides), method, seed=seed)
    student_plan = plan(
        family,
        reference.config,
        ratio=ratio,
        params=params,
        size=size,
        dtype=dtype or stored_dtype(reference),
        section=asked.student,
    )
    run = RunFolder(output or f"./{reference.name}-{student_plan.requested_ratio:.4g}", shared)
    runtime = runtimes.start(device)
    progress = progress or Progress()
    licence = licence_of(reference, license)
    if license not in (None, licence.id):
        progress.warn(f"--license {license} is not used: {licence.source} says {licence.id}")
    if push_to_hub is not None and runtime.is_main:
        publishing.check(push_to_hub, public=public, licence=licence)
    formats.check(asked.export)
    reference.fetch(progress=progress)
    loaded = load(reference, runtime.device, sample_size=asked.bank.sample_size)
    texts = texts_for(loaded, asked, data, prompts)
    identity = {
        "teacher": reference.id,
        "fingerprint": loaded.fingerprint,
        "target": {"ratio": ratio, "params": params, "size": size},
        "method": method,
        "data": data,
        "prompts": prompts,
        "dtype": dtype,
        "scheduler": scheduler,
        "recipe_name": recipe,
        # A finished run may be exported to another format later.
        "recipe": asked.model_dump(mode="json", exclude={"export"}),
    }
    runtime.stop.install()
    claim = run.claim(identity, overwrite=overwrite) if runtime.is_main else contextlib.nullcontext()
    try:
        with claim:
            runtime.wait()
            loaded = with_prompts(loaded, texts, run.conditions, runtime, progress, asked.bank.text_length)
            context = _Context(run, loaded, student_plan, runtime, progress, license)
            if runtime.launched_alone:
                context.progress.warn(ALONE)
            for note in (*reference.notes, *student_plan.notes):
                context.progress.note(note)
            _run(context, asked, data, max_time)
            if push_to_hub is not None and runtime.is_main:
                _push(context, push_to_hub, public)
            runtime.wait()
            told = read_json(run.report_json)
            return {name: told[name] for name in RESULT_FIELDS}
    finally:
        runtime.stop.restore()


@dataclass(frozen=True)
class _Context:
    run: RunFolder
    teacher: LoadedPipeline
    plan: StudentPlan
    runtime: Runtime
    progress: Progress
    license: str | None

    def write_json(self, path: Any, value: Any) -> None:
        if self.runtime.is_main:
            write_json(path, value)

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self.add_seconds(name, time.monotonic() - started)

    def add_seconds(self, name: str, seconds: float, *, total: bool = False) -> None:
        """Seconds of a step, added up over interrupted runs unless `seconds` is already the total."""
        if self.runtime.is_main:
            timings = read_json(self.run.timings) if self.run.timings.exists() else {}
            write_json(self.run.timings, timings | {name: round(seconds + (0 if total else timings.get(name, 0)), 2)})


def _run(context: _Context, asked: Recipe, data: str | None, max_time: float | None) -> None:
    run, runtime = context.run, context.runtime
    context.write_json(run.plan, context.plan.to_json())
    context.write_json(run.environment, runtimes.environment(runtime))
    if max_time is not None and runtime.is_main and not run.recipe.exists():
        context.progress.note(_estimate(context, asked, own_images=data is not None))
    with context.timed("bank"):
        bank = banks.fill(run.bank, context.teacher, asked.bank, asked.seed, data, runtime, context.progress)
    with context.timed("student-init"):
        start = _start(context, asked, bank)
    recipe, trained = _train(context, asked, start, bank, max_time)
    if runtime.is_main:
        _conclude(context, recipe.model_copy(update={"export": asked.export}), start, trained, bank)


def _start(context: _Context, recipe: Recipe, bank: banks.Bank) -> nn.Module:
    """The student before training, kept in the run folder so that a resumed run starts from the same."""
    file = context.run.student_init / "student.safetensors"
    student = initial_student(context.teacher, context.plan, recipe, bank, ranked=not file.exists())
    if file.exists():
        student.load_state_dict(load_file(file))
    elif context.runtime.is_main:
        write_atomically(file, functools.partial(save_file, student.state_dict()))
    context.runtime.wait()
    return student.to(context.runtime.device)


def _estimate(context: _Context, recipe: Recipe, *, own_images: bool) -> str:
    """What bank and evaluation add to --max-time, from the time of one teacher call."""
    teacher = context.teacher
    indices = range(automatic_batch_size(teacher))
    started = time.monotonic()
    sample(teacher, indices, seed=recipe.seed, num_steps=1)
    seconds = (time.monotonic() - started) / len(indices)
    calls = 2 if recipe.bank.guidance != 1 and teacher.conditions.null is not None else 1
    bank = (
        0.0
        if own_images
        else calls * seconds * recipe.bank.num_samples * recipe.bank.sampler_steps / context.runtime.count
    )
    _, samples = _judged(teacher, recipe)
    # Student and untrained student are small beside the teacher, but not free: count the two as one teacher.
    evaluation = 2 * seconds * samples * recipe.evaluation.sampler_steps
    return f"besides training: bank about {bank:.0f} s, evaluation at most about {evaluation:.0f} s, export about 30 s"


def _judged(teacher: LoadedPipeline, recipe: Recipe) -> tuple[FeatureSpace | None, int]:
    """Where distances are measured, and with how many samples."""
    space = find_space(teacher)
    wanted = recipe.evaluation.num_samples
    return space, wanted if space else min(wanted, SAMPLES_WITHOUT_SPACE)


def _train(
    context: _Context, asked: Recipe, start: nn.Module, bank: banks.Bank, max_time: float | None
) -> tuple[Recipe, nn.Module]:
    """All stages, from wherever they stand; the resolved recipe and the student with its EMA weights."""
    student = copy_student(context.plan, start)
    uses_features = any(stage.weights.feature_kd > 0 for stage in asked.stages)
    adapters = make_adapters(student, context.teacher) if uses_features else None
    trainee = Trainee(student, context.teacher.family, adapters).to(context.runtime.device).train()
    recipe = _resolved(context, asked, trainee, bank, max_time)
    job = _job(context, recipe, trainee, bank)
    for index, stage in enumerate(recipe.stages):
        folder = context.run.stage(index, stage.name)
        run_stage(job, index, folder)
        context.add_seconds(folder.name, job.state.counters.seconds, total=True)
    return recipe, averaged_student(context.plan, start, job.state)


def _job(context: _Context, recipe: Recipe, trainee: Trainee, bank: banks.Bank) -> Job:
    optimizer = make_optimizer(trainee, recipe.training)
    state = TrainingState(trainee, Ema(trainee, recipe.training.ema_half_life * recipe.num_steps), optimizer)
    targets = Targets(
        context.run.targets,
        context.teacher,
        bank,
        recipe.targets,
        seed=recipe.seed,
        batch_size=recipe.training.batch_size,
        num_steps=recipe.num_steps,
        runtime=context.runtime,
        progress=context.progress,
        keep=context.run.shared is not None,
    )

    def preview(step: int) -> None:
        pipeline = as_student(context.teacher, context.plan, averaged_student(context.plan, trainee.student, state))
        steps, guidance = recipe.evaluation.sampler_steps, recipe.evaluation.guidance
        drawn = sample(pipeline, range(PREVIEW_SAMPLES), seed=recipe.seed, num_steps=steps, guidance=guidance)
        codec = context.teacher.codec
        write_sheet(drawn if codec is None else codec.decode(drawn), context.run.samples / f"preview-{step:06d}.png")

    wrapped = context.runtime.accelerator.prepare(trainee)
    return Job(recipe, context.teacher, wrapped, state, targets, context.runtime, context.progress, preview)


def _resolved(context: _Context, asked: Recipe, trainee: Trainee, bank: banks.Bank, max_time: float | None) -> Recipe:
    """The recipe of this run with its final step counts: what recipe.yaml says once it is written."""
    run, runtime = context.run, context.runtime
    runtime.wait()
    if run.recipe.exists():
        recipe = recipes.parse(run.recipe.read_text(encoding="utf-8"), str(run.recipe))
        granted = read_json(run.budget)["max_time"] if run.budget.exists() else None
        if max_time is None or granted is None or max_time <= granted:
            return recipe
        last = Checkpoints(run.stage(len(recipe.stages) - 1, recipe.stages[-1].name))
        if not last.final.is_dir():
            context.progress.note(
                f"the step count was fixed for {granted:g} s and stays; ask for more time once the run is finished"
            )
            return recipe
        recipe = budget.extend(recipe, max_time, read_json(run.timings))
        runtime.wait()
        if runtime.is_main:
            last.reopen()
            for path in (run.metrics, run.proof, run.report_json):
                discard(path)
    elif max_time is None:
        recipe = _with_micro_batches(context, asked, trainee)
    else:
        job = _job(context, _with_micro_batches(context, asked, trainee), trainee, bank)
        recipe = budget.fit_steps(job, max_time, run.targets)
        context.progress.note(f"{recipe.num_steps} steps fit into {max_time:g} s of training")
    if runtime.is_main:
        if max_time is not None:
            write_json(run.budget, {"max_time": max_time})
        write_text(run.recipe, recipe.to_yaml())
    runtime.wait()
    return recipe


def _with_micro_batches(context: _Context, recipe: Recipe, trainee: Trainee) -> Recipe:
    """The recipe with a step's batch in parts, where memory cannot hold it whole; every process has the same."""
    runtime, section = context.runtime, recipe.training
    if section.micro_batch_size is not None:
        return recipe
    share = len(range(section.batch_size)[runtime.share(section.batch_size)])
    found = torch.tensor([micro.automatic_size(trainee, context.teacher, share, runtime.device)], device=runtime.device)
    size = int(runtime.accelerator.gather(found).min())
    if size >= share:
        return recipe
    context.progress.note(f"batches of {share} are trained in parts of {size}: what memory holds")
    return recipe.model_copy(update={"training": section.model_copy(update={"micro_batch_size": size})})


def _conclude(context: _Context, recipe: Recipe, start: nn.Module, trained: nn.Module, bank: banks.Bank) -> None:
    """Evaluation, export, proof and report; each skipped when its file is there."""
    run, teacher, identity = context.run, context.teacher, context.run.identity
    student = as_student(teacher, context.plan, trained)
    if not run.metrics.exists():
        with context.timed("evaluation"):
            space, wanted = _judged(teacher, recipe)
            protocol = Protocol.make(
                space,
                num_samples=wanted,
                sampler_steps=recipe.evaluation.sampler_steps,
                guidance=recipe.evaluation.guidance if teacher.conditions.null is not None else 1.0,
                conditions=teacher.conditions.digest,
            )
            scored = evaluate_pipeline(
                student,
                teacher,
                protocol,
                space=space,
                cache_folder=run.cache,
                stop=context.runtime.stop,
                untrained=as_student(teacher, context.plan, start),
                samples_folder=run.samples,
                progress=context.progress,
            )
            about = {"id": str(run.pipeline), "fingerprint": student.fingerprint}
            result = {
                "student": about,
                "teacher": {"id": teacher.reference.id, "fingerprint": teacher.fingerprint},
                **scored,
                "gates": [],
            }
            write_json(run.metrics, result)
    write_json(run.warnings, _warnings(context, bank))
    if not (run.proof.exists() and read_json(run.proof)["passed"]):
        with context.timed("export"):
            dtype = _export_dtype(context)
            provenance = {
                "recipe": recipe.model_dump(mode="json"),
                "seed": recipe.seed,
                "bank": bank.key,
                "method": identity["method"],
            }
            if context.license:
                provenance["license"] = context.license
            export_pipeline(trained, teacher, run, dtype=dtype, provenance=provenance)
            prove(run, trained, teacher, dtype=dtype)
    with context.timed("export"):
        write_formats(trained, teacher, run, recipe.export, dtype=_export_dtype(context))
    if context.license:
        relicense(run.pipeline, context.license)
    write_report(run)


def _export_dtype(context: _Context) -> torch.dtype:
    asked = context.run.identity["dtype"]
    return getattr(torch, asked) if asked else context.teacher.dtype


def _push(context: _Context, repo: str, public: bool) -> None:
    pushed = publishing.push(context.run, repo, public=public, progress=context.progress)
    context.progress.note(f"pushed to {pushed['url']}, commit {pushed['commit']}")
    write_report(context.run)


def _warnings(context: _Context, bank: banks.Bank) -> list[str]:
    found = []
    for folder in context.run.stages()[-1:]:  # counters run on over the stages
        counters = read_json(folder / "final" / "state.json")
        if counters["skipped"] or counters["rollbacks"]:
            found.append(
                f"training: {counters['skipped']} steps skipped for non-finite values, "
                f"{counters['rollbacks']} rollbacks (learning rate x {counters['learning_rate_scale']:g})"
            )
    found += read_json(context.run.bank / "bank.json").get("warnings", [])
    return found + beats_teacher(read_json(context.run.metrics)["metrics"])
