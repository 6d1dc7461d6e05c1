"""What cannot be distilled, as configs alone tell: refused already by `plan`."""

from __future__ import annotations

import inspect
import re
from typing import Any

import diffusers

from diffcompress.errors import UsageError
from diffcompress.families.base import Family
from diffcompress.sources.linking import is_own
from diffcompress.sources.reference import Reference

# Pipelines that begin from images, or look at some, and their siblings without: what the word is left out of.
_FROM_IMAGES = re.compile(
    "Img2Img|ImageToImage|ImageToVideo|Inpaint|ControlNet|Upscale|Depth2Img|InstructPix2Pix|Adapter|Edit|Fill|Redux"
)
# Parts without which a pipeline is another one, by how their names begin.
_HALVES = ("vae", "vqvae", "text_encoder", "tokenizer")


def check_pipeline(reference: Reference, family: Family) -> None:
    """Raise UsageError for a teacher whose student could not be trained or used."""
    second = [p for p in reference.parts if p.startswith(family.subfolder + "_") and not p.endswith("_ema")]
    if second:
        raise UsageError(
            f"'{reference.id}' cannot be distilled: its pipeline has a second denoiser, {second[0]}; each of the two "
            "knows a part of the noise levels alone, so neither draws samples to learn from without the other",
            "take a teacher with one denoiser, for example Wan 2.1 for Wan 2.2",
        )
    _check_variance(reference, family)
    if reference.pipeline is not None:
        _check_index(reference, family)


def _check_variance(reference: Reference, family: Family) -> None:
    """The pipelines of U-Nets leave a learned variance to the scheduler; transformers' split it off themselves."""
    if family.kind != "unet":
        return
    into, out = (reference.complete_config[key] for key in ("in_channels", "out_channels"))
    kind = reference.scheduler.get("variance_type")
    if not isinstance(into, int) or out != 2 * into or kind in ("learned", "learned_range"):
        return
    raise UsageError(
        f"'{reference.id}' cannot draw: its denoiser predicts a variance too (out_channels {out} for {into}), which "
        f"its {reference.scheduler['_class_name']} with variance_type {kind!r} does not take",
        "name DDPMScheduler with variance_type learned_range in the scheduler's config",
    )


def check_text(reference: Reference, family: Family) -> None:
    """Raise UsageError for a text-conditional denoiser without the encoders that a run would ask it with."""
    if (
        family.text_conditioning(reference.complete_config)
        and reference.pipeline is None
        and reference.surroundings is None
    ):
        raise UsageError(
            f"'{reference.id}' is a text-conditional denoiser without text encoders",
            "name the pipeline folder that it belongs to, or put it into one beside a model_index.json",
        )


def _check_index(reference: Reference, family: Family) -> None:
    """Raise UsageError for a pipeline that diffusers alone does not load, or that draws from images."""
    assert reference.pipeline is not None
    file = reference.pipeline / "model_index.json"
    if not is_own(file, reference.pipeline):
        raise UsageError(
            f"{file} leads out of the teacher's folder, and would be copied into the student's", "copy it there"
        )
    index = reference.index
    name = index.get("_class_name")
    takes_text = bool(family.text_conditioning(reference.complete_config))
    usual = " or ".join(family.pipelines)
    if name not in dir(diffusers):  # a look at the attribute itself would import it
        raise UsageError(
            f"'{reference.id}' is a pipeline of class {name}, which diffusers {diffusers.__version__} does not have",
            f"if its parts do without that code, set _class_name in its model_index.json to {usual}"
            if takes_text
            else f"name its denoiser alone ({reference.denoiser_part}), or a pipeline without code of its own",
        )
    if index.get("requires_aesthetics_score"):
        raise UsageError(
            f"'{reference.id}' refines images that another model drew (requires_aesthetics_score)",
            "take the base model as teacher",
        )
    sibling = _FROM_IMAGES.sub("", str(name))
    if takes_text and sibling != name:
        hint = "take a teacher that draws from text alone"
        if sibling in dir(diffusers):
            hint = f"set _class_name in its model_index.json to {sibling}, which draws from text with the same parts"
        raise UsageError(f"'{reference.id}' is a {name}, which draws from images, and a run has none to give it", hint)
    _check_entries(reference, family)
    cls = getattr(diffusers, str(name))
    _check_class(reference, cls, usual, takes_text=takes_text)
    draws_frames = {"num_frames", "video"} & set(inspect.signature(cls.__call__).parameters)
    if draws_frames and len(family.sample_shape(reference.complete_config)) == 3:
        raise UsageError(
            f"'{reference.id}' is a {name}, which draws videos with a denoiser of single images",
            f"as a rule it is {usual}",
        )


def _check_entries(reference: Reference, family: Family) -> None:
    """Raise UsageError for parts that are not named by library and class, and for a denoiser of another class than its
    config's: diffusers would load that one."""
    for part in reference.parts:
        entry = reference.index[part]
        classes = (family.class_name, "Transformer2DModel") if family.former else (family.class_name,)
        own = part == reference.denoiser_part and (entry[0] != "diffusers" or entry[1] not in classes)
        if own or not all(isinstance(name, str) for name in entry):
            wanted = f'["diffusers", "{family.class_name}"]' if part == reference.denoiser_part else "library and class"
            raise UsageError(
                f"the model_index.json of '{reference.id}' has {entry!r} for its {part}, which is not {wanted}",
                "write it as save_pretrained does",
            )


def _check_class(reference: Reference, cls: Any, usual: str, *, takes_text: bool) -> None:
    """Raise UsageError for a class that is no pipeline of these parts, or whose pipeline asks for more than prompts."""
    is_a = f"'{reference.id}' is a {cls.__name__}, which"
    advice = f"set _class_name in its model_index.json to that of its parts, as a rule {usual}"
    if missing := getattr(cls, "_backends", None):
        raise UsageError(f"{is_a} needs {', '.join(missing)}", "install what is missing")
    if not issubclass(cls, diffusers.DiffusionPipeline):
        raise UsageError(f"{is_a} is no pipeline", advice)
    left_out = {name for name, value in reference.index.items() if value == [None, None]}
    listed = {*reference.parts, *(left_out & {*reference.left_out, *cls._optional_components})}
    takes = inspect.signature(cls.__init__).parameters
    # What may be left out is listed as null; older repositories lack a safety checker alone.
    needed = {part for part in _required(cls.__init__) if part.startswith(_HALVES)} | (
        _required(cls.__init__) - set(cls._optional_components)
    )
    if lacking := sorted(needed - listed):
        raise UsageError(f"{is_a} has the part {lacking[0]}, which its model_index.json lacks", advice)
    if strange := sorted(part for part in set(reference.parts) - set(takes) if part.startswith(_HALVES)):
        raise UsageError(f"{is_a} has no part {strange[0]}, which its model_index.json names", advice)
    if takes_text and "prompt" not in inspect.signature(cls.__call__).parameters:
        raise UsageError(f"{is_a} takes no prompts, and its denoiser is text-conditional", advice)
    if takes_text and (asked := sorted(_required(cls.__call__) - {"prompt"})):
        raise UsageError(
            f"{is_a} draws from more than text ({', '.join(asked)}), and a run has none to give it", advice
        )


def _required(function: Any) -> set[str]:
    """The arguments that `function` cannot do without."""
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    told = inspect.signature(function).parameters.values()
    return {one.name for one in told if one.kind in named and one.default is one.empty} - {"self"}
