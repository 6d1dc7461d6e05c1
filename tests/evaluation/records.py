"""Records of results for tests that need no model."""

from __future__ import annotations

from typing import Any

from diffcompress.records.evaluation import Evaluation, Measured, Metrics, Value


def value(number: float, low: float | None = None, high: float | None = None) -> Value:
    return Value(value=number, low=low, high=high)


def measured(
    number: float, low: float | None = None, high: float | None = None, *, better: str = "lower", **more: Any
) -> Measured:
    """teacher, untrained, real: a number, or a whole value."""
    found = {role: value(one) if isinstance(one, (int, float)) else one for role, one in more.items()}
    return Measured(value=number, low=low, high=high, unit="", better=better, **found)


def metrics(not_computed: dict[str, str] | None = None, **by_name: Measured) -> Metrics:
    missing = [{"metric": name, "why": why} for name, why in (not_computed or {}).items()]
    return Metrics(not_computed=missing, **by_name)


def evaluation(**by_name: Measured) -> Evaluation:
    protocol = {"feature_space": None, "sampler": "ddim", "sampler_steps": 2, "num_samples": 8, "seed": 0}
    return Evaluation(student={"id": "s"}, teacher=None, protocol=protocol, metrics=metrics(None, **by_name))
