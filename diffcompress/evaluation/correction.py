"""The two-coefficient probe: how much of a student's distance a slope and an intercept explain.

The student's raw prediction is replaced by its best line to the teacher's, one line for each noise level and channel,
and samples are drawn again ("LIFT and PLACE", Han, Yeo, Yoo, CVPR 2026, arXiv 2605.19729: 90.7 -> 18.2). What the lines
mend, training should mend too; what is left once training has levelled off takes a larger student.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from diffcompress.evaluation.agreement import predictions
from diffcompress.losses.fit import fit_line
from diffcompress.noise import generator, streams
from diffcompress.pipeline.load import LoadedPipeline
from diffcompress.pipeline.sampling import automatic_batch_size
from diffcompress.records import fingerprints
from diffcompress.records.evaluation import Metrics, Probe
from diffcompress.records.metrics import Metric, full_name
from diffcompress.runtime import Runtime

NUM_IMAGES = 16
MOST, LEAST = 0.5, 0.2
# The first that was computed with correction is read.
PROBED = ("fid", "fd", "kd", "fd_teacher", "kd_teacher", "paired_distance")
_MEANING: dict[str, str] = {
    "train longer": "which training mends first: training longer is likely to help",
    "too small": "so what is missing is detail: once the loss has levelled off, only a larger student has it",
    "both": "so longer training is likely to help, and a larger student with the rest",
}


@dataclass(frozen=True)
class Correction:
    """timestep `[S]`: of the sampler's steps; slope, intercept `[S, C]`: the teacher's prediction is about
    slope * student's + intercept."""

    timestep: Tensor
    slope: Tensor
    intercept: Tensor

    def __call__(self, prediction: Tensor, timestep: Tensor) -> Tensor:
        """`prediction` `[B, C, *spatial]` at `timestep` `[B]`, corrected by the line of the nearest noise level."""
        known = self.timestep.to(timestep.device)
        level = (timestep[:, None] - known).abs().argmin(1)
        shape = (*prediction.shape[:2], *(1,) * (prediction.dim() - 2))
        slope, intercept = (values.to(prediction)[level].view(shape) for values in (self.slope, self.intercept))
        return slope * prediction + intercept

    def digest(self) -> str:
        parts = (self.timestep, self.slope, self.intercept)
        return fingerprints.of_bytes(value.double().numpy().tobytes() for value in parts)


@torch.no_grad()
def fit(
    student: LoadedPipeline,
    teacher: LoadedPipeline,
    clean: Tensor,
    conditioning: Mapping[str, Tensor],
    *,
    num_steps: int,
    seed: int,
    runtime: Runtime | None = None,
) -> Correction:
    """Least squares over all of `clean` `[N, C, *spatial]`, noised to each of the sampler's `num_steps` levels.

    runtime: see `predictions`.
    """
    drawn = [generator(seed, streams.CORRECTION, i) for i in range(len(clean))]
    batch_size = automatic_batch_size(teacher)
    timesteps, slopes, intercepts = teacher.noise.grid(num_steps)[:, 0], [], []
    for timestep in timesteps:
        noise = torch.stack([torch.randn(clean.shape[1:], generator=one) for one in drawn])
        repeated = timestep.expand(len(clean))
        noisy = teacher.noise.noisy(clean, noise, repeated)
        ours, theirs = (
            _by_channel(predictions(model, noisy, repeated, conditioning, batch_size, runtime))
            for model in (student, teacher)
        )
        line = fit_line(ours, theirs, theirs.var(-1, correction=0)[..., 0])
        slopes.append(1 + line.tilt[0, :, 0])
        intercepts.append(line.intercept[0, :, 0])
    return Correction(timesteps.cpu(), torch.stack(slopes), torch.stack(intercepts))


def corrected(student: LoadedPipeline, correction: Correction) -> LoadedPipeline:
    """`student` with corrected predictions, to be sampled like any other pipeline; itself where nothing is to mend."""
    if bool((correction.slope == 1).all()) and not correction.intercept.any():
        return student
    key = fingerprints.of_text(f"{student.fingerprint} {correction.digest()}")
    family: Any = _CorrectedFamily(student.family, correction)
    return replace(student, family=family, fingerprint=key)


class _CorrectedFamily:
    """The family of the student in every question but `predict`."""

    def __init__(self, family: Any, correction: Correction) -> None:
        self._family, self._correction = family, correction

    def __getattr__(self, name: str) -> Any:
        return getattr(self._family, name)

    def predict(self, model: nn.Module, noisy: Tensor, timestep: Tensor, conditioning: Mapping[str, Tensor]) -> Tensor:
        whole = self._family.predict(model, noisy, timestep, conditioning)
        channels = noisy.shape[1]  # a learned variance behind them stays as it is
        return torch.cat([self._correction(whole[:, :channels], timestep), whole[:, channels:]], 1)


def verdict(metrics: Metrics, space: str | None) -> Probe | None:
    """What the probe says, from a student's metrics.

    Its reading: "train longer" from one half explained on, "too small" below one fifth, "both" between, "at the
    teacher" where there is no distance to explain. None where no distance was computed with correction.
    """
    candidates = [Metric.named(full_name(name, metrics, space)) for name in PROBED]
    metric = next((one for one in candidates if one.mended.name in metrics), None)
    if metric is None:
        return None
    name, whole, mended = metric.name, metrics[metric.name], metrics[metric.mended.name]
    student, teacher = mended.uncorrected or whole, mended.teacher or whole.teacher  # of as many samples, where known
    before, after = student.known, mended.known
    floor = 0.0 if teacher is None or teacher.value is None else teacher.value
    told: dict[str, Any] = {"metric": name, "before": before, "after": after, "floor": floor}
    gap = before - floor
    if gap <= 0 or (student.low is not None and student.low <= floor):
        sentence = f"{name}: the student is as near as its teacher, so there is no distance to explain."
        return Probe(**told, explained=None, reading="at the teacher", sentence=sentence)
    explained = (before - after) / gap
    fewer = f" ({mended.samples:,} samples)" if mended.samples != whole.samples else ""
    reading = "train longer" if explained >= MOST else "too small" if explained < LEAST else "both"
    sentence = (
        f"{name} {before:.4g}{fewer} becomes {after:.4g} when a slope and an intercept per noise level and channel "
        f"correct the student (teacher {floor:.4g}): they explain {_percent(explained)} of its distance, "
        f"{_MEANING[reading]}."
    )
    return Probe(**told, explained=explained, reading=reading, sentence=sentence)


def _percent(share: float) -> str:
    return "nothing" if share <= 0 else f"{100 * min(share, 1):.0f} %"


def _by_channel(prediction: Tensor) -> Tensor:
    """`[N, C, *spatial]` as one group for each channel, `[1, C, 1, N * spatial]`."""
    return prediction.flatten(2).transpose(0, 1).flatten(1)[None, :, None, :]
