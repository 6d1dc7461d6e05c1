"""The families we know. Adding one is one file and one line here."""

from __future__ import annotations

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


def find(class_name: str | None) -> Family:
    """The family of a diffusers class; raises UsageError with the list of known ones."""
    for family in FAMILIES:
        if family.class_name == class_name:
            return family
    known = ", ".join(family.class_name for family in FAMILIES)
    raise UsageError(f"diffcompress cannot shrink denoisers of class '{class_name}'", f"known classes: {known}")
