"""Pipelines whose weights are there in one variant alone: read as they are, written under plain names."""

from __future__ import annotations

import json

import pytest
import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from transformers import CLIPTextModel

from diffcompress.errors import UsageError
from diffcompress.pipeline.encoding import with_prompts
from diffcompress.pipeline.load import load
from diffcompress.runtime import Progress, start
from diffcompress.sources.linking import link_part, part_bytes
from diffcompress.sources.resolve import resolve
from diffcompress.sources.weights import require_parts
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


@pytest.mark.parametrize("size", ["10GB", "8KB"], ids=["whole", "shards"])
def test_pickles_become_safetensors(tmp_path, size):
    """With all names of tensors that share memory, and without a look at what is not taken."""
    model = clip_text(16)
    (tmp_path / "text").mkdir()
    model.config.save_pretrained(tmp_path / "text")
    state = model.state_dict() | {"tied": next(iter(model.state_dict().values()))}
    names = list(state) if size == "8KB" else []
    parts = [names[: len(names) // 2], names[len(names) // 2 :]] if names else [list(state)]
    files = [f"pytorch_model-{i:05d}-of-00002.bin" if names else "pytorch_model.bin" for i in (1, 2)]
    for file, part in zip(files, parts, strict=False):
        torch.save({name: state[name] for name in part}, tmp_path / "text" / file)
    if names:
        index = {"metadata": {}, "weight_map": {n: f for f, p in zip(files, parts, strict=True) for n in p}}
        (tmp_path / "text" / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    (tmp_path / "text" / "flax_model.msgpack").write_bytes(b"never to be read")
    link_part(tmp_path / "text", tmp_path / "linked")
    kinds = {file.suffix for file in (tmp_path / "linked").iterdir()}
    assert kinds == {".json", ".safetensors"}
    again = CLIPTextModel.from_pretrained(tmp_path / "linked", use_safetensors=True)
    assert all(torch.equal(v, state[n]) for n, v in again.state_dict().items())


def test_the_bytes_of_a_part_are_those_of_one_variant(tmp_path):
    model = pipe_stable_diffusion.autoencoder()
    model.save_pretrained(tmp_path / "vae")
    alone = part_bytes(tmp_path / "vae")
    model.half().save_pretrained(tmp_path / "vae", variant="fp16")
    (tmp_path / "vae" / "diffusion_pytorch_model.bin").write_bytes(b"never to be read")
    link_part(tmp_path / "vae", tmp_path / "linked")
    assert part_bytes(tmp_path / "vae") == alone == sum(f.stat().st_size for f in (tmp_path / "linked").iterdir())
    assert part_bytes(tmp_path / "none") == 0


def test_a_teacher_of_one_variant_encodes_and_decodes(tmp_path):
    pipeline = pipe_stable_diffusion.pipeline()
    pipeline.to(torch.float16).save_pretrained(tmp_path / "half", variant="fp16")
    reference = resolve(str(tmp_path / "half"))
    teacher = load(reference)
    assert teacher.codec is not None
    told = with_prompts(teacher, ["a kite"], tmp_path / "prompts", start("cpu"), Progress())
    assert told.conditions.count == 1
    pipeline.save_pretrained(tmp_path / "plain")
    assert DiffusionPipeline.from_pretrained(tmp_path / "plain").vae is not None


def test_only_what_a_part_is_made_of_goes_along(pipeline, tmp_path):
    """An export may be published: the user's own files, folders and links stay behind, and the run says so."""
    part, secret = pipeline / "scheduler", tmp_path / "secret.json"
    secret.write_text("{}")
    (part / "notes.txt").write_text("mine")
    (part / "private").mkdir()
    (part / "private" / "config.json").write_text("{}")
    (part / "loop").symlink_to(part)
    (part / "vocab.json").symlink_to(secret)
    (part / "vocab.txt").symlink_to(part / "vocab.txt")
    (part / "merges.txt").symlink_to("scheduler_config.json")
    link_part(part, tmp_path / "linked")
    assert sorted(file.name for file in (tmp_path / "linked").iterdir()) == ["merges.txt", "scheduler_config.json"]
    told = " ".join(resolve(str(pipeline)).notes)
    assert all(f"scheduler/{name}" in told for name in ("notes.txt", "private", "loop", "vocab.json", "vocab.txt"))
    assert "merges.txt" not in told


@pytest.mark.parametrize("whole", [True, False], ids=["folder", "file"])
def test_a_part_that_lies_elsewhere_is_missed(pipeline, tmp_path, whole):
    link = pipeline / "scheduler" if whole else pipeline / "scheduler" / "scheduler_config.json"
    link.symlink_to(link.rename(tmp_path / "elsewhere"))
    with pytest.raises(UsageError, match="is no regular file inside the pipeline's folder"):
        require_parts(resolve(str(pipeline)), ["scheduler"])


def test_a_snapshot_of_a_cache_links_to_its_blobs(pipeline, tmp_path):
    snapshot = tmp_path / "models--someone--ddpm" / "snapshots" / "0a"
    blobs = snapshot.parent.parent / "blobs"
    blobs.mkdir(parents=True)
    snapshot.parent.mkdir()
    pipeline.rename(snapshot)
    config = snapshot / "scheduler" / "scheduler_config.json"
    config.symlink_to(config.rename(blobs / "1b"))
    require_parts(resolve(str(snapshot)), ["scheduler"])
    link_part(config.parent, tmp_path / "linked")
    assert (tmp_path / "linked" / config.name).read_bytes() == config.read_bytes()


def test_a_part_has_the_name_of_one(pipeline):
    """A path in place of a name would be written to beside the student."""
    index = json.loads((pipeline / "model_index.json").read_text())
    (pipeline / "model_index.json").write_text(json.dumps(index | {"../elsewhere": ["diffusers", "AutoencoderKL"]}))
    assert sorted(resolve(str(pipeline)).parts) == ["scheduler", "unet"]
