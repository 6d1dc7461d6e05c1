"""Why a run ended badly: a few named causes, each with its evidence from the run's own files and one thing to do.

Thresholds stand where healthy runs are far away (docs/evaluation.md). Nothing is guessed: a run that none of them fits
gets no diagnosis.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from diffcompress.recipe import Recipe, StageSection
from diffcompress.records.evaluation import Level, Measured, Probe
from diffcompress.records.metrics import Metric
from diffcompress.records.report import Finding
from diffcompress.records.units import number, percent

Rows = Sequence[Mapping[str, float]]
# Weights that moved less than this share of their size have not been trained.
HARDLY_MOVED = 1e-3
POOR_AGREEMENT = 0.9
FEWEST_ROWS = 5
MOSTLY_CLIPPED = 0.9
SHUT = 0.1
# A slope this far from 1 that came less than a tenth nearer in the second half of its stage.
FAR_SLOPE, STILL = 0.2, 0.9
# A noise level with much more error than those beside it, and no small one.
LARGE_ERROR = 0.1
MUCH = 3.0
ALIKE = 0.5
LOW_RECALL = 0.5


@dataclass(frozen=True)
class Case:
    """What is known of a finished run; logs: rows of each stage that the recipe has."""

    recipe: Recipe
    logs: Sequence[Rows]
    metrics: Mapping[str, Measured]
    probe: Probe | None = None
    weight_change: float | None = None

    @property
    def is_poor(self) -> bool:
        """Whether predictions are far from the teacher's."""
        told = self.metrics.get("agreement")
        return told is not None and told.value is not None and told.value < POOR_AGREEMENT

    @property
    def trained(self) -> Iterator[tuple[int, StageSection, Rows]]:
        """Stages with enough of a log to judge them by."""
        stages = zip(self.recipe.stages, self.logs, strict=False)
        return ((index, stage, rows) for index, (stage, rows) in enumerate(stages) if len(rows) >= FEWEST_ROWS)


def diagnose(case: Case) -> list[Finding]:
    """What is wrong, the cause that explains most first; none in a healthy run."""
    found = [finding for cause in _CAUSES for finding in cause(case)]
    named = {one.cause for one in found}
    explained = {effect for cause, effects in _EXPLAINS.items() if cause in named for effect in effects}
    return [one for one in found if one.cause not in explained]


def _not_moving(case: Case) -> Iterator[Finding]:
    change, rate = case.weight_change, case.recipe.training.learning_rate
    if change is not None and change < HARDLY_MOVED and case.is_poor:
        yield Finding(
            cause="weights not moving",
            evidence=f"after {case.recipe.num_steps:,} steps at a learning rate of {rate:g} the weights that ship, "
            f"which are averages, are {percent(change)} of their size away from those before training",
            advice=f"raise the learning rate: --set training.learning_rate={10 * rate:g}",
        )


def _clipped(case: Case) -> Iterator[Finding]:
    limit = case.recipe.training.max_grad_norm
    norms = [row["grad_norm"] for _, _, rows in case.trained for row in rows[len(rows) // 2 :] if "grad_norm" in row]
    share = sum(norm > limit for norm in norms) / max(1, len(norms))
    if case.is_poor and share >= MOSTLY_CLIPPED and median(norms) > MUCH * limit:
        yield Finding(
            cause="gradients clipped",
            evidence=f"{percent(share)} of the gradients in the second halves of all stages were longer than "
            f"training.max_grad_norm {limit:g}, half of them longer than {number(median(norms))}",
            advice=f"let them through: --set training.max_grad_norm={2 * median(norms):.2g}",
        )


def _gate_shut(case: Case) -> Iterator[Finding]:
    for index, stage, rows in case.trained:
        weights = [row["fine_weight"] for row in _last(rows) if "fine_weight" in row]
        if not weights or median(weights) >= SHUT:
            continue
        steps = f"give the coarse term more steps: --set stages.{index}.num_steps={2 * stage.num_steps}"
        soft = f"use a gate that never shuts: --set stages.{index}.gate=soft"
        yield Finding(
            cause="gate shut",
            evidence=f"at the end of stage {stage.name} the {stage.gate} gate still gave the fine term a weight of "
            f"{number(median(weights))}: no detail was learned",
            advice=steps if stage.gate == "soft" else soft,
        )


def _slope_stuck(case: Case) -> Iterator[Finding]:
    for index, stage, rows in case.trained:
        told = [row for row in rows if "slope" in row]
        if len(told) < FEWEST_ROWS:
            continue
        middle = told[len(told) // 2 :][: len(told) // 5 + 1]
        before, after = (median(abs(row["slope"] - 1) for row in part) for part in (middle, _last(told)))
        if after > FAR_SLOPE and after > STILL * before:
            yield Finding(
                cause="slope stuck",
                evidence=f"in stage {stage.name} the slope from student to teacher ended {number(after)} from 1 and "
                f"was {number(before)} from it half-way",
                advice=f"give that stage more steps: --set stages.{index}.num_steps={4 * stage.num_steps}",
            )


def _level_off(case: Case) -> Iterator[Finding]:
    told = case.metrics.get("agreement")
    levels = [level for level in (told.levels if told is not None else []) if level.relative_error is not None]
    errors = [float(level.relative_error or 0.0) for level in levels]
    for place, (level, error) in enumerate(zip(levels, errors, strict=True)):
        beside = max(errors[max(0, place - 1) : place] + errors[place + 1 : place + 2], default=error)
        if error > LARGE_ERROR and error > MUCH * beside:
            yield Finding(
                cause="one noise level off",
                evidence=f"at timesteps {level.timestep_low} to {level.timestep_high} predictions are {percent(error)} "
                f"off the teacher's, at the levels beside {percent(beside)} at most",
                advice=_towards(level, case.recipe),
            )


def _towards(level: Level, recipe: Recipe) -> str:
    """How more of what is learned from falls onto a noise level."""
    if recipe.targets.trajectory_share > 0:
        return "learn from freshly noised samples at all noise levels: --set targets.trajectory_share=0"
    if recipe.targets.timesteps == "uniform":
        return "spread noise levels evenly: --set targets.timesteps=antithetic"
    return (
        f"look at what the teacher itself predicts at timestep {level.timestep_low}: targets are drawn at all of them"
    )


def _alike(case: Case) -> Iterator[Finding]:
    told = case.metrics.get("sample_variance")
    if told is not None and told.value is not None and told.high is not None and told.high < ALIKE:
        yield Finding(
            cause="samples alike",
            evidence=f"pixels of {told.samples:,} samples vary {percent(told.value)} as much as those of the teacher's "
            "from the same noise: the student draws an average",
            advice=_better(case),
        )


def _recall_low(case: Case) -> Iterator[Finding]:
    for metric, told in ((Metric.named(name), one) for name, one in case.metrics.items()):
        if metric.kind.name != "recall" or told.value is None or told.teacher is None or not told.teacher.value:
            continue
        if told.high is not None and told.high < LOW_RECALL * told.teacher.value:
            yield Finding(
                cause="recall low",
                evidence=f"{metric.name} is {percent(told.value)}, its teacher's {percent(told.teacher.value)}: the "
                "student never draws much of what its teacher draws",
                advice=_better(case),
            )


def _better(case: Case) -> str:
    if case.probe is not None and case.probe.reading == "train longer":
        return "train longer: the probe's lines mend most of it; the same command with a larger --max-time goes on"
    return "take a larger student: a higher --ratio"


def _last(rows: Rows) -> Rows:
    """The last fifth."""
    return rows[-max(1, len(rows) // 5) :]


# Weights that stay leave a slope where it is, and a gate; of samples that are alike few are what a teacher draws.
_EXPLAINS = {"weights not moving": ("slope stuck", "gate shut"), "samples alike": ("recall low",)}
_CAUSES: tuple[Callable[[Case], Iterator[Finding]], ...] = (
    _not_moving, _clipped, _gate_shut, _slope_stuck, _level_off, _alike, _recall_low,
)  # fmt: skip
