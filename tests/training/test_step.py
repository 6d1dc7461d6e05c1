"""What a step costs the host: it never waits for its device, and few operations follow the backward pass."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from benchmarks.launches import Launches
from diffcompress.bank.batch import Batch
from diffcompress.families import registry
from diffcompress.recipe import LossWeights, Recipe, StageSection, TrainingSection
from diffcompress.student.size import build
from diffcompress.training.ema import Ema
from diffcompress.training.objective import Trainee, freeze_unused
from diffcompress.training.optim import Optimizer
from diffcompress.training.stage import update
from diffcompress.training.state import TrainingState
from tests.families.test_contract import inputs_of
from tests.training import tiny_job

# Their own forward passes read lengths of prompts from the device.
WAITING = {"ZImageTransformer2DModel", "Lumina2Transformer2DModel"}
SILENT = [family for family in registry.FAMILIES if family.class_name not in WAITING]
SD_LIKE = {
    "_class_name": "UNet2DConditionModel",
    "sample_size": 8,
    "block_out_channels": [16, 32, 24, 24],
    "layers_per_block": 2,
    "attention_head_dim": 8,
    "cross_attention_dim": 40,
    "norm_num_groups": 4,
}
STAGES = tuple(
    StageSection(name=name, num_steps=9, weights=LossWeights(**{name: 1.0}))
    for name in ("lift", "place", "output_kd", "diffusion")
)


@pytest.fixture(scope="module")
def work(world, tmp_path_factory):
    return tiny_job.job(world, tmp_path_factory.mktemp("work"))


def job_of(family, work):
    """`work` with a student of `family`, and a batch of two for it; its teacher and targets are not asked."""
    config = family.tiny_config()
    torch.manual_seed(0)
    trainee = Trainee(build(family, config, "cpu"), family).train()
    inputs = inputs_of(family, config, 2)
    freeze_unused(trainee, dict(inputs))
    recipe = Recipe(stages=STAGES)
    state = TrainingState(trainee, Ema(trainee, 5), Optimizer(trainee, recipe.training))
    noisy, timestep = inputs.pop("noisy"), inputs.pop("timestep")
    with torch.no_grad():
        prediction = trainee(noisy, timestep, inputs)[0]
    batch = Batch(noisy, timestep, torch.zeros_like(prediction), torch.zeros_like(noisy), inputs)
    return replace(work, recipe=recipe, trainee=trainee, state=state), batch


# Losses do not know which class a prediction is of: one has them all, the others the usual one.
EACH = [(family, STAGES if family is SILENT[0] else STAGES[1:2]) for family in SILENT]


@pytest.mark.parametrize(("family", "stages"), EACH, ids=[family.class_name for family in SILENT])
def test_a_step_never_waits_for_its_device(family, stages, work):
    """Fake tensors have no values: whatever asks for one raises."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        job, batch = job_of(family, work)
        for step, stage in enumerate(stages):
            terms, finite = update(job, stage, step, batch)
            assert "grad_norm" in terms
        with pytest.raises(DataDependentOutputException):
            bool(finite)


@pytest.mark.parametrize("layout", ["rows", "channels last"])
def test_optimizer_and_average_start_few_operations(layout):
    """Of a U-Net with levels, layers and widths as Stable Diffusion's students have them: 686 tensors in 40 shapes."""
    family = next(one for one in registry.FAMILIES if one.class_name == "UNet2DConditionModel")
    model = build(family, SD_LIKE, "cpu")
    kept = torch.channels_last if layout == "channels last" else torch.contiguous_format
    torch.nn.Module.to(model, memory_format=kept)  # type: ignore[call-overload]  # torch's hints leave it out
    optimizer, average = Optimizer(model, TrainingSection()), Ema(model, 5)
    assert len(optimizer.parameters) > 600
    for step in range(2):  # the first also makes moments
        for parameter in optimizer.parameters:
            parameter.grad = torch.randn_like(parameter)
        with Launches() as seen:
            optimizer.step(1e-3)
            average.update(step)
    assert seen.total <= 200, seen.names.most_common(9)
