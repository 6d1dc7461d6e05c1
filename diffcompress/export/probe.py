"""What the export proof looks at; only vanilla libraries may be imported here.

It runs twice: imported, on the models in memory; and as a script in a process of its own, where importing diffcompress
is an error, on the exported folder. The denoiser call is one that was recorded in memory (`flatten`), so that no class
needs code here.

    python -I probe.py FOLDER ASKED.json INPUTS.safetensors OUTPUTS.safetensors
"""

from __future__ import annotations

import gc
import importlib.abc
import inspect
import json
import os
import sys
from importlib.machinery import ModuleSpec
from typing import Any

if __name__ == "__main__":
    gc.set_threshold(100_000, *gc.get_threshold()[1:])  # as in diffcompress/__main__.py: imports take a quarter less

import torch
from torch import Tensor

NUM_STEPS = 4
SEED = 0
PROMPT = "a photo"


class _Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if fullname.partition(".")[0] == "diffcompress":
            raise ImportError("the export must load without diffcompress")
        return None


def flatten(value: Any, tensors: dict[str, Tensor]) -> Any:
    """`value` as JSON, its tensors moved into `tensors` under the names that stand in their place."""
    if isinstance(value, Tensor):
        name = f"tensor.{len(tensors)}"
        tensors[name] = value.detach().cpu().contiguous()
        return {"tensor": name}
    if isinstance(value, (list, tuple)):
        return {"tuple" if isinstance(value, tuple) else "list": [flatten(item, tensors) for item in value]}
    if isinstance(value, dict):
        return {"dict": {key: flatten(item, tensors) for key, item in value.items()}}
    return {"value": value}


def restore(skeleton: Any, tensors: dict[str, Tensor]) -> Any:
    """The value that `flatten` took apart into `skeleton` and `tensors`."""
    ((kind, inner),) = skeleton.items()
    if kind == "tensor":
        return tensors[inner]
    if kind in ("list", "tuple"):
        items = [restore(item, tensors) for item in inner]
        return tuple(items) if kind == "tuple" else items
    return {key: restore(item, tensors) for key, item in inner.items()} if kind == "dict" else inner


@torch.no_grad()
def predict(denoiser: Any, call: dict[str, Any]) -> Tensor:
    """The output of one denoiser call with keyword arguments `call`."""
    output = denoiser(**call, return_dict=False)[0]
    return torch.stack(list(output)) if isinstance(output, (list, tuple)) else output


@torch.no_grad()
def draw(pipeline: Any, subfolder: str, options: dict[str, Any], num_steps: int = NUM_STEPS) -> tuple[Tensor, str]:
    """One image (or video) of `num_steps` steps, and how it was sampled.

    By the pipeline's own `__call__` with those of `options` that it takes. A class-conditional denoiser of a pipeline
    that takes no labels (DDPM, DDIM) is sampled with the pipeline's scheduler instead.
    """
    generator = torch.Generator().manual_seed(SEED)
    accepted = inspect.signature(type(pipeline).__call__).parameters
    pipeline.set_progress_bar_config(disable=True)
    if "class_labels" in options and "class_labels" not in accepted:
        denoiser, scheduler = getattr(pipeline, subfolder), pipeline.scheduler
        scheduler.set_timesteps(num_steps)
        labels = torch.tensor(options["class_labels"], device=denoiser.device)
        noisy = torch.randn((1, *options["shape"]), generator=generator).to(denoiser.device, denoiser.dtype)
        for timestep in scheduler.timesteps:
            step = denoiser(noisy, timestep, class_labels=labels, return_dict=False)[0]
            noisy = scheduler.step(step, timestep, noisy, generator=generator).prev_sample
        return noisy, f"{type(scheduler).__name__}.step"
    if len(options["shape"]) > 3:  # a video: its own scale factors turn a latent's shape into frames and pixels
        _, frames, height, width = options["shape"]
        spatial, temporal = pipeline.vae_scale_factor_spatial, pipeline.vae_scale_factor_temporal
        options = options | {"height": height * spatial, "width": width * spatial}
        options["num_frames"] = (frames - 1) * temporal + 1
    given = {"num_inference_steps": num_steps, "generator": generator, "output_type": "np", "prompt": PROMPT, **options}
    made = pipeline(**{name: value for name, value in given.items() if name in accepted}, return_dict=False)[0]
    image = made[0] if isinstance(made, (list, tuple)) else made
    return torch.as_tensor(image).float(), f"{type(pipeline).__name__}.__call__"


def main(folder: str, asked_file: str, inputs_file: str, outputs_file: str) -> None:
    sys.meta_path.insert(0, _Blocker())
    import diffusers
    from safetensors.torch import load_file, save_file

    with open(asked_file, encoding="utf-8") as stream:
        asked = json.load(stream)
    subfolder = asked["subfolder"]
    told: dict[str, Any] = {"versions": {"torch": torch.__version__, "diffusers": diffusers.__version__}}
    if asked["draw"] is None:
        cls = getattr(diffusers, asked["class_name"])
        denoiser = cls.from_pretrained(os.path.join(folder, subfolder))
        outputs = {}
    else:
        # transformers keeps a text encoder in the dtype it is stored in, diffusers does not: say one for all.
        absent = dict.fromkeys(asked["left_out"])
        pipeline = diffusers.DiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32, **absent)
        denoiser = getattr(pipeline, subfolder)
        told["pipeline"] = type(pipeline).__name__
        outputs = {"image": draw(pipeline, subfolder, asked["draw"])[0]}
    outputs["prediction"] = predict(denoiser.eval(), restore(asked["call"], load_file(inputs_file)))
    if "diffcompress" in sys.modules:
        raise ImportError("the export must load without diffcompress")
    save_file({name: value.contiguous() for name, value in outputs.items()}, outputs_file)
    print(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
