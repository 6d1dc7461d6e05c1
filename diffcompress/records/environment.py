"""What `env` prints, and the built-in recipes that `recipes list` names."""

from __future__ import annotations

from diffcompress.records.record import Record


class Environment(Record):
    """Versions and devices, for a bug report."""

    python: str
    platform: str
    diffcompress: str
    torch: str
    diffusers: str
    device: str
    offline: bool
    demo_teachers: list[str]
    recipes: list[str]


class NamedRecipe(Record):
    closed = True
    name: str
    description: str
