"""Teachers before and after: docs/gallery.md and its pictures.

One run of several ratios for each teacher, as `diffcompress shrink TEACHER --ratio 0.5,0.25,...` makes them: of those
that ship by their own recipes, of one of benchmarks/shape_teachers.py by that of `demo`, and judged in its own feature space.
Resumable: the same command goes on, and writes what there is so far.

    python benchmarks/shape_teachers.py --teacher emoji24 --minutes 18
    python benchmarks/gallery.py
    python benchmarks/gallery.py --table          # write the page again, of the runs that are finished
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file

from benchmarks import runs, shape_teachers
from diffcompress.evaluation.cache import SampleCache
from diffcompress.evaluation.features import protocol_for
from diffcompress.evaluation.score import Contest, evaluate_pipeline
from diffcompress.jobs.several import shrink_several
from diffcompress.pipeline.load import load
from diffcompress.records import shapes
from diffcompress.records.record import plain
from diffcompress.records.request import ShrinkOptions
from diffcompress.records.run_files import read_json
from diffcompress.records.run_folder import RunFolder
from diffcompress.report.sheets import grid
from diffcompress.runtime import Progress, start
from diffcompress.sources.resolve import resolve

DOCS = Path(__file__).parents[1] / "docs"
TITLES = {
    "demo": "`demo`: unconditional U-Net, pixels",
    "demo:dit": "`demo:dit`: class-conditional DiT, latents",
    "demo:mmdit": "`demo:mmdit`: text-to-image MMDiT, flow matching, latents",
    "emoji24": "`emoji24`: unconditional U-Net, pixels in colour",
}
RATIOS = (0.5, 0.25, 0.1, 0.05, 0.02, 0.01)
SHOWN, SCALE = 16, 2
HEAD = """# Gallery

Students of the teachers that ship, by their default recipes (1,400 steps of batch 32, those of latents 2,800, LIFT a fourteenth of them, then PLACE; seed {seed}), and of one in
colour, trained for eighteen minutes on the emoji of Noto (Google, SIL Open Font License 1.1). All ratios of a teacher
come from one bank of 512 samples. In a picture the first row is the teacher's; each column starts from the same noise, label or prompt. They
are the first {shown} samples of each evaluation, none chosen.

`fd` is a Fréchet distance to the training images in the features of a small classifier of them, not FID, with its 95 % interval and {samples} samples for each row;
that of `emoji24` (2,048 samples) is in another space than the others. "Work" is the share of multiply-accumulates; "faster" is a call of the
denoiser at batch 16 beside its teacher's on one thread; minutes are the run's on one thread of a machine that had
other work too, evaluation and export included. A ratio that is missing has no student within tolerance. `python benchmarks/gallery.py` makes this page.
"""


@dataclass(frozen=True)
class Row:
    """A finished student, and what its run measured."""

    run: RunFolder
    told: dict[str, Any]

    @property
    def ratio(self) -> float:
        return self.told["student"]["requested_ratio"]

    def line(self, role: str = "student") -> str:
        """A line of the table, of the student or of its teacher."""
        student = role == "student"
        found = {name: one if student else one["teacher"] for name, one in self.told["metrics"].items()}
        fd = next((one for name, one in found.items() if name.startswith("fd_") and name.count("_") == 1), None)
        recall = next((one["value"] for name, one in found.items() if name.startswith("recall_")), None)
        times = read_json(self.run.timings, kind=shapes.Timings)
        cells = [
            f"{self.ratio:g}" if student else "teacher",
            f"{self.told[role]['params']:,}",
            f"{found['macs']['value'] / self.of_teacher('macs'):.3g}",
            "–" if fd is None else f"{fd['value']:.3g} [{fd['low']:.3g}, {fd['high']:.3g}]",
            "–" if recall is None else f"{recall:.2f}",
            f"{100 * found['failed_samples']['value']:.1f} %",
            f"{self.of_teacher('latency_ms_batch16') / found['latency_ms_batch16']['value']:.1f}x",
            f"{sum(times.values()) / 60:.1f}" if student else "",
        ]
        return "| " + " | ".join(cells) + " |"

    def of_teacher(self, metric: str) -> float:
        return self.told["metrics"][metric]["teacher"]["value"]


def finished(folder: Path, teacher: str) -> list[Row]:
    """The students of one teacher that are done, largest first."""
    rows = []
    for path in folder.glob("*/report.json"):
        told = json.loads(path.read_text(encoding="utf-8"))
        if told["finished"]:
            if teacher in shape_teachers.CONFIGS:
                told["metrics"] |= in_own_space(path.parent, teacher)
            rows.append(Row(RunFolder(path.parent), told))
    return sorted(rows, key=lambda row: -row.ratio)


def in_own_space(run: Path, name: str) -> dict[str, Any]:
    """Metrics of a student in the feature space of a teacher that the product has none for; kept beside its run."""
    kept = run / "own-space.json"
    if not kept.exists():
        space, teacher = shape_teachers.space(name), load(resolve(shape_teachers.place_of(name)))
        student, protocol = load(resolve(str(run / "pipeline"))), protocol_for(space, teacher)
        cache = SampleCache(run.parent / "own-space", start("cpu"), Progress())
        found = evaluate_pipeline(Contest(student, teacher, protocol, space), cache, quality_alone=True)
        told = {metric: plain(one) for metric, one in found.metrics.measured.items()}
        kept.write_text(json.dumps(told), encoding="utf-8")
    return json.loads(kept.read_text(encoding="utf-8"))


def picture(rows: list[Row], path: Path) -> None:
    """The teacher's first samples, and below them each student's from the same noise."""
    files = [rows[0].run.samples_of("teacher"), *(row.run.samples_of("student") for row in rows)]
    drawn = [load_file(file)["images"][:SHOWN] for file in files]
    sheet = grid(torch.cat(drawn), columns=len(drawn[0]))
    sheet.resize((SCALE * sheet.width, SCALE * sheet.height), Image.Resampling.NEAREST).save(path, optimize=True)


def sections(work: Path, teachers: list[str], images: Path) -> Iterator[str]:
    for teacher in teachers:
        rows = finished(runs.folder_of(work, teacher), teacher)
        if not rows:
            continue
        name = f"gallery-{runs.folder_of(work, teacher).name}.png"
        picture(rows, images / name)
        yield f"\n## {TITLES.get(teacher, Path(teacher).name)}\n"
        shown = ", ".join(f"{row.ratio:g}" for row in rows)
        yield f"![From above: teacher, {shown}](images/{name})\n"
        yield "| ratio | parameters | work | fd | recall | failed | faster | minutes |"
        yield "| --- | ---: | ---: | --- | ---: | ---: | ---: | ---: |"
        yield rows[0].line("teacher")
        yield from (row.line() for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", action="append", help="default: the three that ship, and emoji24")
    parser.add_argument("--ratio", type=float, nargs="+", default=list(RATIOS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--work", type=Path, default=Path("build/gallery"))
    parser.add_argument("--docs", type=Path, default=DOCS, help="folder of the page and of images/")
    parser.add_argument("--table", action="store_true", help="make no more students")
    options = parser.parse_args()
    torch.set_num_threads(1)
    teachers = options.teacher or list(TITLES)
    for teacher in () if options.table else teachers:
        same = {"output": runs.folder_of(options.work, teacher), "seed": options.seed, "device": "cpu"}
        placed, recipe = shape_teachers.place_of(teacher), "demo" if teacher in shape_teachers.CONFIGS else None
        each = [
            ShrinkOptions(placed, ratio=ratio, recipe=recipe, overrides=options.set, **same) for ratio in options.ratio
        ]
        shrink_several(each, Progress())
    (options.docs / "images").mkdir(parents=True, exist_ok=True)
    told = next(row.told for teacher in teachers for row in finished(runs.folder_of(options.work, teacher), teacher))
    head = HEAD.format(seed=options.seed, shown=SHOWN, samples=f"{told['protocol']['num_samples']:,}")
    page = "\n".join([head, *sections(options.work, teachers, options.docs / "images"), ""])
    (options.docs / "gallery.md").write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
