"""What cannot be distilled, as configs alone tell: refused already by `plan`."""

from __future__ import annotations

import diffusers

from diffcompress.errors import UsageError
from diffcompress.families.base import Family
from diffcompress.teacher.linking import is_own
from diffcompress.teacher.reference import Reference, read_json


def check_pipeline(reference: Reference, family: Family) -> None:
    """Raise UsageError for a teacher whose student could not be trained or used."""
    second = [part for part in reference.parts if part.startswith(family.subfolder + "_")]
    if second:
        raise UsageError(
            f"'{reference.id}' cannot be distilled: its pipeline has a second denoiser, {second[0]}; each of the two "
            "knows a part of the noise levels alone, so neither draws samples to learn from without the other",
            "take a teacher with one denoiser, for example Wan 2.1 for Wan 2.2",
        )
    _check_variance(reference, family)
    if reference.pipeline is not None:
        _check_index(reference)


def _check_variance(reference: Reference, family: Family) -> None:
    """The pipelines of U-Nets leave a learned variance to the scheduler; transformers' split it off themselves."""
    into, out = (reference.config.get(key) for key in ("in_channels", "out_channels"))
    kind = reference.scheduler.get("variance_type")
    if family.kind != "unet" or not isinstance(into, int) or out != 2 * into or kind in ("learned", "learned_range"):
        return
    raise UsageError(
        f"'{reference.id}' cannot draw: its denoiser predicts a variance too (out_channels {out} for {into}), which "
        f"its {reference.scheduler['_class_name']} with variance_type {kind!r} does not take",
        "name DDPMScheduler with variance_type learned_range in the scheduler's config",
    )


def _check_index(reference: Reference) -> None:
    """Raise UsageError for a pipeline that diffusers alone does not load: its student could not be used."""
    assert reference.pipeline is not None
    file = reference.pipeline / "model_index.json"
    if not is_own(file, reference.pipeline):
        raise UsageError(
            f"{file} leads out of the teacher's folder, and would be copied into the student's", "copy it there"
        )
    name = read_json(file).get("_class_name")
    if name not in dir(diffusers):  # a look at the attribute itself would import it
        raise UsageError(
            f"'{reference.id}' is a pipeline of class {name}, which diffusers {diffusers.__version__} does not have",
            f"name its denoiser alone ({reference.denoiser_part}), or a pipeline without code of its own",
        )
