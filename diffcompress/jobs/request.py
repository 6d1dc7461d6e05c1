"""A `shrink` that is asked for, known before anything is loaded: it tells one run from another."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffcompress import __version__
from diffcompress.recipe import Recipe
from diffcompress.records.request import ShrinkOptions
from diffcompress.records.run_folder import RunFolder
from diffcompress.sources.reference import Reference


@dataclass(frozen=True, kw_only=True)
class Request:
    """What was asked for, and what its names stand for. recipe: as asked, before its step counts are settled."""

    asked: ShrinkOptions
    reference: Reference
    recipe_name: str
    recipe: Recipe

    @property
    def inputs(self) -> list[Path]:
        """What the user has here that the run reads."""
        root, asked = self.reference.pipeline or self.reference.denoiser, self.asked
        named = [Path(name).expanduser() for name in (asked.data, asked.prompts, asked.scheduler) if name is not None]
        return [path for path in (root, *(root / part for part in self.reference.parts), *named) if path.exists()]

    def folder(self, ratio: float | None) -> RunFolder:
        """The output that was asked for, or a folder named after teacher and `ratio`."""
        return RunFolder(self.asked.output or f"./{self.reference.name}-{ratio:.4g}", self.asked.shared)

    def identity(self, fingerprint: str) -> dict[str, Any]:
        """What makes a run this run and no other, with the `fingerprint` of its teacher, and the version it began with;
        `run_identity` tells how two compare."""
        return {
            "version": __version__,
            "teacher": self.reference.id,
            "fingerprint": fingerprint,
            "target": self.asked.target,
            **self.asked.kept(),
            "recipe_name": self.recipe_name,
            "recipe": self.recipe.model_dump(mode="json", exclude={"export"}),
        }

    def more_time(self, folder: RunFolder) -> float | None:
        """Seconds of training, where more are asked for than the run in `folder` was granted."""
        asked = self.asked.max_time
        return asked if asked is not None and asked > folder.granted else None
