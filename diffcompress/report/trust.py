"""What a reader should know before believing a figure of the report; only what the run's own files say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from diffcompress.records.evaluation import Measured
from diffcompress.records.metrics import Metric
from diffcompress.records.report import Report
from diffcompress.records.request import seed_of
from diffcompress.records.run_identity import without_of
from diffcompress.report import figures, numbers


def remarks(report: Report) -> list[str]:
    """Plain sentences, the most limiting first."""
    metrics, protocol, seed = report.metrics, report.protocol, seed_of(report.asked)
    found = [] if report.finished else ["The run is not finished: figures may be missing or change."]
    if encoders := [part for part in without_of(report.asked) if part.startswith("text_encoder")]:
        found.append(
            f"Teacher and student were both asked without {' and '.join(encoders)} (student.without): what a prompt "
            "loses by that is in no figure."
        )
    space = protocol.feature_space if protocol else None
    if not figures.is_perceptual(metrics):
        found.append("No perceptual metric was computed: nothing here says how good the images look.")
    elif space == "demo":
        found.append("Distances are in the features of a small Fashion-MNIST classifier: not FID, of no use elsewhere.")
    elif "fid" not in metrics:
        space = space or "an unrecorded feature space"
        found.append(f"Distances are in the features of {space}: not FID, comparable under the same protocol alone.")
    beside = [one.teacher for metric, one in figures.named(metrics) if not metric.kind.is_cost]
    if metrics and not any(one is not None and one.value is not None for one in beside):
        found.append("The teacher was not scored under the same protocol, so nothing says how much was lost.")
    found.append(
        f"One student of one seed ({'not recorded' if seed is None else seed}) was trained. Intervals are over samples "
        "(95 %); how far another seed would land is not in them."
    )
    found.append("No baseline was trained at equal budget, so nothing says how much the method itself gained.")
    if protocol and protocol.agreement_clean.startswith("teacher"):
        found.append("Agreement is measured on the teacher's own samples, not on real images.")
    if report.provenance and report.provenance.half_parts:
        found.append("Figures were measured with the teacher's encoders and autoencoder; half precision rounds both.")
    if report.probe is not None:
        found.append(f"Train longer, or larger? {report.probe.sentence}")
    passed = [gate.passed for gate in report.gates]
    found.append(
        f"{sum(passed)} of {len(passed)} quality gates passed."
        if passed
        else "No quality gate is known here: `evaluate RUN/pipeline --gate` judges them, `report RUN` shows them."
    )
    return found


@dataclass(frozen=True)
class Count:
    """What a quality figure rests on; width: of its interval relative to its value, None where unknown."""

    metric: Metric
    samples: int
    width: float | None


def counts(metrics: Mapping[str, Measured]) -> list[Count]:
    return [Count(metric, one.samples, _width(one)) for metric, one in figures.quality(metrics)]


def _width(one: Measured) -> float | None:
    if one.value is None or one.low is None or one.high is None:
        return None
    known = all(numbers.is_number(value) for value in (one.value, one.low, one.high)) and one.value
    return (one.high - one.low) / abs(one.value) if known else None
