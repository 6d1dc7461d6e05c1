"""Everything a report says, read from the files of a run folder alone. What is not there is listed, never made up."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from diffcompress.errors import DamagedError, UsageError
from diffcompress.recipe import LossWeights
from diffcompress.records import shapes
from diffcompress.records.evaluation import Evaluation
from diffcompress.records.fingerprints import is_sound
from diffcompress.records.layout import COUNTERS, EVALUATION, FINAL, TRAINING_LOG, checkpoints
from diffcompress.records.provenance import Provenance
from diffcompress.records.record import Empty, Record
from diffcompress.records.report import (
    AdaptersFit,
    Finding,
    Part,
    PipelineSize,
    PlanFile,
    PlanTold,
    Pushed,
    Report,
    StageTold,
    StudentTold,
    TeacherTold,
)
from diffcompress.records.request import command
from diffcompress.records.rounds import Rounds
from diffcompress.records.run_files import read_json, read_record, read_stamped, read_text
from diffcompress.records.run_folder import RunFolder, read_recipe
from diffcompress.report import doctor, evidence, numbers
from diffcompress.sources.licence import STATED
from diffcompress.sources.model_index import DENOISERS
from diffcompress.sources.resolve import resolve
from diffcompress.sources.weights import fingerprint, weight_files

SomeRecord = TypeVar("SomeRecord", bound=Record)
# Titles of the losses that have a curve, by name.
LOSSES = {name: field.title for name, field in LossWeights.model_fields.items() if field.title is not None}
CURVES = (
    "loss",
    "coarse",
    "fine",
    "fine_weight",
    "slope",
    "intercept",
    *LOSSES,
    "grad_norm",
    "learning_rate",
)


def collect(run: RunFolder) -> Report:
    """The content of report.json.

    Raises UsageError when `run` is not a run folder. Missing or damaged files leave nulls and a line in `not_computed`.
    """
    reader = _Reader(run)
    asked = dict(run.identity)
    provenance = reader.record(run.provenance, "the exported pipeline", Provenance)
    pushed = reader.record(run.pushed, None, Pushed)
    if provenance is not None and provenance.license.source == STATED:
        asked["license"] = provenance.license.id
    plan = reader.record(run.plan, "sizes and configuration of the student", PlanFile)
    scores = reader.record(run.metrics, "quality, speed and agreement", Evaluation)
    timings = reader.json(run.timings, "timings", shapes.Timings, {})
    proof = reader.json(run.proof, "export proof", shapes.Proof, None)
    recipe = reader.read(run.recipe, "the resolved recipe", read_stamped, None)
    environment = reader.json(run.environment, "versions and device", shapes.Environment, {})
    warnings = reader.json(run.warnings, None, shapes.Warnings, [])
    stages = _stages(reader, timings)
    judged = _judged(reader, asked.get("fingerprint"))
    parts = _parts(run.pipeline)
    sound = bool(proof and proof.get("passed")) and _is_whole(run, proof, reader.missing)
    finished = sound and all(stage.finished for stage in stages)
    return Report(
        run=str(run.path),
        pipeline=str(run.pipeline) if run.pipeline.is_dir() else None,
        report=str(run.report_html),
        teacher=TeacherTold(id=asked.get("teacher"), params=plan and plan.teacher_params),
        student=StudentTold(**{name: plan and getattr(plan, name) for name in StudentTold.model_fields}),
        stages=stages,
        metrics=scores.metrics.measured if scores is not None else {},
        seconds=round(sum(timings.values()), 2) if timings else None,
        # What lies on the Hub is this student only as long as the weights are the same.
        pushed=pushed if pushed and provenance and pushed.files == provenance.files else None,
        finished=finished,
        asked=asked,
        command=command(asked, recipe=str(run.recipe), output=f"{run.path}-again"),
        plan=PlanTold(
            choice=plan and plan.choice,
            notes=plan.notes if plan else [],
            adapters=AdaptersFit.by_block(plan.adapters) if plan else [],
        ),
        evidence=evidence.lookup(plan.config.get("_class_name", ""), plan.ratio) if plan else None,
        protocol=scores.protocol if scores is not None else Empty(),
        probe=scores.probe if scores is not None else None,
        gates=judged.gates if judged is not None else [],
        gates_protocol=judged.protocol if judged is not None else Empty(),
        weights_bytes=_weights_bytes(run.pipeline),
        parts=parts,
        diagnosis=_diagnosis(run, scores) if finished and scores is not None else [],
        whole=PipelineSize.of(sum(p.bytes for p in parts) or None, plan.teacher_pipeline_bytes if plan else None),
        proof=proof,
        timings=timings,
        rounds=reader.record(run.rounds, None, Rounds),
        environment=environment,
        exports=reader.json(run.export_record, None, shapes.Exports, None),
        provenance=provenance or Empty(),
        warnings=warnings,
        not_computed=[*reader.missing, *numbers.lacking(scores.metrics.not_computed if scores is not None else ())],
        recipe=recipe,
    )


def _diagnosis(run: RunFolder, scores: Evaluation) -> list[Finding]:
    try:
        recipe = read_recipe(run.recipe)
    except (OSError, DamagedError):  # told already
        return []
    logs = [curves(folder) for folder in run.stages()]
    return doctor.diagnose(doctor.Case(recipe, logs, scores.metrics.measured, scores.probe, scores.weight_change))


def curves(folder: Path) -> list[dict[str, float]]:
    """Logged rows of a stage in step order; the later row of a step counts. Broken lines are dropped."""
    return _logged(folder)[0]


def _logged(folder: Path) -> tuple[list[dict[str, float]], int]:
    """`curves`, and how many lines are broken."""
    rows: dict[int, dict[str, float]] = {}
    broken = 0
    try:
        lines = read_text(folder / TRAINING_LOG, errors="replace").splitlines()
    except FileNotFoundError:
        return [], 0
    except DamagedError:
        return [], 1
    for line in lines:
        try:
            row = json.loads(line)
            rows[int(row["step"])] = {
                key: float(v) for key, v in row.items() if isinstance(v, (int, float)) and math.isfinite(v)
            }
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            broken += 1
    return [rows[step] for step in sorted(rows)], broken


def _is_whole(run: RunFolder, proof: Mapping[str, Any], missing: list[str]) -> bool:
    """Whether the pipeline is there, and still what was proved; a line in `missing` where it is not."""
    if "files" not in proof or not run.pipeline.is_dir():
        return run.pipeline.is_dir()
    if not (sound := is_sound(run)):
        missing.append("the pipeline: it is not what was proved any more; the same command writes it again")
    return sound


class _Reader:
    """Reads files and remembers what could not be read: `what` names it for people, None when it may be absent."""

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        self.missing: list[str] = []

    def read(self, path: Path, what: str | None, read: Callable[[Path], Any], default: Any) -> Any:
        name = path.relative_to(self.run.path).as_posix()
        try:
            return read(path)
        except FileNotFoundError:
            if what:
                self.missing.append(f"{what}: there is no {name}")
        except DamagedError:
            self.missing.append(f"{what or path.name}: {name} is damaged")
        return default

    def json(self, path: Path, what: str | None, kind: Any, default: Any) -> Any:
        return self.read(path, what, partial(read_json, kind=kind), default)

    def record(self, path: Path, what: str | None, kind: type[SomeRecord]) -> SomeRecord | None:
        found: SomeRecord | None = self.read(path, what, partial(read_record, kind=kind), None)
        return found


def _judged(reader: _Reader, teacher: str | None) -> Evaluation | None:
    """evaluation.json of exactly the exported student, else nothing: it may be of weights from before more training.

    teacher: the fingerprint of the run's; what was judged against another one says nothing here either.
    """
    found = reader.record(reader.run.evaluation / EVALUATION, None, Evaluation)
    if found is None or not reader.run.pipeline.is_dir():
        return None
    if found.teacher is not None and found.teacher.fingerprint not in ("", teacher):
        return None
    try:
        student = resolve(str(reader.run.pipeline))
        same = found.student.fingerprint == fingerprint(student, weight_files(student.denoiser))
    except UsageError:  # of a damaged pipeline nothing is known
        return None
    return found if same else None


def _stages(reader: _Reader, timings: Mapping[str, float]) -> list[StageTold]:
    """One record for each stage folder. Guard-rail counters run on over all stages; each stage gets its own share."""
    stages, before = [], {"skipped": 0, "rollbacks": 0}
    missing = reader.missing
    for folder in reader.run.stages():
        (rows, broken), state = _logged(folder), _state(reader, folder)
        if broken:
            missing.append(f"training curves: {folder.name}/{TRAINING_LOG} is damaged in part ({broken} lines)")
        counted = {key: state.get(key) for key in before}
        finished = (folder / FINAL).is_dir()
        if not finished:
            missing.append(f"the end of {folder.name}: the stage has not finished")
        own = {key: None if value is None else value - before[key] for key, value in counted.items()}
        stages.append(
            StageTold(
                name=folder.name.split("-", 2)[-1],
                folder=folder.name,
                curves=f"{folder.name}/{TRAINING_LOG}",
                finished=finished,
                steps=state.get("step"),
                seconds=timings.get(folder.name, state.get("seconds")),
                skipped=own["skipped"],
                rollbacks=own["rollbacks"],
                first={key: rows[0][key] for key in CURVES if key in rows[0]} if rows else {},
                last={key: rows[-1][key] for key in CURVES if key in rows[-1]} if rows else {},
            )
        )
        before = {key: before[key] if value is None else value for key, value in counted.items()}
    if not stages:
        missing.append("training curves: no stage has begun")
    return stages


def _state(reader: _Reader, folder: Path) -> dict[str, Any]:
    """Counters of the stage's last checkpoint, empty when there is none."""
    for file in (checkpoint / COUNTERS for checkpoint in checkpoints(folder)):
        if found := reader.json(file, None, shapes.Counted, None):
            return dict(found)
    return {}


def _weights_bytes(folder: Path) -> int | None:
    """Bytes of the denoiser's weights in an exported pipeline, None where there are none."""
    denoisers = (folder / name for name in DENOISERS)
    return sum(file.stat().st_size for part in denoisers for file in part.glob("*.safetensors")) or None


def _parts(folder: Path) -> list[Part]:
    """Of the exported pipeline; linked files count in full."""
    sizes = {
        part.name: sum(file.stat().st_size for file in part.rglob("*") if file.is_file())
        for part in sorted(folder.glob("*/"))
        if part.is_dir()
    }
    return Part.listed(sizes, DENOISERS)
