"""What the export would find out after the training is found before the bank: parts that do not load or do not draw."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffcompress.errors import UsageError
from diffcompress.export.rehearsal import rehearse
from diffcompress.pipeline.load import describe, load
from diffcompress.runtime import Progress
from diffcompress.sources.resolve import resolve
from tests import tiny
from tests.cli.command import run
from tests.families import pipe_dit, pipe_stable_diffusion


class Said(Progress):
    def __init__(self):
        self.said = []

    def note(self, text):
        self.said.append(text)

    warn = note


def _rehearsed(folder):
    said = Said()
    rehearse(load(resolve(str(folder))), said)
    return said.said


@pytest.fixture
def sd(tmp_path):
    pipe_stable_diffusion.pipeline().save_pretrained(tmp_path / "sd")
    return tmp_path / "sd"


def test_teachers_that_draw(tmp_path, sd):
    """Pickled weights with a LoRA beside them, an autoencoder of another name beside its own, one variant alone."""
    weights = sd / "text_encoder" / "model.safetensors"
    torch.save(load_file(weights), weights.with_name("pytorch_model.bin"))
    weights.unlink()
    lora = {"lora_A.weight": torch.zeros(2, 2)}
    save_file(lora, sd / "text_encoder" / "adapter_model.safetensors")
    save_file(lora, sd / "vae" / "vae-ft-mse-840000-ema-pruned.safetensors")
    assert _rehearsed(sd) == []
    told = " ".join(resolve(str(sd)).notes)
    assert "text_encoder/adapter_model.safetensors" in told
    assert "vae/vae-ft-mse-840000-ema-pruned.safetensors" in told
    pipe_dit.pipeline(3).to(torch.float16).save_pretrained(tmp_path / "dit", variant="fp16")
    assert _rehearsed(tmp_path / "dit") == []
    assert _rehearsed(tiny.save_pipeline(tmp_path / "classes", num_classes=3)) == []


def test_an_autoencoder_of_another_denoiser_is_refused_before_anything_is_made(sd, tmp_path):
    vae: Any = pipe_stable_diffusion.autoencoder()
    type(vae).from_config({**vae.config, "latent_channels": 3}).save_pretrained(sd / "vae")
    with pytest.raises(UsageError, match="loads but does not draw") as caught:
        _rehearsed(sd)
    assert "autoencoder" in caught.value.hint
    assert "\n" not in caught.value.message
    settings = [word for setting in tiny.SHORTEST for word in ("--set", setting)]
    outcome = run("shrink", sd, "--ratio", "0.4", "--output", tmp_path / "run", "--device", "cpu", *settings)
    assert (outcome.code, "loads but does not draw" in outcome.stderr) == (2, True)
    assert not (tmp_path / "run").exists()


def test_parts_that_do_not_load_are_refused(sd):
    (sd / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"not a tensor file at all")
    with pytest.raises(UsageError, match="cannot be loaded by diffusers alone"):
        _rehearsed(sd)


def test_a_learned_variance_needs_a_scheduler_that_takes_it(tmp_path):
    folder = tiny.save_pipeline(tmp_path / "ddpm", in_channels=1, out_channels=2)
    with pytest.raises(UsageError, match="predicts a variance too") as caught:
        describe(resolve(str(folder)))
    assert "learned_range" in caught.value.hint
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"variance_type": "learned_range"}))
    assert _rehearsed(folder) == []
