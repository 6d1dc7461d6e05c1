"""Diffusers state dicts under the names that their authors gave the tensors: what the converters undo."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

PREFIX = "model.diffusion_model."
_UNET = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_SD3 = {
    "pos_embed.pos_embed": "pos_embed",
    "pos_embed.proj": "x_embedder.proj",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
    "context_embedder": "context_embedder",
    "proj_out": "final_layer.linear",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
    "attn.to_out.0": "x_block.attn.proj",
    "attn.to_add_out": "context_block.attn.proj",
    "attn2.to_out.0": "x_block.attn2.proj",
    "norm1.linear": "x_block.adaLN_modulation.1",
    "norm1_context.linear": "context_block.adaLN_modulation.1",
    "ff.net.0.proj": "x_block.mlp.fc1",
    "ff.net.2": "x_block.mlp.fc2",
    "ff_context.net.0.proj": "context_block.mlp.fc1",
    "ff_context.net.2": "context_block.mlp.fc2",
    "attn.norm_q": "x_block.attn.ln_q",
    "attn.norm_k": "x_block.attn.ln_k",
    "attn.norm_added_q": "context_block.attn.ln_q",
    "attn.norm_added_k": "context_block.attn.ln_k",
    "attn2.norm_q": "x_block.attn2.ln_q",
    "attn2.norm_k": "x_block.attn2.ln_k",
}
_FUSED = {
    "attn.to_q": "x_block.attn.qkv",
    "attn.add_q_proj": "context_block.attn.qkv",
    "attn2.to_q": "x_block.attn2.qkv",
}


def unet(state: Mapping[str, Tensor], layers: int) -> dict[str, Tensor]:
    """Of a UNet2DConditionModel with `layers` layers per block."""
    attended = {match[1] for name in state if (match := re.match(r"up_blocks\.(\d+)\.attentions", name))}

    def renamed(name: str) -> str:
        stem, _, kind = name.rpartition(".")
        if stem in _UNET:
            return f"{_UNET[stem]}.{kind}"
        where, block, part, number, rest = re.fullmatch(
            r"(down|up|mid)_blocks?\.(?:(\d+)\.)?(\w+)\.(\d+)\.(.+)", name
        ).groups()  # type: ignore[union-attr]
        if part == "resnets":
            rest = f"{_RESNET[rest.rpartition('.')[0]]}.{kind}"
        if where == "mid":
            return f"middle_block.{2 * int(number) if part == 'resnets' else 1}.{rest}"
        if where == "down":
            first = int(block) * (layers + 1) + 1
            if part == "downsamplers":
                return f"input_blocks.{first + layers}.0.op.{kind}"
            return f"input_blocks.{first + int(number)}.{int(part == 'attentions')}.{rest}"
        first = int(block) * (layers + 1)
        if part == "upsamplers":
            return f"output_blocks.{first + layers}.{2 if block in attended else 1}.conv.{kind}"
        return f"output_blocks.{first + int(number)}.{int(part == 'attentions')}.{rest}"

    return {PREFIX + renamed(name): value for name, value in state.items()}


def sd3(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of an SD3Transformer2DModel."""
    last = max(int(name.split(".")[1]) for name in state if name.startswith("transformer_blocks."))
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        block = re.match(r"transformer_blocks\.(\d+)\.", name)
        stem, _, kind = (name[block.end() :] if block else name).rpartition(".")
        prefix = f"joint_blocks.{block[1]}." if block else ""
        if name in _SD3:
            found[_SD3[name]] = value
        elif stem in _FUSED:
            parts = [state[name.replace(stem, stem.replace("_q", other))] for other in ("_q", "_k", "_v")]
            found[f"{prefix}{_FUSED[stem]}.{kind}"] = torch.cat(parts)
        elif stem in _SD3:
            if stem == "norm_out.linear" or (stem == "norm1_context.linear" and block and int(block[1]) == last):
                value = torch.cat(value.chunk(2)[::-1])  # scale and shift the other way round
            found[f"{prefix}{_SD3[stem]}.{kind}"] = value
    return {PREFIX + name: value for name, value in found.items()}
