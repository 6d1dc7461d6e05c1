"""Recipes: what ships, what may be written in one, and how its mistakes are told."""

from __future__ import annotations

import inspect
import json

import diffusers
import pytest
import yaml

from diffcompress import recipe as recipes
from diffcompress.cli.tables import annotated
from diffcompress.errors import UsageError
from diffcompress.families import registry
from tests.cli.command import run


@pytest.mark.parametrize("name", ["default", "published"])
def test_what_is_shown_is_a_full_recipe_file(name, tmp_path):
    loaded = recipes.load(name)
    text = "\n".join(annotated(loaded))
    assert recipes.parse(text, name) == loaded
    assert recipes.parse(loaded.to_yaml(), name) == loaded
    assert text.count("  # ") > 15
    outcome = run("recipes", "show", name)
    assert (outcome.code, outcome.stdout.rstrip("\n")) == (0, text)
    assert recipes.parse(json.dumps(json.loads(run("recipes", "show", name, "--json").stdout)), name) == loaded


def test_the_list_names_all_with_a_description():
    listed = json.loads(run("recipes", "list", "--json").stdout)
    assert {"default", "published", "dit", "dit-text"} <= {entry["name"] for entry in listed}
    assert all(entry["description"] for entry in listed)


def test_published_is_the_published_form():
    published = recipes.load("published")
    (stage,) = published.stages
    assert (stage.weights.place, stage.weights.diffusion, stage.weights.feature_kd) == (1.0, 1.0, 1e-6)
    assert (stage.group_size, stage.norm, stage.reduction, stage.fine, stage.gate) == (
        16,
        "l1",
        "sum",
        "squared",
        "global",
    )
    assert (published.training.learning_rate, published.training.batch_size) == (2e-4, 96)
    assert published.student.channels_per_group == 1
    assert published.targets.reuse == 1


def test_default_is_lift_then_place():
    lift, place = recipes.load().stages
    assert lift.weights.lift > 0
    assert lift.weights.place == 0
    assert place.weights.place > 0


def test_a_file_holds_differences_from_its_base(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("base: published\ntraining:\n  batch_size: 8\n")
    mine, published = recipes.load(str(file)), recipes.load("published")
    assert mine.training.batch_size == 8
    assert mine.training.learning_rate == published.training.learning_rate
    assert mine.stages == published.stages


def test_a_recipe_may_not_be_its_own_base(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(f"base: {file}\n")
    with pytest.raises(UsageError, match="its own base"):
        recipes.load(str(file))


def test_set_reaches_lists_and_reads_numbers_as_people_write_them():
    loaded = recipes.load("default", ("stages.0.num_steps=7", "training.learning_rate=1e-4", "targets.reuse=3"))
    assert loaded.stages[0].num_steps == 7
    assert loaded.training.learning_rate == 1e-4
    assert loaded.targets.reuse == 3
    assert recipes.load("default", ("stages.0.name=nan", "description='1e-4'")).description == "1e-4"


@pytest.mark.parametrize(
    "override",
    ["nonsense", "=3", "training.nothing=1", "stages.5.num_steps=1", "stages.x.num_steps=1", "seed.deep=1", "seed=-1"],
)
def test_a_bad_override_is_named(override):
    with pytest.raises(UsageError) as caught:
        recipes.load("default", (override,))
    assert override.partition("=")[0].split(".")[0] in caught.value.message


def test_values_that_no_run_could_use_are_named_at_once():
    bad = {"training.batch_size": "true", "training.learning_rate": "inf", "training.betas": "[0.9, 1.5]"}
    with pytest.raises(UsageError) as caught:
        recipes.load("default", tuple(f"{path}={value}" for path, value in bad.items()))
    assert "3 bad value(s)" in caught.value.message
    assert all(path in caught.value.message for path in bad)
    assert recipes.load("default", ("bank.jitter=false",)).bank.jitter is False


def test_the_seed_of_a_recipe_counts_unless_another_is_asked_for(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("seed: 7\n")
    assert recipes.load().seed == 0
    assert recipes.load(str(file)).seed == 7
    assert recipes.load(str(file), ("seed=5",)).seed == 5
    assert recipes.load(str(file), seed=0).seed == 0
    assert recipes.load(str(file), ("seed=5",), seed=5).seed == 5
    with pytest.raises(UsageError, match="--seed 1 and --set seed=5 contradict"):
        recipes.load(str(file), ("seed=5",), seed=1)


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "just words", "base: 5", "base: [default]"])
def test_a_file_that_is_no_mapping(text, tmp_path):
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(UsageError, match=r"bad\.yaml"):
        recipes.load(str(file))


def _doubling(lines):
    """YAML that means a list of 10 ** lines items."""
    own = [f"a0: &a0 [{', '.join('1' * 10)}]"]
    return "\n".join(own + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, lines)])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (_doubling(9), "an alias"),
        ("a: &a {b: 1}\nc:\n  <<: [" + ", ".join(["*a"] * 9) + "]", "an alias"),
        ("[" * 5000, "nested too deeply"),
        ("seed: 2020-02-31", "day"),
        ("seed: " + "9" * 5000, "digits"),
        ("? " + "x" * 400_000 + "\n: 1", "unknown key"),
        ("\n".join(f"key{i}: {i}" for i in range(5000)), "4980 more"),
        ("? [1, 2]\n: 3", "unhashable"),
        ("1: 2", "string"),
    ],
    ids=["aliases", "merges", "deep", "date", "digits", "long", "many", "unhashable", "number"],
)
def test_what_is_out_of_bounds_is_told_in_one_short_line(text, said, tmp_path):
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(UsageError, match=r"bad\.yaml") as caught:
        recipes.load(str(file))
    assert said in caught.value.message and len(caught.value.message) < 4100 and "\n" not in caught.value.message
    for override in (f"seed={text}", f"{text}=1"):
        with pytest.raises(UsageError) as caught:
            recipes.load("default", (override,))
        assert len(caught.value.message) < 4100 and "\n" not in caught.value.message


@pytest.mark.parametrize("method", ["output-kd", "feature-kd", "none"])
def test_a_baseline_has_the_same_budget_and_setting(method):
    ours, baseline = recipes.load(), recipes.load(method=method)
    assert baseline.num_steps == ours.num_steps
    assert baseline.training == ours.training
    assert baseline.student == ours.student
    weights = [stage.weights for stage in baseline.stages]
    assert all(w.lift == w.place == 0 for w in weights)


def test_every_file_says_what_it_is_for():
    for name in recipes.builtin_names():
        data = yaml.safe_load((recipes.builtin_folder() / f"{name}.yaml").read_text())
        assert data["description"]


def test_every_family_names_a_recipe_that_ships():
    assert {family.recipe for family in registry.FAMILIES} <= set(recipes.builtin_names())


@pytest.mark.parametrize(
    ("denoiser", "pipeline", "apart"),
    [("PixArtTransformer2DModel", "PixArtAlphaPipeline", 0), ("HunyuanDiT2DModel", "HunyuanDiTPipeline", 0.5)],
)
def test_text_teachers_are_guided_about_as_their_pipelines_do(denoiser, pipeline, apart):
    recipe = recipes.load(recipes.default_for("teacher", registry.find(denoiser).recipe))
    usual = inspect.signature(getattr(diffusers, pipeline).__call__).parameters["guidance_scale"].default
    assert recipe.bank.guidance == recipe.evaluation.guidance
    assert abs(recipe.bank.guidance - usual) <= apart
    assert recipe.stages == recipes.load("dit").stages


@pytest.mark.parametrize("given", ["text_encoder_3", "[text_encoder_3]"])
def test_one_name_is_a_list_of_one(given):
    assert recipes.load("mmdit", (f"student.without={given}",)).student.without == ("text_encoder_3",)
