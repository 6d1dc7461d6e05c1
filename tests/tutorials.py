"""The tutorials as data: their commands and examples in order, and whether an output has the lines that pages show."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent.parent / "docs" / "tutorials"
# A number with what may follow it: students in tests are smaller than those on the pages.
_NUMBER = re.compile(r"\d[\d.,]*(?: ?(?:[kMGT]?B|[kMG]|%|min|h|s)\b)?")


@dataclass(frozen=True)
class Example:
    """One command of a console block (`words`) with the lines shown under it, or a block of Python (`code`)."""

    words: tuple[str, ...] = ()
    shown: tuple[str, ...] = ()
    code: str = ""


def examples(page: Path) -> list[Example]:
    found = []
    text = page.read_text(encoding="utf-8")
    for kind, block in re.findall(r"```(console|python)\n(.*?)```", text, flags=re.DOTALL):
        if kind == "python":
            found.append(Example(code=block))
            continue
        before, *commands = re.split(r"^\$ ", block, flags=re.MULTILINE)
        assert not before, f"{page.stem}: output without a command"
        for command in commands:
            line, _, output = command.replace("\\\n", "").partition("\n")
            found.append(Example(tuple(shlex.split(line, comments=True)), tuple(filter(None, output.splitlines()))))
    return found


def command(page: str, program: str) -> Example:
    """The one command of a page that starts `program`, whatever variables it sets before."""
    (found,) = (one for one in examples(FOLDER / f"{page}.md") if program in " ".join(one.words))
    return found


def missing(shown: tuple[str, ...], output: str) -> list[str]:
    """The shown lines that the output lacks: numbers may differ, and so may what `...` stands for."""
    lines = [_NUMBER.sub("0", " ".join(line.split())) for line in output.splitlines()]
    patterns = {line: re.escape(_NUMBER.sub("0", " ".join(line.split()))).replace(r"\.\.\.", ".*") for line in shown}
    return [line for line, pattern in patterns.items() if not any(re.fullmatch(pattern, one) for one in lines)]
