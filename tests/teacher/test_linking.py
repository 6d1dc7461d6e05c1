"""Pipelines whose weights are there in one variant alone: read as they are, written under plain names."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from transformers import CLIPTextModel

from diffcompress.runtime import Progress, start
from diffcompress.teacher.encoding import with_prompts
from diffcompress.teacher.linking import link_part
from diffcompress.teacher.load import load
from diffcompress.teacher.resolve import resolve
from tests.families import pipe_stable_diffusion
from tests.families.tiny_text import clip_text


@pytest.mark.parametrize("size", ["10GB", "20KB"], ids=["whole", "shards"])
def test_one_variant_gets_plain_names(tmp_path, size):
    model = pipe_stable_diffusion.autoencoder().half()
    model.save_pretrained(tmp_path / "vae", variant="fp16", max_shard_size=size)
    (tmp_path / "vae" / "diffusion_pytorch_model.bf16.bin").write_bytes(b"never to be read")
    link_part(tmp_path / "vae", tmp_path / "linked")
    names = sorted(file.name for file in (tmp_path / "linked").iterdir())
    assert not any("16" in name for name in names)
    assert (len(names) > 3) == (size == "20KB")
    again = AutoencoderKL.from_pretrained(tmp_path / "linked")
    assert all(torch.equal(v, model.state_dict()[n].float()) for n, v in again.state_dict().items())


def test_shards_of_transformers(tmp_path):
    model = clip_text(16).half()
    model.save_pretrained(tmp_path / "text", variant="fp16", max_shard_size="8KB")
    link_part(tmp_path / "text", tmp_path / "linked")
    again = CLIPTextModel.from_pretrained(tmp_path / "linked", torch_dtype=torch.float16)
    assert all(torch.equal(v, model.state_dict()[n]) for n, v in again.state_dict().items())


def test_a_teacher_of_one_variant_encodes_and_decodes(tmp_path):
    pipeline = pipe_stable_diffusion.pipeline()
    pipeline.to(torch.float16).save_pretrained(tmp_path / "half", variant="fp16")
    reference = resolve(str(tmp_path / "half"))
    assert reference.variant == "fp16"
    teacher = load(reference)
    assert teacher.codec is not None
    told = with_prompts(teacher, ["a kite"], tmp_path / "prompts", start("cpu"), Progress())
    assert told.conditions.count == 1
    pipeline.save_pretrained(tmp_path / "plain")
    assert resolve(str(tmp_path / "plain")).variant is None
    assert DiffusionPipeline.from_pretrained(tmp_path / "plain").vae is not None
