"""What the multimodal transformers share (SD3, Flux, AuraFlow, Qwen-Image): the spaces their tensors live in.

The time embedding that scales and shifts every block, and the text's own stream where it never meets the image's
but in attention, have channels of their own: nothing ties channel 7 of the text to channel 7 of the image.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from diffcompress.families.transformer import mlp_roles
from diffcompress.families.transformer_rules import Role, Width


def time_roles(embedder: str, modulation: str) -> tuple[Role, ...]:
    """Roles of embedder MLPs, named by one pattern, and of the linear layers that read their sum, named by another."""
    return (*mlp_roles(embedder, out="time"), Role(rf".*{modulation}\.weight", (None, "time")))


def text_roles(embedder: str, modulation: str, ffn: str = "ff_context", query_scale: float = 1.0) -> tuple[Role, ...]:
    """Roles of a text stream that is never laid end to end with the image's; they go before those of `time_roles`.

    embedder: pattern of the layers into the stream; modulation: of the layers that scale and shift it; ffn: of its
    feed-forward layers; query_scale multiplies its queries.
    """
    return (
        Role(rf"{embedder}\.(weight|bias)", ("text",)),
        Role(rf".*{modulation}\.weight", ("text", "time")),
        Role(rf".*{modulation}\.bias", ("text",)),
        Role(r"(?P<at>.*attn)\.add_q_proj\.weight", ("{at}.heads", "text"), query_scale),
        Role(r"(?P<at>.*attn)\.add_[kv]_proj\.weight", ("{at}.heads", "text")),
        Role(r"(?P<at>.*attn)\.to_add_out\.weight", ("text", "{at}.heads")),
        Role(r".*attn\.to_add_out\.bias", ("text",)),
        Role(rf"(?P<at>.*{ffn})\.net\.0\.proj\.weight", ("{at}.ffn", "text")),
        Role(rf"(?P<at>.*{ffn})\.net\.2\.weight", ("text", "{at}.ffn")),
        Role(rf".*{ffn}\.net\.2\.bias", ("text",)),
    )


def stream_widths(teacher: int, student: int) -> Mapping[str, Width]:
    """Widths of the roles in `time_roles` and `text_roles`: both spaces are as wide as the image's."""
    return {"time": Width(teacher, student), "text": Width(teacher, student)}


@contextlib.contextmanager
def unrounded(first: nn.Module) -> Iterator[None]:
    """Calls of classes that give timesteps the dtype of what their `first` layer returns: under autocast a half one,
    in which timesteps are up to four of 1000 apart."""
    kind = str(first.weight.device.type)
    if kind == "meta" or not torch.is_autocast_enabled(kind):
        yield
        return
    handle = first.register_forward_hook(lambda _module, _inputs, output: output.float())
    try:
        yield
    finally:
        handle.remove()


def pack(latents: Tensor) -> Tensor:
    """Latents `[B, C, H, W]` as tokens `[B, H/2 * W/2, 4C]`, a square of four positions each."""
    batch, channels, height, width = latents.shape
    squares = latents.reshape(batch, channels, height // 2, 2, width // 2, 2)
    return squares.permute(0, 2, 4, 1, 3, 5).reshape(batch, (height // 2) * (width // 2), channels * 4)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """Tokens `[B, H/2 * W/2, 4C]` as latents `[B, C, height, width]`."""
    squares = tokens.reshape(len(tokens), height // 2, width // 2, -1, 2, 2)
    return squares.permute(0, 3, 1, 4, 2, 5).reshape(len(tokens), -1, height, width)


def image_positions(height: int, width: int, device: torch.device) -> Tensor:
    """Row and column `[H/2 * W/2, 3]` of each token of packed latents, behind a zero."""
    rows, columns = torch.meshgrid(
        torch.arange(height // 2, device=device), torch.arange(width // 2, device=device), indexing="ij"
    )
    return torch.stack([torch.zeros_like(rows), rows, columns], -1).reshape(-1, 3)
