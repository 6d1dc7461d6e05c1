"""Which teachers can be named, and what is said about those that cannot."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from diffcompress.errors import UsageError
from diffcompress.pipeline.load import check_teacher
from diffcompress.sources import hub_names
from diffcompress.sources.resolve import resolve
from tests.cli.command import run
from tests.families import pipe_stable_diffusion


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
    from diffcompress.pipeline.load import describe

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


@pytest.mark.parametrize(
    ("changes", "said", "hint"),
    [
        ({"_class_name": "StableDiffusionImg2ImgPipeline"}, "draws from images", "to StableDiffusionPipeline"),
        ({"_class_name": "StableDiffusionInpaintPipeline"}, "draws from images", "to StableDiffusionPipeline"),
        ({"_class_name": "StableDiffusionControlNetPipeline"}, "draws from images", "to StableDiffusionPipeline"),
        ({"_class_name": "CycleDiffusionPipeline"}, "draws from more than text", "StableDiffusionPipeline"),
        ({"_class_name": "StableUnCLIPPipeline"}, "has the part image_noising_scheduler", "StableDiffusionPipeline"),
        ({"_class_name": "StableDiffusionXLPipeline"}, "has the part text_encoder_2", "StableDiffusionPipeline"),
        ({"_class_name": "IFPipeline"}, "has no part vae", "StableDiffusionPipeline"),
        ({"_class_name": "DDPMPipeline"}, "has no part text_encoder", "StableDiffusionPipeline"),
        ({"_class_name": "AnimateDiffPipeline"}, "draws videos", "StableDiffusionPipeline"),
        ({"_class_name": "VideoToVideoSDPipeline"}, "draws videos", "StableDiffusionPipeline"),
        ({"_class_name": "UNet2DConditionModel"}, "which is no pipeline", "StableDiffusionPipeline"),
        ({"_class_name": "AutoPipelineForText2Image"}, "which is no pipeline", "StableDiffusionPipeline"),
        ({"unet": ["diffusers", "AutoencoderKL"]}, "for its unet, which is not", "save_pretrained"),
        ({"unet": ["\ud800", "UNet2DConditionModel"]}, "for its unet, which is not", "save_pretrained"),
        ({"unet": [1, 2]}, "for its unet, which is not", "save_pretrained"),
        ({"scheduler": ["diffusers", 5]}, "for its scheduler, which is not library and class", "save_pretrained"),
        ({"scheduler": [None, None]}, "has the part scheduler", "StableDiffusionPipeline"),
        ({"vae": [None, None]}, "has the part vae", "StableDiffusionPipeline"),
        ({"requires_aesthetics_score": True}, "refines images", "base model"),
        ({"_class_name": ["my", "MyPipeline"]}, "MyPipeline", "set _class_name"),
        ({"unet": ["diffusers", "OnnxRuntimeModel"]}, "for ONNX Runtime", "PyTorch"),
        ({"unet": ["diffusers", "FlaxUNet2DConditionModel"]}, "for Flax", "PyTorch"),
    ],
)
def test_a_pipeline_that_no_run_could_use_is_refused_with_the_one_thing_to_do(tmp_path, changes, said, hint):
    pipe_stable_diffusion.pipeline().save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    (tmp_path / "model_index.json").write_text(json.dumps(index | changes))
    with pytest.raises(UsageError, match=said) as caught:
        check_teacher(resolve(str(tmp_path)))
    assert hint in caught.value.hint


def test_a_text_conditional_denoiser_alone_is_refused_by_plan_too(tmp_path):
    pipe_stable_diffusion.pipeline().save_pretrained(tmp_path)
    assert check_teacher(resolve(str(tmp_path))) == "float32"
    with pytest.raises(UsageError, match="without text encoders"):
        check_teacher(resolve(str(tmp_path / "unet")))
    (tmp_path / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(UsageError, match=r"vae \(no weights\)"):
        check_teacher(resolve(str(tmp_path)))


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("https://huggingface.co/google/ddpm-cat-256", "google/ddpm-cat-256"),
        ("https://huggingface.co/google/ddpm-cat-256/tree/main", "google/ddpm-cat-256"),
        ("hf.co/google/ddpm-cat-256/tree/v1?x=y#z", "google/ddpm-cat-256@v1"),
        ("google/ddpm-cat-256", None),
        ("huggingface/co", None),
    ],
)
def test_the_address_of_a_page_names_its_model(text, meant):
    assert hub_names.from_address(text) == meant


@pytest.mark.parametrize("page", ["datasets/a/b", "a/b/blob/main/x.safetensors", "a", "a/b/tree/main/unet"])
def test_other_pages_of_the_hub_are_told_as_such(page):
    with pytest.raises(UsageError, match="the address"):
        resolve(f"https://huggingface.co/{page}")


def test_a_folder_of_the_hubs_cache_is_its_snapshot(pipeline, tmp_path):
    cached = tmp_path / "models--someone--ddpm"
    for commit in ("0a", "1b"):
        shutil.copytree(pipeline, cached / "snapshots" / commit)
    with pytest.raises(UsageError, match="holds 2 snapshots"):
        resolve(str(cached))
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("1b")
    found = resolve(str(cached))
    assert (found.name, found.denoiser) == ("ddpm", cached / "snapshots" / "1b" / "unet")
    assert any("snapshot 1b is taken" in note for note in found.notes)
    assert resolve(str(cached / "snapshots" / "0a")).name == "ddpm"


def test_a_file_in_another_format_is_named(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(UsageError, match="it is GGUF, which is quantised"):
        resolve(str(tmp_path / "model.gguf"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"layers_per_block": 10**6}, "1000000 in layers_per_block"),
        ({"sample_size": [[8, 8]]}, "is no height and width"),
        ({"sample_size": 1e308}, "in sample_size"),
        ({"block_out_channels": [[16, 32]]}, "config"),
        ({"norm_num_groups": "four"}, "does not build"),
        ({"norm_num_groups": -1}, "-1 in norm_num_groups, which counts something"),
        ({"norm_num_groups": 0.5}, "0.5 in norm_num_groups, which counts something"),
        ({"block_out_channels": [16, -32]}, "-32 in block_out_channels, which counts something"),
    ],
)
def test_a_config_that_makes_no_sense_is_told_as_such(pipeline, changes, said):
    file = pipeline / "unet" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(UsageError, match=said) as caught:
        check_teacher(resolve(str(pipeline)))
    assert caught.value.hint
    outcome = run("plan", file, "--ratio", "0.4")
    assert (outcome.code, "unexpected" in outcome.stderr) == (2, False)


def test_configs_that_cannot_be_read_are_not_waited_for(pipeline):
    file = pipeline / "unet" / "config.json"

    def pipe():
        file.unlink()
        os.mkfifo(file)

    def huge():
        file.unlink()
        file.write_text("{}")
        os.truncate(file, 10**9)

    cases: list[tuple[Callable[[], object], str]] = [
        (lambda: file.write_text("[" * 10**5), "too deeply nested"),
        (lambda: file.write_text(json.dumps({"_class_name": "x" * 10**4})), "cannot shrink"),
        (pipe, "is no regular file"),
        (huge, "no config is as large"),
    ]
    for damage, said in cases:
        damage()
        with pytest.raises(UsageError, match=said) as caught:
            check_teacher(resolve(str(pipeline)))
        assert len(caught.value.message) < 1000


@pytest.mark.parametrize("kind", ["pipe", "folder", "link"])
def test_an_index_that_is_no_file_is_told_as_such(pipeline, kind):
    makers: dict[str, Callable[[Path], object]] = {
        "pipe": os.mkfifo,
        "folder": Path.mkdir,
        "link": lambda place: place.symlink_to("nowhere"),
    }
    for file, teacher in (
        (pipeline / "model_index.json", pipeline),
        (pipeline / "unet" / "config.json", pipeline / "unet"),
    ):
        file.unlink()
        makers[kind](file)
        with pytest.raises(UsageError, match=rf"{file} is no regular file|cannot read {file}"):
            resolve(str(teacher))


def test_averaged_weights_beside_the_denoiser_are_mentioned(pipeline):
    assert not resolve(str(pipeline)).notes
    for name in ("unet_ema", "ema_unet", "unet-ema"):
        shutil.copytree(pipeline / "unet", pipeline / name)
        for teacher in (pipeline, pipeline / "unet"):
            assert any(f"{name} beside unet is not used" in note for note in resolve(str(teacher)).notes)
        shutil.rmtree(pipeline / name)
    weights = pipeline / "unet" / "diffusion_pytorch_model.safetensors"
    for name, told in (("diffusion_pytorch_model.ema", 1), ("ema_model", 1), ("diffusion_pytorch_model.non_ema", 0)):
        shutil.copy(weights, weights.with_name(f"{name}.safetensors"))
        assert len(resolve(str(pipeline)).notes) == told
        weights.with_name(f"{name}.safetensors").unlink()
