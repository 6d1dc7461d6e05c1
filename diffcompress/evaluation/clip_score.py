"""How well images fit their prompts: by CLIP, Hessel et al. 2021, arXiv 2104.08718; and, as people who choose between
images see it, by PickScore, a CLIP of its own, Kirstain et al. 2023, arXiv 2305.01569."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from diffcompress.evaluation.frechet import mean_estimate
from diffcompress.evaluation.material import Material
from diffcompress.records.evaluation import Metrics
from diffcompress.records.metrics import Metric


def add_metrics(material: Material, wanted: Sequence[Metric], metrics: Metrics) -> None:
    """Of a sample's and its prompt's embedding: 100 x cosine, not below 0 (CLIP); scale x cosine (PickScore)."""
    for metric in wanted:
        judge = material.in_space.judge_of(metric.kind.name)
        assert judge is not None and material.prompts is not None
        texts = judge.extractor.text_features(material.prompts)
        features = material.others("corrected")
        if judge is not material.in_space:
            features = {role: material.drawn[role].beside[judge.name] for role in features}
        cosines = {role: (images * texts[: len(images)]).sum(1) for role, images in features.items()}
        told = {role: _told(metric.kind.name, value, judge.extractor.scale) for role, value in cosines.items()}
        seed = material.protocol.seed
        metrics.add(metric, {role: mean_estimate(value, seed=seed) for role, value in told.items()}, **material.counted)


def _told(name: str, cosine: Tensor, scale: float) -> Tensor:
    return scale * cosine if name == "pick_score" else 100 * cosine.clamp(min=0)
