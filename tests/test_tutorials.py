"""Every command and example of the tutorials runs, in the order of its page, on tiny models of the same classes under
the names of those that it takes, and prints the lines that the page shows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from diffusers import StableDiffusion3Pipeline, StableDiffusionPipeline, UNet2DConditionModel
from huggingface_hub import constants
from PIL import Image

from tests import tiny
from tests.cli.command import run
from tests.export.loopback import point_client_at
from tests.families import pipe_dit, pipe_sd3, pipe_stable_diffusion
from tests.families.test_contract import lively
from tests.hub_server import HubServer
from tests.tutorials import FOLDER, command, examples, missing

# What makes a command quick.
MORE = {
    "shrink": [f"--set={one}" for one in (*tiny.SHORTEST, "student.importance=magnitude")],
    "evaluate": ["--num-samples=4", "--sampler-steps=2"],
}
# Tiny models have whole heads and layers at other ratios than large ones.
RATIOS = {"class-conditional": "0.4622", "text-to-image": "0.5", "own-fine-tune": "0.25", "release-pipeline": "0.4622"}
# By page, words of the lines that another test runs: of tests/test_release.py, tests/jobs/test_shrink.py,
# tests/test_two_hosts.py, tests/test_slurm.py and tests/test_hf_job.py.
ELSEWHERE = {
    "release-pipeline": ("release.sh",),
    "many-gpus": ("torchrun --nproc_per_node", "torchrun --nnodes", "slurm.sh", "hf_job.sh"),
}


def own() -> StableDiffusionPipeline:
    """Of two levels."""
    pipeline = pipe_stable_diffusion.pipeline()
    config = pipe_stable_diffusion.UNET | {"layers_per_block": 1, "block_out_channels": [16, 32]}
    config |= {
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    }
    pipeline.register_modules(unet=lively(UNet2DConditionModel.from_config(config)))
    return pipeline


def medium() -> StableDiffusion3Pipeline:
    return pipe_sd3.pipeline(dual_attention_layers=(), qk_norm=None, num_layers=2)


# By page, where its teacher lies: its name on the Hub, or in the reader's folder.
TEACHERS: dict[str, tuple[str, Callable[[], Any]]] = {
    "own-fine-tune": ("my-fine-tune", own),
    "class-conditional": ("facebook/DiT-XL-2-256", pipe_dit.pipeline),
    "text-to-image": ("stabilityai/stable-diffusion-3-medium-diffusers", medium),
    "release-pipeline": ("me/flowers", pipe_dit.pipeline),
}


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that a reader sits in, with prompts and images by class."""
    desk = tmp_path / "desk"
    for name in (f"{label}/{number}" for label in range(2) for number in range(6)):
        file = desk / "photos" / f"{name}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (9, 60, 90)).save(file)
    (desk / "prompts.txt").write_text("a sks dog\na sks cat\n")
    monkeypatch.chdir(desk)
    return desk


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with HubServer(tmp_path / "hub") as hub:
        point_client_at(hub, monkeypatch)
        yield hub


def test_a_line_that_is_not_printed_is_missing():
    shown = ("student  60.8 k of 1.24 M parameters", "pipeline  ...", "report  a", "time 15.8 s")
    assert missing(shown, "student 5,000 of 2 M parameters\npipeline  /tmp/b\nreport b\ntime 2") == ["report  a"]


@pytest.mark.parametrize("page", sorted(FOLDER.glob("*.md")), ids=lambda page: page.stem)
def test_a_tutorial_runs_from_top_to_bottom(page: Path, desk: Path, hub: HubServer) -> None:
    if page.stem in TEACHERS:
        name, teacher = TEACHERS[page.stem]
        teacher().save_pretrained(name if "/" not in name else desk.parent / "teacher")
        if "/" in name:
            hub.add(name, desk.parent / "teacher")
    names: dict[str, object] = {}
    for example in examples(page):
        program, *words = example.words or ("python",)
        if example.code:
            exec(compile(example.code, str(page), "exec"), names)
        elif program == "diffcompress":
            words = [RATIOS[page.stem] if before == "--ratio" else word for before, word in pairwise(["", *words])]
            outcome = run(*words, *MORE.get(words[0], []))
            assert outcome.code == 0, outcome.stderr
            assert not missing(example.shown, outcome.stderr + outcome.stdout), outcome.stderr + outcome.stdout
        else:
            assert example in [command(page.stem, words) for words in ELSEWHERE[page.stem]]
