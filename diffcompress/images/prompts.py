"""Prompts for text-conditional teachers: the user's, a demo's own, or a grammar of varied ones.

The grammar needs no data and no network: thousands of everyday prompts from subjects, settings, styles and light, so
that the student meets what people ask for. Prompt i follows from i alone.
"""

from __future__ import annotations

from pathlib import Path

import torch

from diffcompress import inputs
from diffcompress.errors import UsageError
from diffcompress.noise import generator, streams
from diffcompress.records.fingerprints import PROVENANCE
from diffcompress.runtime import Progress
from diffcompress.sources.licence import is_demo
from diffcompress.sources.linking import is_own
from diffcompress.sources.reference import Reference

# A demo's prompts lie beside its model_index.json.
OWN_FILE = "prompts.txt"
# In characters. Text encoders read a few hundred tokens, and tokenizers end the process on hundreds of megabytes.
LONGEST = 20_000

SUBJECTS = """
a cat; an old dog; a red fox; a tabby kitten; a white horse; an owl; a flock of birds; a humpback whale; a green
parrot; a sea turtle; a butterfly; a bee on a flower; an elephant; a lion; a brown bear; a goldfish; a woman; an
old man; a child; a group of friends; a farmer; a nurse; a cook; a musician; a dancer; an astronaut; a cyclist;
a football player; a couple; a portrait of a young man; a portrait of an old woman; a street vendor; a red
bicycle; a vintage car; a steam train; a sailing boat; an airplane; a city bus; a motorcycle; a spaceship; a
wooden chair; a cup of coffee; a bowl of fruit; a slice of pizza; a birthday cake; a plate of sushi; a loaf of
bread; a vase of flowers; a stack of books; a pair of shoes; a wristwatch; a guitar; a piano; an old camera; a
laptop; a stone bridge; a lighthouse; a castle; a small house; a skyscraper; a wooden cabin; a church; a
windmill; a temple; a mountain; a waterfall; a river; a forest; a desert; a beach; a field of sunflowers; a
lake; an island; a glacier; a robot; a dragon; a wizard; a knight in armour; a teddy bear; a snowman; a hot air
balloon; an umbrella; a neon sign; a crowded market; a kitchen; a library; a living room; a train station; a
garden; a coffee shop"""
ACTIONS = """
; ; ; sleeping; running; jumping; looking at the camera; in the rain; under a tree; on a table; by a window; in
front of a brick wall; reading a book; holding a balloon; wearing a hat; covered in snow; seen from above; seen
from behind; reflected in water; next to a red door; surrounded by flowers; on top of a hill; at the end of a
road"""
SETTINGS = """
; ; ; in a city street; in a forest; on a beach; in the mountains; in a small village; in a desert; at sea; in a
studio; on a rooftop; in a meadow; in an empty room; on the moon; in a busy market; beside a lake; in winter; in
autumn; in spring; underwater; in space; at a harbour; in a tropical garden"""
LIGHT = """
; ; ; at sunset; at night; in the morning light; in fog; under a cloudy sky; by candlelight; in bright sunlight;
with soft light; with dramatic shadows; at golden hour; under neon lights; after the rain; with a blurred
background"""
STYLES = """
a photo of {}; a photo of {}; a photograph of {}; {}; {}; a close-up photo of {}; a wide shot of {}; an oil
painting of {}; a watercolour of {}; a pencil drawing of {}; a cartoon of {}; a digital painting of {}; a black
and white photo of {}; a 3d render of {}; a pixel art picture of {}; a minimalist illustration of {}; an old
postcard of {}; a children's book illustration of {}; a film still of {}; a macro photo of {}"""


def grammar(count: int) -> list[str]:
    """`count` different prompts; the first n of a longer list are the shorter list. Raises ValueError beyond reach."""
    parts = [_words(text) for text in (SUBJECTS, ACTIONS, SETTINGS, LIGHT)]
    styles, number = _words(STYLES), 0
    found: dict[str, None] = {}
    while len(found) < count:
        own = generator(streams.PROMPT, number)
        picked = [words[int(torch.randint(len(words), (), generator=own))] for words in parts]
        style = styles[int(torch.randint(len(styles), (), generator=own))]
        found[style.format(" ".join(word for word in picked if word))] = None
        number += 1
        if number > 100 * count + 1000:
            raise ValueError(f"the grammar has no {count} different prompts")
    return list(found)


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


def default_for(reference: Reference, count: int, progress: Progress | None = None) -> list[str]:
    """A demo's own prompts, all of them; the grammar's first `count` for any other teacher."""
    if (own := own_file(reference)) is not None:
        return read(own)
    if progress is not None and reference.pipeline is not None and (reference.pipeline / OWN_FILE).exists():
        file = reference.pipeline / OWN_FILE
        progress.note(f"{file} is not taken for the teacher's prompts: name it with --prompts if it is meant")
    return grammar(count)


def _words(text: str) -> list[str]:
    return [" ".join(word.split()) for word in text.split(";")]
