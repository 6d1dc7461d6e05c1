"""shrink from end to end on tiny real teachers."""

import json
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline

import diffcompress
from diffcompress import recipe as recipes
from diffcompress.errors import DoesNotFitError
from diffcompress.records.provenance import Provenance
from diffcompress.records.run_files import read_json
from diffcompress.report.card import usage
from diffcompress.runtime import Progress
from tests import tiny, tutorials, warm
from tests.families import pipe_dit
from tests.jobs.tiny_teacher import command, run, same, save_teacher, settings, weights


def overrides(**changes):
    return tuple(option.removeprefix("--set=") for option in settings(**changes))


@pytest.mark.parametrize(
    ("prediction_type", "config"),
    [
        ("epsilon", {}),
        ("v_prediction", {"num_classes": 3}),
        ("sample", {"layers_per_block": 2, "in_channels": 3, "out_channels": 3}),
    ],
)
def test_a_teacher_becomes_a_smaller_pipeline_of_the_same_kind(tmp_path, prediction_type, config):
    teacher = save_teacher(tmp_path / "teacher", prediction_type=prediction_type, **config)
    result = diffcompress.shrink(str(teacher), ratio=0.3, output=str(tmp_path / "run"), overrides=overrides())
    assert set(result) >= {"run", "pipeline", "report", "teacher", "student", "stages", "metrics", "seconds"}
    assert abs(result["student"]["ratio"] / 0.3 - 1) < 0.01
    pipeline = DDPMPipeline.from_pretrained(tmp_path / "run" / "pipeline")
    assert pipeline.unet.num_parameters() == result["student"]["params"]
    assert pipeline.scheduler.config.prediction_type == prediction_type
    assert pipeline.unet.config.num_class_embeds == config.get("num_classes")
    proof = json.loads((tmp_path / "run" / "export-proof.json").read_text())
    assert proof["passed"]
    assert [stage["name"] for stage in result["stages"]] == ["lift", "place"]
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000
    recipe = recipes.parse((tmp_path / "run" / "recipe.yaml").read_text(), "")
    rows = [json.loads(line) for line in (tmp_path / "run" / "stage-1-lift" / "metrics.jsonl").read_text().splitlines()]
    highest = max(row["learning_rate"] for row in rows)
    assert recipe.training.tuned_ratio == 0.05
    assert highest == pytest.approx(recipe.training.learning_rate * (0.05 / 0.3) ** 0.5, rel=0.01)


def test_activations_that_are_computed_again_change_nothing(tmp_path, monkeypatch):
    """Once because the recipe says so, once because memory does: the same student as without."""
    teacher = save_teacher(tmp_path / "teacher")

    def made(name, *more):
        diffcompress.shrink(str(teacher), ratio=0.3, output=str(tmp_path / name), overrides=(*overrides(), *more))
        return weights(tmp_path / name), recipes.parse((tmp_path / name / "recipe.yaml").read_text(), name)

    (plain, without), (again, asked) = made("plain"), made("asked", "training.recompute=true")
    monkeypatch.setattr("diffcompress.training.micro.SHARE", 1e-9)
    _, found = made("found", "training.micro_batch_size=8")
    assert [recipe.training.recompute for recipe in (without, asked, found)] == [False, True, True]
    assert same(plain, again) and same(plain, weights(tmp_path / "found"))


def test_a_transformer_alone_becomes_a_transformer_alone(tmp_path):
    """No pipeline can be made of it and its scheduler: provenance, card, report and proof speak of a denoiser."""
    pipe_dit.pipeline(10).transformer.save_pretrained(tmp_path / "teacher")
    DDIMScheduler().save_pretrained(tmp_path / "noise")
    result = diffcompress.shrink(
        str(tmp_path / "teacher"),
        params=41_196,  # of whole heads and layers
        output=str(tmp_path / "run"),
        scheduler=str(tmp_path / "noise"),
        overrides=tiny.SHORTEST,
    )
    exported = Path(result["pipeline"])
    assert not (exported / "model_index.json").exists()
    provenance = read_json(exported / "diffcompress.json")
    assert (provenance["pipeline"], provenance["num_classes"]) == (None, 10)
    schema = read_json(Path(__file__).parents[2] / "docs" / "schemas" / "provenance.schema.json")
    jsonschema.Draft202012Validator(schema).validate(provenance)
    proof = read_json(tmp_path / "run" / "export-proof.json")
    assert proof["passed"]
    assert proof["image_difference"] is None
    scope: dict[str, Any] = {}
    record = Provenance.model_validate(provenance)
    exec(usage(record, str(exported)), scope)
    assert scope["denoiser"].num_parameters() == result["student"]["params"]
    assert usage(record) in (exported / "README.md").read_text()
    report = (tmp_path / "run" / "report.html").read_text()
    assert "DiTTransformer2DModel.from_pretrained(" in report
    assert "a denoiser alone is no pipeline" in report
    for text in (report, (exported / "README.md").read_text()):
        assert "None" not in text


@pytest.mark.parametrize(("teacher", "warned"), [("demo:dit", 1), ("demo", 0)])
def test_the_published_recipe_warns_on_what_it_was_not_published_for(tmp_path, teacher, warned):
    class Heard(Progress):
        def __init__(self):
            self.warnings = []

        def warn(self, text):
            self.warnings.append(text)

    heard = Heard()
    # Nothing is that small: the run ends before it begins.
    with pytest.raises(DoesNotFitError):
        diffcompress.shrink(teacher, params=1, recipe="published", output=str(tmp_path / "run"), progress=heard)
    assert [("pixel U-Nets" in text) for text in heard.warnings] == [True] * warned


@pytest.mark.parametrize(
    "method",
    ["feature-kd", pytest.param("output-kd", marks=pytest.mark.slow), pytest.param("none", marks=pytest.mark.slow)],
)
def test_baselines_run_through_the_same_code_at_the_same_budget(tmp_path, method):
    teacher = save_teacher(tmp_path / "teacher")
    kept = tuple(option for option in overrides() if not option.startswith("stages"))
    changes = (*kept, "stages.0.num_steps=5")
    diffcompress.shrink(str(teacher), ratio=0.3, output=str(tmp_path / "run"), method=method, overrides=changes)
    recipe = recipes.parse((tmp_path / "run" / "recipe.yaml").read_text(), "recipe.yaml")
    assert len(recipe.stages) == 1
    assert recipe.num_steps == 5
    rows = [
        json.loads(line)
        for path in sorted((tmp_path / "run").glob("stage-1-*/metrics.jsonl"))
        for line in path.read_text().splitlines()
    ]
    wanted = {"output-kd": "output_kd", "feature-kd": "feature_kd", "none": "diffusion"}[method]
    assert all(row[wanted] > 0 for row in rows)
    assert len(rows) == 5


def test_another_seed_is_another_student(tmp_path):
    """That the same seed is the same student, tests/jobs/test_resume.py holds bit for bit."""
    teacher = save_teacher(tmp_path / "teacher")
    seen = []
    for name, seed in (("a", 0), ("b", 1)):
        diffcompress.shrink(
            str(teacher),
            ratio=0.3,
            output=str(tmp_path / name),
            overrides=(*tiny.SHORTEST, f"seed={seed}"),
        )
        seen.append(DDPMPipeline.from_pretrained(tmp_path / name / "pipeline").unet.conv_in.weight)
    assert not torch.equal(seen[0], seen[1])


def test_max_time_fixes_the_steps_once_and_more_time_goes_on(tmp_path):
    teacher = save_teacher(tmp_path / "teacher")
    first = run(command(teacher, tmp_path / "run", "--max-time", "2s", "--json"))
    assert first.returncode == 0, first.stderr
    steps = recipes.parse((tmp_path / "run" / "recipe.yaml").read_text(), "").num_steps
    again = run(command(teacher, tmp_path / "run", "--max-time", "2s"))
    assert again.returncode == 0
    assert recipes.parse((tmp_path / "run" / "recipe.yaml").read_text(), "").num_steps == steps
    before = (tmp_path / "run" / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    more = run(command(teacher, tmp_path / "run", "--max-time", "4s", "--json"))
    assert more.returncode == 0, more.stderr
    longer = recipes.parse((tmp_path / "run" / "recipe.yaml").read_text(), "")
    assert longer.num_steps > steps
    state = json.loads((tmp_path / "run" / "stage-2-place" / "final" / "state.json").read_text())
    assert state["step"] == longer.num_steps
    assert before != (tmp_path / "run" / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()


@pytest.mark.parametrize("steps", [12, 2])
def test_a_diverging_run_ends_with_one_sentence_and_no_pipeline(tmp_path, steps):
    """Of four steps all but the first are skipped: too few to roll back, yet nothing of use comes out."""
    teacher = save_teacher(tmp_path / "teacher")
    changes = {"training__learning_rate": 1e30, "training__warmup_steps": 0}
    changes |= {"stages__0__num_steps": steps, "stages__1__num_steps": steps}
    done = run(command(teacher, tmp_path / "run", **changes))
    assert done.returncode == 1
    assert "training diverged" in done.stderr
    assert "learning_rate" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run" / "pipeline").exists()


MANY_GPUS = tutorials.command("many-gpus", "torchrun --nproc_per_node")


def launched_twice(arguments):
    """The command `arguments` in two processes."""
    rendezvous = ["--master_port", "0", "--rdzv_endpoint", "127.0.0.1:0", "--rdzv_backend", "c10d"]
    program, option, _, *module = MANY_GPUS.words
    assert (program, module[:2]) == ("torchrun", arguments[1:3])
    launcher = [sys.executable, "-m", "torch.distributed.run", option, "2", *rendezvous]
    return run([*launcher, *arguments[1:]], ACCELERATE_USE_CPU="true", PYTHON_EXEC=warm.interpreter())


def test_two_processes_start_like_one(tmp_path):
    teacher = save_teacher(tmp_path / "teacher")
    rounds = {"stages__1__least_gain": 0.9}
    one = run(command(teacher, tmp_path / "one", "--json", **rounds))
    assert one.returncode == 0, one.stderr
    two = launched_twice(command(teacher, tmp_path / "two", "--json", **rounds))
    assert two.returncode == 0, two.stderr
    assert not tutorials.missing(MANY_GPUS.shown[:3], two.stderr)
    rows = {}
    for name in ("one", "two"):
        path = tmp_path / name / "stage-1-lift" / "metrics.jsonl"
        rows[name] = [json.loads(line) for line in path.read_text().splitlines()]
    for mine, theirs in zip(rows["one"][:3], rows["two"][:3], strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
        assert mine["fine_weight"] == pytest.approx(theirs["fine_weight"], abs=1e-4)
    assert json.loads(two.stdout)["student"]["params"] == json.loads(one.stdout)["student"]["params"]
    judged = [json.loads((tmp_path / name / "rounds.json").read_text())["rounds"] for name in ("one", "two")]
    assert [[one["steps"] for one in rounds] for rounds in judged] == [[30, 60]] * 2
    assert judged[0][0]["error"] == pytest.approx(judged[1][0]["error"], rel=0.05)


def test_two_processes_evaluate_together_what_one_does(tmp_path):
    """Each draws and predicts a part; the first alone measures what a call costs, which its gate asks for."""
    teacher, student = (save_teacher(tmp_path / name, seed=seed) for name, seed in (("teacher", 0), ("student", 1)))
    options = ["--num-samples=6", "--sampler-steps=2", "--gate=latency_ms<1e9", "--gate=agreement>0.9999", "--json"]
    asked = ["evaluate", str(student), f"--teacher={teacher}", *options]

    def evaluated(name):
        return [sys.executable, "-m", "diffcompress", *asked, f"--output={tmp_path / name}"]

    one = run(evaluated("one"))
    two = launched_twice(evaluated("two"))
    assert (one.returncode, two.returncode) == (3, 1), one.stderr + two.stderr  # a gate failed; torchrun's
    found = [json.loads((tmp_path / name / "evaluation.json").read_text()) for name in ("one", "two")]
    for told in found:
        assert [verdict["passed"] for verdict in told["gates"]] == [True, False]
    for name, value in found[0]["metrics"].items():
        if name not in ("latency_ms", "latency_ms_batch16") and isinstance(value, dict) and "value" in value:
            assert found[1]["metrics"][name]["value"] == pytest.approx(value["value"], rel=1e-4, abs=1e-6), name


def test_a_batch_that_processes_cannot_share_equally_is_refused(tmp_path):
    refused = launched_twice(command(save_teacher(tmp_path / "teacher"), tmp_path / "run", training__batch_size=9))
    assert refused.returncode == 1  # torchrun's
    assert "exitcode  : 2" in refused.stderr
    assert "a batch of 9 cannot be shared out equally over 2 processes" in refused.stderr
    assert "training.batch_size=10" in refused.stderr
    assert not (tmp_path / "run").exists()
