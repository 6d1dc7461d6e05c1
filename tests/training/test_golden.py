"""Twenty steps of each stage as they were when all was well: whatever moves them shows here, wanted or not.

REWRITE=1 in the environment writes the curves again, for whoever has changed what a step computes.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from diffcompress.recipe import LossWeights, StageSection
from diffcompress.training.stage import run_stage
from tests.training.tiny_job import job, rows

FILE = Path(__file__).with_name("golden.json")
SHOWN = ("loss", "coarse", "fine", "fine_weight", "slope", "intercept", "grad_norm", "learning_rate")
# Spelled out, so that other defaults move nothing here.
STAGES: dict[str, dict[str, Any]] = {
    "lift": {"norm": "relative", "fine": "l1", "gate": "soft"},
    "place": {"norm": "explained", "fine": "squared", "gate": "soft", "power": 0.5, "group_size": 16},
}
TRAINING: dict[str, Any] = {
    "optimizer": "muon",
    "learning_rate": 1e-4,
    "schedule": "cosine",
    "betas": (0.9, 0.99),
    "weight_decay": 0.01,
    "max_grad_norm": 0.3,
}


@pytest.mark.parametrize("name", STAGES)
def test_twenty_steps_of_a_stage(world, tmp_path, name):
    """With vector units or oneDNN switched off, as on other processors, these curves moved by less than 1e-4.

    In smaller groups or larger steps they part after eight: rounding decides which of two equal errors comes first,
    and in which group it pulls.
    """
    stage = StageSection(name=name, num_steps=20, weights=LossWeights(**{name: 1.0}), **STAGES[name])
    work = job(world, tmp_path, stages=(stage,), **TRAINING)
    run_stage(work, 0, tmp_path / name)
    curve = {key: [row[key] for row in rows(tmp_path / name)] for key in SHOWN}
    if os.environ.get("REWRITE"):
        golden = json.loads(FILE.read_text()) if FILE.exists() else {}
        FILE.write_text(json.dumps(golden | {name: curve}, indent=1) + "\n")
    golden = json.loads(FILE.read_text())[name]
    assert golden.keys() == curve.keys()
    for key, values in golden.items():
        assert curve[key] == pytest.approx(values, rel=1e-3, abs=1e-5), key
    assert sum(golden["loss"][-5:]) < sum(golden["loss"][:5])  # it was well
