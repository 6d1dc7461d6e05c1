"""LoRA adapters that were made for the teacher: what of them fits its student."""

from __future__ import annotations

from diffcompress.families.base import TensorRule, TensorRules


def fitting(rules: TensorRules) -> dict[str, str]:
    """The student's layers that kept their shape, and the teacher's layer that each was: an adapter's weights for the
    one fit the other."""
    return {_layer(r.student): _layer(str(r.teacher)) for r in _layers(rules) if _is_whole(r, rules)}


def told(rules: TensorRules) -> str:
    """A sentence on the layers that a LoRA may attach to: how many kept their shape, and whether these kept their
    names."""
    total, fits = len(_layers(rules)), fitting(rules)
    if not fits:
        return f"no LoRA adapter of the teacher fits: all {total} layers that one may attach to changed their widths"
    found = f"LoRA adapters of the teacher fit in shape {len(fits)} of the {total} layers that one may attach to"
    if len(fits) == total:
        found += ", whose widths stayed"
    moved = [(ours, theirs) for ours, theirs in fits.items() if ours != theirs]
    if moved:
        ours, theirs = moved[0]
        found += (
            f"; rename them first (adapters in a run's plan.json), because diffusers would load {len(moved)} into "
            f"other layers than their own: {ours} here is {theirs} there"
        )
    return found


def _layers(rules: TensorRules) -> list[TensorRule]:
    """The weights of linear layers and convolutions."""
    return [r for r in rules.rules if r.teacher and r.student.endswith(".weight") and len(r.shape) in (2, 4)]


def _layer(tensor: str) -> str:
    return tensor.removesuffix(".weight")


def _is_whole(rule: TensorRule, rules: TensorRules) -> bool:
    """Whether a tensor is its teacher's, uncut."""
    sets = [rules.sets[name] for axis in rule.axes for name in axis]
    return rule.scale == 1 and all(one.mixture is None and one.size == one.teacher_size for one in sets)
