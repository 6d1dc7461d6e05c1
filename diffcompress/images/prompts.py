"""Prompts for text-conditional teachers: the user's, a demo's own, or those of a grammar (`grammar`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from diffcompress import inputs
from diffcompress.errors import UsageError
from diffcompress.images.grammar import grammar
from diffcompress.records.fingerprints import PROVENANCE
from diffcompress.runtime import Progress
from diffcompress.sources.licence import is_demo
from diffcompress.sources.linking import is_own
from diffcompress.sources.reference import Reference

# A demo's prompts lie beside its model_index.json.
OWN_FILE = "prompts.txt"
# That students are judged by, and of another seed than those that they are taught on.
NUM_HELD_OUT, HELD_OUT_SEED, MOST_TAUGHT = 256, 1, 16_384
# In characters. Text encoders read a few hundred tokens, and tokenizers end the process on hundreds of megabytes.
LONGEST = 20_000


def read(file: Path, progress: Progress | None = None) -> list[str]:
    """One prompt a line, each once, empty lines skipped; raises UsageError when the file has none, holds a line that
    is none, or cannot be read as UTF-8."""
    try:
        lines = inputs.read_text(file, encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise UsageError(f"cannot read the prompts in '{file}': {error.strerror}", "name a text file") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"the prompts in '{file}' are not UTF-8 (byte {error.start})", "save it as UTF-8") from error
    for number, line in enumerate(lines, 1):
        if told := unfit(line):
            raise UsageError(f"line {number} of '{file}' holds {told}", "write one prompt a line")
    found = [text for line in lines if (text := line.strip())]
    if not found:
        raise UsageError(f"'{file}' holds no prompt", "write one prompt a line")
    prompts = list(dict.fromkeys(found))
    if progress is not None and len(prompts) < len(found):
        progress.note(f"{len(prompts):,} of the {len(found):,} prompts in '{file}' are different, and each counts once")
    return prompts


def unfit(text: str) -> str | None:
    """What to say of a text that no tokenizer should be given; None for any other."""
    if len(text) > LONGEST:
        return f"a text of {len(text):,} characters, and prompts have {LONGEST:,} at most"
    half = next((letter for letter in text if "\ud800" <= letter <= "\udfff"), None)
    return None if half is None else f"half a character (U+{ord(half):04X}, a lone surrogate)"


def own_file(reference: Reference) -> Path | None:
    """The prompts that a demo, or a student of one, brings along; a file of that name elsewhere is the user's own."""
    if reference.pipeline is None:
        return None
    file = reference.pipeline / OWN_FILE
    ours = is_demo(reference) or (reference.pipeline / PROVENANCE).is_file()
    return file if ours and is_own(file, reference.pipeline) else None


def held_out_for(reference: Reference, taught: Sequence[str]) -> list[str]:
    """Prompts of the grammar that are none of those `taught`, for evaluation; none beside a demo's own.

    The same ones whatever is taught, up to `MOST_TAUGHT`.
    """
    if own_file(reference) is not None:
        return []
    known = {*grammar(MOST_TAUGHT), *taught}
    return [text for text in grammar(2 * NUM_HELD_OUT, HELD_OUT_SEED) if text not in known][:NUM_HELD_OUT]


def default_for(reference: Reference, count: int, progress: Progress | None = None) -> list[str]:
    """A demo's own prompts, all of them; the grammar's first `count` for any other teacher."""
    if (own := own_file(reference)) is not None:
        return read(own)
    if progress is not None and reference.pipeline is not None and (reference.pipeline / OWN_FILE).exists():
        file = reference.pipeline / OWN_FILE
        progress.note(f"{file} is not taken for the teacher's prompts: name it with --prompts if it is meant")
    return grammar(count)
