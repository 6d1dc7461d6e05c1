"""What TEACHER on the command line means: an embedded demo, a diffusers pipeline folder or a denoiser folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffcompress.errors import UsageError

DEMO_FOLDER = Path(__file__).parent.parent / "demo"


@dataclass(frozen=True)
class Reference:
    """A teacher (or student) on disk.

    id: as the user wrote it; name: short, for folder names; denoiser: folder of config.json and weights;
    pipeline: the diffusers folder around it, if there is one; scheduler: parsed scheduler config.
    """

    id: str
    name: str
    denoiser: Path
    pipeline: Path | None
    config: dict[str, Any]
    scheduler: dict[str, Any]
    notes: tuple[str, ...] = ()

    @property
    def class_name(self) -> str | None:
        return self.config.get("_class_name")


def demo_names() -> list[str]:
    return sorted(path.name for path in DEMO_FOLDER.iterdir() if (path / "model_index.json").is_file())


def resolve(text: str, scheduler: str | None = None) -> Reference:
    """Find a teacher without reading weights.

    `scheduler`: folder or JSON file of a diffusers scheduler config, for a denoiser folder that has none beside it.
    Raises UsageError when it is missing, empty, not a diffusers folder or its configs cannot be read.
    """
    if text == "demo" or text.startswith("demo:"):
        name = text.partition(":")[2] or "unet"
        if name not in demo_names():
            raise UsageError(
                f"no embedded teacher '{text}'", f"choose demo or {', '.join('demo:' + n for n in demo_names())}"
            )
        return _from_pipeline(text, DEMO_FOLDER / name, "demo" if name == "unet" else f"demo-{name}")
    path = Path(text).expanduser()
    if not path.exists():
        raise UsageError(
            f"no teacher at '{text}': the folder does not exist",
            "name a diffusers folder here, or 'demo'; Hub ids are not supported yet: download the model first",
        )
    if not path.is_dir():
        raise UsageError(
            f"'{text}' is a file, not a diffusers folder",
            "single-file checkpoints are not supported yet; convert it with diffusers first",
        )
    if (path / "model_index.json").is_file():
        return _from_pipeline(text, path, path.resolve().name)
    if (path / "config.json").is_file():
        return _from_denoiser(text, path, scheduler)
    state = "is empty" if not any(path.iterdir()) else "holds neither model_index.json nor config.json"
    raise UsageError(f"'{text}' is not a diffusers folder: it {state}", "name the folder that save_pretrained made")


def _from_pipeline(text: str, path: Path, name: str) -> Reference:
    index = _read(path / "model_index.json")
    for subfolder in ("unet", "transformer"):
        if subfolder in index:
            break
    else:
        raise UsageError(
            f"the pipeline in '{text}' has no unet or transformer",
            f"its parts are {', '.join(k for k in index if not k.startswith('_'))}",
        )
    config = _read(path / subfolder / "config.json")
    scheduler = _read(path / "scheduler" / "scheduler_config.json")
    return Reference(text, name, path / subfolder, path, config, scheduler)


def _from_denoiser(text: str, path: Path, scheduler: str | None) -> Reference:
    config = _read(path / "config.json")
    beside = path.resolve().parent / "scheduler" / "scheduler_config.json"
    if scheduler is not None:
        given = Path(scheduler)
        file = given / "scheduler_config.json" if given.is_dir() else given
        note = f"noise process from {file}"
    elif beside.is_file():
        file, note = beside, f"noise process from {beside}"
    else:
        raise UsageError(
            f"'{text}' is a denoiser folder without a scheduler, so its prediction type is unknown",
            "add --scheduler with the folder or file of its diffusers scheduler config",
        )
    return Reference(text, path.resolve().name, path, None, config, _read(file), (note,))


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
