"""Distances of drawn samples in a feature space: to real images, to the teacher's samples, to their prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from diffcompress.evaluation import neighbours
from diffcompress.evaluation.cache import Drawn
from diffcompress.evaluation.extractors import ADVICE
from diffcompress.evaluation.features import FeatureSpace, RealImages
from diffcompress.evaluation.frechet import Moments, frechet_distance, kernel_distance, mean_estimate
from diffcompress.records.metrics import DISTANCES, NEIGHBOURS, NO_TEACHER, TO_TEACHER, Estimate, Metrics
from diffcompress.records.protocol import Protocol

FD_UNIT, KD_UNIT = "squared feature units", "squared kernel units"
FEWEST_FOR_FID = 10_000
NO_CLIP = "it takes CLIP's features: `evaluate --feature-weights` with a CLIP folder (openai/clip-vit-base-patch32)"


def add_distances(
    metrics: Metrics,
    drawn: Mapping[str, Drawn],
    space: FeatureSpace | None,
    protocol: Protocol,
    prompts: Sequence[str] | None = None,
) -> None:
    """Everything that is measured in `space`; the rest is named with the reason. prompts: of samples 0..N-1, if any."""
    suffix = "" if space is None else f"_{space.name}"
    to_real = tuple(f"{stem}{suffix}" for stem in (*DISTANCES, *NEIGHBOURS))
    to_teacher = tuple(f"{stem}{suffix}" for stem in TO_TEACHER)
    to_prompts = () if prompts is None else ("clip_score",)
    if "teacher" not in drawn:
        metrics.skip(to_teacher, NO_TEACHER)
        to_teacher = ()
    if space is None or space.of_prompts is None:
        metrics.skip(to_prompts, NO_CLIP)
        to_prompts = ()
    if space is None:
        why = f"no perceptual metric computed: no feature weights; {ADVICE}"
        metrics.skip((*to_real, *to_teacher), why)
        return
    held_out = () if space.held_out is None else (f"fd_{space.name}_held_out",)
    if broken := drawn["student"].num_broken:
        why = f"{broken} of {protocol.num_samples} samples are not finite"
        metrics.skip((*to_real, *held_out, *to_teacher, *to_prompts), why)
        return
    features = {role: one.features for role, one in drawn.items() if one.features is not None and not one.num_broken}
    if space.real is None:
        why = "no perceptual metric to real images computed: there are none for these features; add them with --data"
        metrics.skip(to_real, why)
    else:
        _to_real(metrics, features, space.real, space, protocol)
    if space.held_out is not None:
        shown = {role: value for role, value in features.items() if role != "corrected"}
        _frechet(metrics, f"fd_{space.name}_held_out", shown, space.held_out, space, protocol)
    if "teacher" in features:
        _to_teacher(metrics, features, space, protocol)
    else:
        metrics.skip(to_teacher, "the teacher's samples are not finite")
    if prompts is not None and space.of_prompts is not None:
        beside = {role: clip for role in features if (clip := drawn[role].clip) is not None}
        _clip_score(metrics, beside if space.clip else features, space.of_prompts, prompts, protocol)


def frechet_name(space: FeatureSpace, num_samples: int, num_real: int) -> str:
    """`fid` only for what the word means: Inception's features of 10,000 samples or more; otherwise fd_<space>."""
    called = space.name == "inception" and min(num_samples, num_real) >= FEWEST_FOR_FID
    return "fid" if called else f"fd_{space.name}"


def _to_real(
    metrics: Metrics, features: Mapping[str, Tensor], real: RealImages, space: FeatureSpace, protocol: Protocol
) -> None:
    name = frechet_name(space, protocol.num_samples, real.count)
    _frechet(metrics, name, features, real, space, protocol)
    count = min(len(real.features), protocol.num_samples)
    more = {"samples": protocol.num_samples, "reference": real.name, "real_samples": len(real.features)}
    floor = {} if real.other is None else {"real": real.other[: protocol.num_samples]}
    found = {
        role: kernel_distance(value, real.features, seed=protocol.seed) for role, value in {**features, **floor}.items()
    }
    metrics.add(f"kd_{space.name}", KD_UNIT, "lower", found, **more)
    if count < neighbours.FEWEST:
        why = f"{count} images are too few for nearest neighbours: it takes {neighbours.FEWEST} or more"
        metrics.skip(tuple(f"{one}_{space.name}" for one in NEIGHBOURS), why)
        return
    # As many real images as samples: with unequal counts, precision and recall drift apart by themselves.
    near = {
        role: neighbours.neighbour_metrics(value[:count], real.features[:count], seed=protocol.seed)
        for role, value in {**features, **floor}.items()
        if role != "corrected" and len(value) >= count
    }
    more |= {"samples": count, "real_samples": count}
    for one in NEIGHBOURS:
        k = neighbours.PRECISION_NEIGHBOURS if one in ("precision", "recall") else neighbours.DENSITY_NEIGHBOURS
        values = {role: found[one] for role, found in near.items()}
        metrics.add(f"{one}_{space.name}", "", "higher", values, **more, neighbours=k)


def _too_few(count: int, what: str, option: str, space: FeatureSpace) -> str | None:
    if count >= 2 * space.dimension:
        return None
    needed = 2 * space.dimension
    return (
        f"{count} {what} are too few for a Frechet distance of {space.dimension} features: {option} of {needed} or more"
    )


def _frechet(
    metrics: Metrics,
    name: str,
    features: Mapping[str, Tensor],
    real: RealImages,
    space: FeatureSpace,
    protocol: Protocol,
) -> None:
    why = _too_few(protocol.num_samples, "samples", "--num-samples", space) or _too_few(
        real.count, "real images", "--data", space
    )
    if why is not None:
        metrics.skip((name,), why)
        return
    more = {"samples": protocol.num_samples, "reference": real.name}
    sets = dict(features)
    if real.other is not None:
        sets["real"] = real.other[: protocol.num_samples]
        more["real_samples"] = len(sets["real"])
    found = {role: frechet_distance(value, real.moments, seed=protocol.seed) for role, value in sets.items()}
    metrics.add(name, FD_UNIT, "lower", found, **more)


def _to_teacher(metrics: Metrics, features: Mapping[str, Tensor], space: FeatureSpace, protocol: Protocol) -> None:
    """Samples of the student (and the others) against the teacher's, drawn from the same noise."""
    theirs = features["teacher"]
    others = {role: value for role, value in features.items() if role != "teacher"}
    more = {"samples": protocol.num_samples, "reference": "teacher samples"}
    why = _too_few(protocol.num_samples, "samples", "--num-samples", space)
    if why is None:
        moments = Moments.of(theirs)
        found = {role: frechet_distance(value, moments, seed=protocol.seed) for role, value in others.items()}
        metrics.add(f"fd_teacher_{space.name}", FD_UNIT, "lower", found, **more)
    else:
        metrics.skip((f"fd_teacher_{space.name}",), why)
    paired = {role: kernel_distance(value, theirs, seed=protocol.seed, paired=True) for role, value in others.items()}
    metrics.add(f"kd_teacher_{space.name}", KD_UNIT, "lower", paired, **more)


def _clip_score(
    metrics: Metrics,
    features: Mapping[str, Tensor],
    space: FeatureSpace,
    prompts: Sequence[str],
    protocol: Protocol,
) -> None:
    """100 x cosine of a sample's and its prompt's embedding, not below 0 (Hessel et al. 2021, arXiv 2104.08718)."""
    texts = space.extractor.text_features(prompts)

    def score(images: Tensor) -> Estimate:
        return mean_estimate(100 * (images * texts).sum(1).clamp(min=0), seed=protocol.seed)

    found = {role: score(value) for role, value in features.items() if role != "corrected"}
    metrics.add("clip_score", "100 x cosine", "higher", found, samples=protocol.num_samples)
