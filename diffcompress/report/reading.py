"""Everything a report says, read from the files of a run folder alone. What is not there is listed, never made up."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from diffcompress.errors import DamagedError, UsageError
from diffcompress.records import shapes
from diffcompress.records.fingerprints import PROVENANCE, is_sound
from diffcompress.records.run_files import read_json, read_stamped, read_text
from diffcompress.records.run_folder import EVALUATION, RunFolder
from diffcompress.report import evidence, numbers
from diffcompress.sources.licence import STATED
from diffcompress.sources.resolve import resolve
from diffcompress.sources.weights import fingerprint, weight_files

CURVES = (
    "loss",
    "coarse",
    "fine",
    "fine_weight",
    "slope",
    "intercept",
    "output_kd",
    "feature_kd",
    "diffusion",
    "grad_norm",
    "learning_rate",
)
DENOISERS = ("unet", "transformer")
SUMMARY = ("run", "pipeline", "report", "teacher", "student", "stages", "metrics", "seconds", "pushed")


def collect(run: RunFolder) -> dict[str, Any]:
    """The content of report.json: first the fields of `shrink --json` (SUMMARY), then everything else.

    Raises UsageError when `run` is not a run folder. Missing or damaged files leave nulls and a line in `not_computed`.
    """
    reader = _Reader(run)
    asked = dict(run.identity)
    provenance = reader.json(run.pipeline / PROVENANCE, "the exported pipeline", shapes.Provenance, {})
    pushed = reader.json(run.pushed, None, shapes.Pushed, None)
    licence = provenance.get("license") or {}
    if licence.get("source") == STATED:
        asked["license"] = licence["id"]
    plan = reader.json(run.plan, "sizes and configuration of the student", shapes.Plan, {})
    evaluation = reader.json(run.metrics, "quality, speed and agreement", shapes.Evaluation, {})
    timings = reader.json(run.timings, "timings", shapes.Timings, {})
    proof = reader.json(run.proof, "export proof", shapes.Proof, None)
    recipe = reader.read(run.recipe, "the resolved recipe", read_stamped, None)
    environment = reader.json(run.environment, "versions and device", shapes.Environment, {})
    warnings = reader.json(run.warnings, None, shapes.Warnings, [])
    stages = _stages(reader, timings)
    metrics = dict(evaluation.get("metrics") or {})
    judged = _judged(reader, asked.get("fingerprint"))
    skipped = metrics.pop("not_computed", None) or evaluation.get("not_computed")
    return {
        "run": str(run.path),
        "pipeline": str(run.pipeline) if run.pipeline.is_dir() else None,
        "report": str(run.report_html),
        "teacher": {"id": asked.get("teacher"), "params": plan.get("teacher_params")},
        "student": {key: plan.get(key) for key in ("params", "ratio", "requested_ratio", "config", "prediction_type")},
        "stages": stages,
        "metrics": metrics,
        "seconds": round(sum(timings.values()), 2) if timings else None,
        # What lies on the Hub is this student only as long as the weights are the same.
        "pushed": pushed if pushed and pushed.get("files") == provenance.get("files") else None,
        "finished": bool(proof and proof.get("passed"))
        and _is_whole(run, proof, reader.missing)
        and all(stage["finished"] for stage in stages),
        "asked": asked,
        "command": command(asked, recipe=str(run.recipe), output=f"{run.path}-again"),
        "plan": {"choice": plan.get("choice"), "notes": plan.get("notes") or []},
        "evidence": evidence.lookup((plan.get("config") or {}).get("_class_name", ""), plan.get("ratio")),
        "protocol": evaluation.get("protocol") or {},
        "probe": evaluation.get("probe"),
        "gates": judged.get("gates") or [],
        "gates_protocol": judged.get("protocol") or {},
        "weights_bytes": _weights_bytes(run.pipeline),
        "parts": _parts(run.pipeline),
        "proof": proof,
        "timings": timings,
        "environment": environment,
        "exports": reader.json(run.exports / "exports.json", None, shapes.Exports, None),
        "provenance": provenance,
        "warnings": warnings,
        "not_computed": [*reader.missing, *numbers.lacking(skipped or ())],
        "recipe": recipe,
    }


def curves(folder: Path) -> list[dict[str, float]]:
    """Logged rows of a stage in step order; the later row of a step counts. Broken lines are dropped."""
    return _logged(folder)[0]


def _logged(folder: Path) -> tuple[list[dict[str, float]], int]:
    """`curves`, and how many lines are broken."""
    rows: dict[int, dict[str, float]] = {}
    broken = 0
    try:
        lines = read_text(folder / "metrics.jsonl", errors="replace").splitlines()
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


def command(asked: Mapping[str, Any], *, recipe: str, output: str) -> str:
    """The shell command that repeats the run from its resolved `recipe` into the folder `output`."""
    parts = ["diffcompress", "shrink", str(asked.get("teacher"))]
    target = asked.get("target") or {key: asked.get(key) for key in ("ratio", "params", "size")}
    for key in ("ratio", "params", "size"):
        if target.get(key) is not None:
            parts += [f"--{key}", f"{target[key]}"]
    if asked.get("method") not in (None, "lift-place"):
        parts += ["--method", asked["method"]]
    parts += ["--recipe", recipe, "--seed", str(seed_of(asked) or 0)]
    for key in ("data", "prompts", "scheduler", "dtype", "license"):
        if asked.get(key) is not None:
            parts += [f"--{key}", str(asked[key])]
    return shlex.join([*parts, "--output", output])


def seed_of(asked: Mapping[str, Any]) -> int | None:
    recipe = asked.get("recipe")
    seed = recipe.get("seed") if isinstance(recipe, dict) else None
    return asked.get("seed") if seed is None else seed


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


def _judged(reader: _Reader, teacher: str | None) -> dict[str, Any]:
    """evaluation.json of exactly the exported student, else nothing: it may be of weights from before more training.

    teacher: the fingerprint of the run's; what was judged against another one says nothing here either.
    """
    found = reader.json(reader.run.evaluation / EVALUATION, None, shapes.Evaluation, {})
    if not found or not reader.run.pipeline.is_dir() or (found["teacher"] or {}).get("fingerprint", teacher) != teacher:
        return {}
    try:
        student = resolve(str(reader.run.pipeline))
        same = found["student"].get("fingerprint") == fingerprint(student, weight_files(student.denoiser))
    except UsageError:  # of a damaged pipeline nothing is known
        return {}
    return dict(found) if same else {}


def _stages(reader: _Reader, timings: dict[str, float]) -> list[dict[str, Any]]:
    """One record for each stage folder. Guard-rail counters run on over all stages; each stage gets its own share."""
    stages, before = [], {"skipped": 0, "rollbacks": 0}
    missing = reader.missing
    for folder in reader.run.stages():
        (rows, broken), state = _logged(folder), _state(reader, folder)
        if broken:
            missing.append(f"training curves: {folder.name}/metrics.jsonl is damaged in part ({broken} lines)")
        counted = {key: state.get(key) for key in before}
        finished = (folder / "final").is_dir()
        if not finished:
            missing.append(f"the end of {folder.name}: the stage has not finished")
        stages.append(
            {
                "name": folder.name.split("-", 2)[-1],
                "folder": folder.name,
                "curves": f"{folder.name}/metrics.jsonl",
                "finished": finished,
                "steps": state.get("step"),
                "seconds": timings.get(folder.name, state.get("seconds")),
                **{key: None if value is None else value - before[key] for key, value in counted.items()},
                "first": {key: rows[0][key] for key in CURVES if key in rows[0]} if rows else {},
                "last": {key: rows[-1][key] for key in CURVES if key in rows[-1]} if rows else {},
            }
        )
        before = {key: before[key] if value is None else value for key, value in counted.items()}
    if not stages:
        missing.append("training curves: no stage has begun")
    return stages


def _state(reader: _Reader, folder: Path) -> dict[str, Any]:
    """Counters of the stage's last checkpoint, empty when there is none."""
    checkpoints = [folder / "final", *sorted((folder / "checkpoints").glob("step-*"), reverse=True)]
    for file in (checkpoint / "state.json" for checkpoint in checkpoints):
        if found := reader.json(file, None, shapes.Counted, None):
            return dict(found)
    return {}


def _weights_bytes(folder: Path) -> int | None:
    """Of the denoiser alone."""
    denoisers = (folder / name for name in DENOISERS)
    return sum(file.stat().st_size for part in denoisers for file in part.glob("*.safetensors")) or None


def _parts(folder: Path) -> list[dict[str, Any]]:
    """Bytes on disk of every part of the exported pipeline, the denoiser first; linked files count in full."""
    sizes = [
        {
            "name": part.name,
            "bytes": sum(file.stat().st_size for file in part.rglob("*") if file.is_file()),
            "denoiser": part.name in DENOISERS,
        }
        for part in sorted(folder.glob("*/"))
        if part.is_dir()
    ]
    return sorted(sizes, key=lambda part: (not part["denoiser"], -part["bytes"]))
