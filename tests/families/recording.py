"""What a real pipeline run hands its denoiser and its scheduler, to hold our `predict` against."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from diffcompress.families.base import Family


@dataclass
class Recording:
    """calls: (keyword arguments, output) of each denoiser call; steps: (model output, timestep, sample) of each
    scheduler step, after guidance."""

    calls: list[tuple[dict[Any, Any], Any]] = field(default_factory=list)
    steps: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)


@torch.no_grad()
def record(pipeline: Any, subfolder: str, **call: Any) -> Recording:
    """Run `pipeline(**call)` and write down every denoiser call and scheduler step."""
    seen = Recording()
    denoiser, scheduler = getattr(pipeline, subfolder), pipeline.scheduler
    forward, step = denoiser.forward, scheduler.step

    def watched_forward(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        seen.calls.append((dict(enumerate(args)) | kwargs, output))
        return output

    def watched_step(model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.steps.append((model_output.clone(), torch.as_tensor(timestep), sample.clone()))
        return step(model_output, timestep, sample, *args, **kwargs)

    denoiser.forward, scheduler.step = watched_forward, watched_step
    try:
        pipeline.set_progress_bar_config(disable=True)
        pipeline(output_type="latent", **call)
    finally:
        denoiser.forward, scheduler.step = forward, step
    return seen


def assert_reproduced(
    family: Family,
    model: torch.nn.Module,
    recording: Recording,
    conditioning: Mapping[str, Tensor],
    null: Mapping[str, Tensor] | None,
    guidance: float,
    *,
    unpack: Callable[[Tensor], Tensor] = lambda latents: latents,
    rescale: Callable[[Tensor, Tensor], Tensor] = lambda guided, ours: guided,
) -> None:
    """Each recorded scheduler step's model output equals ours, guided by hand: null + guidance * (ours - null).

    unpack: from what the pipeline hands its scheduler to latent shape `[B, C, *spatial]`. rescale: what it makes of the
    guided prediction, given our own.
    """
    assert recording.steps
    for model_output, timestep, sample in recording.steps:
        noisy = unpack(sample).float()
        times = timestep.expand(len(noisy))
        with torch.no_grad():
            ours = family.predict(model, noisy, times, conditioning)
            if null:
                nothing = {name: value.expand(len(noisy), *value.shape[1:]) for name, value in null.items()}
                base = family.predict(model, noisy, times, nothing)
                ours = rescale(base + guidance * (ours - base), ours)
        expected = unpack(model_output).float()
        torch.testing.assert_close(ours[:, : expected.shape[1]], expected, rtol=1e-4, atol=1e-4)
