"""Every name inside a run folder, and inside what lies in one; `RunFolder` has their paths.

No other module spells one of them (tests/records/test_layout.py).
"""

from __future__ import annotations

from pathlib import Path

# The run itself.
RUN, RUN_COPY, LOCK, HOLDER = "run.json", ".run.json", ".lock", ".holder"
RECIPE, PLAN, METRICS, PROOF = "recipe.yaml", "plan.json", "metrics.json", "export-proof.json"
TIMINGS, BUDGET, ENVIRONMENT, WARNINGS = "timings.json", "budget.json", "environment.json", "warnings.json"
ROUNDS, HELD_OUT = "rounds.json", "held-out"
REPORT_PAGE, REPORT, PUSHED = "report.html", "report.json", "pushed.json"
STUDENT_INIT, STUDENT = "student-init", "student.safetensors"
SAMPLES, PIPELINE, EXPORTS = "samples", "pipeline", "exports"

# What several runs may share.
BANK, CONDITIONS, TARGETS, CACHE = "bank", "conditions", "targets", "cache"
BANK_RECORD, GROWN = "bank.json", "grown"

# A stage, and a checkpoint in it: FINAL ends the stage.
STAGE, CHECKPOINTS, STEP, FINAL = "stage-", "checkpoints", "step-", "final"
TRAINING_LOG, TRACKED = "metrics.jsonl", "trackers"
STATE, COUNTERS = "state.safetensors", "state.json"

# An exported pipeline, and its other formats.
PROVENANCE, CARD = "diffcompress.json", "README.md"
EXPORT_RECORD, ONNX, SINGLE_FILE = "exports.json", "denoiser.onnx", "denoiser.safetensors"
ORIGINAL, GGUF, ADAPTER = "original.safetensors", "denoiser.gguf", "adapter.safetensors"

# An evaluation; of several students, beside each other.
EVALUATION_FOLDER, EVALUATION = "evaluation", "evaluation.json"
COMPARISON_FOLDER, COMPARISON, FRONTIER = "comparison", "comparison.json", "frontier.svg"
OVERVIEW = "overview.html"

# Last parts of paths to students and their results, that do not tell one from another.
GENERIC = (PIPELINE, EVALUATION, METRICS, EVALUATION_FOLDER, "unet", "transformer")
# By how a name begins, what makes again what lies there.
MADE_BY = {
    RUN: "is taken from its copy",
    BANK: "is drawn from the teacher",
    CONDITIONS: "is encoded",
    TARGETS: "is asked of the teacher",
    STUDENT_INIT: "is inherited",
    STAGE: "is trained",
    "rounds": "is judged",
    "held-out": "is drawn",
    CACHE: "is drawn",
    "metrics": "is evaluated",
    "export": "is exported and proved",
    "report": "is drawn",
    "recipe": "is written",
    "assembled": "is put together",
    "record": "is fetched",
}


def stage(index: int, name: str) -> str:
    """The folder of a stage of the training."""
    return f"{STAGE}{index + 1}-{name.replace('_', '-')}"


def stages(run: Path) -> list[Path]:
    """Folders of the stages that have begun, in order."""
    found = {folder: folder.name.removeprefix(STAGE).partition("-")[0] for folder in run.glob(f"{STAGE}*-*")}
    return sorted((folder for folder, number in found.items() if number.isdigit()), key=lambda one: int(found[one]))


def checkpoint(step: int) -> str:
    return f"{STEP}{step:09d}"


def checkpoints(stage_folder: Path) -> list[Path]:
    """Of a stage, the last one first, whole or not; the final one comes before all others."""
    return [stage_folder / FINAL, *sorted((stage_folder / CHECKPOINTS).glob(f"{STEP}*"), reverse=True)]


def preview(step: int) -> str:
    """Samples drawn at a step of the training."""
    return f"preview-{step:06d}.png"


def previews(samples: Path) -> list[Path]:
    return sorted(samples.glob("preview-*.png"))


def step_of(preview_file: Path) -> str:
    """The step that a preview was drawn at, as its name has it."""
    return preview_file.stem.removeprefix("preview-")


def of_role(role: str) -> str:
    """Samples of the student, teacher or untrained student."""
    return f"{role}.safetensors"


def shard(index: int) -> str:
    return f"shard-{index:05d}.safetensors"


def whole_of(folder_or_file: Path) -> Path:
    """What must go for a file to be made again: the checkpoint that it is of, or itself."""
    parent = folder_or_file.parent
    return parent if parent.name == FINAL or parent.name.startswith(STEP) else folder_or_file
