"""What bank and evaluation add to `--max-time`, from the time of one teacher call."""

from __future__ import annotations

import time

from diffcompress.bank.drawing import calls_per_step
from diffcompress.jobs.deliver import judged
from diffcompress.jobs.run import Run
from diffcompress.pipeline.sampling import automatic_batch_size, sample
from diffcompress.runtime import Progress


def estimate(run: Run) -> str:
    """A sentence for the user, before the run begins."""
    teacher, recipe = run.teacher, run.request.recipe
    indices = range(automatic_batch_size(teacher))
    started = time.monotonic()
    sample(teacher, indices, seed=recipe.seed, num_steps=1)
    seconds = (time.monotonic() - started) / len(indices)
    calls = calls_per_step(teacher, recipe.bank)
    bank = calls * seconds * recipe.bank.num_samples * recipe.bank.sampler_steps / run.runtime.count
    if run.request.asked.data is not None:
        bank = 0.0
    _, protocol = judged(teacher, recipe, Progress())
    # Student and untrained student are small beside the teacher, but not free: count the two as one teacher.
    evaluation = 2 * seconds * protocol.num_samples * protocol.sampler_steps
    return f"besides training: bank about {bank:.0f} s, evaluation at most about {evaluation:.0f} s, export about 30 s"
