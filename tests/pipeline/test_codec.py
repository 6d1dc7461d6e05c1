"""What stands between a denoiser's latents and pixels, against the decoding of diffusers' own pipelines."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from diffcompress.families.mmdit_rules import unpack
from diffcompress.pipeline.codec import Codec
from diffcompress.pipeline.load import load
from diffcompress.sources.resolve import resolve
from tests.families.tiny_text import seeded

# Each with a call that makes small samples, and what its autoencoder's config is to say: no value that changes nothing.
PROMPT = {"prompt": ["a cat walks", "rain"], "guidance_scale": 1.0}
SQUARE = PROMPT | {"height": 16, "width": 16}
CONVENTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "pipe_stable_diffusion": (SQUARE, {"scaling_factor": 0.3}),
    "pipe_stable_diffusion_xl": (
        SQUARE,
        {"scaling_factor": 0.3, "latents_mean": [0.1, -0.2, 0.3, 0.0], "latents_std": [1.5, 2.0, 0.5, 0.8]},
    ),
    "pipe_sd3": (SQUARE, {"scaling_factor": 1.5, "shift_factor": 0.6}),
    "pipe_flux": (SQUARE, {"scaling_factor": 0.4, "shift_factor": 0.1}),
    "pipe_dit": ({"class_labels": [0, 1], "guidance_scale": 1.0}, {"scaling_factor": 0.3}),
    "pipe_ldm": ({"batch_size": 2}, {"scaling_factor": 0.3}),
    "pipe_sana": (PROMPT | {"height": 32, "width": 32, "use_resolution_binning": False}, {"scaling_factor": 0.4}),
    "pipe_qwenimage": (
        {"prompt": PROMPT["prompt"], "height": 16, "width": 16},
        {"latents_mean": [0.1, -0.2, 0.3, 0.0], "latents_std": [1.5, 2.0, 0.5, 0.8]},
    ),
    "pipe_wan": (
        PROMPT | {"height": 16, "width": 16, "num_frames": 5},
        {"latents_mean": [0.1, -0.2], "latents_std": [1.5, 2.0]},
    ),
}


def with_conventions(name: str) -> tuple[Any, Any, dict[str, Any]]:
    """The tiny pipeline with these conventions, its autoencoder, and the call."""
    call, conventions = CONVENTIONS[name]
    pipe = import_module(f"tests.families.{name}").pipeline()
    autoencoder = pipe.components.get("vae") or pipe.components["vqvae"]
    autoencoder.register_to_config(**conventions)
    pipe.set_progress_bar_config(disable=True)
    return pipe, autoencoder, call


@pytest.mark.parametrize("name", CONVENTIONS)
def test_decoding_is_what_the_pipeline_does_with_the_same_latents(name: str) -> None:
    pipe, autoencoder, call = with_conventions(name)
    latents, pixels = run(pipe, autoencoder, call)
    ours = Codec(autoencoder).decode(latents)
    assert ours.std() > 0.01 and ours.abs().max() <= 1
    torch.testing.assert_close(ours / 2 + 0.5, pixels, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CONVENTIONS)
def test_encoding_normalises_as_decoding_undoes(name: str) -> None:
    _, autoencoder, _ = with_conventions(name)
    codec = Codec(autoencoder)
    size = (5, 32, 32) if name == "pipe_wan" else (32, 32)
    pixels = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = codec.encode(pixels)
    seen: list[Tensor] = []
    decode = autoencoder.decode

    def watched(latents: Tensor, **options: Any) -> Any:
        seen.append(latents)
        return decode(latents, **options)

    autoencoder.decode = watched
    codec.decode(latents)
    flat = name == "pipe_qwenimage"
    with torch.no_grad():
        raw = autoencoder.encode(pixels.unsqueeze(2) if flat else pixels, return_dict=False)[0]
    raw = raw if isinstance(raw, Tensor) else raw.mode()
    torch.testing.assert_close(seen[0], raw)
    assert latents.shape == (raw.squeeze(2) if flat else raw).shape
    assert not torch.allclose(latents, raw.view_as(latents), atol=1e-2)


@torch.no_grad()
def run(pipe: Any, autoencoder: Any, call: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Final latents of one run, as the denoiser sees them, and its pixels in [0, 1]."""
    last: list[Tensor] = []
    step = pipe.scheduler.step

    def watched(*args: Any, **kwargs: Any) -> Any:
        output = step(*args, **kwargs)
        last[:] = [output[0] if isinstance(output, tuple) else output.prev_sample]
        return output

    pipe.scheduler.step = watched
    generator = torch.Generator().manual_seed(0)
    made = pipe(num_inference_steps=2, output_type="pt", generator=generator, **call)
    latents = last[0]
    if latents.dim() == 3:  # tokens of 2 x 2 latent pixels
        latents = unpack(latents, 8, 8)
    pixels = made.frames.transpose(1, 2) if hasattr(made, "frames") else made.images
    if not isinstance(pixels, Tensor):  # LDMPipeline knows arrays only
        pixels = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    return latents, pixels


def test_images_of_a_video_autoencoder_are_one_frame() -> None:
    config: dict[str, Any] = {"base_dim": 4, "z_dim": 2, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1}
    config |= {"latents_mean": [0.1, -0.2], "latents_std": [1.5, 2.0]}
    codec = Codec(seeded(lambda: AutoencoderKLWan(**config)))
    latents = torch.randn(2, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    pixels = codec.decode(latents)
    assert pixels.shape == (2, 3, 32, 32)
    assert torch.equal(pixels, codec.decode(latents.unsqueeze(2)).squeeze(2))
    assert codec.encode(pixels).shape == latents.shape
    assert codec.pixel_shape((2, 4, 4)) == (3, 32, 32)


@pytest.mark.parametrize("teacher", ["demo:dit", "demo:mmdit"])
def test_the_work_of_a_picture_is_told_by_a_small_one(teacher):
    """But for attention at each pair of positions, of which a decoder has little."""
    loaded = load(resolve(teacher))
    shape, counter = loaded.sample_shape, FlopCounterMode(display=False)
    with counter:
        loaded.codec.decode(torch.zeros(1, *shape))
    assert loaded.codec.macs(shape) == pytest.approx(counter.get_total_flops() / 2, rel=0.02)
    assert loaded.codec.macs((shape[0], 2 * shape[1], shape[2])) == 2 * loaded.codec.macs(shape)
