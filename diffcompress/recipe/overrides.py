"""`--set path=value`: one value of a recipe, as its file would hold it."""

from __future__ import annotations

import re
from typing import Any

from diffcompress.inputs import parse_yaml
from diffcompress.recipe.sections import default_stages

_EXPONENT = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)[eE][+-]?\d+")


def override(data: dict[str, Any], text: str) -> None:
    """Set `path=value` in `data`; items of a list go by their number. Raises ValueError that says what is wrong."""
    path, separator, value = text.partition("=")
    if not separator or not path:
        raise ValueError("expected key=value")
    if path.startswith("stages.") and "stages" not in data:
        data["stages"] = [stage.model_dump(mode="json") for stage in default_stages()]
    *parents, last = path.split(".")
    node: Any = data
    for part in parents:
        node = node.setdefault(part, {}) if isinstance(node, dict) else node[_item(node, part)]
    node[last if isinstance(node, dict) else _item(node, last)] = _read(value)
    if parents[:1] == ["stages"] and last == "num_steps":
        node["least_gain"] = None  # who says how many steps means as many


def _item(node: Any, part: str) -> int:
    if not isinstance(node, list):
        raise ValueError(f"'{part}' lies below a plain value")
    if not part.isdigit() or int(part) >= len(node):
        raise ValueError(f"no item '{part}' in a list of {len(node)}")
    return int(part)


def _read(text: str) -> Any:
    try:
        value = parse_yaml(text)
    except ValueError:
        raise ValueError("what follows = is not a YAML value") from None
    # YAML 1.1 reads 1e-3 as text; a person who writes it without quotes means a number.
    return float(text) if isinstance(value, str) and _EXPONENT.fullmatch(text.strip()) else value
