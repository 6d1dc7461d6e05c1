"""LoRA adapters that were made for the teacher: what of them fits its student."""

from __future__ import annotations

from diffcompress.families.base import TensorRule, TensorRules


def told(rules: TensorRules) -> str:
    """A sentence on the layers that a LoRA may attach to, linear ones and convolutions: how many kept their shape, and
    whether these kept their names."""
    layers = [r for r in rules.rules if r.teacher and r.student.endswith(".weight") and len(r.shape) in (2, 4)]
    fitting = [rule for rule in layers if _is_whole(rule, rules)]
    if not fitting:
        return (
            f"no LoRA adapter of the teacher fits: all {len(layers)} layers that one may attach to changed their widths"
        )
    found = (
        f"LoRA adapters of the teacher fit in shape {len(fitting)} of the {len(layers)} layers that one may attach to"
    )
    if len(fitting) == len(layers):
        found += ", whose widths stayed"
    moved = [rule for rule in fitting if rule.student != rule.teacher]
    if moved:
        ours, theirs = (name.removesuffix(".weight") for name in (moved[0].student, str(moved[0].teacher)))
        found += (
            f"; rename them first, because diffusers would load {len(moved)} into other layers than their own: {ours} "
            f"here is {theirs} there"
        )
    return found


def _is_whole(rule: TensorRule, rules: TensorRules) -> bool:
    """Whether a tensor is its teacher's, uncut."""
    sets = [rules.sets[name] for axis in rule.axes for name in axis]
    return rule.scale == 1 and all(one.mixture is None and one.size == one.teacher_size for one in sets)
