"""The families we know. Adding one is one file and its entry here."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from diffcompress.errors import UsageError
from diffcompress.families import (
    auraflow,
    dit,
    flux,
    hunyuandit,
    lumina2,
    pixart,
    qwenimage,
    sana,
    sd3,
    unet2d,
    unet2d_condition,
    wan,
    z_image,
)
from diffcompress.families.base import Family

FAMILIES: tuple[Family, ...] = (
    unet2d.FAMILY,
    unet2d_condition.FAMILY,
    dit.FAMILY,
    sd3.FAMILY,
    flux.FAMILY,
    auraflow.FAMILY,
    qwenimage.FAMILY,
    wan.FAMILY,
    pixart.FAMILY,
    sana.FAMILY,
    z_image.FAMILY,
    hunyuandit.FAMILY,
    lumina2.FAMILY,
)
# Configs from before diffusers gave these classes their names have Transformer2DModel; the norm tells which is meant.
_FORMER = {family.former: family.class_name for family in FAMILIES if family.former is not None}


def up_to_date(config: Mapping[str, Any]) -> dict[str, Any]:
    """A denoiser's config under the class that loads it now, without the values that this class no longer takes."""
    name = config.get("_class_name")
    if name == "Transformer2DModel" and config.get("norm_type") in _FORMER:
        name = _FORMER[config["norm_type"]]
        taken = _parameters(name)
        return {k: v for k, v in config.items() if k in taken or k.startswith("_")} | {"_class_name": name}
    return dict(config)


def _parameters(class_name: str) -> Mapping[str, inspect.Parameter]:
    import diffusers

    return inspect.signature(getattr(diffusers, class_name).__init__).parameters


def find(class_name: str | None) -> Family:
    """The family of a diffusers class; raises UsageError with the list of known ones."""
    if class_name is None:
        raise UsageError("the denoiser's config has no _class_name", "use the config.json that save_pretrained made")
    for family in FAMILIES:
        if family.class_name == class_name:
            return family
    known = ", ".join(family.class_name for family in FAMILIES)
    raise UsageError(f"diffcompress cannot shrink denoisers of class '{class_name}'", f"known classes: {known}")
