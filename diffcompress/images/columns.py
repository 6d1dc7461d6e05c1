"""Which columns of a data set on the Hub are the images, their classes and their captions."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

IMAGES = ("image", "img")
LABELS = ("label", "labels", "class", "cls")
TEXTS = ("text", "caption", "captions", "prompt", "txt")


@dataclass(frozen=True)
class Columns:
    """Names of the columns, None for what there is not; classes: their names, where the data set declares them."""

    image: str | None
    label: str | None
    text: str | None
    classes: Sequence[str] | None

    @cached_property
    def stated(self) -> list[int] | None:
        return stated_labels(self.classes or ())

    def label_of(self, value: Any) -> int | None:
        """The label that a value of the label column means; None for none, which `datasets` writes as -1."""
        if not isinstance(value, int) or value < 0:
            return None
        return self.stated[value] if self.stated else value


def stated_labels(classes: Sequence[str]) -> list[int] | None:
    """Names of classes that are all integers state the labels; None for other names."""
    stated = bool(classes) and all(re.fullmatch("-?[0-9]+", name) for name in classes)
    return [int(name) for name in classes] if stated else None


def find(features: Mapping[str, Any]) -> Columns:
    """Read off the types that `datasets` found; among several columns the usual names go first."""
    from datasets import ClassLabel, Image

    typed = [name for name, feature in features.items() if isinstance(feature, Image)]
    image = _first(IMAGES, typed) or _first(IMAGES, [n for n, f in features.items() if _holds_bytes(f)], strict=True)
    named = [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
    label = _first(LABELS, named) or _first(LABELS, [n for n, f in features.items() if _is(f, "int")], strict=True)
    text = _first(TEXTS, [name for name, feature in features.items() if _is_text(feature)], strict=True)
    return Columns(image, label, text, features[label].names if label in named else None)


def text_of(value: Any) -> str | None:
    """A caption, the first one of several; None for an empty one."""
    while isinstance(value, (list, tuple)):
        value = value[0] if value else None
    return value.strip() or None if isinstance(value, str) else None


def _first(usual: tuple[str, ...], names: list[str], *, strict: bool = False) -> str | None:
    found = [name for name in usual if name in names] + ([] if strict else names)
    return found[0] if found else None


def _holds_bytes(feature: Any) -> bool:
    """Encoded images whose type nobody declared: bytes, or a struct with bytes."""
    return _is(feature, "binary", "large_binary") or (isinstance(feature, Mapping) and "bytes" in feature)


def _is_text(feature: Any) -> bool:
    return any(_is(inner, "string", "large_string") for inner in _nested(feature))


def _is(feature: Any, *kinds: str) -> bool:
    dtype = str(getattr(feature, "dtype", ""))
    return dtype.rstrip("0123456789") in kinds and type(feature).__name__ == "Value"


def _nested(feature: Any) -> Iterator[Any]:
    """A feature, and what a list of it holds."""
    yield feature
    inner = feature[0] if isinstance(feature, list) and feature else getattr(feature, "feature", None)
    if inner is not None:
        yield from _nested(inner)
