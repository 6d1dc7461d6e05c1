"""Every stream of random numbers: `generator(seed, STREAM, ...)` is what draws, so no two uses share their numbers.

The integers behind a stream's name come after it. A value never changes: banks, targets and results follow from it.
"""

import torch

# Sampling: (sample).
CONDITION = 1
NOISE = 2

# The bank: (sample); the user's images: no seed and no number, so that every run takes the same of them.
KEPT_CALLS = 11
IMAGE_ORDER = 12

# Inputs on which half precision is held against float32.
PRECISION = 41

# Targets: (pool, entry), no number, (pool, epoch), (step, entry).
POOL_ENTRY = 21
TRAJECTORY_ORDER = 22
POOL_ORDER = 23
FRESH_ENTRY = 24

# What a student's start is found with: (batch), no number; the last one is a bare seed.
TAYLOR = 25
REFIT = 26
REFIT_ROWS = 31

# Evaluation: (level, sample), no number, (sample), no number, no number.
AGREEMENT = 301
BOOTSTRAP = 302
CORRECTION = 303
DIRECTIONS = 304
SUBSET = 305

# Built-in prompts: (prompt), without a seed.
PROMPT = 401

# Samples that the probe's lines are fitted on come from another seed than those that are evaluated, and these from
# another than a bank's (records/protocol.py). Weights of adapters and of random students follow from the bare seed, as
# torch draws them; an export is proved on inputs of its own seeds.
PROBE_SEED_SHIFT = 2_000_003
# So do those that tell when a run has trained enough (jobs/rounds.py).
ROUNDS_SEED_SHIFT = 3_000_017


def generator(*integers: int) -> torch.Generator:
    """A CPU generator that follows from `integers` alone, so that no random state is ever stored."""
    import numpy as np

    # The length comes first: a seed sequence takes (1,) and (1, 0) for the same.
    state = np.random.SeedSequence((len(integers), *integers)).generate_state(2, dtype=np.uint32)
    return torch.Generator().manual_seed(int(state[0]) << 31 ^ int(state[1]))
