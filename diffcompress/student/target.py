"""What is asked for: so many parameters of one teacher, which runs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from diffcompress.errors import DoesNotFitError, UsageError
from diffcompress.families.base import Config, Family, Variant
from diffcompress.families.shapes import shapes
from diffcompress.student import costs
from diffcompress.student.search import TOLERANCE, Candidate
from diffcompress.student.size import file_bytes


@dataclass(frozen=True)
class Target:
    """config: the teacher's, complete; params: of the student, teacher_params: of the teacher."""

    family: Family
    config: Config
    params: float
    teacher_params: int

    @property
    def ratio(self) -> float:
        return self.params / self.teacher_params

    @classmethod
    def of(
        cls,
        family: Family,
        config: Config,
        variant: Variant,
        *,
        ratio: float | None = None,
        params: int | None = None,
        size: int | None = None,
        dtype: str | None = None,
    ) -> Target:
        """From exactly one of ratio, params and size, the bytes of a file in `dtype`, a torch name (float32 if None).

        variant: the family's first. Raises UsageError for a teacher that is not built by its config or does not run,
        and for anything that lies not below it.
        """
        try:
            teacher = shapes(family.class_name, config).num_parameters
        except Exception as error:
            raise UsageError(
                f"the teacher's config does not build a {family.class_name}: {error}", "check the config"
            ) from error
        _check_runs(family, config, variant)
        if sum(value is not None for value in (ratio, params, size)) != 1:
            raise UsageError("exactly one of ratio, params and size sets the target", "for example a ratio of 0.05")
        if ratio is not None:
            if not (math.isfinite(ratio) and 0 < ratio < 1):
                raise UsageError(f"ratio {ratio:g} is not between 0 and 1", "for example 0.05 for a student of 5 %")
            return cls(family, config, ratio * teacher, teacher)
        stored: torch.dtype = getattr(torch, dtype or "float32")
        if params is not None:
            wanted, told = float(params), f"{params:,} parameters"
        else:
            assert size is not None
            # The header of the teacher's file, which has at least as many tensors.
            rules = family.tensor_rules(config, config)
            header = file_bytes(rules, stored) - rules.num_elements * stored.itemsize
            wanted, told = (size - header) / stored.itemsize, f"{size:,} bytes"
        if not 0 < wanted < teacher:
            where = "are not less than the teacher's" if wanted >= teacher else "hold no student of the teacher's"
            raise UsageError(f"{told} {where} {teacher:,} parameters", "ask for a student smaller than the teacher")
        return cls(family, config, wanted, teacher)

    def not_met(self, nearest: Candidate, limit: str, *, smallest: bool, kept: str = "") -> DoesNotFitError:
        """No student within `limit` has as many parameters. kept: of `nearest`, what does not shrink."""
        reached = round((1 + nearest.error) * self.params)
        which = "smallest" if smallest else "nearest"
        return DoesNotFitError(
            f"ratio {self.ratio:.4g} cannot be reached within {TOLERANCE:.0%}: it means {self.params:,.0f} parameters, "
            f"and the {which} student with {limit} has {reached:,}{kept}",
            f"ask for ratio {reached / self.teacher_params:.4g}",
        )


def _check_runs(family: Family, config: Config, variant: Variant) -> None:
    """Raise UsageError unless the teacher, a transformer in its shallowest form, runs on its own samples."""
    if family.kind == "transformer":  # blocks alike: one tells what sixty would in as many times the seconds
        config = {**config, **{knob.name: knob.values[0] for knob in variant.knobs if knob.kind == "depth"}}
    try:
        costs.check(family, config, config)
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(
            f"the teacher does not run on samples of its own shape {family.sample_shape(config)}: {error}",
            "check its config, sample_size first",
        ) from error
