"""What TEACHER on the command line means: a demo, a model on the Hub, a folder, or a single checkpoint file."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffcompress.errors import UsageError
from diffcompress.families.registry import up_to_date
from diffcompress.runtime import Progress
from diffcompress.teacher import hub
from diffcompress.teacher.hub import Repository
from diffcompress.teacher.variants import PICKLES, choose, variant_of

if TYPE_CHECKING:
    from diffcompress.teacher.single_file import Surroundings

DEMO_FOLDER = Path(__file__).parent.parent / "demo"
# Names that people use for what lies elsewhere on the Hub, or was never there under that name.
SHORT_NAMES = {
    "stabilityai/sd3": "stabilityai/stable-diffusion-3-medium-diffusers",
    "stabilityai/stable-diffusion-3-medium": "stabilityai/stable-diffusion-3-medium-diffusers",
    "stabilityai/sd3.5-medium": "stabilityai/stable-diffusion-3.5-medium",
    "stabilityai/sd3.5-large": "stabilityai/stable-diffusion-3.5-large",
    "stabilityai/sdxl": "stabilityai/stable-diffusion-xl-base-1.0",
    "runwayml/stable-diffusion-v1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5",
}
_FILES = (".safetensors", ".json", *PICKLES)
DENOISERS = ("unet", "transformer")
# Nothing in their configs tells them from the models that they were distilled from.
FEW_STEPS = re.compile(r"turbo|lightning|schnell|hyper-?sd|(?<![a-z])(lcm|dmd)(?![a-z])", re.IGNORECASE)


@dataclass(frozen=True)
class Reference:
    """A teacher (or student): its configs, and where its files are or will be once they are fetched.

    id: as the user wrote it; name: short, for folder names; denoiser: folder of config.json and weights, or a single
    checkpoint file; pipeline: the diffusers folder around it, if there is one; scheduler: parsed scheduler config;
    notes: what the user should be told; revision: the commit of a model on the Hub, None for what lies here;
    surroundings: of a single checkpoint, the pipeline that `assembly.assembled` puts around it; origins: of a pipeline
    put together so, where each part is from.
    """

    id: str
    name: str
    denoiser: Path
    pipeline: Path | None
    config: dict[str, Any]
    scheduler: dict[str, Any]
    notes: tuple[str, ...] = ()
    repository: Repository | None = None
    surroundings: Surroundings | None = None
    origins: Mapping[str, str] = field(default_factory=dict)

    @property
    def class_name(self) -> str | None:
        return self.config.get("_class_name")

    @property
    def revision(self) -> str | None:
        return self.repository.commit if self.repository else None

    @property
    def denoiser_part(self) -> str:
        """The denoiser's subfolder; "" where it is not inside a pipeline."""
        return next((part for part in DENOISERS if part in self.parts), "")

    @property
    def parts(self) -> list[str]:
        """All subfolders that the pipeline names, the denoiser's too."""
        if self.pipeline is None:
            return [""]
        return parts_of(_read(self.pipeline / "model_index.json"))

    @property
    def variant(self) -> str | None:
        """Of the weights beside the denoiser, where they have no plain names ("fp16"): diffusers wants to be told."""
        folders = [] if self.pipeline is None else [self.pipeline / p for p in self.parts if p != self.denoiser_part]
        found = (variant_of((f.name for f in p.iterdir()), str(p)) for p in folders if p.is_dir())
        return next((variant for variant in found if variant is not None), None)

    def fetch(self, *parts: str, progress: Progress | None = None) -> None:
        """Download whole parts of a model on the Hub, all of them if none is named; what lies here stays as it is.

        Around a single checkpoint all of its pipeline is put together, and nothing if parts are named. Raises
        AccessError when the Hub refuses, or offline when something is not in the cache.
        """
        if self.repository is not None:
            self.repository.fetch(parts or self.parts, progress)
        elif self.surroundings is not None and not parts:
            from diffcompress.teacher.assembly import assembled

            assembled(self, progress)

    def other_bytes(self) -> int | None:
        """Bytes of the pipeline's parts beside the denoiser; None without a pipeline, or when the Hub cannot tell."""
        if self.pipeline is None:
            return None
        others = [part for part in self.parts if part != self.denoiser_part]
        if self.repository is not None:
            return self.repository.num_bytes(others)
        return sum(f.stat().st_size for part in others for f in (self.pipeline / part).rglob("*") if f.is_file())


def demo_names() -> list[str]:
    return sorted(path.name for path in DEMO_FOLDER.iterdir() if (path / "model_index.json").is_file())


def resolve(text: str, scheduler: str | None = None) -> Reference:
    """Find a teacher and read its configs; no weights are read, and of a model on the Hub none are downloaded.

    `scheduler`: folder or JSON file of a diffusers scheduler config, for a denoiser that has none beside it.
    A path that exists wins over a Hub id. Raises UsageError when it is missing, empty, not a diffusers model or its
    configs cannot be read; AccessError when the Hub refuses.
    """
    found = _resolve(text, scheduler)
    names = (text, str(found.config.get("_name_or_path", "")))
    if few := next((match[0] for name in names if (match := FEW_STEPS.search(name))), None):
        note = (
            f"'{few}' in its name: a teacher that was distilled to a few steps is not made for the many steps and the "
            "guidance of its bank (bank.sampler_steps, bank.guidance); take the model that it was distilled from"
        )
        found = replace(found, notes=(*found.notes, note))
    return found


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
        return _from_folder(text, path, path.resolve().name, scheduler)
    wanted, _, revision = text.partition("@")
    if not _looks_like_a_path(wanted) and hub.REPOSITORY_ID.fullmatch(wanted):
        return _from_hub(text, wanted, revision or None, scheduler)
    raise UsageError(
        f"no teacher at '{text}': neither file nor folder of that name exists",
        "name a diffusers folder, a model on the Hub as owner/name, or 'demo'",
    )


def _looks_like_a_path(text: str) -> bool:
    return text.startswith((".", "/", "~")) or text.count("/") > 1 or "\\" in text or text.endswith(_FILES)


def _from_hub(text: str, wanted: str, revision: str | None, scheduler: str | None) -> Reference:
    name = SHORT_NAMES.get(wanted, wanted)
    repository = hub.find(name, revision)
    meant = (f"'{wanted}' means '{name}'",) if name != wanted else ()
    here = f"'{name}' is taken at commit {repository.commit}"
    if not any((repository.folder / file).is_file() for file in ("model_index.json", "config.json")):
        single = sorted(f for f in repository.files or () if f.endswith(".safetensors") and "/" not in f)
        raise UsageError(
            f"'{name}' is not a diffusers model: it holds neither model_index.json nor config.json",
            f"download {single[0]} and name the file" if single else "look for its diffusers version on the Hub",
        )
    found = _from_folder(text, repository.folder, name.partition("/")[2], scheduler)
    return replace(found, notes=(*meant, *repository.notes, here, *found.notes), repository=repository)


def _from_folder(text: str, path: Path, name: str, scheduler: str | None) -> Reference:
    if (path / "model_index.json").is_file() and not _is_flat(path):
        found = _from_pipeline(text, path, name)
    elif (path / "config.json").is_file():
        config = up_to_date(_read(path / "config.json"))
        noise, note = _scheduler_beside(text, path, scheduler)
        found = Reference(text, name, path, None, config, noise, (note,))
    elif inside := [part for part in DENOISERS if (path / part / "config.json").is_file()]:
        # What becomes of a denoiser that came alone: its class has no pipeline of denoiser and scheduler only.
        return _from_folder(text, path / inside[0], name, scheduler)
    else:
        state = "is empty" if not any(path.iterdir()) else "holds neither model_index.json nor config.json"
        raise UsageError(f"'{text}' is not a diffusers folder: it {state}", "name the folder that save_pretrained made")
    pickles = [
        n for n in choose((f.name for f in found.denoiser.iterdir()), str(found.denoiser)) if n.endswith(PICKLES)
    ]
    notes = tuple(f"{name} is a pickled state dict, read with weights_only=True" for name in pickles[:1])
    return replace(found, notes=(*found.notes, *notes))


def _is_flat(path: Path) -> bool:
    """A pipeline of the first days: denoiser and scheduler config lie beside model_index.json, without subfolders."""
    return (path / "config.json").is_file() and not any((path / part).is_dir() for part in DENOISERS)


def _from_pipeline(text: str, path: Path, name: str) -> Reference:
    index = _read(path / "model_index.json")
    for subfolder in DENOISERS:
        if subfolder in index:
            break
    else:
        raise UsageError(
            f"the pipeline in '{text}' has no unet or transformer",
            f"its parts are {', '.join(k for k in index if not k.startswith('_'))}",
        )
    config = up_to_date(_read(path / subfolder / "config.json"))
    scheduler = _read(path / "scheduler" / "scheduler_config.json")
    return Reference(text, name, path / subfolder, path, config, scheduler)


def _from_file(text: str, path: Path, scheduler: str | None) -> Reference:
    from diffcompress.teacher import single_file

    if path.suffix not in (".safetensors", *PICKLES):
        told = "a config is enough for plan alone" if path.suffix == ".json" else "it is no .safetensors file"
        raise UsageError(f"'{text}' holds no teacher: {told}", "name a diffusers folder or a .safetensors checkpoint")
    folder = path.parent
    index = _read(folder / "model_index.json") if (folder / "model_index.json").is_file() else None
    parts = ("", *DENOISERS) if index is not None else ("",)
    beside = next((file for part in parts if (file := folder / part / "config.json").is_file()), None)
    found = single_file.recognise(path, up_to_date(_read(beside)) if beside else None, index)
    notes = found.notes if beside is None else (*found.notes, f"config from {beside}")
    stated = scheduler is not None or (folder / "scheduler" / "scheduler_config.json").is_file()
    if found.scheduler is not None and not stated:
        noise = found.scheduler
    else:
        noise, note = _scheduler_beside(text, folder, scheduler)
        notes = (*notes, note)
    return Reference(text, path.stem, path, None, found.config, noise, notes, surroundings=found.surroundings)


def parts_of(index: Mapping[str, Any]) -> list[str]:
    """The parts that a model_index.json names, the denoiser and the scheduler too."""
    return [k for k, v in index.items() if isinstance(v, list) and len(v) == 2 and v[1] is not None]


def _scheduler_beside(text: str, folder: Path, scheduler: str | None) -> tuple[dict[str, Any], str]:
    """The scheduler config that the user named, or that lies in the pipeline around a denoiser folder."""
    places = [folder / "scheduler_config.json"]
    places += [place / "scheduler" / "scheduler_config.json" for place in (folder.resolve().parent, folder)]
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
    return _read(file), f"noise process from {file}"


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}", "check that the download is complete") from error
    except ValueError as error:
        raise UsageError(f"{path} is not valid JSON ({error})", "check that the download is complete") from error
    if not isinstance(value, dict):
        raise UsageError(f"{path} holds no JSON object", "check that the download is complete")
    return value
