"""How well images fit their prompts, by CLIP: Hessel et al. 2021, arXiv 2104.08718."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from diffcompress.evaluation.frechet import mean_estimate
from diffcompress.evaluation.material import Material
from diffcompress.records.evaluation import Metrics
from diffcompress.records.metrics import Estimate, Metric


def add_metrics(material: Material, wanted: Sequence[Metric], metrics: Metrics) -> None:
    """100 x cosine of a sample's and its prompt's embedding, not below 0."""
    space = material.in_space
    assert space.of_prompts is not None and material.prompts is not None
    texts = space.of_prompts.extractor.text_features(material.prompts)
    features = material.others("corrected")
    if space.clip is not None:
        features = {role: clip for role in features if (clip := material.drawn[role].clip) is not None}

    def score(images: Tensor) -> Estimate:
        return mean_estimate(100 * (images * texts[: len(images)]).sum(1).clamp(min=0), seed=material.protocol.seed)

    for metric in wanted:
        metrics.add(metric, {role: score(value) for role, value in features.items()}, **material.counted)
