"""The noise process of a teacher: the only owner of timestep draws, noisy inputs and prediction conversions.

Diffusion ("DDPM-type", variance preserving): x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) noise, integer t in 0..T-1.
Flow matching: x = (1 - sigma) x_0 + sigma noise, sigma in (0, 1], timestep = sigma * T as a float; the prediction is
the velocity noise - x_0. Timesteps are always the scheduler's own.
"""

from collections.abc import Mapping
from typing import Any

from .diffusion import Diffusion
from .flow import Flow
from .process import NoiseProcess
from .streams import generator

__all__ = ["Diffusion", "Flow", "NoiseProcess", "from_scheduler", "generator"]

# Schedulers over the DDPM schedule of alphas_cumprod; which solver a pipeline ships does not matter here.
DIFFUSION_SCHEDULERS = (
    "DDPMScheduler",
    "DDIMScheduler",
    "DDPMParallelScheduler",
    "DDIMParallelScheduler",
    "PNDMScheduler",
    "LMSDiscreteScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "DPMSolverSDEScheduler",
    "UniPCMultistepScheduler",
    "SASolverScheduler",
)
FLOW_SCHEDULERS = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")
REFUSED = {
    "EDM": "EDM preconditioning scales inputs and outputs by the noise level",
    "LCM": "a consistency model is already distilled to a few steps",
    "TCD": "a consistency model is already distilled to a few steps",
    "CMStochastic": "a consistency model has no noise prediction to learn from",
    "Consistency": "a consistency model has no noise prediction to learn from",
    "SCM": "a consistency model is already distilled to a few steps",
    "ScoreSde": "score-based SDE models scale their output by the noise level",
    "KarrasVe": "its variance-exploding process has no bounded noise levels",
    "VQDiffusion": "it works on discrete tokens",
    "Amused": "it works on discrete tokens",
    "Wuerstchen": "its continuous ratio schedule is not supported",
    "UnCLIP": "its prior has another process",
}


def from_scheduler(config: Mapping[str, Any], num_tokens: int | None = None) -> NoiseProcess:
    """The noise process of a diffusers scheduler config; raises ValueError naming what cannot be distilled.

    num_tokens: positions the denoiser sees of a sample, for schedules that shift with the resolution.
    """
    name = str(config.get("_class_name", "DDPMScheduler"))
    for part, why in REFUSED.items():
        if part in name:
            raise ValueError(f"scheduler {name}: {why}")
    flows = config.get("use_flow_sigmas") or config.get("prediction_type") == "flow_prediction"
    if name in FLOW_SCHEDULERS or flows:
        return Flow.from_config(config, num_tokens)
    if name not in DIFFUSION_SCHEDULERS:
        raise ValueError(f"scheduler {name} is neither a DDPM-type nor a flow-matching process")
    return Diffusion.from_config(config)
