"""Students that predict another quantity than their teacher: what is around one, and what it says in other terms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from diffcompress.noise import NoiseProcess
from diffcompress.pipeline.load import LoadedPipeline


def predicting(pipeline: LoadedPipeline, prediction_type: str | None) -> LoadedPipeline:
    """`pipeline` around a denoiser that predicts `prediction_type`, as its scheduler then says; None: what it predicts.

    Raises ValueError where its noise process has one prediction alone.
    """
    if prediction_type in (None, pipeline.noise.prediction_type):
        return pipeline
    told = {**pipeline.reference.scheduler, "prediction_type": prediction_type}
    noise = pipeline.noise.predicting(str(prediction_type))
    return replace(pipeline, noise=noise, reference=replace(pipeline.reference, scheduler=told))


def in_terms_of(pipeline: LoadedPipeline, other: NoiseProcess) -> LoadedPipeline:
    """`pipeline` with its predictions told as those of `other`, of the same noise levels; it samples as before."""
    if pipeline.noise.prediction_type == other.prediction_type:
        return pipeline
    own = pipeline.noise
    told = own.predicting(other.prediction_type)
    family: Any = _Converted(pipeline.family, own, told)
    return replace(pipeline, family=family, noise=told)


class _Converted:
    """A family in every question but `predict`."""

    def __init__(self, family: Any, own: NoiseProcess, told: NoiseProcess) -> None:
        self._family, self._own, self._told = family, own, told

    def __getattr__(self, name: str) -> Any:
        return getattr(self._family, name)

    def predict(self, model: nn.Module, noisy: Tensor, timestep: Tensor, conditioning: Mapping[str, Tensor]) -> Tensor:
        whole = self._family.predict(model, noisy, timestep, conditioning)
        channels = noisy.shape[1]  # a learned variance behind them is the same in all terms
        prediction = self._own.converted(whole[:, :channels].float(), noisy.float(), timestep, self._told)
        return torch.cat([prediction, whole[:, channels:].float()], 1)
