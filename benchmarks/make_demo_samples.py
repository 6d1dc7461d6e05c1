"""Draw the embedded teachers' evaluation samples once, so that `shrink` and `evaluate` need not.

Run it whenever a demo teacher, its recipe's evaluation or the extractor changes. Writes features, total variations and
a sheet of images to diffcompress/demo/samples/<key>.safetensors, in the format of every evaluation's cache, and the few
samples that the probe is fitted on; what is there already stays. Resumable, in --work. Prints a JSON line for each
teacher: its distances with their intervals, and the seconds it took; in the end the files that none of them is.

    python benchmarks/make_demo_samples.py
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path

import torch

from diffcompress import recipe as recipes
from diffcompress.evaluation.cache import SHIPPED_FOLDER, SampleCache, entry_key
from diffcompress.evaluation.features import FeatureSpace, demo_space
from diffcompress.evaluation.frechet import frechet_distance, kernel_distance
from diffcompress.evaluation.score import for_probe
from diffcompress.images.texts import texts_for
from diffcompress.jobs.deliver import judged
from diffcompress.pipeline.encoding import with_prompts
from diffcompress.pipeline.load import LoadedPipeline, load
from diffcompress.records.protocol import Protocol
from diffcompress.runtime import Progress, start
from diffcompress.sources.resolve import resolve

TEACHERS = ("demo", "demo:dit", "demo:mmdit")


class Lines(Progress):
    def update(self, task: str, done: int, total: int, **values: float) -> None:
        print(json.dumps({"task": task, "done": done, "total": total}), flush=True)


def entries(name: str, work: Path) -> tuple[LoadedPipeline, list[tuple[Protocol, FeatureSpace | None]]]:
    """The teacher with its prompts, and what `shrink` draws of it: for its own distances, and for the probe."""
    teacher = load(resolve(name))
    recipe = recipes.load(recipes.default_for(name, teacher.family.recipe))
    texts = texts_for(teacher, recipe, None, None)
    teacher = with_prompts(teacher, texts, work, start("cpu"), Progress(), recipe.bank.text_length)
    space, protocol = judged(teacher, recipe, Progress())
    return teacher, [(protocol, space), (for_probe(protocol), None)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", choices=TEACHERS, action="append")
    parser.add_argument("--work", type=Path, default=Path("build/demo-samples"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    real, ours = demo_space(), set()
    assert real.real is not None
    assert real.held_out is not None
    for name in options.teacher or TEACHERS:
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as work:
            teacher, asked = entries(name, Path(work))
            for protocol, space in asked:
                drawn = SampleCache(options.work, start("cpu"), Lines()).draw(teacher, protocol, space, name)
                ours.add(file := f"{entry_key(teacher.fingerprint, protocol)}.safetensors")
                if not (SHIPPED_FOLDER / file).exists():
                    shutil.copy(options.work / file, SHIPPED_FOLDER / file)
                if drawn.features is None:
                    continue
                row = {
                    "teacher": name,
                    "fd_demo": frechet_distance(drawn.features, real.real.moments),
                    "fd_demo_held_out": frechet_distance(drawn.features, real.held_out.moments),
                    "kd_demo": kernel_distance(drawn.features, real.real.features),
                    "seconds": round(time.perf_counter() - started, 1),
                }
                print(json.dumps(row), flush=True)
    print(json.dumps({"other_entries": sorted(p.name for p in SHIPPED_FOLDER.iterdir() if p.name not in ours)}))


if __name__ == "__main__":
    main()
