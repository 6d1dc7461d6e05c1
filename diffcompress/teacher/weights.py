"""Weight files: which ones a model folder means, and what is read from them."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from diffcompress.errors import UsageError
from diffcompress.teacher.reference import Reference

_SAFETENSORS_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def weight_files(folder: Path) -> list[Path]:
    """The weight files of a diffusers model folder: safetensors (shards, full precision, a variant) before .bin."""
    indexes = sorted(folder.glob("*.safetensors.index*.json"))
    if indexes:
        names = sorted(set(json.loads(indexes[0].read_text(encoding="utf-8"))["weight_map"].values()))
        missing = [n for n in names if not (folder / n).is_file()]
        if missing:
            raise UsageError(f"{folder} lacks the shard {missing[0]}", "check that the download is complete")
        return [folder / n for n in names]
    plain = folder / "diffusion_pytorch_model.safetensors"
    found = [plain] if plain.is_file() else sorted(folder.glob("diffusion_pytorch_model.*.safetensors"))
    found = found or sorted(folder.glob("*.safetensors")) or sorted(folder.glob("diffusion_pytorch_model*.bin"))
    if not found:
        raise UsageError(
            f"{folder} holds no weights (diffusion_pytorch_model.safetensors)", "check that the download is complete"
        )
    return found[:1]


def stored_dtype(reference: Reference) -> str | None:
    """The dtype of most tensors, from safetensors headers; None for pickles, whose headers cannot be read alone."""
    found: Counter[str] = Counter()
    for file in weight_files(reference.denoiser):
        if file.suffix != ".safetensors":
            continue
        try:
            with safe_open(file, framework="pt") as handle:
                found.update(handle.get_slice(key).get_dtype() for key in handle.keys())  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            advice = "check that the download is complete"
            raise UsageError(f"{file} cannot be read as safetensors: {error}", advice) from error
    return _SAFETENSORS_DTYPES.get(found.most_common(1)[0][0]) if found else None


def fingerprint(reference: Reference, files: list[Path]) -> str:
    digest = hashlib.sha256()
    digest.update(json.dumps([reference.config, reference.scheduler], sort_keys=True, default=str).encode())
    for file in files:
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def read_state(files: list[Path]) -> tuple[dict[str, Tensor], torch.dtype]:
    state: dict[str, Tensor] = {}
    for file in files:
        if file.suffix == ".safetensors":
            try:
                with safe_open(file, framework="pt") as handle:
                    state |= {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118 (not a mapping)
            except (SafetensorError, OSError) as error:
                raise UsageError(
                    f"{file} cannot be read as safetensors: {error}", "check that the download is complete"
                ) from error
        else:
            state |= _read_pickle(file)
    floating = [v.dtype for v in state.values() if v.is_floating_point()]
    if not floating:
        raise UsageError(f"{files[0]} holds no floating-point tensors", "check that this is a denoiser")
    return state, max(set(floating), key=floating.count)


def _read_pickle(file: Path) -> dict[str, Tensor]:
    """A bare pickled state dict; anything more could run code and is refused."""
    convert = f"s.save_file(torch.load('{file.name}', weights_only=False), '{file.stem}.safetensors')"
    advice = f'convert it where you trust it: python -c "import torch, safetensors.torch as s; {convert}"'
    try:
        state = torch.load(file, weights_only=True, map_location="cpu")
    except Exception as error:
        raise UsageError(
            f"{file} is a pickle with more than a bare state dict, which could run code, or is damaged", advice
        ) from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise UsageError(f"{file} is a pickle, but not of a bare state dict", advice)
    return state


def check_state(state: dict[str, Tensor], denoiser: nn.Module, file: Path) -> None:
    expected = denoiser.state_dict()
    missing, extra = sorted(set(expected) - set(state)), sorted(set(state) - set(expected))
    if missing or extra:
        what = (
            f"{len(missing)} missing tensor(s), first {missing[0]}"
            if missing
            else f"{len(extra)} unknown tensor(s), first {extra[0]}"
        )
        raise UsageError(
            f"{file} does not fit its config: {what}", "weights and config.json must come from the same model"
        )
    for name, value in state.items():
        if value.shape != expected[name].shape:
            raise UsageError(
                f"{file} does not fit its config: {name} has shape {list(value.shape)}, "
                f"the config says {list(expected[name].shape)}",
                "weights and config.json must come from the same model",
            )
        if not torch.isfinite(value).all():
            raise UsageError(f"{file} is damaged: {name} holds NaN or infinite values", "use an intact checkpoint")
