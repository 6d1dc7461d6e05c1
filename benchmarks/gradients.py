"""How hard the coarse and the fine term of LIFT and PLACE pull on a student's weights, by noise level.

    python benchmarks/gradients.py build/demo-run

RUN is a run folder of an unconditional teacher that still has its bank; the stored denoiser calls of its trajectories
are the inputs. Prints the norm of each term's gradient by all weights, of one batch.
"""

import argparse
import itertools
from pathlib import Path

import torch

from diffcompress import recipe as recipes
from diffcompress import runtime as runtimes
from diffcompress.bank import bank as banks
from diffcompress.losses import lift, place
from diffcompress.noise import generator
from diffcompress.pipeline.load import load
from diffcompress.records.run_folder import RunFolder
from diffcompress.runtime import Progress
from diffcompress.sources.resolve import resolve

LEVELS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


def gradient_norm(loss: torch.Tensor, parameters: list[torch.Tensor]) -> float:
    gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    return sum(float(g.square().sum()) for g in gradients if g is not None) ** 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--batch-size", type=int, default=64)
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder = RunFolder(options.run)
    recipe = recipes.parse(folder.recipe.read_text(encoding="utf-8"), str(folder.recipe))
    teacher, student = (load(resolve(str(place))) for place in (folder.identity["teacher"], folder.pipeline))
    runtime, progress = runtimes.start("cpu"), Progress()
    bank = banks.fill(folder.bank, teacher, recipe.bank, recipe.seed, None, runtime, progress)
    calls = bank.calls(torch.arange(bank.num_trajectory))
    noisy, timestep, target = (calls[name] for name in ("noisy", "timestep", "prediction"))
    weights = [p.requires_grad_() for p in student.denoiser.parameters()]
    print("| noise level | loss | norm | coarse | fine |")
    print("|---|---|---|---|---|")
    for low, high in itertools.pairwise(LEVELS):
        share = timestep.double() / student.noise.num_timesteps
        rows = torch.nonzero((share >= low) & (share < high)).flatten()
        rows = rows[torch.randperm(len(rows), generator=generator(0))[: options.batch_size]]
        with torch.enable_grad():
            prediction = student.family.predict(student.denoiser, noisy[rows], timestep[rows], {})
            wanted = target[rows, : prediction.shape[1]]
            for name, loss in (("LIFT", lift), ("PLACE, groups of 16", place)):
                for norm in ("l1", "relative"):
                    terms = loss(prediction, wanted, norm=norm, fine="l1")
                    coarse, fine = (gradient_norm(term, weights) for term in (terms.coarse, terms.fine))
                    print(f"| {low:.1f}-{high:.1f} | {name} | {norm} | {coarse:.3f} | {fine:.3f} |")


if __name__ == "__main__":
    main()
