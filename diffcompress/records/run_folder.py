"""Paths of a run folder, whose names `layout` has; the lock; "what is done?". Files: `run_files`."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from diffcompress import recipe as recipes
from diffcompress.errors import DamagedError, UsageError
from diffcompress.recipe import Recipe
from diffcompress.records import layout, shapes
from diffcompress.records.evaluation import Evaluation
from diffcompress.records.marker import Marker, unheard
from diffcompress.records.report import PlanFile
from diffcompress.records.run_files import (
    damaged,
    discard,
    read_json,
    read_record,
    read_stamped,
    read_text,
)
from diffcompress.records.run_identity import differences

_UNCLAIMED = (layout.LOCK, layout.HOLDER, f"{layout.RUN}.part")  # left by a stop before the marker stood


def read_recipe(file: Path) -> Recipe:
    """What recipe.yaml of a run says; raises DamagedError."""
    try:
        recipe = recipes.parse(read_stamped(file), str(file))
    except UsageError as error:
        raise damaged(file, error.message) from error
    # Sections that are not there have defaults, which are another recipe; all are written, this one last. What
    # follows it is a checksum, which the files of earlier versions lack.
    if "export" not in recipe.model_fields_set:
        raise damaged(file, "it ends before its last section")
    return recipe


class RunFolder:
    """Paths of one run. Creating the object touches nothing; `claim` makes the folder ours and locks it.

    shared: where several runs keep what does not depend on the student; default: the run's own folder.
    """

    def __init__(self, path: Path | str, shared: Path | None = None) -> None:
        self.path = Path(path)
        self.shared = shared
        common = shared or self.path
        self.marker = Marker(self.path)
        self.recipe = self.path / layout.RECIPE
        self.plan = self.path / layout.PLAN
        self.conditions = common / layout.CONDITIONS
        self.bank = common / layout.BANK
        self.bank_record = self.bank / layout.BANK_RECORD
        self.targets = common / layout.TARGETS
        self.student_init = self.path / layout.STUDENT_INIT / layout.STUDENT
        self.samples = self.path / layout.SAMPLES
        self.cache = common / layout.CACHE
        self.metrics = self.path / layout.METRICS
        self.proof = self.path / layout.PROOF
        self.timings = self.path / layout.TIMINGS
        self.budget = self.path / layout.BUDGET
        self.rounds = self.path / layout.ROUNDS
        self.held_out = common / layout.HELD_OUT
        self.environment = self.path / layout.ENVIRONMENT
        self.warnings = self.path / layout.WARNINGS
        self.report_html = self.path / layout.REPORT_PAGE
        self.report_json = self.path / layout.REPORT
        self.pipeline = self.path / layout.PIPELINE
        self.provenance = self.pipeline / layout.PROVENANCE
        self.card = self.pipeline / layout.CARD
        self.exports = self.path / layout.EXPORTS
        self.export_record = self.exports / layout.EXPORT_RECORD
        self.pushed = self.path / layout.PUSHED
        # Where `evaluate` puts what it finds of `pipeline` by default.
        self.evaluation = self.path / layout.EVALUATION_FOLDER

    def stage(self, index: int, name: str) -> Path:
        return self.path / layout.stage(index, name)

    def stages(self) -> list[Path]:
        """Stage folders on disk, in order."""
        return layout.stages(self.path)

    def preview(self, step: int) -> Path:
        """Samples drawn at a step of the training."""
        return self.samples / layout.preview(step)

    def previews(self) -> list[Path]:
        """Sheets of samples that were drawn while the student trained, by step."""
        return layout.previews(self.samples)

    def samples_of(self, role: str) -> Path:
        """Samples of the student, teacher or untrained student."""
        return self.samples / layout.of_role(role)

    @property
    def granted(self) -> float:
        """Seconds of training that --max-time gave, or that the recipe's steps have taken; raises DamagedError."""
        if self.budget.exists():
            return float(read_json(self.budget, kind=shapes.Budget)["max_time"])
        return self.trained_seconds

    @property
    def trained_seconds(self) -> float:
        """What all stages have taken so far, with what was drawn for their steps."""
        timings = read_json(self.timings, kind=shapes.Timings) if self.timings.exists() else {}
        return sum(seconds for name, seconds in timings.items() if name.startswith((layout.STAGE, layout.GROWN)))

    @property
    def is_exported(self) -> bool:
        """Raises DamagedError for a proof that cannot be read."""
        return self.pipeline.is_dir() and self.proof.exists() and read_json(self.proof, kind=shapes.Proof)["passed"]

    @property
    def is_finished(self) -> bool:
        """Nothing of what was asked for first is left to do, the report aside: trained, evaluated, exported.

        Raises DamagedError where a file that tells of it cannot be read.
        """
        there = self.marker.is_whole and all(file.exists() for file in (self.recipe, self.plan, self.metrics))
        trained = bool(self.stages()) and all((stage / layout.FINAL).is_dir() for stage in self.stages())
        if not (there and trained and self.is_exported):
            return False
        read_record(self.plan, PlanFile)
        read_record(self.metrics, Evaluation)
        read_recipe(self.recipe)
        return True

    @property
    def is_reported(self) -> bool:
        """Whether the report is there and whole, and the model card begins as one."""
        try:
            read_json(self.report_json, kind=dict)
            if not read_text(self.card).startswith("---\n"):
                return False
            return read_text(self.report_html).rstrip().endswith("</html>")
        except (FileNotFoundError, DamagedError):
            return False

    @property
    def identity(self) -> dict[str, Any]:
        """What this run was asked for; raises UsageError when the folder is not a run, DamagedError when nothing in it
        tells any more."""
        found = self.marker.read()
        if found is None:
            raise UsageError(f"{self.path} is not a run folder: no {layout.RUN}", "name a folder that shrink made")
        return found

    def is_run(self, identity: dict[str, Any]) -> bool:
        """Whether the folder holds the run that `identity` asks for; raises DamagedError as `identity`."""
        found = self.marker.read()
        if found is None or not differences(found, identity):
            return found is not None
        with contextlib.suppress(FileNotFoundError, DamagedError):
            own = read_recipe(self.recipe).model_dump(mode="json", exclude={"export"})
            return not differences(found | {"recipe": own}, identity)  # asked for by what it settled
        return False

    @contextlib.contextmanager
    def claim(
        self,
        identity: dict[str, Any],
        *,
        overwrite: bool = False,
        inputs: Iterable[Path] = (),
        warn: Callable[[str], None] = unheard,
    ) -> Iterator[None]:
        """Hold the folder for the run described by `identity`, making it if need be.

        inputs: what the run reads, never overwritten; warn: told of a damaged `run.json`, which is written again from
        its copy. Raises UsageError when the folder belongs to something else, cannot be written, or another process
        holds it, DamagedError when nothing tells whose it is. A new run that is refused with UsageError before it has
        made anything leaves nothing behind.
        """
        if self.path.exists() and not self.path.is_dir():
            raise UsageError(f"{self.path} is a file", "choose another --output")
        mine = self._is_mine(identity, overwrite)
        foreign = self.path.is_dir() and not mine and any(p.name not in _UNCLAIMED for p in self.path.iterdir())
        if foreign and not overwrite:
            raise self._refusal(identity)
        if lost := [path for path in inputs if foreign and path.resolve().is_relative_to(self.path.resolve())]:
            raise UsageError(f"--overwrite would delete {lost[0]}, which this run reads", "choose another --output")
        created = not self.path.exists()
        unwanted = False
        try:
            with self._held():
                try:
                    if foreign:
                        self._empty()
                    if mine:
                        self.marker.mend(warn)
                    else:
                        self.marker.write(identity)
                except OSError as error:
                    unwanted = created
                    raise self._unwritable(error) from error
                try:
                    yield
                except UsageError:
                    if not (mine or self.stages() or (self.shared is None and any(self.bank.glob("shard-*")))):
                        self._empty()
                        unwanted = created
                    raise
        finally:
            if unwanted:  # once nobody holds it: Windows removes no file that is open
                discard(self.path)

    def _is_mine(self, identity: dict[str, Any], overwrite: bool) -> bool:
        try:
            return self.is_run(identity)
        except DamagedError:
            if overwrite:
                return False
            raise

    @contextlib.contextmanager
    def _held(self) -> Iterator[None]:
        """The folder's lock, which ends with the process however that ends."""
        lock, holder = FileLock(self.path / layout.LOCK, timeout=0), self.path / layout.HOLDER
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except Timeout as error:
            told = holder.read_text(encoding="utf-8", errors="replace")[:100] if holder.is_file() else ""
            raise UsageError(
                f"another process is working on {self.path}{f' ({told.strip()})' if told else ''}",
                "wait for it, or choose another --output",
            ) from error
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            with contextlib.suppress(OSError):
                holder.write_text(f"process {os.getpid()} on {platform.node()}", encoding="utf-8")
            yield
        finally:
            holder.unlink(missing_ok=True)
            lock.release()

    def _unwritable(self, error: OSError) -> UsageError:
        return UsageError(f"cannot write to {self.path}: {error.strerror}", "choose another --output")

    def _refusal(self, identity: dict[str, Any]) -> UsageError:
        """Of a folder that holds something else; what is a run is not to be deleted lightly."""
        ours = any(place.exists() for place in (self.recipe, self.plan, self.bank, self.pipeline)) or self.stages()
        found = self.marker.read()
        if found is None and not ours:
            return UsageError(
                f"{self.path} is not empty and not this run: it holds other files",
                "choose another --output, or --overwrite to replace it",
            )
        told = f"its {layout.RUN} is missing" if found is None else differences(found, identity)
        advice = "choose another --output to keep both; --overwrite would delete the run that is there"
        if found is not None and not differences(found | {"recipe": identity.get("recipe")}, identity):
            advice = f"with --recipe {self.recipe}, and neither --set nor --seed, it goes on as it began; or {advice}"
        return UsageError(f"{self.path} is not empty and not this run: {told}", advice)

    def _empty(self) -> None:
        for entry in self.path.iterdir():
            if entry.name not in (layout.LOCK, layout.HOLDER):
                discard(entry)
