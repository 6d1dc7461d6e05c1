"""What the export proof looks at; only vanilla libraries may be imported here.

It runs twice: imported, on the pipeline in memory; and as a script in a process of its own, where importing
diffcompress is an error, on the exported folder.

    python -I probe.py FOLDER INPUTS.safetensors OUTPUTS.safetensors
"""

from __future__ import annotations

import importlib.abc
import inspect
import json
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

NUM_STEPS = 4
SEED = 0


class _Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> None:
        if fullname.partition(".")[0] == "diffcompress":
            raise ImportError("the export must load without diffcompress")


@torch.no_grad()
def observe(pipeline: Any, subfolder: str, inputs: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """One denoiser call on `inputs` (keyword tensors of its forward) and one sampled image; and how it was sampled.

    The image comes from the pipeline's own `__call__`. A class-conditional denoiser, which DDPM and DDIM pipelines
    cannot call, is sampled with the pipeline's own scheduler instead.
    """
    denoiser = getattr(pipeline, subfolder)
    prediction = denoiser(**inputs).sample
    generator = torch.Generator().manual_seed(SEED)
    if "class_labels" not in inputs:
        pipeline.set_progress_bar_config(disable=True)
        options: dict[str, Any] = {"num_inference_steps": NUM_STEPS, "generator": generator}
        if "output_type" in inspect.signature(pipeline.__call__).parameters:
            options["output_type"] = "np"
        image = torch.from_numpy(pipeline(**options).images[0]).float()
        return {"prediction": prediction, "image": image}, f"{type(pipeline).__name__}.__call__"
    scheduler = pipeline.scheduler
    scheduler.set_timesteps(NUM_STEPS)
    noisy = torch.randn(inputs["sample"][:1].shape, generator=generator)
    for timestep in scheduler.timesteps:
        step = denoiser(noisy, timestep, class_labels=inputs["class_labels"][:1]).sample
        noisy = scheduler.step(step, timestep, noisy, generator=generator).prev_sample
    return {"prediction": prediction, "image": noisy}, f"{type(scheduler).__name__}.step"


def main(folder: str, inputs_file: str, outputs_file: str) -> None:
    sys.meta_path.insert(0, _Blocker())
    import diffusers
    from diffusers import DiffusionPipeline
    from safetensors.torch import load_file, save_file

    inputs = load_file(inputs_file)
    pipeline = DiffusionPipeline.from_pretrained(folder)
    subfolder = "unet" if hasattr(pipeline, "unet") else "transformer"
    outputs, _ = observe(pipeline, subfolder, inputs)
    if "diffcompress" in sys.modules:
        raise ImportError("the export must load without diffcompress")
    save_file({name: value.contiguous() for name, value in outputs.items()}, outputs_file)
    versions = {"torch": torch.__version__, "diffusers": diffusers.__version__}
    print(json.dumps({"pipeline": type(pipeline).__name__, "versions": versions}))


if __name__ == "__main__":
    main(*sys.argv[1:])
