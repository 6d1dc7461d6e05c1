"""Diffusers state dicts under the names that their authors gave the tensors: what the converters undo."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

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
_FLUX = {
    "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_text_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
    "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
    "time_text_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
    "time_text_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
    "context_embedder": "txt_in",
    "x_embedder": "img_in",
    "proj_out": "final_layer.linear",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
}
_FLUX_DOUBLE = {
    "norm1.linear": "img_mod.lin",
    "norm1_context.linear": "txt_mod.lin",
    "attn.norm_q": "img_attn.norm.query_norm",
    "attn.norm_k": "img_attn.norm.key_norm",
    "attn.norm_added_q": "txt_attn.norm.query_norm",
    "attn.norm_added_k": "txt_attn.norm.key_norm",
    "attn.to_out.0": "img_attn.proj",
    "attn.to_add_out": "txt_attn.proj",
    "ff.net.0.proj": "img_mlp.0",
    "ff.net.2": "img_mlp.2",
    "ff_context.net.0.proj": "txt_mlp.0",
    "ff_context.net.2": "txt_mlp.2",
}
_FLUX_SINGLE = {
    "norm.linear": "modulation.lin",
    "attn.norm_q": "norm.query_norm",
    "attn.norm_k": "norm.key_norm",
    "proj_out": "linear2",
}
# What became several tensors, by the first of them.
_FLUX_FUSED = {
    "transformer_blocks.attn.to_q": ("img_attn.qkv", ("attn.to_q", "attn.to_k", "attn.to_v")),
    "transformer_blocks.attn.add_q_proj": ("txt_attn.qkv", ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")),
    "single_transformer_blocks.attn.to_q": ("linear1", ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")),
}
_VAE_RESNET = {"conv_shortcut": "nin_shortcut"}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_OPEN_CLIP = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}
_OPEN_CLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
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


def flux(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of a FluxTransformer2DModel."""
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        block = re.match(r"((?:single_)?transformer_blocks)\.(\d+)\.", name)
        stem, _, kind = (name[block.end() :] if block else name).rpartition(".")
        if block is None:
            if stem == "norm_out.linear":
                value = torch.cat(value.chunk(2)[::-1])  # scale and shift the other way round
            found[f"{_FLUX[stem]}.{kind}"] = value
            continue
        single = block[1].startswith("single")
        prefix = f"{'single' if single else 'double'}_blocks.{block[2]}."
        if (fused := _FLUX_FUSED.get(f"{block[1]}.{stem}")) is not None:
            parts = [state[f"{name[: block.end()]}{other}.{kind}"] for other in fused[1]]
            found[f"{prefix}{fused[0]}.{kind}"] = torch.cat(parts)
        elif (renamed := (_FLUX_SINGLE if single else _FLUX_DOUBLE).get(stem)) is not None:
            found[f"{prefix}{renamed}.{'scale' if 'norm.' in renamed else kind}"] = value
    return found


def whole(pipeline: Any) -> dict[str, Tensor]:
    """A checkpoint of a tiny pipeline with everything that Stable Diffusion 1, XL and 3 keep in theirs."""
    kind = type(pipeline).__name__
    if kind == "StableDiffusion3Pipeline":
        found = sd3(pipeline.transformer.state_dict())
        for part, name in {"text_encoder": "clip_l", "text_encoder_2": "clip_g", "text_encoder_3": "t5xxl"}.items():
            named = getattr(pipeline, part).state_dict()
            found |= {f"text_encoders.{name}.transformer.{key}": value for key, value in named.items()}
        # The first has none, diffusers takes the identity; the other is T5's embedding a second time.
        del found["text_encoders.clip_l.transformer.text_projection.weight"]
        del found["text_encoders.t5xxl.transformer.encoder.embed_tokens.weight"]
    else:
        found = unet(pipeline.unet.state_dict(), pipeline.unet.config.layers_per_block)
        found |= {"model_ema.decay": torch.tensor(0.9999), "betas": torch.linspace(0.1, 1, 4)}
        prefix = "conditioner.embedders.0" if kind == "StableDiffusionXLPipeline" else "cond_stage_model"
        found |= clip(pipeline.text_encoder.state_dict(), f"{prefix}.transformer.")
        if kind == "StableDiffusionXLPipeline":
            found |= open_clip(pipeline.text_encoder_2.state_dict(), "conditioner.embedders.1.model.")
    return {name: value.contiguous() for name, value in (found | vae(pipeline.vae.state_dict())).items()}


def clip(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Of a CLIPTextModel, with the buffer that old ones have."""
    named = {f"{prefix}text_model.{name.removeprefix('text_model.')}": value for name, value in state.items()}
    length = len(next(v for n, v in state.items() if n.endswith("position_embedding.weight")))
    return named | {f"{prefix}text_model.embeddings.position_ids": torch.arange(length)[None]}


def open_clip(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Of a CLIPTextModelWithProjection, as the library OpenCLIP has it."""
    found: dict[str, Tensor] = {"logit_scale": torch.tensor(4.6), "text_projection": state["text_projection.weight"].T}
    for name, value in state.items():
        inner = name.removeprefix("text_model.")
        layer = re.match(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", inner)
        if inner in _OPEN_CLIP:
            found[_OPEN_CLIP[inner]] = value
        elif layer and layer[2] in _OPEN_CLIP_LAYER:
            found[f"transformer.resblocks.{layer[1]}.{_OPEN_CLIP_LAYER[layer[2]]}.{layer[3]}"] = value
        elif layer and layer[2] == "self_attn.q_proj":
            parts = [state[name.replace("q_proj", f"{other}_proj")] for other in "qkv"]
            found[f"transformer.resblocks.{layer[1]}.attn.in_proj_{layer[3]}"] = torch.cat(parts)
    return {prefix + name: value for name, value in found.items()}


def vae(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of an AutoencoderKL."""
    last = max(int(name.split(".")[2]) for name in state if name.startswith("decoder.up_blocks."))

    def renamed(name: str) -> str:
        half, _, rest = name.partition(".")
        if half not in ("encoder", "decoder"):
            return name
        stem, _, kind = rest.rpartition(".")
        match = re.fullmatch(r"(down|up|mid)_block(?:s\.(\d+))?\.(\w+)\.(\d+)\.(.+)", stem)
        if match is None:
            return f"{half}.{stem.replace('conv_norm_out', 'norm_out')}.{kind}"
        where, block, part, number, inner = match.groups()
        level = "" if block is None else int(block) if where == "down" else last - int(block)
        if part == "attentions":
            return f"{half}.mid.attn_1.{_VAE_ATTENTION[inner]}.{kind}"
        inner = _VAE_RESNET.get(inner, inner)
        if where == "mid":
            return f"{half}.mid.block_{int(number) + 1}.{inner}.{kind}"
        if part == "resnets":
            return f"{half}.{where}.{level}.block.{number}.{inner}.{kind}"
        return f"{half}.{where}.{level}.{part.removesuffix('rs')}.{inner}.{kind}".replace("sampler", "sample")

    found = {}
    for name, value in state.items():
        projection = re.search(r"attentions\.0\.(to_[qkv]|to_out\.0)\.weight$", name)
        # Their attention is made of convolutions.
        found[f"first_stage_model.{renamed(name)}"] = value[:, :, None, None] if projection else value
    return found
