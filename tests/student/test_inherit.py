"""Inheritance on real U-Nets: the live part of a wide, deep teacher is found and cut out without loss."""

from __future__ import annotations

import copy

import pytest
import torch

from diffcompress.families.base import IndexSet, TensorRule, TensorRules
from diffcompress.families.unet2d import FAMILY
from diffcompress.recipe import StudentSection
from diffcompress.student.inherit import inherit, pick, start_student
from diffcompress.student.plan import plan
from diffcompress.student.scores import AxisScores, magnitude_scores
from diffcompress.student.size import build
from tests import tiny

# Three times as wide, with three times the groups: a norm group holds as many channels in both, also across skips.
SMALL = {
    **tiny.UNET,
    "block_out_channels": (8, 24),
    "norm_num_groups": 4,
    "time_embedding_dim": 20,
    "freq_shift": 0,
}
LARGE = {"block_out_channels": (24, 72), "norm_num_groups": 12, "time_embedding_dim": 50}
RESNET = {
    "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "downsample_type": "resnet",
    "upsample_type": "resnet",
}
CASES = {
    "plain": ({}, {}),
    "depth": ({}, {"layers_per_block": 2}),
    "depth_3_to_2": ({"layers_per_block": 2}, {"layers_per_block": 3}),
    "one_head": ({"attention_head_dim": None}, {}),
    "classes": ({"num_class_embeds": 5}, {}),
    "scale_shift": ({"resnet_time_scale_shift": "scale_shift"}, {}),
    "resnet_samplers": (RESNET, {}),
    "learned_time": ({"time_embedding_type": "learned", "num_train_timesteps": 50}, {}),
}


@pytest.mark.parametrize(("both", "deeper"), CASES.values(), ids=CASES.keys())
def test_the_live_part_of_a_padded_and_permuted_teacher_is_recovered(both, deeper):
    torch.manual_seed(0)
    small = {**SMALL, **both}
    large = {**small, **LARGE, **deeper}
    rules = FAMILY.tensor_rules(large, small)
    net = tiny.unet(small, seed=3)
    kept = {name: _live(index) for name, index in rules.sets.items()}
    teacher = tiny.unet(large)
    teacher.load_state_dict(_embedded(rules, kept, net.state_dict(), teacher.state_dict()))
    noisy, timestep = torch.randn(2, 1, 8, 8), torch.tensor([7, 40])
    given = {"class_labels": torch.tensor([1, 4])} if "num_class_embeds" in both else {}
    expected = FAMILY.predict(net, noisy, timestep, given)
    # If the embedding itself were wrong, wide and small outputs would differ.
    torch.testing.assert_close(FAMILY.predict(teacher, noisy, timestep, given), expected, atol=1e-4, rtol=1e-4)

    student = build(FAMILY, small, "cpu").eval()
    student.load_state_dict(inherit(rules, teacher.state_dict()))
    torch.testing.assert_close(FAMILY.predict(student, noisy, timestep, given), expected, atol=1e-4, rtol=1e-4)
    for name, value in student.state_dict().items():
        if name != "time_embedding.linear_1.weight":  # its sinusoid is fitted, not picked
            torch.testing.assert_close(value, net.state_dict()[name])


@pytest.mark.parametrize("config", [tiny.UNET, {**SMALL, **RESNET, "layers_per_block": 2, "freq_shift": 1}])
def test_a_student_of_the_teachers_shape_is_the_teacher(config):
    teacher = tiny.unet(config)
    rules = FAMILY.tensor_rules(config, config)
    state = inherit(rules, teacher.state_dict())
    assert all(torch.equal(state[name], value) for name, value in teacher.state_dict().items())
    assert set(state) == set(teacher.state_dict())


def test_a_fitted_sinusoid_keeps_more_of_the_time_embedding_than_columns_would():
    """google/ddpm-* teachers have freq_shift 1, where no two widths share their frequencies."""
    for shift in (0, 1):
        wide = {**tiny.DEMO, "freq_shift": shift}
        narrow = {**wide, "block_out_channels": (12, 24, 48), "norm_num_groups": 4}
        mixture = torch.from_numpy(FAMILY.tensor_rules(wide, narrow).sets["time_proj"].mixture)
        weight, timestep = torch.randn(64, 24), torch.arange(1000)
        old, new = (tiny.unet(config).time_proj(timestep) for config in (wide, narrow))
        halves = torch.cat([torch.arange(0, 12, 2), torch.arange(12, 24, 2)])
        wanted = old @ weight.T
        fitted = (wanted - new @ (weight @ mixture).T).square().mean()
        picked = (wanted - new @ weight[:, halves].T).square().mean()
        assert fitted < 0.8 * picked
        assert mixture.abs().max() < 10


def test_a_shortcut_that_the_teacher_lacks_is_an_identity_between_kept_channels():
    teacher = {**tiny.UNET, "block_out_channels": (16, 16)}
    student = {**teacher, "block_out_channels": (8, 16)}
    rules = FAMILY.tensor_rules(teacher, student)
    state = inherit(rules, tiny.unet(teacher).state_dict())
    kept = pick(rules, magnitude_scores(tiny.unet(teacher).state_dict()))
    shortcut = state["down_blocks.1.resnets.0.conv_shortcut.weight"][:, :, 0, 0]
    (into,) = (s for s in rules.sets if s == "down_blocks.0.downsamplers.0")
    assert torch.equal(shortcut, torch.eye(16)[kept["down_blocks.1.resnets.0"]][:, kept[into]])
    assert state["down_blocks.1.resnets.0.conv_shortcut.bias"].abs().max() == 0


@pytest.mark.parametrize(
    ("index", "best", "expected"),
    [
        # Whole groups: student groups of 2 are teacher groups of 2.
        (IndexSet("s", 8, 4, 4, 2), [2, 3, 6, 7], [2, 3, 6, 7]),
        # Parts: student groups of 2 out of teacher groups of 4; the third best group is dropped whole.
        (IndexSet("s", 12, 4, 3, 2), [1, 3, 8, 11, 4], [1, 3, 8, 11]),
        # Unions: one student group of 4 from two teacher groups of 2.
        (IndexSet("s", 8, 4, 4, 1), [0, 1, 4, 5], [0, 1, 4, 5]),
        # Unequal shares: one student group of 3 from two teacher groups of 2.
        (IndexSet("s", 8, 3, 4, 1), [2, 3, 6], [2, 3, 6]),
        # More student heads than the teacher has: the best channels.
        (IndexSet("s", 8, 4, 1, 2), [7, 5, 3, 1], [1, 3, 5, 7]),
    ],
)
def test_picks_respect_norm_groups(index, best, expected):
    scores = torch.zeros(index.teacher_size)
    scores[best] = torch.linspace(2, 1, len(best))
    rules = TensorRules({"s": index}, (TensorRule("w", "w", (("s",),), (index.size,)),))
    assert pick(rules, {"w": AxisScores.of(scores)})["s"].tolist() == expected


def test_tensors_without_a_say_do_not_rank_channels():
    rules = TensorRules(
        {"s": IndexSet("s", 4, 2)},
        (
            TensorRule("w", "w", (("s",),), (2,)),
            TensorRule("v", "v", (("s",),), (2,), scored=False),
            TensorRule("new", None, (("s",),), (2,)),
        ),
    )
    scores = {"w": AxisScores.of(torch.tensor([3.0, 2.0, 1.0, 0.0])), "v": AxisScores.of(torch.tensor([0.0, 0, 9, 9]))}
    assert pick(rules, scores)["s"].tolist() == [0, 1]


def test_starts_follow_from_teacher_and_seed():
    found = plan(FAMILY, tiny.UNET, ratio=0.3)
    teacher = tiny.unet()
    state = teacher.half().state_dict()
    inherited = [start_student(FAMILY, found, StudentSection(), state, seed=seed) for seed in (0, 1)]
    fresh = [start_student(FAMILY, found, StudentSection(start="random"), state, seed=seed) for seed in (0, 0, 1)]
    states = [model.state_dict() for model in (*inherited, *fresh)]

    def same(first: int, second: int) -> bool:
        return all(torch.equal(states[first][name], states[second][name]) for name in states[first])

    assert same(0, 1)
    assert same(2, 3)
    assert not same(2, 4)
    assert not same(0, 2)
    assert all(value.dtype == torch.float32 and value.requires_grad for value in inherited[0].parameters())


def _live(index: IndexSet) -> torch.Tensor:
    """Where the small net's channels lie in the large one: random, but no norm group may mix live and dead ones."""
    times = index.teacher_size // index.size if index.teacher_size % index.size == 0 else 1
    if index.name == "time_proj" and index.mixture is not None:
        return torch.arange(index.size) * times  # shared frequencies
    if index.name.endswith((".hidden", ".heads")) or index.teacher_groups == 1:
        wide = index.teacher_size // index.teacher_groups
        own = index.size // index.groups
        if own != wide:  # no groups to respect
            return torch.randperm(index.teacher_size)[: index.size].sort().values
        groups = torch.randperm(index.teacher_groups)[: index.groups].sort().values
        return (groups[:, None] * wide + torch.arange(wide)).flatten()
    # Streams meet other streams in skip concatenations: whole blocks keep every norm's groups aligned.
    return torch.arange(index.size) + index.size * int(torch.randint(times, ()))


def _embedded(rules, kept, small, large):
    """The large net's state dict: the small one's values at `kept`, zeros elsewhere, spare layers pass through."""
    state = {name: torch.zeros_like(value) for name, value in large.items()}
    for name, value in state.items():
        if name.endswith("conv_shortcut.weight"):
            length = min(value.shape[:2])
            value[:length, :length, 0, 0] = torch.eye(length)
    for rule in rules.rules:
        target, places = state[rule.teacher], []
        target.zero_()
        for axis, names in enumerate(rule.axes):
            start, places_here = 0, []
            for name in names:
                places_here.append(kept[name] + start)
                start += rules.sets[name].teacher_size
            places.append(torch.cat(places_here) if names else torch.arange(target.shape[axis]))
        target[torch.meshgrid(*places, indexing="ij")] = small[rule.student] / rule.scale
    return copy.deepcopy(state)
