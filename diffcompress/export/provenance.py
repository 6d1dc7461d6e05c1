"""diffcompress.json in the exported pipeline: all it was made from (docs/schemas/provenance.schema.json)."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from diffcompress.pipeline.load import LoadedPipeline
from diffcompress.records.fingerprints import PROVENANCE, of_model_file, weight_hashes
from diffcompress.records.run_folder import read_json, write_json
from diffcompress.runtime import dtype_name
from diffcompress.sources.hub_names import public_name
from diffcompress.sources.licence import NOBODY, STATED, Licence, is_demo, stated_by_user
from diffcompress.sources.model_index import left_out_of
from diffcompress.sources.reference import Reference
from diffcompress.sources.weights import weight_files

FILE = PROVENANCE
FORMAT = 1
_PACKAGES = ("diffcompress", "diffusers", "torch", "accelerate", "safetensors", "huggingface-hub", "numpy")


def record(
    folder: Path,
    teacher: LoadedPipeline,
    licence: Licence,
    dtype: torch.dtype,
    given: Mapping[str, Any],
    collected: Mapping[str, Any],
) -> dict[str, Any]:
    """What diffcompress.json in `folder` says: no path of this machine is in it, for it is published with the weights.

    given: recipe, seed, bank hash and method as the run knows them; collected: the report's facts.
    """
    asked = collected["asked"]
    # A denoiser alone, of a class that makes no pipeline by itself, has none.
    file = folder / "model_index.json"
    index = read_json(file, kind=dict) if file.is_file() else {}
    family = teacher.family.class_name
    return {
        "format": FORMAT,
        "teacher": _teacher(teacher, collected["teacher"]["params"]),
        "student": {
            key: collected["student"][key] for key in ("params", "ratio", "requested_ratio", "prediction_type")
        },
        "target": asked.get("target"),
        "recipe_name": public_name(asked.get("recipe_name")),
        "data": public_name(asked.get("data")),
        **given,
        "seeds": {"run": given.get("seed"), "evaluation": collected["protocol"].get("seed")},
        "license": licence.as_json(),
        "denoiser": family,
        "num_classes": teacher.family.num_classes(teacher.config),
        "pipeline": index.get("_class_name"),
        **({"left_out": left_out} if (left_out := left_out_of(index)) else {}),
        "pipeline_tag": pipeline_tag(index, family),
        "dtype": dtype_name(dtype),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in _PACKAGES},
        "files": weight_hashes(folder),
    }


def relicense(folder: Path, stated: str) -> None:
    """Write the licence that the user states into diffcompress.json, unless the teacher's card said one."""
    found = read_json(folder / FILE, kind=dict)
    if found["license"]["source"] in (NOBODY, STATED):
        write_json(folder / FILE, found | {"license": stated_by_user(stated).as_json()})


def pipeline_tag(index: Mapping[str, Any], denoiser: str) -> str:
    """The Hub's name for what a pipeline does, from model_index.json and the denoiser's class.

    The Hub has no name for class-conditional models: they go with the unconditional ones.
    """
    if not any(part.startswith("tokenizer") for part in index):
        return "unconditional-image-generation"
    return "text-to-video" if "3DModel" in denoiser else "text-to-image"


def _teacher(teacher: LoadedPipeline, params: int | None) -> dict[str, Any]:
    """id: on the Hub, or of a demo; None for a teacher that lay on somebody's disk: fingerprint and files tell it.
    parts: of a single checkpoint, the file, repository or folder that each other part of its pipeline is from."""
    reference = teacher.reference
    repository = getattr(reference, "repository", None)
    files = weight_files(reference.denoiser)
    single = reference.denoiser.is_file()
    root = reference.denoiser.parent if single else reference.pipeline or reference.denoiser
    parts = {"parts": dict(reference.origins)} if reference.origins else {}
    return {
        "id": repository.id if repository else reference.id if is_demo(reference) else None,
        "name": reference.name,
        "revision": repository.commit if repository else None,
        "params": params,
        "fingerprint": teacher.fingerprint,
        "files": {file.relative_to(root).as_posix(): _known_hash(reference, file, root) for file in files},
        **parts,
    }


def _known_hash(reference: Reference, file: Path, root: Path) -> str:
    """As the Hub states it, which was checked when it was downloaded; else computed."""
    repository = getattr(reference, "repository", None)
    stated = (repository.files or {}).get(file.relative_to(root).as_posix()) if repository else None
    return (stated.sha256 if stated else None) or of_model_file(file)
