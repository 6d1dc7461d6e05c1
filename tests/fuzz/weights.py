"""A teacher's weights: names, shapes, types and numbers that do not fit, pickles with code, shards, files cut short."""

from __future__ import annotations

import json
import pickle
import struct
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.fuzz import odd
from tests.fuzz.place import Case, Place

PREFIXES = ("module.", "_orig_mod.", "model.", "model.diffusion_model.", "unet.", "base_layer.", "\u00fc.", "")


def make(random: Random, place: Place) -> Case:
    teacher = place.take(random.choice(("ddpm", "classes", "sd", "dit")))
    file = random.choice(sorted(teacher.rglob("*.safetensors")))
    kind = random.randrange(10)
    if kind <= 4:
        _tensors(random, file)
    elif kind == 5:
        odd.damage(random, file)
    elif kind == 6:
        _header(random, file)
    elif kind == 7:
        _pickle(random, file, place.outside)
    elif kind == 8:
        _sharded(random, file)
    else:
        stem = random.choice(("adapter_model", "pytorch_lora_weights", "other", "diffusion_pytorch_model.fp16", "ema"))
        file.rename(file.with_name(f"{stem}.safetensors"))
    if kind % 3 == 0 and file.is_file() and random.random() < 0.4:
        return place.plan(file)  # as a single checkpoint
    return place.either(random, teacher)


def _tensors(random: Random, file: Path) -> None:
    state = load_file(file)
    name = random.choice(sorted(state))
    value, kind = state[name], random.randrange(9)
    if kind == 0:
        prefix = random.choice(PREFIXES)
        state = {f"{prefix}{key}": one for key, one in state.items()}
    elif kind == 1:
        del state[name]
    elif kind == 2:
        state[random.choice(("extra", "lora_A.weight", f"{name}.absmax", name[::-1], "x" * 3000))] = torch.zeros(2)
    elif kind == 3:
        state[name] = torch.zeros(random.choice(((), (0,), (1,), (2, 2, 2), tuple(value.shape)[::-1])))
    elif kind == 4:
        state[name] = torch.full_like(value, random.choice((float("nan"), float("inf"), 3e38)))
    elif kind == 5:
        dtype = random.choice((torch.float8_e4m3fn, torch.int8, torch.float64, torch.bool, torch.complex64, torch.half))
        state = {key: one.to(dtype) for key, one in state.items()}
    elif kind == 6:
        state = {}
    elif kind == 7:
        state = {key.replace("to_q.", "to_q.base_layer."): one for key, one in state.items()}
    else:
        state = {key: one.to(random.choice((torch.half, torch.bfloat16, torch.float))) for key, one in state.items()}
    save_file(state, file, random.choice(({"format": "pt"}, None, {"format": "np"})))


def _header(random: Random, file: Path) -> None:
    """safetensors by hand."""
    header = odd.mutated(
        random, {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "__metadata__": {"b": "c"}}
    )
    text = odd.text_of(random, header)
    size = random.choice((len(text), 0, 2**40, 2**63, len(text) + 5))
    file.write_bytes(struct.pack("<Q", size) + text + bytes(random.choice((0, 8, 9))))


class Evil:
    """A pickle that writes where nothing may be written."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return (exec, (f"open({str(self.target / 'ran')!r}, 'w').write('x')",))


def _pickle(random: Random, file: Path, outside: Path) -> None:
    state: object = load_file(file)
    file.unlink()
    name = file.with_suffix(".bin") if file.name.startswith("diffusion") else file.with_name("pytorch_model.bin")
    kind = random.randrange(5)
    if kind == 0:
        torch.save(state, name)
    elif kind == 1:
        torch.save({"state_dict": state, "step": 3}, name)
    elif kind == 2:
        torch.save(Evil(outside), name)
    elif kind == 3:
        name.write_bytes(pickle.dumps(Evil(outside)))
    else:
        torch.save([1, 2, state], name)


def _sharded(random: Random, file: Path) -> None:
    state = load_file(file)
    file.unlink()
    names = sorted(state)
    half = len(names) // 2
    stem = file.name.removesuffix(".safetensors")
    shards = {f"{stem}-0000{i}-of-00002.safetensors": part for i, part in ((1, names[:half]), (2, names[half:]))}
    for shard, part in shards.items():
        save_file({name: state[name] for name in part}, file.with_name(shard), {"format": "pt"})
    index: Any = {
        "metadata": {"total_size": 1},
        "weight_map": {name: shard for shard, part in shards.items() for name in part},
    }
    if random.random() < 0.5:
        index["weight_map"][names[0]] = random.choice(
            ("../../outside/secret.txt", "/etc/passwd", "gone.safetensors", "")
        )
    elif random.random() < 0.7:
        index = odd.mutated(random, index)
    if random.random() < 0.3:
        file.with_name(next(iter(shards))).unlink()
    file.with_name(f"{stem}.safetensors.index.json").write_text(json.dumps(index))
