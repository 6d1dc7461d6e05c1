"""A U-Net in its original layout, read again as a teacher is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders import single_file_model
from safetensors.torch import load_file

from diffcompress.errors import DiffCompressError
from diffcompress.export.original import export_original
from diffcompress.sources.resolve import resolve
from diffcompress.sources.weights import open_state
from tests.families.test_contract import lively

NAME = "UNet2DConditionModel"
SCHEDULER = {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction", "rescale_betas_zero_snr": True}


@pytest.fixture
def student() -> UNet2DConditionModel:
    return lively(
        UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(32, 64),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            layers_per_block=1,
            cross_attention_dim=768,
        )
    ).half()


def test_it_is_read_again_with_what_its_marks_say(student: UNet2DConditionModel, tmp_path: Path) -> None:
    file = tmp_path / "original.safetensors"
    export_original(student, NAME, SCHEDULER, {"format": "pt"}, file)
    stored = load_file(file)
    assert stored["v_pred"].numel() == stored["ztsnr"].numel() == 0
    assert all(name in ("v_pred", "ztsnr") or name.startswith("model.diffusion_model.") for name in stored)
    student.save_config(tmp_path)
    (tmp_path / "scheduler.json").write_text(json.dumps(SCHEDULER))
    state = open_state(resolve(str(file), str(tmp_path / "scheduler.json")))
    expected = student.state_dict()
    assert set(state) == set(expected)
    assert all(torch.equal(state[name], value) and value.dtype == torch.float16 for name, value in expected.items())
    export_original(student, NAME, {"prediction_type": "epsilon"}, {}, file)
    assert set(stored) - set(load_file(file)) == {"v_pred", "ztsnr"}


def test_a_converter_that_does_more_than_move_rows_is_noticed(
    student: UNet2DConditionModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loadable: Any = single_file_model.SINGLE_FILE_LOADABLE_CLASSES
    convert = loadable[NAME]["checkpoint_mapping_fn"]

    def halved(**given: Any) -> dict[str, torch.Tensor]:
        return {n: v / 2 if v.is_floating_point() and v.dim() == 4 else v for n, v in convert(**given).items()}

    monkeypatch.setitem(loadable[NAME], "checkpoint_mapping_fn", halved)
    with pytest.raises(DiffCompressError, match="does not hold what the student does") as caught:
        export_original(student, NAME, SCHEDULER, {}, tmp_path / "original.safetensors")
    assert "export.original=false" in caught.value.hint
