"""A teacher or student that was found: its configs, and where its files are or will be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from diffcompress.families.base import complete
from diffcompress.runtime import Progress
from diffcompress.sources.hub import Repository
from diffcompress.sources.linking import part_bytes
from diffcompress.sources.model_index import DENOISERS, leaving_out, left_out_of, parts_of, read_config

DEMO_FOLDER = Path(__file__).parent.parent / "demo"


@dataclass(frozen=True)
class Surroundings:
    """The pipeline that a single checkpoint belongs to.

    index: its model_index.json without LEFT_OUT; place: its folder, or its id on the Hub; held: of parts whose weights
    are in the checkpoint, the tensor names.
    """

    index: Mapping[str, Any]
    place: Path | str
    held: Mapping[str, tuple[str, ...]]

    @property
    def others(self) -> list[str]:
        """The parts that have to come from `place`."""
        return [part for part in parts_of(self.index) if part not in (*self.held, *DENOISERS, "scheduler")]

    def told(self) -> str:
        where = f"'{self.place}' on the Hub" if isinstance(self.place, str) else f"the pipeline folder {self.place}"
        taken = f"{', '.join(self.held)} from the file itself, " if self.held else ""
        return f"{taken}{', '.join(self.others) or 'nothing'} from {where}"


@dataclass(frozen=True)
class Reference:
    """A teacher (or student): its configs, and where its files are or will be once they are fetched.

    id: as the user wrote it; name: short, for folder names; denoiser: folder of config.json and weights, or a single
    checkpoint file; pipeline: the diffusers folder around it, if there is one; scheduler: parsed scheduler config;
    notes: what the user should be told; revision: the commit of a model on the Hub, None for what lies here;
    surroundings: of a single checkpoint, the pipeline that `assembly.assembled` puts around it; origins: of a pipeline
    put together so, where each part is from; without: parts that the pipeline has and that a run does without.
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
    without: tuple[str, ...] = ()

    @property
    def class_name(self) -> str | None:
        return self.config.get("_class_name")

    @cached_property
    def complete_config(self) -> dict[str, Any]:
        """`config` with its class's own values for what it leaves out; of a class that is a known family's."""
        return complete(str(self.class_name), self.config)

    @property
    def revision(self) -> str | None:
        return self.repository.commit if self.repository else None

    @cached_property
    def index(self) -> Mapping[str, Any]:
        """The pipeline's model_index.json, without what a run does without; empty without one."""
        if self.pipeline is None:
            return {}
        return leaving_out(read_config(self.pipeline / "model_index.json"), self.without)

    @property
    def whole(self) -> Reference:
        """With all parts of its pipeline."""
        return replace(self, without=())

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
        return parts_of(self.index)

    @property
    def left_out(self) -> list[str]:
        """Text parts that the pipeline is without, as its index says (SD3 without T5): diffusers wants to be told."""
        return left_out_of(self.index)

    def fetch(self, *parts: str, progress: Progress | None = None) -> None:
        """Download whole parts of a model on the Hub, all of them if none is named; what lies here stays as it is.

        Raises AccessError when the Hub refuses, or offline when something is not in the cache.
        """
        if self.repository is not None:
            self.repository.fetch(parts or self.parts, progress)

    def part_sizes(self) -> dict[str, int] | None:
        """Bytes of the pipeline's parts as one variant of their weights is stored, the denoiser's among them.

        None without a pipeline, or when the Hub cannot tell.
        """
        if self.pipeline is None:
            return None
        if self.repository is None:
            return {part: part_bytes(self.pipeline / part) for part in self.parts}
        sizes = {part: self.repository.num_bytes([part]) for part in self.parts}
        known = {part: size for part, size in sizes.items() if size is not None}
        return known if len(known) == len(sizes) else None

    def other_bytes(self) -> int | None:
        """Bytes of the pipeline's parts beside the denoiser; None where `part_sizes` is."""
        sizes = self.part_sizes()
        return None if sizes is None else sum(size for part, size in sizes.items() if part != self.denoiser_part)


def demo_names() -> list[str]:
    return sorted(path.name for path in DEMO_FOLDER.iterdir() if (path / "model_index.json").is_file())
