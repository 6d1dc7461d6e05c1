"""What will be built: everything about a student but its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from diffcompress.families.base import Family, TensorRules


@dataclass(frozen=True)
class StudentPlan:
    """See the first line.

    config: plain diffusers config; params, teacher_params: denoiser parameters without buffers; ratio: params /
    teacher_params; choice: knob values; notes: what a person should know, in plain sentences; prediction_type: what the
    student predicts, as diffusers spells it, None where no scheduler tells it; adapters: of layers that LoRA adapters
    of a text-conditional teacher still fit, the teacher's by the student's.
    """

    family: str
    teacher_config: dict[str, Any]
    config: dict[str, Any]
    params: int
    teacher_params: int
    requested_ratio: float
    choice: dict[str, int]
    notes: tuple[str, ...] = ()
    prediction_type: str | None = None
    adapters: dict[str, str] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        return self.params / self.teacher_params

    def rules(self, family: Family) -> TensorRules:
        """Where each tensor of the student comes from."""
        return family.tensor_rules(self.teacher_config, self.config)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "ratio": self.ratio, "notes": list(self.notes)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> StudentPlan:
        values = {key: value for key, value in data.items() if key != "ratio"}
        return cls(**{**values, "notes": tuple(values["notes"])})
