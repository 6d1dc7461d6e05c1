"""Draw the embedded teacher's evaluation samples once, so that `evaluate --teacher demo` need not.

Run it whenever the demo teacher or the extractor changes. Writes features, total variations and a sheet of images to
diffcompress/demo/samples/<key>.safetensors, in the format of every evaluation's cache; resumable. Prints one JSON line:
the teacher's distances with their intervals, and the seconds it took.

    python benchmarks/make_demo_samples.py
"""

from __future__ import annotations

import argparse
import json
import time

import torch

from diffcompress.evaluation.cache import SHIPPED_FOLDER, SampleCache, entry_key
from diffcompress.evaluation.features import demo_space, protocol_for
from diffcompress.evaluation.frechet import frechet_distance, kernel_distance
from diffcompress.pipeline.load import load
from diffcompress.runtime import Progress, start
from diffcompress.sources.resolve import resolve


class Lines(Progress):
    def update(self, task: str, done: int, total: int, **values: float) -> None:
        print(json.dumps({"task": task, "done": done, "total": total}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="demo")
    options = parser.parse_args()
    torch.set_num_threads(1)

    space, teacher = demo_space(), load(resolve(options.teacher))
    protocol = protocol_for(space, teacher)
    started = time.perf_counter()
    drawn = SampleCache(SHIPPED_FOLDER, start("cpu"), Lines(), ready=()).draw(teacher, protocol, space, "teacher")
    seconds = time.perf_counter() - started
    key = entry_key(teacher.fingerprint, protocol)
    assert drawn.features is not None
    assert space.real is not None
    assert space.held_out is not None
    row = {
        "teacher": options.teacher,
        "entry": f"{key}.safetensors",
        "fd_demo": frechet_distance(drawn.features, space.real.moments),
        "fd_demo_held_out": frechet_distance(drawn.features, space.held_out.moments),
        "kd_demo": kernel_distance(drawn.features, space.real.features),
        "other_entries": sorted(path.name for path in SHIPPED_FOLDER.iterdir() if path.stem != key),
        "seconds": round(seconds, 1),
    }
    print(json.dumps(row))


if __name__ == "__main__":
    main()
