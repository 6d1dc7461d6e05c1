"""One run or another: what was meant counts, not how it was typed."""

import os

from diffcompress import recipe as recipes
from diffcompress.records.run_identity import as_path, differences

ASKED = {
    "version": "1",
    "teacher": "base/t",
    "fingerprint": "a",
    "data": None,
    "scheduler": None,
    "recipe_name": "default",
    "recipe": recipes.load().model_dump(mode="json"),
}


def test_how_a_path_was_typed_makes_no_other_run(tmp_path, monkeypatch):
    (tmp_path / "images").mkdir()
    (tmp_path / "link").symlink_to("images")
    monkeypatch.chdir(tmp_path)
    ours = ASKED | {"data": str(tmp_path / "images")}
    for typed in ("images", "images/", "./images", "../" + tmp_path.name + "/images", "link"):
        theirs = ASKED | {"teacher": "./base/t/", "recipe_name": "./default", "data": typed, "scheduler": typed}
        assert differences(theirs, ours) == ""
    assert "data was" in differences(ASKED | {"data": str(tmp_path)}, ours)
    assert as_path("owner/name@main") == "owner/name@main"
    assert as_path("images") == os.path.realpath("images")


def test_what_a_recipe_lacks_is_what_it_is_by_default():
    def without(*path):
        recipe = recipes.load().model_dump(mode="json")
        inner = recipe
        for name in path[:-1]:
            inner = inner[name]
        del inner[path[-1]]
        return ASKED | {"recipe": recipe}

    for path in (("training", "precision"), ("targets",), ("stages", 1, "gate"), ("description",), ("export",)):
        assert differences(without(*path), ASKED) == "", path
    set_ = ASKED | {"recipe": recipes.load("default", ("training.precision=bfloat16",)).model_dump(mode="json")}
    assert differences(without("training", "precision"), set_) == (
        "recipe.training.precision was 'float32', now 'bfloat16'"
    )


def test_what_differs_is_told_in_a_few_words():
    identity = {"recipe": {"seed": 0, "reuse": 8, "stages": [{"steps": 1}, {"steps": 2}]}}
    near = {"recipe": {"seed": 1, "reuse": 8, "stages": [{"steps": 1}, {"steps": 3}]}}
    far = {"recipe": {"seed": 1, "reuse": 1, "stages": [{"steps": 5}, {"steps": 6}]}}
    assert differences(identity, near) == "recipe.seed was 0, now 1; recipe.stages.1.steps was 2, now 3"
    assert differences(identity, far) == (
        "recipe.seed was 0, now 1; recipe.reuse was 8, now 1; recipe.stages.0.steps was 1, now 5; 1 more"
    )


def test_another_teacher_and_another_version_are_named():
    assert differences(ASKED, ASKED | {"fingerprint": "b"}) == "the files of teacher 'base/t' have changed"
    other = ASKED | {"fingerprint": "b", "teacher": "u"}
    assert differences(ASKED, other) == "teacher was 'base/t', now 'u'"
    assert differences(ASKED, ASKED | {"version": "2"}) == ""
    assert differences(ASKED, other | {"version": "2"}).startswith("it was made by diffcompress 1; teacher was")


def test_a_recipe_key_that_nobody_knows_any_more_is_told():
    theirs = ASKED | {"recipe": {**recipes.load().model_dump(mode="json"), "forgotten": 3}}
    assert differences(theirs, ASKED) == "recipe.forgotten was 3, now None"


def test_what_a_teacher_is_asked_without_is_told_as_such_and_not_as_changed_files():
    set_ = recipes.load("default", ("student.without=[text_encoder_3]",)).model_dump(mode="json")
    less = ASKED | {"fingerprint": "b", "recipe": set_}
    assert differences(ASKED, less) == "recipe.student.without.0 was None, now 'text_encoder_3'"
    assert differences(less | {"fingerprint": "c"}, less) == "the files of teacher 'base/t' have changed"
