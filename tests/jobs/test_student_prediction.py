"""Students that predict v: whole runs, and what diffusers' samplers make of what they export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiTPipeline,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
)
from safetensors import safe_open

import diffcompress
from diffcompress.errors import UsageError
from diffcompress.jobs.plan import plan
from diffcompress.noise import generator
from diffcompress.pipeline.load import load
from diffcompress.pipeline.predicting import in_terms_of
from diffcompress.pipeline.sampling import sample
from diffcompress.records.run_files import read_json
from diffcompress.sources.resolve import resolve
from tests import tiny
from tests.families import pipe_dit
from tests.jobs.tiny_teacher import save_teacher, settings

V = "student.prediction=v"
SCHEMAS = Path(__file__).parents[2] / "docs" / "schemas"
# Timesteps that are whole numbers, and no noise where a solver can do without.
SAMPLERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "ddpm": (DDPMScheduler, {}),
    "ddim": (DDIMScheduler, {}),
    "dpm++": (DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++"}),
    "pndm": (PNDMScheduler, {"skip_prk_steps": True}),
    "euler": (EulerDiscreteScheduler, {"timestep_spacing": "leading"}),
}


def overrides(*more):
    return (*(option.removeprefix("--set=") for option in settings()), *more)


@pytest.fixture(scope="module", params=["epsilon", "sample"])
def finished(request, tmp_path_factory):
    """The result of a run, its teacher, and the exported student as we load it."""
    folder = tmp_path_factory.mktemp(request.param)
    teacher = save_teacher(folder / "teacher", prediction_type=request.param)
    result = diffcompress.shrink(str(teacher), ratio=0.3, output=str(folder / "run"), overrides=overrides(V))
    return result, teacher, load(resolve(result["pipeline"]))


def walk(scheduler, predict, num_steps=25):
    """Samples `[2, 1, 8, 8]` by a scheduler of diffusers' from noise of its own scale."""
    scheduler.set_timesteps(num_steps)
    noisy = torch.randn(2, 1, 8, 8, generator=generator(5)) * scheduler.init_noise_sigma
    own = {"generator": torch.Generator().manual_seed(9)} if isinstance(scheduler, DDPMScheduler) else {}
    for timestep in scheduler.timesteps:
        whole = torch.full((2,), int(timestep))
        assert int(timestep) == float(timestep)
        prediction = predict(scheduler.scale_model_input(noisy, timestep), whole)
        noisy = scheduler.step(prediction, timestep, noisy, **own).prev_sample
    return noisy


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_of_diffusers_read_the_export_as_we_do(finished, name):
    """Each walks the same with the student's v as with the noise that we take it for; PNDM nearly so: it adds up raw
    predictions of several timesteps."""
    student = finished[2]
    kind, more = SAMPLERS[name]
    exported = DDPMPipeline.from_pretrained(finished[0]["pipeline"]).scheduler.config
    theirs = kind.from_config(exported, **more)
    assert theirs.config.prediction_type == "v_prediction"
    in_noise = in_terms_of(student, student.noise.predicting("epsilon"))
    with torch.no_grad():
        got = walk(theirs, lambda noisy, timestep: student.denoiser(noisy, timestep).sample)
        ours = kind.from_config(exported, prediction_type="epsilon", **more)
        expected = walk(ours, lambda noisy, timestep: in_noise.predict(noisy, timestep, {}))
        misread = walk(ours, lambda noisy, timestep: student.denoiser(noisy, timestep).sample)
    near = 0.03 if name == "pndm" else 1e-3
    torch.testing.assert_close(got, expected, rtol=near, atol=near)
    assert (misread - expected).abs().max() > 0.05


def test_our_sampler_draws_what_diffusers_draws(finished):
    """DDIM from the same noise, and the whole pipeline of diffusers runs."""
    result, _, student = finished
    scheduler = DDIMScheduler.from_config(DDPMPipeline.from_pretrained(result["pipeline"]).scheduler.config)
    scheduler.set_timesteps(10)
    noisy = torch.randn(1, 1, 8, 8, generator=generator(3, 2, 0))  # as sample 0 of seed 3 begins
    with torch.no_grad():
        for timestep in scheduler.timesteps:
            prediction = student.denoiser(noisy, timestep).sample
            noisy = scheduler.step(prediction, timestep, noisy).prev_sample
    torch.testing.assert_close(sample(student, [0], seed=3, num_steps=10), noisy, rtol=1e-3, atol=1e-3)
    for kind in (DDPMPipeline, DDIMPipeline):
        pipeline: Any = kind.from_pretrained(result["pipeline"])
        assert pipeline(batch_size=1, num_inference_steps=2, output_type="np").images.shape == (1, 8, 8, 1)


def test_it_is_told_everywhere_and_the_teacher_stays_as_it_is(finished):
    result, teacher, _ = finished
    run = Path(result["run"])
    was = read_json(teacher / "scheduler" / "scheduler_config.json")["prediction_type"]
    assert was in ("epsilon", "sample")
    assert result["student"]["prediction_type"] == "v_prediction"
    assert read_json(run / "plan.json")["prediction_type"] == "v_prediction"
    assert f"prediction_type: {was} -> v_prediction (student.prediction)" in read_json(run / "plan.json")["notes"]
    exported = read_json(run / "pipeline" / "scheduler" / "scheduler_config.json")
    assert exported == {
        **read_json(teacher / "scheduler" / "scheduler_config.json"),
        "prediction_type": "v_prediction",
    }
    provenance = read_json(run / "pipeline" / "diffcompress.json")
    assert provenance["student"]["prediction_type"] == "v_prediction"
    jsonschema.Draft202012Validator(read_json(SCHEMAS / "provenance.schema.json")).validate(provenance)
    assert "predicts `v_prediction`" in (run / "pipeline" / "README.md").read_text()
    assert "Its denoiser predicts <code>v_prediction</code>" in (run / "report.html").read_text()
    assert read_json(run / "export-proof.json")["passed"]


def test_evaluate_judges_it_in_its_teachers_terms(finished, tmp_path):
    """Agreement and the probe are computed, and are those of the run that made it."""
    result, teacher, student = finished
    protocol = {"num_samples": 4, "sampler_steps": 2}
    found = diffcompress.evaluate(result["pipeline"], teacher=str(teacher), output=str(tmp_path), **protocol)
    assert found["metrics"]["agreement"]["value"] == pytest.approx(result["metrics"]["agreement"]["value"], rel=1e-4)
    assert found["probe"] is not None
    assert not [row for row in found["metrics"]["not_computed"] if "predict" in str(row)]
    loaded = load(resolve(str(teacher)))
    noisy, timestep = torch.randn(4, 1, 8, 8, generator=generator(1)), torch.tensor([3, 15, 30, 45])
    with torch.no_grad():
        theirs = loaded.predict(noisy, timestep, {})
        told = in_terms_of(student, loaded.noise).predict(noisy, timestep, {})
        raw = student.predict(noisy, timestep, {})
    assert (told - theirs).square().mean() < (raw - theirs).square().mean()


def test_a_run_goes_on_and_is_another_one_in_other_terms(finished):
    """Targets are the teacher's own predictions: a call after the end answers, and other terms are another run."""
    result, teacher, _ = finished
    again = diffcompress.shrink(str(teacher), ratio=0.3, output=result["run"], overrides=overrides(V))
    assert again["metrics"] == result["metrics"]
    with pytest.raises(UsageError, match=r"recipe\.student\.prediction was 'v', now 'teacher'"):
        diffcompress.shrink(str(teacher), ratio=0.3, output=result["run"], overrides=overrides())


def test_a_learned_variance_goes_along(tmp_path):
    """A latent transformer whose output has the variance behind: the export's own pipeline draws, the single file says
    what it predicts."""
    pipe_dit.pipeline(10).save_pretrained(tmp_path / "teacher")
    more = (*tiny.SHORTEST, V, "export.single_file=true")
    result = diffcompress.shrink(str(tmp_path / "teacher"), params=41_196, output=str(tmp_path / "run"), overrides=more)
    pipeline = DiTPipeline.from_pretrained(result["pipeline"])
    assert pipeline.scheduler.config.prediction_type == "v_prediction"
    assert pipeline.transformer.config.out_channels == 2 * pipeline.transformer.config.in_channels
    assert read_json(tmp_path / "run" / "export-proof.json")["image_difference"] is not None
    rows = (tmp_path / "run" / "stage-1-lift" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(rows[0])["variance_kd"] > 0
    with safe_open(tmp_path / "run" / "exports" / "denoiser.safetensors", "pt") as single:
        assert json.loads(single.metadata()["scheduler"])["prediction_type"] == "v_prediction"


def test_plans_say_it_and_a_velocity_stays_one(tmp_path):
    teacher = save_teacher(tmp_path / "teacher")
    assert plan(str(teacher), ratio=0.3)["prediction_type"] == "epsilon"
    assert plan(str(teacher), ratio=0.3, overrides=(V,))["prediction_type"] == "v_prediction"
    assert plan(str(teacher / "unet" / "config.json"), ratio=0.3)["prediction_type"] is None
    assert plan("demo:mmdit", ratio=0.1, overrides=(V,))["prediction_type"] == "flow_prediction"
    save_teacher(tmp_path / "v", prediction_type="v_prediction")
    assert not [note for note in plan(str(tmp_path / "v"), ratio=0.3, overrides=(V,))["notes"] if "prediction" in note]
