"""Prompts that a text encoder does not read to their end: its tokenizers are watched while a pipeline calls them."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Cut:
    """limit: tokens that a tokenizer was told to keep; count, first: of the different texts that have more; left: a
    hash of what each of these keeps."""

    limit: int
    count: int = 0
    first: str | None = None
    left: list[str] = field(default_factory=list)


@contextlib.contextmanager
def watched(pipeline: Any) -> Iterator[dict[str, Cut]]:
    """What each tokenizer of `pipeline` cuts meanwhile, by its name; those that cut nothing count 0."""
    found: dict[str, Cut] = {}
    tokenizers = {n: t for n, t in pipeline.components.items() if n.startswith("tokenizer") and callable(t)}
    classes = {name: type(tokenizer) for name, tokenizer in tokenizers.items()}
    try:
        for name, tokenizer in tokenizers.items():
            tokenizer.__class__ = _watching(classes[name], name, found)
        yield found
    finally:
        for name, tokenizer in tokenizers.items():
            tokenizer.__class__ = classes[name]


def stored(cut: Mapping[str, Cut]) -> dict[str, str]:
    """`cut` as the metadata of a safetensors file."""
    return {"cut": json.dumps({name: asdict(one) for name, one in cut.items()})}


def warning(metadata: Sequence[Mapping[str, str] | None], total: int) -> str | None:
    """What to say of `total` prompts in files of this `metadata`; None where an encoder reads all of each."""
    whole: dict[str, Cut] = {}
    for one in metadata:
        for name, values in json.loads((one or {}).get("cut", "{}")).items():
            part = Cut(**values)
            cut = whole.setdefault(name, Cut(part.limit))
            cut.limit, cut.count, cut.first = part.limit, cut.count + part.count, cut.first or part.first
            cut.left += part.left
    widest = max(whole.values(), key=lambda cut: cut.limit, default=None)
    if widest is None or widest.first is None:
        return None
    equal = sum(times for times in Counter(widest.left).values() if times > 1)
    return (
        f"{widest.count:,} of {total:,} prompts are longer than the {widest.limit} tokens that the teacher reads and "
        f"are cut there, first '{widest.first[:60]}...': "
        + (f"{equal:,} of them became equal to others" if equal else "none of them became equal to another")
    )


def _watching(cls: type, name: str, found: dict[str, Cut]) -> type:
    """`cls`, which keeps count of what it cuts in `found`."""
    seen: set[str] = set()

    def call(self: Any, text: Any = None, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("truncation"):
            cut = found.setdefault(name, Cut(int(kwargs.get("max_length") or self.model_max_length)))
            marked = kwargs.get("add_special_tokens", True)
            for one in {text} if isinstance(text, str) else dict.fromkeys(text):
                tokens = cls.__call__(self, one, add_special_tokens=marked)["input_ids"]  # type: ignore[operator]
                if len(tokens) > cut.limit and one not in seen:
                    seen.add(one)
                    cut.count, cut.first = cut.count + 1, cut.first or one
                    kept = json.dumps([int(token) for token in tokens[: cut.limit - 1]])  # before a last mark
                    cut.left.append(hashlib.sha256(kept.encode()).hexdigest()[:16])
        return cls.__call__(self, text, *args, **kwargs)  # type: ignore[operator]

    return type(cls.__name__, (cls,), {"__call__": call})
