"""A teacher's configs: values and types that make no sense, keys that lack or are too many, files that are no JSON."""

from __future__ import annotations

import json
from random import Random

from tests.fuzz import odd
from tests.fuzz.place import Case, Place

CLASSES = (
    "StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline", "StableDiffusionXLPipeline", "DDIMPipeline",
    "LatentConsistencyModelPipeline", "OnnxStableDiffusionPipeline", "FlaxStableDiffusionPipeline", "MyPipeline",
    "UNet2DModel", "DiffusionPipeline", "os", "__import__",
)  # fmt: skip


def make(random: Random, place: Place) -> Case:
    teacher = place.take(random.choice(("ddpm", "classes", "sd", "dit")))
    configs = sorted(teacher.rglob("*.json"))
    file = random.choice(configs)
    if file.name == "model_index.json" and random.random() < 0.3:
        data = json.loads(file.read_text()) | {"_class_name": random.choice(CLASSES)}
    elif random.random() < 0.25:
        odd.damage(random, file)
        return place.either(random, teacher)
    else:
        data = odd.mutated(random, json.loads(file.read_text()))
    file.write_bytes(odd.text_of(random, data))
    return place.either(random, teacher)


def alone(random: Random, place: Place) -> Case:
    """A denoiser's config by itself, or with a scheduler's named beside it."""
    teacher = place.take(random.choice(("ddpm", "sd", "dit")))
    file = next(f for f in sorted(teacher.rglob("config.json")) if f.parent.name in ("unet", "transformer"))
    scheduler = teacher / "scheduler" / "scheduler_config.json"
    for changed in random.choice(((file,), (scheduler,), (file, scheduler))):
        changed.write_bytes(odd.text_of(random, odd.mutated(random, json.loads(changed.read_text()))))
    if random.random() < 0.5:
        return place.plan(file)
    return place.either(random, file.parent, "--scheduler", str(random.choice((scheduler, scheduler.parent))))
