"""Memory that a computation takes: by hand, and of teachers of real size on the meta device, where nothing is there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from diffcompress import recipe as recipes
from diffcompress.families import registry
from diffcompress.families.base import complete
from diffcompress.memory import SHARE, FusedAttention, LiveBytes, Need, attention_in_pieces, gradients, peak
from diffcompress.student.costs import call_memory, training_memory
from diffcompress.student.plan import plan
from diffcompress.student.size import build

CPU, META = torch.device("cpu"), torch.device("meta")
TEACHERS = Path(__file__).parent / "teachers"
# GB of one sample in float32, counted once by another program: what the operations of a call hold at once.
KNOWN = {
    "dit-xl-2-256": 0.014,
    "sd15": 0.136,
    "sdxl-base": 0.330,
    "pixart-alpha-1024": 0.227,
    "sd3-medium": 0.334,
}
NAMES = (*KNOWN, "flux1-dev")


def test_what_is_alive_at_once_is_counted():
    with LiveBytes() as live:
        for _ in range(5):
            one = torch.zeros(1000)
            two = one + 1
            two.view(10, 100).add_(1)
            del one, two
    assert live.peak == 8000


@pytest.mark.parametrize("device", [CPU, META])
def test_what_autograd_keeps_counts_until_it_is_let_go(device):
    weight = torch.nn.Parameter(torch.zeros(1000, 1000, device=device))  # not made by the call
    given = torch.zeros(1000, 1000, device=device)

    def forward():
        return (given @ weight).relu().sin().sum()  # relu keeps its result, sin its input: the same tensor

    def step():
        forward().backward()
        weight.grad = None

    whole = 4_000_000
    with torch.no_grad():
        assert peak(forward, device) == pytest.approx(2 * whole, abs=99)
    assert peak(forward, device) == pytest.approx(2 * whole, abs=99)
    assert peak(step, device) == pytest.approx(3 * whole, abs=99)  # what sin keeps, its cosine, the gradient behind it
    with LiveBytes(device.type) as live:
        kept = forward()
        assert live._now == whole + 4
        del kept
        assert live._now == 0


def test_rows_follow_from_growth():
    need = Need.of(lambda rows: torch.zeros(rows, 1000) + torch.zeros(500, 1).sum(), CPU)
    assert need == Need(4, 8000)
    free = int(need.bytes(100) / SHARE) + 8
    assert need.rows_in(free) == 100
    assert [need.rows(free, most) for most in (512, 64, 50, 3, 1)] == [96, 64, 48, 3, 1]
    assert need.rows_in(0) == need.rows(0, 64) == 1


def test_attention_on_the_meta_device_keeps_no_matrix_of_all_pairs():
    def attend(rows):
        query = torch.zeros(rows, 2, 3000, 8, device=META, requires_grad=True)
        torch.nn.functional.scaled_dot_product_attention(query, query, query).sum().backward()

    row = 2 * 3000 * 8 * 4
    assert Need.of(attend, META).row < 9 * row
    with FusedAttention() as seen:
        attend(1)
    assert seen.macs == 2 * 3000 * 3000 * 16


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_of_a_real_teacher_fills_what_memory_holds_and_no_more(name):
    """Within a factor of two: the batch fits, twice as much does not."""
    config = json.loads((TEACHERS / f"{name}.json").read_text())
    family = registry.find(config["_class_name"])
    config = complete(family.class_name, config)
    need = call_memory(family, config)
    if name in KNOWN:
        assert need.row / 1e9 == pytest.approx(KNOWN[name], rel=0.05)
    free = 80 * 2**30
    rows, denoiser = need.rows(free, 10**6), build(family, config, "meta").eval()

    def taken(rows):
        def call():
            with torch.device("meta"):
                inputs = family.example_inputs(config, rows)
            family.predict(denoiser, inputs.pop("noisy"), inputs.pop("timestep"), inputs)

        with torch.no_grad(), attention_in_pieces(META):
            return peak(call, META)

    assert taken(rows) <= free < 2 * taken(rows)


@pytest.mark.parametrize("name", NAMES)
def test_a_step_of_a_real_student_takes_little_more_than_autograd_keeps(name):
    """Of each sample of its batch; by autograd's own hooks, which see what a backward pass will want."""
    config = json.loads((TEACHERS / f"{name}.json").read_text())
    family = registry.find(config["_class_name"])
    section = recipes.load(family.recipe).student
    student = plan(family, complete(family.class_name, config), ratio=0.05, section=section).config
    denoiser, kept = build(family, student, "meta").train(), {}
    own = {weight.untyped_storage()._cdata for weight in denoiser.parameters()}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    def saved(rows):
        kept.clear()
        with torch.device("meta"):
            inputs = family.example_inputs(student, rows)
        with saved_tensors_hooks(keep, lambda tensor: tensor), FusedAttention():
            prediction = family.predict(denoiser, inputs.pop("noisy"), inputs.pop("timestep"), inputs)
        assert prediction.requires_grad  # it holds the graph, so that no storage's address comes twice
        return sum(kept.values())

    each = saved(2) - saved(1)
    assert each <= training_memory(family, student).row <= 1.2 * each


@pytest.mark.parametrize("class_name", ["DiTTransformer2DModel", "UNet2DModel"])
def test_activations_that_are_computed_again_count_as_they_are_taken(class_name):
    family = registry.find(class_name)
    config = complete(class_name, family.tiny_config() | ({"num_layers": 8} if "DiT" in class_name else {}))
    denoiser = build(family, config, "cpu").train()
    denoiser.enable_gradient_checkpointing()

    def step(rows):
        inputs = family.example_inputs(config, rows)
        family.predict(denoiser, inputs.pop("noisy"), inputs.pop("timestep"), inputs).sum().backward()

    with gradients(denoiser):
        taken = Need.of(step, CPU)
    counted, plain = (training_memory(family, config, recompute=again) for again in (True, False))
    assert counted.row == pytest.approx(taken.row, rel=0.15)
    assert counted.row < 0.8 * plain.row
