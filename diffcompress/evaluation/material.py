"""What metrics are computed from: models, their samples of one noise, features of these, and how all was drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from diffcompress.evaluation.cache import Drawn
from diffcompress.evaluation.extractors import ADVICE
from diffcompress.evaluation.features import FeatureSpace, RealImages
from diffcompress.pipeline.load import LoadedPipeline
from diffcompress.records.metrics import NO_TEACHER, Estimate, Kind, Metric
from diffcompress.records.protocol import Protocol
from diffcompress.runtime import Runtime

NO_CLIP = "it takes CLIP's features: `evaluate --feature-weights` with a CLIP folder (openai/clip-vit-base-patch32)"
NO_PICK = "it takes PickScore's weights in the Hub's local cache: `hf download yuvalkirstain/PickScore_v1`"
NO_FEATURES = f"no perceptual metric computed: no feature weights; {ADVICE}"
NO_REAL = "no perceptual metric to real images computed: there are none for these features; add them with --data"


@dataclass(frozen=True)
class Material:
    """models, drawn: by role, the samples of the corrected student among them; prompts: of samples 0..N-1, if any;
    inputs: clean samples with their conditioning, that predictions are compared on; runtime: of processes that all
    measure, where there are several."""

    models: Mapping[str, LoadedPipeline]
    drawn: Mapping[str, Drawn]
    space: FeatureSpace | None
    protocol: Protocol
    prompts: Sequence[str] | None = None
    inputs: tuple[Tensor, Mapping[str, Tensor]] | None = None
    runtime: Runtime | None = None

    @cached_property
    def features(self) -> dict[str, Tensor]:
        """`[N, D]` by role, of samples that are finite."""
        whole = {role: one for role, one in self.drawn.items() if not one.num_broken}
        return {role: one.features for role, one in whole.items() if one.features is not None}

    def wanted(self, kind: Kind) -> list[Metric]:
        """What of a kind is computed or told to be missing."""
        if kind.instead_of or (kind.to == "prompts" and self.prompts is None):
            return []
        if kind.only_in and (self.space is None or self.space.name != kind.only_in):
            return []
        if not kind.in_space or self.space is None:
            return [Metric(kind)]
        name = self.space.name
        held_out = [Metric(kind, name, held_out=True)] if kind.held_out and self.space.held_out is not None else []
        return [Metric(kind, name), *held_out]

    def why_not(self, metric: Metric) -> str | None:
        """Why a metric cannot be computed from this, if so."""
        kind, space = metric.kind, self.space
        if kind.to == "teacher" and "teacher" not in self.drawn:
            return NO_TEACHER
        if kind.to == "prompts" and (space is None or space.judge_of(kind.name) is None):
            return NO_PICK if kind.name == "pick_score" else NO_CLIP
        if kind.looks_at == "samples" and (broken := self.drawn["teacher"].num_broken):
            return f"{broken} samples of the teacher are not finite"
        return self._why_no_features(metric) if kind.is_perceptual else None

    def _why_no_features(self, metric: Metric) -> str | None:
        if self.space is None:
            return NO_FEATURES
        if broken := self.drawn["student"].num_broken:
            return f"{broken} of {self.protocol.num_samples} samples are not finite"
        if metric.kind.to == "real" and not metric.held_out and self.space.real is None:
            return NO_REAL
        if metric.kind.to == "teacher" and "teacher" not in self.features:
            return "the teacher's samples are not finite"
        return None

    @property
    def in_space(self) -> FeatureSpace:
        """The feature space, for metrics that nothing speaks against."""
        assert self.space is not None
        return self.space

    def floor(self, real: RealImages) -> dict[str, Tensor]:
        """By role "real": other images of the same kind, as far as samples go; what no model comes below."""
        return {} if real.other is None else {"real": real.other[: self.protocol.num_samples]}

    def others(self, *left_out: str) -> dict[str, Tensor]:
        """Features by role, without those of some roles."""
        return {role: value for role, value in self.features.items() if role not in left_out}

    @property
    def aside(self) -> int | None:
        """Samples of the untrained and of the corrected student, where they are fewer than of the others."""
        fewest = min(len(one.variation) for one in self.drawn.values())
        return fewest if fewest < self.protocol.num_samples else None

    @property
    def counted(self) -> dict[str, Any]:
        """What a metric of all samples tells beside its values."""
        return {"samples": self.protocol.num_samples, "aside": self.aside}

    def to_real(self, real: RealImages) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Features by role that are compared with those of `real`, and what a metric tells of it."""
        return self.others() | self.floor(real), self._counted(real.name) | {"real_samples": len(real.features)}

    def to_teacher(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The same for the teacher's samples, drawn from the same noise."""
        return self.others("teacher"), self._counted("teacher samples")

    def _counted(self, reference: str) -> dict[str, Any]:
        return self.counted | {"reference": reference}

    def as_many(self, sets: Mapping[str, Tensor], measure: Callable[[Tensor], Estimate]) -> dict[str, Estimate]:
        """What student and teacher have of as few samples as the corrected student: a distance depends on how many."""
        if self.aside is None or "corrected" not in sets:
            return {}
        return {role: measure(sets[role][: self.aside]) for role in ("student", "teacher") if role in sets}
