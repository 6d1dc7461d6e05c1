"""The one table of metrics: what each is called, means, is told in and is measured by.

A metric is added here and in its file of `evaluation`, nowhere else: the table names the file, whose `add_metrics` is
asked for those that it measures (docs/decisions/0015-typed-records.md).
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

# Feature spaces by name.
SPACES = ("demo", "inception", "dinov2", "clip", "pick")
ROLES = ("student", "teacher", "untrained")
PROBE = "probe"  # named where no metric can be corrected: every corrected one comes from it
NO_TEACHER = "no teacher was given: name it with --teacher"
_CORRECTED, _HELD_OUT = "_corrected", "_held_out"


class Estimate(NamedTuple):
    """A value and its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Kind:
    """All that is known of a metric but its values.

    name: in JSON, gates and tables; label: in words; unit: in JSON; told: how its values are written; better: which
    direction is; looks_at: what it is computed from ("features" of samples in a feature space are perceptual); to: what
    the student is compared with, None for what it is by itself; measured_in: the module of `evaluation` that computes
    it; source: who defined it; in_space: there is one for each feature space; held_out: also to real images that
    nothing was tuned on; corrected: also of the student behind the probe's lines; most: its largest value;
    like_teacher: the value of a student equal to its teacher, where the teacher's own is none; instead_of: the kind
    that is called so where it is what the word means; only_in: the one feature space that it is defined in; axis: what
    charts say in place of the unit.
    """

    name: str
    label: str
    unit: str
    better: Literal["lower", "higher"]
    looks_at: Literal["cost", "features", "samples", "predictions"]
    measured_in: str
    to: Literal["real", "teacher", "prompts"] | None = None
    told: Literal["number", "count", "bytes", "ms", "share"] = "number"
    source: str = ""
    in_space: bool = False
    held_out: bool = False
    corrected: bool = False
    most: float | None = None
    like_teacher: float = 0.0
    instead_of: str = ""
    only_in: str = ""
    axis: str = ""

    @property
    def is_cost(self) -> bool:
        return self.looks_at == "cost"

    @property
    def is_perceptual(self) -> bool:
        """Whether it says how good images look."""
        return self.looks_at == "features"

    @property
    def is_distance_to_real(self) -> bool:
        return self.is_perceptual and self.to == "real" and self.better == "lower"


def _cost(name: str, label: str, unit: str, told: Literal["count", "bytes", "ms"]) -> Kind:
    return Kind(name=name, label=label, unit=unit, better="lower", looks_at="cost", measured_in="speed", told=told)


def _distance(name: str, label: str, unit: str, module: str, to: Literal["real", "teacher"], source: str) -> Kind:
    return Kind(
        name=name, label=label, unit=unit, better="lower", looks_at="features", measured_in=module, to=to,
        source=source, in_space=True, held_out=name == "fd", corrected=True,
    )  # fmt: skip


def _neighbours(name: str, source: str, most: float | None = 1.0) -> Kind:
    return Kind(
        name=name, label=name.capitalize(), unit="", better="higher", looks_at="features", measured_in="neighbours",
        to="real", source=source, in_space=True, most=most,
    )  # fmt: skip


def _states(name: str, label: str) -> Kind:
    return Kind(
        name=name, label=label, unit="", better="higher", looks_at="predictions", measured_in="own_states",
        to="teacher", most=1.0, like_teacher=1.0, axis="1 = equal predictions",
    )  # fmt: skip


_FRECHET = "Heusel et al. 2017, arXiv 1706.08500"
_KERNEL = "Binkowski et al. 2018, arXiv 1801.01401"
_SLICED = "Berthet et al. 2026, arXiv 2605.06797"
_PRECISION = "Kynkaanniemi et al. 2019, arXiv 1904.06991"
_COVERAGE = "Naeem et al. 2020, arXiv 2002.09797"
TABLE = (
    _cost("params", "Denoiser parameters", "parameters", "count"),
    _cost("size_bytes", "Denoiser weights as stored", "bytes", "bytes"),
    _cost("macs", "Multiply-accumulates per denoiser call", "multiply-accumulates", "count"),
    _cost("latency_ms", "Time of one denoiser call, batch of 1", "ms per call", "ms"),
    _cost("latency_ms_batch16", "Time of one denoiser call, batch of 16", "ms per call", "ms"),
    _cost("memory_bytes", "Memory of one denoiser call", "bytes", "bytes"),
    _distance("fd", "Fréchet distance", "squared feature units", "distances", "real", _FRECHET),
    _distance("kd", "Kernel distance", "squared kernel units", "distances", "real", _KERNEL),
    _distance("swd", "Sliced Wasserstein distance", "squared feature units", "sliced", "real", _SLICED),
    _neighbours("precision", _PRECISION),
    _neighbours("recall", _PRECISION),
    _neighbours("density", _COVERAGE, most=None),
    _neighbours("coverage", _COVERAGE),
    _distance(
        "fd_teacher", "Fréchet distance to the teacher's samples", "squared feature units", "distances", "teacher",
        _FRECHET,
    ),
    _distance(
        "kd_teacher", "Kernel distance to the teacher's samples", "squared kernel units", "distances", "teacher",
        _KERNEL,
    ),
    _distance(
        "swd_teacher", "Sliced Wasserstein distance to the teacher's samples", "squared feature units", "sliced",
        "teacher", _SLICED,
    ),
    Kind(
        name="mind", label="MIND", unit="squared feature units", better="lower", looks_at="features",
        measured_in="sliced", to="real", source=_SLICED, corrected=True, instead_of="swd",
    ),
    Kind(
        name="cmmd", label="CMMD", unit="1,000 x squared kernel units", better="lower", looks_at="features",
        measured_in="cmmd", to="real", source="Jayasumana et al. 2024, arXiv 2401.09603", corrected=True,
        only_in="clip",
    ),
    Kind(
        name="fid", label="FID", unit="squared feature units", better="lower", looks_at="features",
        measured_in="distances", to="real", source=_FRECHET, corrected=True, instead_of="fd",
    ),
    Kind(
        name="clip_score", label="CLIP score", unit="100 x cosine", better="higher", looks_at="features",
        measured_in="clip_score", to="prompts", source="Hessel et al. 2021, arXiv 2104.08718",
    ),
    Kind(
        name="pick_score", label="PickScore", unit="", better="higher", looks_at="features",
        measured_in="clip_score", to="prompts", source="Kirstain et al. 2023, arXiv 2305.01569",
    ),
    Kind(
        name="agreement", label="Agreement with the teacher", unit="", better="higher", looks_at="predictions",
        measured_in="agreement", to="teacher", most=1.0, like_teacher=1.0, axis="1 = equal predictions",
    ),
    _states("agreement_teacher_states", "Agreement while the teacher samples"),
    _states("agreement_own_states", "Agreement while the student itself samples"),
    Kind(
        name="failed_samples", label="Failed samples", unit="share of samples", better="lower", looks_at="samples",
        measured_in="failed", to="teacher", told="share", corrected=True, most=1.0,
    ),
    Kind(
        name="sample_variance", label="Variance over samples, of the teacher's", unit="", better="higher",
        looks_at="samples", measured_in="spread", to="teacher", like_teacher=1.0, axis="1 = as the teacher's samples",
    ),
    Kind(
        name="paired_distance", label="Distance to the teacher's image", unit="rms pixel difference", better="lower",
        looks_at="samples", measured_in="paired", to="teacher", corrected=True,
    ),
)  # fmt: skip
KINDS = {kind.name: kind for kind in TABLE}


@dataclass(frozen=True)
class Metric:
    """One figure: a kind, and of it the one in `space`, of held-out images, of the corrected student."""

    kind: Kind
    space: str | None = None
    held_out: bool = False
    corrected: bool = False

    @property
    def name(self) -> str:
        """What it is called in JSON and in gates: `fd_demo_held_out`."""
        space = f"_{self.space}" if self.space is not None else ""
        return f"{self.kind.name}{space}{_HELD_OUT * self.held_out}{_CORRECTED * self.corrected}"

    @property
    def label(self) -> str:
        """In words; the name of its feature space stays beside it."""
        named = f" ({replace(self, held_out=False, corrected=False).name})" if self.space is not None else ""
        ends = ", held-out images" * self.held_out + ", student corrected by the probe" * self.corrected
        return f"{self.kind.label}{named}{ends}"

    @property
    def mended(self) -> Metric:
        """This metric of the student as the probe's lines correct it, which is not what is shipped."""
        return Metric(self.kind, self.space, corrected=True)

    @property
    def is_headline(self) -> bool:
        """Whether it is of the student that ships, on what is looked at first."""
        return not (self.held_out or self.corrected)

    @property
    def is_plain(self) -> bool:
        """A kind's own name, which means the one of the space that is used."""
        return self.is_headline and self.space is None

    @classmethod
    def named(cls, name: str) -> Metric:
        """The metric that a result calls `name`; one that no table knows is a number without a meaning.

        The only place that reads a name: results on disk hold nothing else.
        """
        stem = name.removesuffix(_CORRECTED)
        corrected, held_out = stem != name, stem.endswith(_HELD_OUT)
        stem = stem.removesuffix(_HELD_OUT)
        if stem in KINDS:
            return cls(KINDS[stem], None, held_out, corrected)
        in_space = [kind for kind in TABLE if kind.in_space and stem.startswith(f"{kind.name}_")]
        if not in_space:
            return cls(_unknown(name))
        kind = max(in_space, key=lambda kind: len(kind.name))  # fd_teacher before fd
        return cls(kind, stem.removeprefix(f"{kind.name}_"), held_out, corrected)


def every(space: str | None = None) -> dict[str, Metric]:
    """All metrics that an evaluation may compute, by name, `space` beside the known feature spaces; gates know these.

    A distance or neighbour metric without its space's name (`fd`) means that of the space that is used.
    """
    spaces = dict.fromkeys([*SPACES, *([space] if space else [])])
    return {metric.name: metric for metric in _every(tuple(spaces))}


def _every(spaces: tuple[str, ...]) -> Iterator[Metric]:
    for kind in TABLE:
        yield Metric(kind)
        if kind.corrected:
            yield Metric(kind, corrected=True)
        for space in spaces if kind.in_space else ():
            yield Metric(kind, space)
            if kind.held_out:
                yield Metric(kind, space, held_out=True)
            if kind.corrected:
                yield Metric(kind, space, corrected=True)


def full_name(name: str, computed: Container[str], space: str | None) -> str:
    """The metric that `name` means among those `computed` in a space: `fd` is `fd_demo`, or `fid` where so called."""
    if name in computed or space is None:
        return name
    metric = Metric.named(name)
    for kind in TABLE:
        called = Metric(kind, corrected=metric.corrected).name
        if kind.instead_of == metric.kind.name and metric.space in (None, space) and called in computed:
            return called
    return replace(metric, space=space).name if metric.kind.in_space and metric.space is None else name


def _unknown(name: str) -> Kind:
    label = name.replace("_", " ").capitalize()
    return Kind(name=name, label=label, unit="", better="lower", looks_at="samples", measured_in="")
