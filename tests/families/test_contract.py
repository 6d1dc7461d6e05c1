"""What every family must do, on tiny real classes."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import diffusers
import pytest
import torch

from diffcompress.errors import DoesNotFitError
from diffcompress.families import registry
from diffcompress.families.base import Family
from diffcompress.student.inherit import inherit
from diffcompress.student.plan import plan
from diffcompress.student.size import build
from diffcompress.student.student_plan import StudentPlan
from diffcompress.training.objective import FeatureTap

FAMILIES = pytest.mark.parametrize("family", registry.FAMILIES, ids=lambda family: family.class_name)


Model = TypeVar("Model", bound=torch.nn.Module)


def lively(model: Model, seed: int = 0) -> Model:
    """No zero-initialised gates or constant norms: every tensor has a say."""
    generator = torch.Generator().manual_seed(seed)
    for value in model.parameters():
        value.data = torch.randn(value.shape, generator=generator) * (0.3 / max(1, value[0].numel()) ** 0.5 + 0.05)
    return model.eval()


def inputs_of(family: Family, config: dict, batch: int) -> dict[str, torch.Tensor]:
    """The family's example, its samples no larger than a test needs."""
    inputs = family.example_inputs(config, batch)
    return inputs | {"noisy": inputs["noisy"][..., :16, :16]}


def predictions(family: Family, model: torch.nn.Module, config: dict, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    inputs = inputs_of(family, config, 2)
    for name, value in inputs.items():
        if value.is_floating_point() and name != "timestep" and "mask" not in name:
            inputs[name] = torch.randn(value.shape, generator=generator)
    with torch.no_grad():
        return family.predict(model, inputs.pop("noisy"), inputs.pop("timestep"), inputs)


def nearest(family: Family, config: dict, ratio: float) -> StudentPlan:
    """Tiny classes have few sizes."""
    try:
        return plan(family, config, ratio=ratio)
    except DoesNotFitError as error:
        return plan(family, config, ratio=float(error.hint.rpartition(" ")[2]))


@FAMILIES
def test_the_same_config_reproduces_the_teacher_exactly(family: Family) -> None:
    config = family.tiny_config()
    teacher, student = lively(build(family, config, "cpu")), build(family, config, "cpu").eval()
    state = inherit(family.tensor_rules(config, config), teacher.state_dict())
    student.load_state_dict(state)
    ours, theirs = (predictions(family, model, config) for model in (student, teacher))
    assert theirs.std() > 0 and torch.isfinite(theirs).all()
    assert torch.equal(ours, theirs)


@FAMILIES
def test_neighbouring_timesteps_differ_under_autocast(family: Family) -> None:
    """In bfloat16 700 and 701 are one number."""
    config = family.tiny_config()
    model, made = lively(build(family, config, "cpu")), []
    for timestep in (700, 701):
        inputs = inputs_of(family, config, 1)
        inputs["timestep"] = torch.full_like(inputs["timestep"], timestep)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            made.append(family.predict(model, inputs.pop("noisy"), inputs.pop("timestep"), inputs).float())
    assert torch.isfinite(made[0]).all()
    assert not torch.equal(*made)


@FAMILIES
@pytest.mark.parametrize("ratio", [0.6, 0.35])
def test_a_student_has_one_rule_for_each_tensor_and_runs_on_the_teachers_inputs(family: Family, ratio: float) -> None:
    config = family.tiny_config()
    student = nearest(family, config, ratio)
    assert student.params < student.teacher_params
    rules = family.tensor_rules(config, student.config)
    model = build(family, student.config, "cpu")
    names = [rule.student for rule in rules.rules]
    assert sorted(names) == sorted(model.state_dict()) and len(set(names)) == len(names)
    teacher = lively(build(family, config, "cpu"))
    model.load_state_dict(inherit(rules, teacher.state_dict()))
    prediction = predictions(family, model.eval(), config)
    assert prediction.shape == predictions(family, teacher, config).shape
    assert torch.isfinite(prediction).all() and prediction.std() > 0


@FAMILIES
def test_conditioning_and_time_change_the_prediction(family: Family) -> None:
    config = family.tiny_config()
    teacher = lively(build(family, config, "cpu"))
    inputs = inputs_of(family, config, 1)
    generator = torch.Generator().manual_seed(0)
    noisy = torch.randn(inputs.pop("noisy").shape, generator=generator)
    time = inputs.pop("timestep")
    with torch.no_grad():
        base = family.predict(teacher, noisy, time, inputs)
        assert not torch.allclose(base, family.predict(teacher, noisy, time + 500, inputs))
        for name in (*family.text_conditioning(config), *(["class_labels"] if family.num_classes(config) else [])):
            if name not in inputs or "mask" in name or name.endswith(".length"):
                continue
            value = inputs[name]
            other = value + 1 if not value.is_floating_point() else torch.randn(value.shape, generator=generator)
            assert not torch.allclose(base, family.predict(teacher, noisy, time, inputs | {name: other})), name


@FAMILIES
def test_features_of_teacher_and_student_pair_up(family: Family) -> None:
    """As many blocks, in the same order, with outputs that differ in their channels alone."""
    config = family.tiny_config()
    seen = []
    for model in (build(family, config, "cpu"), build(family, nearest(family, config, 0.35).config, "cpu")):
        inputs = inputs_of(family, config, 2)
        with torch.no_grad(), FeatureTap(model, family) as tap:
            family.predict(model.eval(), inputs.pop("noisy"), inputs.pop("timestep"), inputs)
        seen.append([feature.shape for feature in tap.features])
    teacher, student = seen
    assert len(teacher) == len(student) > 1
    for wide, narrow in zip(teacher, student, strict=True):
        assert len(wide) >= 3 and (wide[0], *wide[2:]) == (narrow[0], *narrow[2:])


@FAMILIES
def test_no_other_file_knows_the_class_by_name(family: Family) -> None:
    """But for checkpoints in one file, whose layouts no class of diffusers knows."""
    package = Path(registry.__file__).parents[1]
    allowed = ("families", "single_file.py", "originals.py", "original_shapes.py")
    files = [f for f in package.rglob("*.py") if not set(allowed) & set(f.relative_to(package).parts)]
    naming = [f.name for f in files if family.class_name in f.read_text(encoding="utf-8")]
    assert len(files) > 100 and not naming
    assert set(family.pipelines) <= set(dir(diffusers))
