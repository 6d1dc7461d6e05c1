"""From latents to pixels and back, by the teacher's own autoencoder and its pipelines' conventions."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from diffcompress.errors import UsageError
from diffcompress.sources.model_index import read_config
from diffcompress.sources.reference import Reference
from diffcompress.sources.variants import variant_of

PARTS = ("vae", "vqvae", "movq")


@dataclass(frozen=True)
class Codec:
    """autoencoder: in float32 and evaluation mode; latents `[N, C, *spatial]` are as its denoiser sees them."""

    autoencoder: Any

    @torch.no_grad()
    def decode(self, latents: Tensor, batch_size: int = 8) -> Tensor:
        """Pixels `[N, channels, *spatial]` in [-1, 1] on the CPU."""
        return torch.cat([self._decode(part) for part in latents.split(batch_size)])

    @torch.no_grad()
    def encode(self, pixels: Tensor, batch_size: int = 8) -> Tensor:
        """Latents `[N, C, *spatial]` on the CPU: the mode of the posterior, so that they follow from the pixels."""
        return torch.cat([self._encode(part) for part in pixels.split(batch_size)])

    def pixel_shape(self, latent_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the image that `decode` makes of a latent `[C, h, w]`."""
        pixels = self.decode(torch.zeros(1, latent_shape[0], 8, 8))
        scale = pixels.shape[-1] // 8
        return (pixels.shape[1], latent_shape[1] * scale, latent_shape[2] * scale)

    def macs(self, latent_shape: tuple[int, ...]) -> int:
        """Multiply-accumulates that decoding a latent `[C, *spatial]` takes: those of a small one for each position."""
        counter = FlopCounterMode(display=False)
        with counter:
            self.decode(torch.zeros(1, latent_shape[0], 8, 8))
        return counter.get_total_flops() // 2 * math.prod(latent_shape[1:]) // 64

    def _decode(self, latents: Tensor) -> Tensor:
        latents = latents.to(self.autoencoder.device)
        shift, scale = self._normalisation(latents)
        latents = latents * scale + shift
        flat = self._is_video and latents.dim() == 4
        pixels = self.autoencoder.decode(latents.unsqueeze(2) if flat else latents, return_dict=False)[0]
        return (pixels.squeeze(2) if flat else pixels).float().clamp(-1, 1).cpu()

    def _encode(self, pixels: Tensor) -> Tensor:
        pixels = pixels.to(self.autoencoder.device)
        flat = self._is_video and pixels.dim() == 4
        encoded = self.autoencoder.encode(pixels.unsqueeze(2) if flat else pixels, return_dict=False)[0]
        latents = encoded if isinstance(encoded, Tensor) else encoded.mode()  # tensors have a mode, too
        latents = latents.squeeze(2) if flat else latents
        shift, scale = self._normalisation(latents)
        return ((latents - shift) / scale).float().cpu()

    @property
    def _is_video(self) -> bool:
        return any(name in type(self.autoencoder).__name__ for name in ("Wan", "QwenImage"))

    def _normalisation(self, latents: Tensor) -> tuple[Tensor | float, Tensor | float]:
        """(shift, scale): the autoencoder's latents are shift + scale * the denoiser's."""
        config = self.autoencoder.config
        mean, std = config.get("latents_mean"), config.get("latents_std")
        scale = 1.0 / (config.get("scaling_factor") or 1.0)
        if mean is not None and std is not None:
            shape = (1, -1) + (1,) * (latents.dim() - 2)
            return latents.new_tensor(mean).view(shape), latents.new_tensor(std).view(shape) * scale
        return config.get("shift_factor") or 0.0, scale


def load_codec(reference: Reference, device: torch.device) -> Codec | None:
    """The autoencoder of the reference's pipeline, None where there is none.

    Raises UsageError when it is there but cannot be loaded.
    """
    part = _part(reference)
    if part is None:
        return None
    reference.fetch(part.name)

    def read(cls: Any) -> Any:
        variant = variant_of((file.name for file in part.iterdir()), str(part))
        return cls.from_pretrained(part, variant=variant, torch_dtype=torch.float32)

    autoencoder = _made(part, read)
    if device.type != "cpu" and hasattr(autoencoder, "enable_slicing"):
        autoencoder.enable_slicing()  # one image at a time: activations of large ones are gigabytes
    return Codec(autoencoder.to(device).eval().requires_grad_(False))


def random_codec(reference: Reference, device: torch.device) -> Codec | None:
    """As `load_codec`, with random weights, from the config alone; None where that does not lie here."""
    part = _part(reference)
    if part is None or not (part / "config.json").is_file():
        return None

    def build(cls: Any) -> Any:
        with torch.device(device):
            return cls.from_config(read_config(part / "config.json"))

    return Codec(_made(part, build).eval().requires_grad_(False))


def _part(reference: Reference) -> Path | None:
    """The folder of the autoencoder in the reference's pipeline, None where there is none."""
    part = next((part for part in PARTS if part in reference.parts), None)
    return None if part is None or reference.pipeline is None else reference.pipeline / part


def _made(part: Path, make: Callable[[Any], Any]) -> Any:
    """What `make` makes of the class of the autoencoder in `part`; raises UsageError when it cannot."""
    try:
        return make(getattr(diffusers, str(read_config(part / "config.json")["_class_name"])))
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RuntimeError) as error:
        raise UsageError(
            f"the autoencoder in {part} cannot be loaded: {error}", "check that the teacher's pipeline is complete"
        ) from error
