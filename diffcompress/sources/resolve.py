"""What TEACHER on the command line means: a demo, a model on the Hub, a folder, or a single checkpoint file."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from diffcompress.errors import AccessError, UsageError
from diffcompress.families.registry import up_to_date
from diffcompress.sources import hub, hub_names
from diffcompress.sources.model_index import DENOISERS, parts_of, read_config
from diffcompress.sources.reference import DEMO_FOLDER, Reference, demo_names
from diffcompress.sources.remarks import remarks
from diffcompress.sources.variants import FORMATS, PICKLES

# Names that people use for what lies elsewhere on the Hub, or was never there under that name.
SHORT_NAMES = {
    "stabilityai/sd3": "stabilityai/stable-diffusion-3-medium-diffusers",
    "stabilityai/stable-diffusion-3-medium": "stabilityai/stable-diffusion-3-medium-diffusers",
    "stabilityai/sd3.5-medium": "stabilityai/stable-diffusion-3.5-medium",
    "stabilityai/sd3.5-large": "stabilityai/stable-diffusion-3.5-large",
    "stabilityai/sdxl": "stabilityai/stable-diffusion-xl-base-1.0",
    "runwayml/stable-diffusion-v1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5",
}
# How classes begin that other libraries run.
_FRAMEWORKS = {"Onnx": "ONNX Runtime", "Flax": "Flax", "OV": "OpenVINO", "Neuron": "AWS Neuron"}
_FILES = (".safetensors", ".json", *PICKLES)


def resolve(text: str, scheduler: str | None = None) -> Reference:
    """Find a teacher and read its configs; no weights are read, and of a model on the Hub none are downloaded.

    `scheduler`: folder or JSON file of a diffusers scheduler config, for a denoiser that has none beside it.
    A path that exists wins over a Hub id. Raises UsageError when it is missing, empty, not a diffusers model or its
    configs cannot be read; AccessError when the Hub refuses.
    """
    found = _resolve(text, scheduler)
    notes = remarks(found)
    if scheduler is not None and found.pipeline is not None:
        notes.append(f"--scheduler {scheduler} is not used: the pipeline of '{text}' has its own")
    return replace(found, notes=(*found.notes, *notes))


def _resolve(text: str, scheduler: str | None) -> Reference:
    if text == "demo" or text.startswith("demo:"):
        name = text.partition(":")[2] or "unet"
        if name not in demo_names():
            raise UsageError(
                f"no embedded teacher '{text}'", f"choose demo or {', '.join('demo:' + n for n in demo_names())}"
            )
        return _from_pipeline(text, DEMO_FOLDER / name, "demo" if name == "unet" else f"demo-{name}")
    path = Path(text).expanduser()
    if path.is_file():
        return _from_file(text, path, scheduler)
    if path.is_dir():
        place = hub_names.snapshot_in(path)
        found = _from_folder(text, place, hub_names.cached_name(place) or place.resolve().name, scheduler)
        taken = (f"'{text}' is a folder of the Hub's cache: its snapshot {place.name} is taken",)
        return found if place == path else replace(found, notes=(*taken, *found.notes))
    if (meant := hub_names.from_address(text)) is not None:
        found = _resolve(meant, scheduler)
        return replace(found, notes=(f"'{text}' is taken as '{meant}'", *found.notes))
    wanted, _, revision = text.partition("@")
    if not _looks_like_a_path(wanted) and hub_names.REPOSITORY_ID.fullmatch(wanted):
        return _from_hub(text, wanted, revision or None, scheduler)
    raise UsageError(
        f"no model at '{text}': neither file nor folder of that name exists",
        "name a diffusers folder, a model on the Hub as owner/name, or 'demo'",
    )


def _looks_like_a_path(text: str) -> bool:
    return text.startswith((".", "/", "~")) or text.count("/") > 1 or "\\" in text or text.endswith(_FILES)


def _from_hub(text: str, wanted: str, revision: str | None, scheduler: str | None) -> Reference:
    name = SHORT_NAMES.get(wanted, wanted)
    repository = hub.find(name, revision)
    meant = (f"'{wanted}' means '{name}'",) if name != wanted else ()
    here = f"'{name}' is taken at commit {repository.commit}"
    configs = ("model_index.json", "config.json", *(f"{part}/config.json" for part in DENOISERS))
    if not any((repository.folder / file).is_file() for file in configs):
        single = sorted(f for f in repository.files or () if f.endswith(".safetensors") and "/" not in f)
        raise UsageError(
            f"'{name}' is not a diffusers model: it holds neither model_index.json nor config.json",
            f"download {single[0]} and name the file" if single else "look for its diffusers version on the Hub",
        )
    try:
        found = _from_folder(text, repository.folder, name.partition("/")[2], scheduler)
    except UsageError as error:
        if repository.files is None and isinstance(error.__cause__, FileNotFoundError):
            raise AccessError(
                f"'{name}' is not whole in the local cache, and the Hub cannot be asked: {error.message}", hub.GO_ONLINE
            ) from error
        raise
    return replace(found, notes=(*meant, *repository.notes, here, *found.notes), repository=repository)


def _from_folder(text: str, path: Path, name: str, scheduler: str | None) -> Reference:
    # What is there but no file is told by what reads it.
    if os.path.lexists(path / "model_index.json") and not _is_flat(path):
        found = _from_pipeline(text, path, name)
    elif os.path.lexists(path / "config.json"):
        config = denoiser_config(path / "config.json")
        noise, note = _scheduler_beside(text, path, scheduler)
        found = Reference(text, name, path, None, config, noise, (note,))
    elif inside := [part for part in DENOISERS if (path / part / "config.json").is_file()]:
        # What becomes of a denoiser that came alone: its class has no pipeline of denoiser and scheduler only.
        return _from_folder(text, path / inside[0], name, scheduler)
    else:
        state = "is empty" if not any(path.iterdir()) else "holds neither model_index.json nor config.json"
        raise UsageError(f"'{text}' is not a diffusers folder: it {state}", "name the folder that save_pretrained made")
    return found


def _is_flat(path: Path) -> bool:
    """A pipeline of the first days: denoiser and scheduler config lie beside model_index.json, without subfolders."""
    return (path / "config.json").is_file() and not any((path / part).is_dir() for part in DENOISERS)


def _from_pipeline(text: str, path: Path, name: str) -> Reference:
    index = read_config(path / "model_index.json")
    for subfolder in DENOISERS:
        if subfolder in index:
            break
    else:
        parts = ", ".join(k for k in index if not k.startswith("_"))
        raise UsageError(
            f"the pipeline in '{text}' has no unet or transformer",
            f"its parts are {parts}" if parts else "its model_index.json names no parts: make it with save_pretrained",
        )
    made = index[subfolder][1] if subfolder in parts_of(index) else ""
    if framework := next((told for start, told in _FRAMEWORKS.items() if str(made).startswith(start)), None):
        raise UsageError(
            f"the pipeline in '{text}' is for {framework} ({made})", "take the PyTorch pipeline that it was made from"
        )
    config = denoiser_config(path / subfolder / "config.json")
    stated = index["scheduler"][1] if "scheduler" in parts_of(index) else None
    scheduler = _scheduler_config(path / "scheduler" / "scheduler_config.json", stated)
    return Reference(text, name, path / subfolder, path, config, scheduler)


def _from_file(text: str, path: Path, scheduler: str | None) -> Reference:
    from diffcompress.sources import single_file

    if path.suffix not in (".safetensors", *PICKLES):
        told = f"it is {FORMATS[path.suffix]}" if path.suffix in FORMATS else "it is no .safetensors file"
        told = "a config is enough for plan alone" if path.suffix == ".json" else told
        raise UsageError(f"'{text}' holds no model: {told}", "name a diffusers folder or a .safetensors checkpoint")
    folder = path.parent
    index = read_config(folder / "model_index.json") if (folder / "model_index.json").is_file() else None
    parts = ("", *DENOISERS) if index is not None else ("",)
    beside = next((file for part in parts if (file := folder / part / "config.json").is_file()), None)
    found = single_file.recognise(path, denoiser_config(beside) if beside else None, index)
    notes = found.notes if beside is None else (*found.notes, f"config from {beside}")
    stated = scheduler is not None or (folder / "scheduler" / "scheduler_config.json").is_file()
    if found.scheduler is not None and not stated:
        noise = found.scheduler
    else:
        noise, note = _scheduler_beside(text, folder, scheduler)
        notes = (*notes, note)
    return Reference(text, path.stem, path, None, found.config, noise, notes, surroundings=found.surroundings)


def _scheduler_beside(text: str, folder: Path, scheduler: str | None) -> tuple[dict[str, Any], str]:
    """The scheduler config that the user named, or that lies in the pipeline around a denoiser folder."""
    places = [folder / "scheduler_config.json"]
    # A denoiser that is a link has a folder around it here, and another one where it leads.
    around = (Path(os.path.abspath(folder)).parent, folder.resolve().parent, folder)
    places += [place / "scheduler" / "scheduler_config.json" for place in around]
    beside = [file for file in places if file.is_file()]
    if scheduler is not None:
        given = Path(scheduler)
        file = given / "scheduler_config.json" if given.is_dir() else given
    elif beside:
        file = beside[0]
    else:
        raise UsageError(
            f"'{text}' is a denoiser without a scheduler, so its prediction type is unknown",
            "add --scheduler with the folder or file of its diffusers scheduler config",
        )
    return _scheduler_config(file), f"noise process from {file}"


def _scheduler_config(file: Path, stated: str | None = None) -> dict[str, Any]:
    """A scheduler's config, with the class that its pipeline states where the file names none.

    Raises UsageError where neither does.
    """
    config = {"_class_name": stated} | read_config(file)
    if not config["_class_name"]:
        raise UsageError(
            f"{file} names no _class_name, so the noise process is unknown",
            "add the class, for example DDIMScheduler or FlowMatchEulerDiscreteScheduler",
        )
    return config


def denoiser_config(path: Path) -> dict[str, Any]:
    """A denoiser's config.json, class named as diffusers names it today; raises UsageError as `read_config` does."""
    return up_to_date(read_config(path))
