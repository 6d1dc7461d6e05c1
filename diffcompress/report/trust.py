"""What a reader should know before believing a figure of the report; only what the run's own files say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffcompress.report import numbers

_PERCEPTUAL = ("fid", "fd", "kd", "precision", "clip")


def remarks(collected: Mapping[str, Any], seed: int | None) -> list[str]:
    """Plain sentences, the most limiting first."""
    metrics: Mapping[str, Any] = collected["metrics"]
    protocol: Mapping[str, Any] = collected["protocol"]
    found = [] if collected["finished"] else ["The run is not finished: figures may be missing or change."]
    measured = [name for name in metrics if name.partition("_")[0] in _PERCEPTUAL]
    if not measured:
        found.append("No perceptual metric was computed: nothing here says how good the images look.")
    elif protocol.get("feature_space") == "demo":
        found.append("Distances are in the features of a small Fashion-MNIST classifier: not FID, of no use elsewhere.")
    elif "fid" not in metrics:
        space = protocol.get("feature_space") or "an unrecorded feature space"
        found.append(f"Distances are in the features of {space}: not FID, comparable under the same protocol alone.")
    if metrics and not any((metric.get("teacher") or {}).get("value") is not None for metric in _quality(metrics)):
        found.append("The teacher was not scored under the same protocol, so nothing says how much was lost.")
    found.append(
        f"One student of one seed ({'not recorded' if seed is None else seed}) was trained. Intervals are over samples "
        "(95 %); how far another seed would land is not in them."
    )
    found.append("No baseline was trained at equal budget, so nothing says how much the method itself gained.")
    if str(protocol.get("agreement_clean", "")).startswith("teacher"):
        found.append("Agreement is measured on the teacher's own samples, not on real images.")
    probe = collected.get("probe")
    if probe:
        found.append(f"Train longer, or larger? {probe['sentence']}")
    passed = [gate["passed"] for gate in collected["gates"]]
    found.append(
        f"{sum(passed)} of {len(passed)} quality gates passed."
        if passed
        else "No quality gate is known here: `evaluate RUN/pipeline --gate` judges them, `report RUN` shows them."
    )
    return found


def counts(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Of each quality figure: name, samples, and the interval's width relative to its value, None where unknown."""
    rows = []
    for name, metric in metrics.items():
        if numbers.is_cost(metric) or numbers.is_corrected(name):
            continue
        value, low, high = (metric.get(key) for key in ("value", "low", "high"))
        known = all(numbers.is_number(v) for v in (value, low, high)) and value
        width = (high - low) / abs(value) if known else None
        rows.append({"name": name, "samples": metric.get("samples"), "width": width})
    return rows


def _quality(metrics: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [metric for metric in metrics.values() if not numbers.is_cost(metric)]
