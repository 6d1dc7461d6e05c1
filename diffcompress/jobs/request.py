"""What `shrink` is asked for, known before anything is loaded: it tells one run from another."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffcompress import __version__
from diffcompress.recipe import Recipe
from diffcompress.records.run_folder import RunFolder
from diffcompress.records.run_identity import as_path
from diffcompress.sources.reference import Reference


@dataclass(frozen=True, kw_only=True)
class Request:
    """target: ratio, params and size, all but one None; recipe: as asked, before its step counts are settled; the rest
    as in `shrink`."""

    reference: Reference
    target: dict[str, Any]
    recipe_name: str
    recipe: Recipe
    method: str
    data: str | None
    prompts: str | None
    dtype: str | None
    scheduler: str | None
    output: str | Path | None
    shared: Path | None
    overwrite: bool
    max_time: float | None
    device: str | None
    license: str | None
    push_to_hub: str | None
    public: bool

    @property
    def inputs(self) -> list[Path]:
        """What the user has here that the run reads."""
        root = self.reference.pipeline or self.reference.denoiser
        named = [Path(name).expanduser() for name in (self.data, self.prompts, self.scheduler) if name is not None]
        return [path for path in (root, *(root / part for part in self.reference.parts), *named) if path.exists()]

    def folder(self, ratio: float | None) -> RunFolder:
        """The output that was asked for, or a folder named after teacher and `ratio`."""
        return RunFolder(self.output or f"./{self.reference.name}-{ratio:.4g}", self.shared)

    def identity(self, fingerprint: str) -> dict[str, Any]:
        """What makes a run this run and no other, with the `fingerprint` of its teacher, and the version it began with;
        `run_identity` tells how two compare."""
        return {
            "version": __version__,
            "teacher": self.reference.id,
            "fingerprint": fingerprint,
            "target": self.target,
            "method": self.method,
            "data": as_path(self.data),
            "prompts": as_path(self.prompts),
            "dtype": self.dtype,
            "scheduler": as_path(self.scheduler),
            "recipe_name": self.recipe_name,
            "recipe": self.recipe.model_dump(mode="json", exclude={"export"}),
        }

    def more_time(self, folder: RunFolder) -> float | None:
        """Seconds of training, where more are asked for than the run in `folder` was granted."""
        return self.max_time if self.max_time is not None and self.max_time > folder.granted else None
