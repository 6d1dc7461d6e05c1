"""A teacher with random weights: as fast as the real one, and nothing of it is read but configs."""

from __future__ import annotations

import torch

from diffcompress.families.base import Family
from diffcompress.noise import NoiseProcess
from diffcompress.pipeline import precision as precisions
from diffcompress.pipeline.conditions import Conditions, without_text
from diffcompress.pipeline.load import LoadedPipeline
from diffcompress.recipe import BankSection
from diffcompress.runtime import free_memory
from diffcompress.sources.model_index import read_config
from diffcompress.sources.reference import DEMO_FOLDER, Reference
from diffcompress.sources.weights import fingerprint, weight_files
from diffcompress.student.size import build, num_parameters

# On a CPU, in multiply-accumulates of one call and in parameters: what is built and timed within seconds.
MOST_MACS, MOST_PARAMS = 2e9, 1e8
# Of free memory, for weights in float32 and what they are cast to.
SHARE = 0.5
CLIP_TOKENS = 77


def fits(device: torch.device, params: int, macs: int) -> bool:
    """Whether a teacher so large is worth building there for a timing."""
    quick = device.type != "cpu" or (macs <= MOST_MACS and params <= MOST_PARAMS)
    return quick and 4 * params <= SHARE * free_memory(device)


def is_demo(reference: Reference) -> bool:
    """Whether it ships with the package, and with it the space that its samples are compared in."""
    return reference.pipeline is not None and reference.pipeline.parent == DEMO_FOLDER


def stand_in(
    reference: Reference, family: Family, noise: NoiseProcess, dtype: str, device: torch.device, section: BankSection
) -> LoadedPipeline:
    """The teacher of `reference` on `device`, asked as `section` has it, with one prompt where it takes text.

    dtype: of its stored weights.
    """
    config = reference.complete_config
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        denoiser = build(family, config, device).eval().requires_grad_(False)
    stored = getattr(torch, dtype)
    chosen = precisions.choose(device, stored, num_parameters(denoiser))
    if chosen != torch.float32:
        precisions.cast(denoiser, chosen)
    shape, size = family.sample_shape(config), section.sample_size
    if size is not None:
        shape = (*shape[:-2], size, size)
    own = fingerprint(reference, weight_files(reference.denoiser)) if is_demo(reference) else ""
    conditions = without_text(family, config)
    if family.text_conditioning(config):
        conditions = _prompts(reference, family, section.text_length)
    return LoadedPipeline(reference, family, denoiser, noise, stored, own, shape, conditions)


def _prompts(reference: Reference, family: Family, text_length: int | None) -> Conditions:
    table = family.example_inputs(reference.complete_config, 2)
    del table["noisy"], table["timestep"]
    usual = max((value.shape[1] for value in table.values() if value.dim() == 3), default=0)
    tokens = _num_tokens(reference, usual, text_length)
    cut = {
        name: value[:, :tokens] if value.dim() > 1 and value.shape[1] == usual else value
        for name, value in table.items()
    }
    return Conditions(cut, 1, 1)


def _num_tokens(reference: Reference, usual: int, text_length: int | None) -> int:
    """Of a prompt's `usual` tokens, those of CLIP first, as many as this pipeline's tokenizer and the recipe leave."""
    file = None if reference.pipeline is None else reference.pipeline / "tokenizer" / "tokenizer_config.json"
    told = read_config(file) if file is not None and file.is_file() else {}
    first = int(told["model_max_length"]) if str(told.get("tokenizer_class", "")).startswith("CLIP") else 0
    rest = usual - (CLIP_TOKENS if first else 0)
    return min(usual, first + (rest if text_length is None else min(rest, text_length)))
