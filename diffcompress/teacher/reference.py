"""A teacher or student that was found: its configs, and where its files are or will be."""

from __future__ import annotations

import json
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffcompress.errors import UsageError
from diffcompress.runtime import Progress
from diffcompress.teacher.hub import Repository
from diffcompress.teacher.linking import part_bytes

if TYPE_CHECKING:
    from diffcompress.teacher.single_file import Surroundings

DEMO_FOLDER = Path(__file__).parent.parent / "demo"
_LARGEST_CONFIG = 1 << 24
DENOISERS = ("unet", "transformer")


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
        """The denoiser's subfolder; "" where it is in none."""
        return next((part for part in DENOISERS if part in self.parts), "")

    @property
    def parts(self) -> list[str]:
        """All subfolders that the pipeline names, the denoiser's too; of a denoiser alone the one that it lies in."""
        if self.pipeline is None:
            inside = self.denoiser.relative_to(self.repository.folder).as_posix() if self.repository else "."
            return ["" if inside == "." else inside]
        return parts_of(read_json(self.pipeline / "model_index.json"))

    @property
    def left_out(self) -> list[str]:
        """Text parts that the pipeline is without, as its index says (SD3 without T5): diffusers wants to be told."""
        index = {} if self.pipeline is None else read_json(self.pipeline / "model_index.json")
        return left_out_of(index)

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
        return sum(part_bytes(self.pipeline / part) for part in others)


def demo_names() -> list[str]:
    return sorted(path.name for path in DEMO_FOLDER.iterdir() if (path / "model_index.json").is_file())


def parts_of(index: Mapping[str, Any]) -> list[str]:
    """The parts that a model_index.json names, the denoiser and the scheduler too."""
    return [
        k for k, v in index.items() if k.isidentifier() and isinstance(v, list) and len(v) == 2 and v[1] is not None
    ]


def left_out_of(index: Mapping[str, Any]) -> list[str]:
    """The tokenizers and text encoders that a model_index.json says are left out."""
    return [k for k, v in index.items() if k.startswith(("tokenizer", "text_encoder")) and v == [None, None]]


def read_json(path: Path) -> dict[str, Any]:
    """One of a teacher's configs; raises UsageError when it is missing, no regular file, large or no JSON object."""
    advice = "check that the download is complete"
    try:
        kind = path.stat()
        if not stat.S_ISREG(kind.st_mode):  # a named pipe would be waited for
            raise UsageError(f"{path} is no regular file", "name the folder that save_pretrained made")
        if kind.st_size > _LARGEST_CONFIG:
            raise UsageError(f"{path} has {kind.st_size:,} bytes, and no config is as large", advice)
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}", advice) from error
    except (ValueError, RecursionError) as error:
        why = "too deeply nested" if isinstance(error, RecursionError) else error
        raise UsageError(f"{path} is not valid JSON ({why})", advice) from error
    if not isinstance(value, dict):
        raise UsageError(f"{path} holds no JSON object", advice)
    return value
