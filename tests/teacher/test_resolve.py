"""Which teachers can be named, and what is said about those that cannot."""

from __future__ import annotations

import json
import shutil

import pytest

from diffcompress.errors import UsageError
from diffcompress.teacher.resolve import resolve


def test_a_pipeline_folder(pipeline):
    found = resolve(str(pipeline))
    assert (found.name, found.class_name) == ("ddpm", "UNet2DModel")
    assert found.denoiser == pipeline / "unet"
    assert found.scheduler["_class_name"] == "DDPMScheduler"


def test_a_scheduler_config_without_a_class_takes_that_of_the_pipeline(pipeline):
    file = pipeline / "scheduler" / "scheduler_config.json"
    config = json.loads(file.read_text())
    del config["_class_name"]
    file.write_text(json.dumps(config))
    assert resolve(str(pipeline)).scheduler["_class_name"] == "DDPMScheduler"
    with pytest.raises(UsageError, match="names no _class_name"):
        resolve(str(pipeline / "unet"))


def test_a_denoiser_folder_takes_the_scheduler_beside_it(pipeline):
    found = resolve(str(pipeline / "unet"))
    assert found.pipeline is None
    assert found.scheduler["_class_name"] == "DDPMScheduler"
    assert any("scheduler" in note for note in found.notes)


def test_a_pipeline_keeps_its_own_scheduler_and_says_so(pipeline):
    found = resolve(str(pipeline), str(pipeline / "elsewhere.json"))
    assert any("elsewhere.json is not used" in note for note in found.notes)


def test_a_denoiser_that_is_a_link_takes_the_scheduler_beside_the_link(pipeline, tmp_path):
    elsewhere = (pipeline / "unet").rename(tmp_path / "elsewhere")
    (pipeline / "unet").symlink_to(elsewhere)
    assert resolve(str(pipeline / "unet")).scheduler["_class_name"] == "DDPMScheduler"
    assert resolve(str(pipeline)).denoiser.is_dir()


@pytest.mark.parametrize("as_file", [False, True])
def test_a_denoiser_folder_with_a_scheduler_named(pipeline, tmp_path, as_file):
    alone = tmp_path / "alone"
    shutil.copytree(pipeline / "unet", alone)
    with pytest.raises(UsageError, match="without a scheduler") as caught:
        resolve(str(alone))
    assert "--scheduler" in caught.value.hint
    config = pipeline / "scheduler" / "scheduler_config.json"
    assert resolve(str(alone), str(config if as_file else config.parent)).scheduler


def _remove(path):
    path.unlink()


def _rewrite(text):
    return lambda path: path.write_text(text)


@pytest.mark.parametrize(
    ("file", "damage", "said"),
    [
        ("model_index.json", _rewrite("{"), "not valid JSON"),
        ("model_index.json", _rewrite("[]"), "no JSON object"),
        ("model_index.json", _rewrite('{"vae": ["diffusers", "AutoencoderKL"]}'), "no unet or transformer"),
        ("unet/config.json", _remove, "cannot read"),
        ("unet/config.json", _rewrite(""), "not valid JSON"),
        ("scheduler/scheduler_config.json", _remove, "cannot read"),
    ],
)
def test_a_damaged_pipeline_folder(pipeline, file, damage, said):
    damage(pipeline / file)
    with pytest.raises(UsageError, match=said) as caught:
        resolve(str(pipeline))
    assert caught.value.hint


def test_what_is_no_folder_of_a_model(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("x")
    (tmp_path / "weights.safetensors").write_bytes(b"")
    for name, said in {
        "missing": "neither file nor folder",
        "missing.safetensors": "neither file nor folder",
        "empty": "is empty",
        "other": "holds neither",
        "weights.safetensors": "cannot be read as safetensors",
        "other/notes.txt": "holds no model",
    }.items():
        with pytest.raises(UsageError, match=said) as caught:
            resolve(str(tmp_path / name))
        assert name in caught.value.message


@pytest.mark.parametrize(("index", "hint"), [({}, "names no parts"), ({"vae": []}, "its parts are vae")])
def test_a_pipeline_without_a_denoiser(tmp_path, index, hint):
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(UsageError, match="has no unet or transformer") as caught:
        resolve(str(tmp_path))
    assert hint in caught.value.hint


@pytest.mark.parametrize(("name", "told"), [("sdxl-turbo", "turbo"), ("my-LCM-model", "LCM"), ("calcmodel", None)])
def test_a_few_step_teacher_is_known_by_its_name_alone(pipeline, tmp_path, name, told):
    notes = " ".join(resolve(str(pipeline.rename(tmp_path / name))).notes)
    assert (f"'{told}' in its name" in notes) if told else ("in its name" not in notes)


def test_a_pipeline_without_its_index_is_a_denoiser_with_a_scheduler(pipeline):
    (pipeline / "model_index.json").unlink()
    found = resolve(str(pipeline))
    assert (found.name, found.pipeline, found.denoiser) == ("ddpm", None, pipeline / "unet")
    assert found.scheduler["_class_name"] == "DDPMScheduler"


def test_an_unknown_demo():
    with pytest.raises(UsageError, match="demo:nothing"):
        resolve("demo:nothing")


def test_an_unknown_class_and_an_unknown_noise_process(pipeline):
    from diffcompress.teacher.load import describe

    for file, changes, said in (
        ("unet/config.json", {"_class_name": "MyUNet"}, "MyUNet"),
        ("scheduler/scheduler_config.json", {"_class_name": "EDMEulerScheduler"}, "EDMEulerScheduler"),
        ("scheduler/scheduler_config.json", {"prediction_type": "velocity"}, "velocity"),
        ("model_index.json", {"_class_name": ["my_pipeline", "MyPipeline"]}, "my_pipeline"),
    ):
        path = pipeline / file
        before = path.read_text()
        path.write_text(json.dumps({**json.loads(before), **changes}))
        with pytest.raises(UsageError, match=said):
            describe(resolve(str(pipeline)))
        path.write_text(before)
