"""`plan`: sizes that come true, costs that agree with a counted model, and no weights read."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from diffusers import UNet2DModel
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from diffcompress.errors import DoesNotFitError, UsageError
from diffcompress.jobs.plan import plan
from diffcompress.jobs.shrink import shrink
from diffcompress.records import units
from tests import tiny
from tests.cli.command import run
from tests.families import pipe_sd3, pipe_stable_diffusion

KEYS = {
    "teacher", "family", "ratio", "requested_ratio", "params", "size_bytes", "config", "prediction_type", "macs",
    "macs_ratio", "pipeline_bytes", "pipeline_ratio", "parts", "peak_memory_bytes", "card", "seconds_per_step",
    "expected", "evidence", "notes",
}  # fmt: skip


HALF = "export.half_parts=true"


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """As large as the embedded one."""
    return tiny.save_pipeline(tmp_path_factory.mktemp("teachers") / "ddpm", dtype=torch.float16, **tiny.DEMO)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return tiny.save_pipeline(tmp_path_factory.mktemp("small") / "ddpm", dtype=torch.float16)


def _but_times(planned):
    return {key: value for key, value in planned.items() if key not in ("expected", "seconds_per_step")}


def _student(config):
    return UNet2DModel.from_config({k: v for k, v in config.items() if not k.startswith("_")})


def _macs(denoiser):
    counter = FlopCounterMode(display=False)
    # The fused attention of the CPU is not in torch's table of counted operations.
    with counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        denoiser.float()(torch.zeros(1, 1, 28, 28), torch.zeros(1, dtype=torch.long))
    return counter.get_total_flops() // 2


def test_what_is_planned_comes_true(teacher, tmp_path):
    planned = plan(str(teacher), ratio=0.05)
    assert set(planned) == KEYS
    student = _student(planned["config"])
    params = sum(p.numel() for p in student.parameters())
    whole = sum(p.numel() for p in UNet2DModel.from_pretrained(teacher / "unet").parameters())
    assert planned["params"] == params
    assert planned["ratio"] == pytest.approx(params / whole)
    assert planned["ratio"] == pytest.approx(0.05, rel=0.01)
    student.half().save_pretrained(tmp_path)
    assert planned["size_bytes"] == (tmp_path / "diffusion_pytorch_model.safetensors").stat().st_size
    assert planned["pipeline_bytes"] > planned["size_bytes"]
    assert planned["macs"] == _macs(student)
    assert planned["macs_ratio"] == pytest.approx(
        planned["macs"] / _macs(UNet2DModel.from_pretrained(teacher / "unet"))
    )
    # Weights, averages, gradients and moments of the student; the teacher's weights, stored in half precision.
    assert 4 * (3 * params) + 2 * whole < planned["peak_memory_bytes"] < 10**9
    assert planned["card"] == "RTX 4060"


def test_no_weights_are_read(small, tmp_path):
    """The same plan from files whose tensors are all gone: a hole of the same length stands in for them."""
    hollow = shutil.copytree(small, tmp_path / "ddpm")
    file = next((hollow / "unet").glob("*.safetensors"))
    size = file.stat().st_size
    with file.open("r+b") as stream:
        header = 8 + int.from_bytes(stream.read(8), "little")
        stream.truncate(header)
        stream.truncate(size)
    before, after = plan(str(small), ratio=0.3), plan(str(hollow), ratio=0.3)
    assert _but_times(before) == _but_times(after | {"teacher": before["teacher"]})


def test_a_path_is_as_good_as_its_name_and_a_dtype_has_short_names(small):
    by_path, by_name = plan(small, ratio=0.5, dtype="fp16"), plan(str(small), ratio=0.5, dtype="float16")
    assert _but_times(by_path) == _but_times(by_name)


@pytest.mark.parametrize(
    "options", [{"dtype": "float8"}, {"max_time": -1.0}, {"max_time": float("nan")}, {"ratio": 0}, {"params": 5}]
)
def test_what_no_run_could_do_is_refused_in_python_before_anything_is_made(small, tmp_path, options):
    with pytest.raises(UsageError):
        shrink(small, output=tmp_path / "run", **({"ratio": 0.5} | options))
    assert not (tmp_path / "run").exists()


def test_a_teacher_in_double_precision(tmp_path):
    planned = plan(str(tiny.save_pipeline(tmp_path, dtype=torch.float64)), ratio=0.5)
    student = UNet2DModel.from_config(planned["config"]).double()
    student.save_pretrained(tmp_path / "student")
    assert planned["size_bytes"] == (tmp_path / "student" / "diffusion_pytorch_model.safetensors").stat().st_size


def test_targets_in_other_units_agree(small):
    by_ratio = plan(str(small), ratio=0.3)
    by_params = plan(str(small), params=by_ratio["params"])
    assert by_params["params"] == pytest.approx(by_ratio["params"], rel=0.01)
    by_size = plan(str(small), size=by_ratio["size_bytes"])
    assert by_size["size_bytes"] == pytest.approx(by_ratio["size_bytes"], rel=0.01)


def test_a_bare_config_is_enough(small):
    planned = plan(str(small / "unet" / "config.json"), ratio=0.3)
    assert planned["params"] == plan(str(small), ratio=0.3)["params"]
    assert planned["pipeline_bytes"] is planned["pipeline_ratio"] is planned["parts"] is None


def test_a_part_that_is_left_out_makes_a_smaller_pipeline_or_is_refused(tmp_path):
    pipe_sd3.pipeline().save_pretrained(tmp_path / "sd3")
    planned = plan(str(tmp_path / "sd3"), params=40_000, overrides=("student.without=[text_encoder_3]", HALF))
    assert {part["name"] for part in planned["parts"]} >= {"transformer", "vae", "text_encoder_2"}
    assert not {"text_encoder_3", "tokenizer_3"} & {part["name"] for part in planned["parts"]}
    folders = [path for path in (tmp_path / "sd3").iterdir() if path.is_dir()]
    theirs = sum(file.stat().st_size for folder in folders for file in folder.iterdir())
    assert planned["pipeline_ratio"] == pytest.approx(planned["pipeline_bytes"] / theirs, rel=0.01)
    assert any(note.startswith("text_encoder_3 and tokenizer_3 of its pipeline: left out") for note in planned["notes"])
    vae = sum(file.stat().st_size for file in (tmp_path / "sd3" / "vae").glob("*.safetensors"))
    sizes = {part["name"]: part["bytes"] for part in planned["parts"]}
    assert 0.5 * vae < sizes["vae"] < 0.8 * vae  # tiny: a header is a third of it
    with pytest.raises(UsageError, match=r"student\.without names vae, without which a StableDiffusion3Pipeline"):
        plan(str(tmp_path / "sd3"), params=40_000, overrides=("student.without=[vae]",))
    (tmp_path / "alone.json").write_text((tmp_path / "sd3" / "transformer" / "config.json").read_text())
    with pytest.raises(UsageError, match=r"names vae, and '.*alone.json' has no pipeline"):
        plan(str(tmp_path / "alone.json"), params=40_000, overrides=("student.without=[vae]",))


def test_every_part_of_the_pipeline_has_its_bytes_and_its_share(tmp_path):
    """Of a teacher whose autoencoder weighs more than any student: what its denoiser saves is not what a user saves."""
    teacher = tmp_path / "teacher"
    pipe_stable_diffusion.pipeline().save_pretrained(teacher)
    sizes = {
        part.name: sum(file.stat().st_size for file in part.iterdir()) for part in teacher.iterdir() if part.is_dir()
    }
    planned = plan(str(teacher), ratio=0.2)
    parts = {part["name"]: part for part in planned["parts"]}
    assert parts["unet"] == {
        "name": "unet",
        "bytes": planned["size_bytes"],
        "share": planned["size_bytes"] / planned["pipeline_bytes"],
        "denoiser": True,
    }
    assert planned["parts"][0]["name"] == "unet"
    others = {name: part["bytes"] for name, part in parts.items() if name != "unet"}
    assert others == {name: size for name, size in sizes.items() if name != "unet"} and "vae" in others
    assert sum(part["share"] for part in parts.values()) == pytest.approx(1)
    assert planned["pipeline_ratio"] == pytest.approx(planned["pipeline_bytes"] / sum(sizes.values()))
    assert planned["pipeline_ratio"] > planned["ratio"]
    lines = run("plan", str(teacher), "--ratio", "0.2,1e-6").stdout.splitlines()
    told = next(line for line in lines if line.startswith("vae"))
    assert told.split()[-1] == "%" and units.size(others["vae"]) in told
    assert units.percent(planned["pipeline_ratio"]) in next(
        line for line in lines if line.startswith("whole / teacher")
    )


def test_several_ratios_with_one_out_of_reach(small):
    reached, missed = plan(str(small), ratio=[0.3, 1e-5])
    assert reached["ratio"] == pytest.approx(0.3, rel=0.01)
    assert (missed["ratio"], missed["requested_ratio"]) == (None, 1e-5)
    assert set(missed) == KEYS
    assert any("nearest" in note or "smallest" in note for note in missed["notes"])
    with pytest.raises(DoesNotFitError):
        plan(str(small), ratio=1e-5)


def test_the_recipe_decides_the_norm_groups(teacher):
    default, published = plan(str(teacher), ratio=0.05), plan(str(teacher), ratio=0.05, recipe="published")
    assert published["config"]["norm_num_groups"] > default["config"]["norm_num_groups"]


@pytest.mark.parametrize(("asked", "told"), [("demo:dit", True), ("demo", False)])
def test_the_published_recipe_is_noted_on_what_it_was_not_published_for(asked, told):
    for row in plan(asked, ratio=[0.1, 1e-9], recipe="published"):
        assert any("pixel U-Nets" in note for note in row["notes"]) is told
    assert not any("pixel U-Nets" in note for note in plan(asked, ratio=0.1)["notes"])


@pytest.mark.parametrize(
    "targets", [{}, {"ratio": 0.1, "params": 3}, {"ratio": []}, {"params": 0}, {"ratio": [0.1, 2]}]
)
def test_exactly_one_target_that_makes_sense(small, targets):
    with pytest.raises(UsageError):
        plan(str(small), **targets)


def test_a_truncated_file_is_found_from_its_header(small, tmp_path):
    broken = shutil.copytree(small, tmp_path / "ddpm")
    file = next((broken / "unet").glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(UsageError, match="cannot be read as safetensors"):
        plan(str(broken), ratio=0.3)


def test_on_the_command_line(small):
    one = run("plan", small, "--ratio", "0.3", "--json")
    assert (one.code, one.stderr) == (0, "")
    assert set(json.loads(one.stdout)) == KEYS
    several = run("plan", small, "--ratio", "0.3,0.00001", "--json", "--quiet")
    assert [row["ratio"] is None for row in json.loads(several.stdout)] == [False, True]
    shown = run("plan", small, "--ratio", "0.3,0.00001", "--quiet").stdout
    assert "asked" in shown.splitlines()[0]
    sizes, _, parts = shown.partition("\n\n")
    assert len(sizes.splitlines()) == 3 and parts.startswith("part of the pipeline")
    assert run("plan", small, "--ratio", "0.00001").code == 5
