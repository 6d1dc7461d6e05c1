"""What the user should know of a teacher that was found, though it can be used."""

from __future__ import annotations

import re

from diffcompress.sources.linking import left_behind
from diffcompress.sources.reference import Reference
from diffcompress.sources.variants import PICKLES, choose

# Nothing in their configs tells them from the models that they were distilled from.
FEW_STEPS = re.compile(r"turbo|lightning|schnell|hyper-?sd|(?<![a-z])(lcm|dmd)(?![a-z])", re.IGNORECASE)
AVERAGED = re.compile(r"(?!.*non[_-]?ema)(.*[._-])?ema[._-](.*\.)?(safetensors|bin|pt|ckpt)")
# Stray files in one sentence.
MOST_NAMED = 5


def remarks(reference: Reference) -> list[str]:
    """What names of files and configs tell of a teacher, a sentence each; raises UsageError when a shard is missing."""
    found = []
    if pickle := next((name for name in _weights(reference) if name.endswith(PICKLES)), None):
        found.append(f"{pickle} is a pickled state dict, read with weights_only=True")
    if behind := _left_behind(reference):
        more = f" and {len(behind) - MOST_NAMED} more" if len(behind) > MOST_NAMED else ""
        named = ", ".join(behind[:MOST_NAMED])
        found.append(f"left out of the student's pipeline, as no part is made of such files: {named}{more}")
    if averaged := _averaged(reference):
        part = reference.denoiser_part or reference.denoiser.name
        found.append(f"{averaged} beside {part} is not used: to compress the averaged weights, put them in {part}")
    names = (reference.id, str(reference.config.get("_name_or_path", "")))
    if few := next((match[0] for name in names if (match := FEW_STEPS.search(name))), None):
        found.append(
            f"'{few}' in its name: a teacher that was distilled to a few steps is not made for the many steps and the "
            "guidance of its bank (bank.sampler_steps, bank.guidance); take the model that it was distilled from"
        )
    return found


def _averaged(reference: Reference) -> str | None:
    """The folder or file of averaged weights beside the denoiser's, by the names that trainers give it."""
    part = reference.denoiser_part or reference.denoiser.name
    folders = [f"{part}_ema", f"ema_{part}", f"{part}-ema", f"{part}.ema"]
    if reference.repository is not None:
        found = [name for name in folders if reference.repository.names(name)]
        files = reference.repository.names(reference.denoiser_part)
    elif reference.denoiser.is_dir():
        found = [name for name in folders if (reference.denoiser.parent / name).is_dir()]
        files = [file.name for file in reference.denoiser.iterdir()]
    else:
        return None
    used = _weights(reference)
    return next(iter([*found, *(f for f in sorted(files) if AVERAGED.match(f) and f not in used)]), None)


def _left_behind(reference: Reference) -> list[str]:
    """What lies in the parts that a student takes over from a folder here, and is not taken along."""
    if reference.pipeline is None or reference.repository is not None:
        return []
    parts = (part for part in reference.parts if part != reference.denoiser_part)
    return [f"{part}/{name}" for part in parts for name in left_behind(reference.pipeline / part)]


def _weights(reference: Reference) -> list[str]:
    """Names of the denoiser's weight files; what a single checkpoint is was told when it was recognised."""
    if reference.repository is not None:
        return reference.repository.weights(reference.denoiser_part)
    folder = reference.denoiser
    return choose((file.name for file in folder.iterdir()), str(folder)) if folder.is_dir() else []
