from __future__ import annotations

from pathlib import Path

import diffusers
import pytest
import torch

from diffcompress.pipeline.load import LoadedPipeline, load
from diffcompress.sources.resolve import resolve
from tests import tiny


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def teacher_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "teacher"
    scheduler = diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2", clip_sample=False)
    diffusers.DDPMPipeline(tiny.unet().half(), scheduler).save_pretrained(folder)
    return folder


@pytest.fixture
def teacher(teacher_folder: Path) -> LoadedPipeline:
    return load(resolve(str(teacher_folder)))


@pytest.fixture
def student() -> diffusers.UNet2DModel:
    return tiny.unet(seed=1, block_out_channels=(4, 8), norm_num_groups=2)
