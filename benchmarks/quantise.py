"""Shrink, then quantise: students with weights of 16, 8 and 4 bits, beside larger and smaller ones of the same bytes.

Weights alone are quantised, by optimum-quanto, in every linear and convolutional layer. Distances are those of the
weights that the quantised layers stand for, in a network that computes in float32, as quantised layers do here;
milliseconds are those that one thread of the CPU spends on a call of the quantised network itself, so neighbours on the
machine do not count. Resumable: students by their run folders, scores by one JSON
line each in WORK/results.jsonl.

    python benchmarks/quantise.py --teacher demo --steps 600
    python benchmarks/quantise.py --teacher wide16 --ratio 0.0625 0.125 0.25 0.5
    python benchmarks/quantise.py --table
"""

import argparse
import copy
import json
import statistics
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin
from optimum.quanto import QTensor, freeze, qint4, qint8, quantize
from torch import Tensor, nn

import diffcompress
from benchmarks import runs, shape_teachers
from diffcompress import runtime as runtimes
from diffcompress.errors import DoesNotFitError
from diffcompress.evaluation.cache import SampleCache
from diffcompress.evaluation.score import Contest, evaluate_pipeline
from diffcompress.jobs.testbed import Testbed, fetched, prepare
from diffcompress.pipeline.load import LoadedPipeline, state_fingerprint
from diffcompress.records.request import EvaluateOptions
from diffcompress.runtime import Progress
from diffcompress.sources.resolve import resolve

BITS: dict[int, Any] = {16: None, 8: qint8, 4: qint4}
METRICS = ("fd", "fd_held_out", "agreement", "recall", "failed_samples")


def quantised(denoiser: ModelMixin, bits: int, dtype: torch.dtype) -> Any:
    """A copy with weights of so many bits; what is not quantised, such as norms and scales, in `dtype`."""
    copied = nn.Module.to(copy.deepcopy(denoiser), dtype)
    if BITS[bits] is not None:
        quantize(copied, weights=BITS[bits])
        freeze(copied)
    return copied


def stored_bytes(denoiser: nn.Module) -> int:
    """Of all tensors that a file of it holds."""
    return sum(value.numel() * value.element_size() for value in denoiser.state_dict().values())


def plain_weights(denoiser: nn.Module) -> dict[str, Tensor]:
    """What its layers compute with, in float32, by the names that they have in the plain class."""
    tensors = {**dict(denoiser.named_parameters()), **dict(denoiser.named_buffers())}
    return {
        name: (value.dequantize() if isinstance(value, QTensor) else value).detach().float()
        for name, value in tensors.items()
    }


def with_weights_of(student: LoadedPipeline, stored: nn.Module) -> LoadedPipeline:
    """`student` in float32 with the weights that `stored` stands for."""
    denoiser, weights = copy.deepcopy(student.denoiser), plain_weights(stored)
    denoiser.load_state_dict({name: weights[name] for name in denoiser.state_dict()})
    return replace(student, denoiser=denoiser, fingerprint=state_fingerprint(denoiser))


@torch.no_grad()
def milliseconds(student: LoadedPipeline, batch: int) -> float:
    """Median CPU time of a call, in one thread."""
    inputs = student.example_inputs(batch)
    noisy, timestep = inputs.pop("noisy"), inputs.pop("timestep")
    spent = []
    for _ in range(12):
        before = time.process_time()
        student.predict_all(noisy, timestep, inputs)
        spent.append(time.process_time() - before)
    return 1000 * statistics.median(spent[2:])


def score(testbed: Testbed, student: LoadedPipeline, bits: int) -> dict[str, Any]:
    """Bytes, milliseconds and distances of `student` with weights of `bits` bits."""
    student = testbed.alike(student)
    stored = quantised(student.denoiser, bits, torch.float16)
    judged = with_weights_of(student, stored)
    contest = Contest(judged, testbed.teacher, testbed.protocol, testbed.space)
    cache = SampleCache(testbed.cache, testbed.runtime, testbed.progress)
    found = evaluate_pipeline(contest, cache, quality_alone=True).metrics
    space = testbed.space.name if testbed.space else ""
    names = {name: name for name in METRICS} | {
        "fd": f"fd_{space}", "fd_held_out": f"fd_{space}_held_out", "recall": f"recall_{space}",
    }  # fmt: skip
    running = replace(student, denoiser=quantised(student.denoiser, bits, torch.float32))
    return {
        "bytes": stored_bytes(stored),
        "cpu_ms": {batch: milliseconds(running, batch) for batch in (1, 16)},
        "metrics": {name: found[metric].value for name, metric in names.items() if metric in found},
    }


def run(options: argparse.Namespace, teacher: str, results: Path) -> None:
    """All students of one teacher, and all widths of weights of each."""
    work = runs.folder_of(options.work, teacher)
    sets = (f"stages.0.num_steps={options.steps // 14}", f"stages.1.num_steps={options.steps - options.steps // 14}")
    testbed: Testbed | None = None
    recipe = "demo" if teacher in shape_teachers.CONFIGS else None
    for ratio in options.ratio:
        try:
            made = diffcompress.shrink(
                shape_teachers.place_of(teacher), recipe=recipe, ratio=ratio, seed=options.seed, output=work / f"{ratio:g}-{options.seed}", shared=work,
                overrides=(*sets, *options.set), device="cpu",
            )  # fmt: skip
        except DoesNotFitError as error:
            print(f"{teacher} has no student of {ratio:g}: {error.message}", flush=True)
            continue
        student = fetched(resolve(made["pipeline"]), runtimes.start("cpu"), Progress())
        for bits in BITS:
            asked = {"teacher": teacher, "ratio": ratio, "bits": bits, "steps": options.steps, "seed": options.seed}
            if asked in [{name: row[name] for name in asked} for row in rows(results)]:
                continue
            testbed = testbed or prepared(teacher, options, work)
            params = sum(value.numel() for value in student.denoiser.parameters())
            row = {**asked, "samples": options.num_samples, "params": params, **score(testbed, student, bits)}
            with results.open("a") as stream:
                stream.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)


def prepared(teacher: str, options: argparse.Namespace, work: Path) -> Testbed:
    runtime, progress = runtimes.start("cpu"), Progress()
    loaded = fetched(resolve(shape_teachers.place_of(teacher)), runtime, progress)
    asked = EvaluateOptions(
        teacher, teacher=teacher, num_samples=options.num_samples, sampler_steps=options.sampler_steps
    )
    testbed = prepare(runtime, loaded, loaded, None, asked, work / "scores", progress)
    return replace(testbed, space=shape_teachers.space(teacher)) if teacher in shape_teachers.CONFIGS else testbed


def rows(results: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []


def table(found: list[dict[str, Any]]) -> None:
    """One line for each student and width of weights, those of one teacher by their bytes."""
    print("| teacher | kept | params | bits | kB | fd | held out | agreement | recall | ms, batch 1 | ms, batch 16 |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for row in sorted(found, key=lambda row: (row["teacher"], row["seed"], row["bytes"])):
        print(f"| {Path(row['teacher']).name} | {row['ratio']:g} | {row['params']:,} | {row['bits']} {cells(row)} |")


def cells(row: Mapping[str, Any]) -> str:
    told, times = row["metrics"], row["cpu_ms"]
    numbers = [f"{row['bytes'] / 1000:.0f}"]
    numbers += [f"{told[name]:.{3 if name != 'agreement' else 4}f}" if name in told else "–" for name in METRICS[:4]]
    numbers += [f"{value:.1f}" for value in times.values()]
    return "| " + " | ".join(numbers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", action="append", help="default: the three that ship")
    parser.add_argument("--ratio", type=float, nargs="+", default=[0.025, 0.05, 0.1, 0.2])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num-samples", type=int, default=1024)
    parser.add_argument("--sampler-steps", type=int, default=25)
    parser.add_argument("--set", action="append", default=[], help="for every student")
    parser.add_argument("--work", type=Path, default=Path("build/quantise"))
    parser.add_argument("--table", action="store_true", help="print the results so far and leave")
    options = parser.parse_args()
    results = options.work / "results.jsonl"
    if options.table:
        return table(rows(results))
    torch.set_num_threads(1)
    options.work.mkdir(parents=True, exist_ok=True)
    for teacher in options.teacher or ("demo", "demo:dit", "demo:mmdit"):
        run(options, teacher, results)


if __name__ == "__main__":
    main()
