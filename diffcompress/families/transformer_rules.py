"""Where each tensor of a transformer student comes from: axes named by role, chunks found by size.

A family says how wide each role is in teacher and student, which tensors have other roles than the usual ones, and
which teacher block each student block starts from. The rest follows from the shapes: an axis that is equal in both is
copied whole; one that is k times its role's width in both is k cuts of that role's index set, end to end.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from diffcompress.families.base import Config, IndexSet, TensorRule, TensorRules
from diffcompress.families.shapes import shapes


@dataclass(frozen=True)
class Width:
    """One role: its channels in teacher and student; groups are heads. positions, follows: see IndexSet."""

    teacher: int
    student: int
    teacher_groups: int = 1
    groups: int = 1
    positions: tuple[int, ...] | None = None
    follows: str | None = None


@dataclass(frozen=True)
class Role:
    """Roles of the axes of tensors whose name matches `pattern` (a full match).

    axes: for each axis (as many as given, from the first) the roles laid end to end, or one role that repeats as often
    as the size says; None: the residual width. "{at}" in a role is the pattern's group `at`, so that every attention
    and feed-forward layer picks its own channels. scale multiplies the values.
    """

    pattern: str
    axes: tuple[tuple[str, ...] | str | None, ...]
    scale: float = 1.0


RESIDUAL = "residual"
# The names that diffusers' attention and feed-forward layers share over its transformers.
USUAL = (
    Role(r"(?P<at>.*(attn\d?|attention))\.(to_[qkv]|add_[qkv]_proj)\.weight", ("{at}.heads", None)),
    Role(r"(?P<at>.*(attn\d?|attention))\.(to_[qkv]|add_[qkv]_proj)\.bias", ("{at}.heads",)),
    Role(r"(?P<at>.*(attn\d?|attention))\.(to_out\.0|to_out|to_add_out)\.weight", (None, "{at}.heads")),
    Role(r"(?P<at>.*(attn\d?|attention))\.norm_(added_)?[qk]\.(weight|bias)", ("head",)),
    Role(r"(?P<at>.*(ff|ff_context|ffn))\.net\.0\.proj\.weight", ("{at}.ffn", None)),
    Role(r"(?P<at>.*(ff|ff_context|ffn))\.net\.0\.proj\.bias", ("{at}.ffn",)),
    Role(r"(?P<at>.*(ff|ff_context|ffn))\.net\.2\.weight", (None, "{at}.ffn")),
    Role(r"(?P<at>.*feed_forward)\.(w|linear_)[13]\.weight", ("{at}.ffn", None)),
    Role(r"(?P<at>.*feed_forward)\.(w|linear_)2\.weight", (None, "{at}.ffn")),
)


@dataclass(frozen=True)
class Rules:
    """What a family knows beyond the shapes.

    widths: by the last part of a role's name ("residual", "heads", "ffn", ...); roles: tried before the usual ones;
    sources: for each list of blocks the teacher block that each student block starts from; notes: see TensorRules.
    """

    widths: Mapping[str, Width]
    roles: tuple[Role, ...] = ()
    sources: Mapping[str, Sequence[int]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def spread(student: int, teacher: int) -> list[int]:
    """The teacher block of each student block: first and last kept, the rest spread evenly."""
    if student == 1:
        return [0]
    return [round(position * (teacher - 1) / (student - 1)) for position in range(student)]


def nearest_positions(teacher: Sequence[int], student: Sequence[int], pair: int = 1) -> tuple[int, ...]:
    """Channels to keep of segments of frequencies, so that each student frequency is nearest to its teacher's.

    Segment s has teacher[s] channels of which student[s] stay; `pair` channels in a row share a frequency (2 in
    interleaved rotary embeddings). Frequencies of a segment fall geometrically, so positions scale with its length.
    """
    kept: list[int] = []
    start = 0
    for wide, narrow in zip(teacher, student, strict=True):
        old, new = wide // pair, narrow // pair
        picks = [(2 * i * old + new) // (2 * new) for i in range(new)]  # ties upwards: alike in every segment
        kept += [start + pick * pair + k for pick in picks for k in range(pair)]
        start += wide
    return tuple(kept)


def rotary_sizes(axes: Sequence[int]) -> list[int]:
    """Even head sizes, descending, that rotary axes of these sizes can shrink to without changing their proportions."""
    unit = math.gcd(*axes) // 2  # pairs of channels
    return [sum(axes) * part // unit for part in range(unit, 0, -1)]


def rotary_axes(axes: Sequence[int], head_dim: int) -> list[int]:
    """Rotary axes of a head of `head_dim` channels, one of `rotary_sizes`, in the proportions of `axes`."""
    return [axis * head_dim // sum(axes) for axis in axes]


def tensor_rules(class_name: str, teacher: Config, student: Config, rules: Rules) -> TensorRules:
    """A rule for each tensor of `student`.

    Raises RuntimeError, naming the tensor, when its shape does not follow from `rules`: a mistake in the family.
    """
    wide, narrow = shapes(class_name, teacher).tensors, shapes(class_name, student)
    sets: dict[str, IndexSet] = {}
    found = []
    for name, shape in narrow.tensors.items():
        source = _source(name, rules.sources)
        if source not in wide:
            raise RuntimeError(f"{class_name}: {name} would start from {source}, which the teacher does not have")
        role, at = _role(name, rules.roles)
        if len(wide[source]) != len(shape):
            raise RuntimeError(f"{class_name}: {name} has {len(shape)} axes, its source {source} {len(wide[source])}")
        axes = tuple(
            _axis(role, at, number, sizes, rules.widths, sets, name)
            for number, sizes in enumerate(zip(wide[source], shape, strict=True))
        )
        found.append(TensorRule(name, source, axes, shape, role.scale, scored=name in narrow.parameters))
    for index in list(sets.values()):
        if index.follows is not None and index.follows not in sets:
            raise RuntimeError(f"{class_name}: {index.name} follows {index.follows}, which no tensor is cut by")
    return TensorRules(sets, tuple(found), rules.notes)


def _source(name: str, sources: Mapping[str, Sequence[int]]) -> str:
    for stack, order in sources.items():
        if name.startswith(stack + "."):
            number, _, rest = name[len(stack) + 1 :].partition(".")
            return f"{stack}.{order[int(number)]}.{rest}"
    return name


def _role(name: str, own: tuple[Role, ...]) -> tuple[Role, str]:
    for role in (*own, *USUAL):
        match = re.fullmatch(role.pattern, name)
        if match:
            return role, match.groupdict().get("at") or ""
    return Role("", ()), ""


def _axis(
    role: Role,
    at: str,
    number: int,
    sizes: tuple[int, int],
    widths: Mapping[str, Width],
    sets: dict[str, IndexSet],
    tensor: str,
) -> tuple[str, ...]:
    wide, narrow = sizes
    if wide == narrow:
        return ()
    given = role.axes[number] if number < len(role.axes) else None
    names = (RESIDUAL,) if given is None else (given,) if isinstance(given, str) else given
    names = tuple(name.replace("{at}", at) for name in names)
    if isinstance(given, str) or given is None:
        width = widths[names[0].rpartition(".")[2]]
        names = names * max(1, wide // width.teacher)
    parts = [widths[name.rpartition(".")[2]] for name in names]
    if (sum(part.teacher for part in parts), sum(part.student for part in parts)) != (wide, narrow):
        raise RuntimeError(f"{tensor}: axis {number} of {wide} -> {narrow} channels is no whole number of {names[0]}")
    for name, part in zip(names, parts, strict=True):
        follows = None if part.follows is None else part.follows.replace("{at}", at)
        sets[name] = IndexSet(
            name,
            part.teacher,
            part.student,
            part.teacher_groups,
            part.groups,
            positions=part.positions,
            follows=follows,
        )
    return names
