"""Agreement along the way of sampling: on the states that the student itself comes to, beside those of its teacher.

Targets show a student the teacher's states alone. Where it errs it comes to others, and errs more: its error on its own
states leaves that on the teacher's before anything is seen in samples.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from diffcompress.evaluation.agreement import agreement_of, why_incomparable
from diffcompress.evaluation.material import Material
from diffcompress.pipeline.load import LoadedPipeline
from diffcompress.pipeline.predicting import in_terms_of
from diffcompress.pipeline.sampling import automatic_batch_size, sample
from diffcompress.records.evaluation import Metrics
from diffcompress.records.metrics import KINDS, Metric
from diffcompress.records.protocol import Protocol
from diffcompress.runtime import Runtime

# An eighth of the images that predictions are compared on; four say little, but cost little beside a large teacher.
SHARE, FEWEST_SAMPLES = 8, 4
OWN = KINDS["agreement_own_states"]


def count(protocol: Protocol) -> int:
    """How many samples are walked along with."""
    return min(max(FEWEST_SAMPLES, protocol.agreement_images // SHARE), protocol.num_samples)


def add_metrics(material: Material, wanted: Sequence[Metric], metrics: Metrics) -> None:
    """Of the student, from the noise that samples are drawn from."""
    student, teacher, protocol = material.models["student"], material.models["teacher"], material.protocol
    if (why := why_incomparable(student, teacher)) is not None:
        metrics.skip((metric.name for metric in wanted), why)
        return
    many = count(protocol)
    for metric in wanted:
        ratios = along_the_way(student, teacher, protocol, many, own=metric.kind is OWN, runtime=material.runtime)
        metrics.add(metric, {"student": agreement_of(ratios, protocol.seed)}, samples=many)


def along_the_way(
    student: LoadedPipeline,
    teacher: LoadedPipeline,
    protocol: Protocol,
    count: int,
    *,
    own: bool,
    runtime: Runtime | None = None,
) -> Tensor:
    """Of samples 0..count-1 `[count]`: error over the variance of the teacher's predictions, averaged over the steps.

    own: on the states that the student comes to; else on those of the teacher. runtime: of processes that all ask, and
    each draw a part.
    """
    student = in_terms_of(student, teacher.noise)
    walker, other = (student, teacher) if own else (teacher, student)
    share = slice(0, count) if runtime is None else runtime.share(count)
    parts: list[Tensor] = []
    for start in range(share.start, share.stop, size := automatic_batch_size(teacher)):
        indices = range(start, min(start + size, share.stop))
        told: list[Tensor] = []

        def judge(noisy: Tensor, timestep: Tensor, whole: Tensor, rows: Tensor, into: list[Tensor] = told) -> None:
            given = {name: value.to(teacher.device) for name, value in teacher.conditions.rows(rows).items()}
            both = whole[:, : noisy.shape[1]], other.predict(noisy, timestep, given)
            said, beside = (one.cpu().double().flatten(1) for one in both)  # not every device has float64
            theirs = beside if own else said
            values = ((said - beside).square(), theirs, theirs.square())
            into.append(torch.stack([value.mean(1) for value in values], 1))

        sample(
            walker,
            indices,
            seed=protocol.sampling_seed,
            num_steps=protocol.sampler_steps,
            eta=protocol.eta,
            guidance=protocol.guidance,
            conditions=teacher.conditions.draw(indices, protocol.sampling_seed),
            record=judge,
        )
        parts.append(torch.stack(told, 1))
    # Of each sample at each call: squared error, and mean and mean square of the teacher's prediction.
    calls = parts[0].shape[1] if parts else 0
    found = torch.zeros(count, calls if runtime is None else -runtime.least(-calls), 3, dtype=torch.float64)
    if parts:
        found[share] = torch.cat(parts)
    error, mean, square = (found if runtime is None else runtime.total(found)).unbind(2)
    return (error / (square.mean(0) - mean.mean(0).square())).mean(1)
