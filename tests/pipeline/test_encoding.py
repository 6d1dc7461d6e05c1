"""Prompts of real tiny pipelines, encoded once and read from disk."""

from __future__ import annotations

import gc
import tempfile
import types
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file

from diffcompress import runtime as runtimes
from diffcompress.errors import UsageError
from diffcompress.export import rehearsal
from diffcompress.pipeline.encoding import SHARD_SIZE, _key, with_prompts
from diffcompress.pipeline.load import load
from diffcompress.pipeline.trace import trace
from diffcompress.records.run_files import read_json, write_json
from diffcompress.runtime import Progress
from diffcompress.sources.resolve import resolve
from tests.families.tiny_text import clip_text
from tests.telling import Told

PROMPTS = [*("ab" * (1 + number % 3) for number in range(SHARD_SIZE)), "a much longer one", "b"]


@pytest.mark.parametrize("name", ["pipe_sd3", "pipe_z_image"])
def test_rows_are_what_the_pipeline_makes_of_its_prompts(name: str, tmp_path: Path) -> None:
    import_module(f"tests.families.{name}").pipeline().save_pretrained(tmp_path / "teacher")
    teacher, runtime = load(resolve(str(tmp_path / "teacher"))), runtimes.start("cpu")
    first = with_prompts(teacher, PROMPTS, tmp_path / "conditions", runtime, Progress()).conditions
    whole = DiffusionPipeline.from_pretrained(tmp_path / "teacher")
    expected: dict[Any, Any] = {}
    null: dict[str, Any] = {}
    for start in range(0, len(PROMPTS), SHARD_SIZE):
        expected[start], null = trace(whole, teacher.family, PROMPTS[start : start + SHARD_SIZE], teacher.sample_shape)
    lengths = set()
    expected[first.null] = null
    for start, part in expected.items():
        count = len(next(iter(part.values())))
        rows = first.rows(torch.arange(start, start + count))
        assert rows.keys() == part.keys()
        for key, value in part.items():
            ours = rows[key]
            if value.dim() > 1:
                lengths.add(value.shape[1])
                assert not ours[:, value.shape[1] :].any()
                ours = ours[:, : value.shape[1]]
            assert torch.equal(ours, value)
    assert first.count == first.null == len(PROMPTS)
    if name == "pipe_z_image":
        assert len(lengths) > 1  # or nothing had to be filled up
    # The second time nothing is encoded, and every row is the same.
    files = {file: file.stat().st_mtime_ns for file in (tmp_path / "conditions").rglob("*.safetensors")}
    again = with_prompts(teacher, PROMPTS, tmp_path / "conditions", runtime, Progress()).conditions
    assert files == {file: file.stat().st_mtime_ns for file in (tmp_path / "conditions").rglob("*.safetensors")}
    assert again.digest == first.digest
    everything = torch.arange(len(PROMPTS) + 1)
    for key, value in first.rows(everything).items():
        assert torch.equal(again.rows(everything)[key], value)


@pytest.mark.parametrize(("name", "most"), [("pipe_stable_diffusion", 10), ("pipe_sd3", None)])
def test_prompts_that_are_cut_are_told(name: str, most: int | None, tmp_path: Path) -> None:
    """Of Stable Diffusion 3 one of three encoders reads on where the others stop."""
    import_module(f"tests.families.{name}").pipeline().save_pretrained(tmp_path / "teacher")
    teacher, runtime = load(resolve(str(tmp_path / "teacher"))), runtimes.start("cpu")
    texts = ["abcdefghij" * 2 + f"{number:02d}" for number in range(SHARD_SIZE + 1)] + ["ab"]
    for _ in range(2):  # encoded, then read
        told = Told()
        found = with_prompts(teacher, texts, tmp_path / "conditions", runtime, told).conditions
        assert list(found.warnings) == told.warnings
        if most is None:
            assert told.warnings == []
        else:
            assert f"17 of 18 prompts are longer than the {most + 2} tokens" in told.warnings[0]
            assert texts[0] in told.warnings[0]
            assert told.warnings[0].endswith(": 17 of them became equal to others")
    different = ["abcdefghij"[number:] * 3 for number in range(4)]
    told = Told()
    with_prompts(teacher, different, tmp_path / "conditions", runtime, told)
    assert [text.endswith(": none of them became equal to another") for text in told.warnings] == [True] * bool(most)


@pytest.mark.parametrize("name", ["shard-00001", "null"])
def test_a_damaged_file_of_prompts_is_encoded_again_alone(name: str, tmp_path: Path) -> None:
    import_module("tests.families.pipe_stable_diffusion").pipeline().save_pretrained(tmp_path / "teacher")
    texts = [text for text in PROMPTS if len(text) < 9] + ["c"]
    teacher, runtime = load(resolve(str(tmp_path / "teacher"))), runtimes.start("cpu")
    with_prompts(teacher, texts, tmp_path / "conditions", runtime, Progress())
    before = {file: file.read_bytes() for file in (tmp_path / "conditions").rglob("*.safetensors")}
    stamps = {file: file.stat().st_mtime_ns for file in before}
    (file,) = (file for file in before if file.stem == name)
    file.write_bytes(before[file][:-2] + b"xx")
    told = Told()
    with_prompts(teacher, texts, tmp_path / "conditions", runtime, told)
    assert [text.startswith(f"{file} is damaged: its checksum") for text in told.warnings] == [True]
    assert {file: file.read_bytes() for file in before} == before
    changed = [one.stem for one in before if one.stat().st_mtime_ns != stamps[one]]
    assert changed == [name] or (name == "null" and set(changed) <= {"null", "shard-00000"})


@pytest.mark.parametrize(("name", "part"), [("pipe_stable_diffusion", "text_encoder"), ("pipe_sd3", "text_encoder_3")])
def test_an_encoder_that_lacks_a_tensor_is_refused(name: str, part: str, tmp_path: Path) -> None:
    """transformers makes up what is missing, and says so where nobody looks."""
    import_module(f"tests.families.{name}").pipeline().save_pretrained(tmp_path / "teacher")
    file = tmp_path / "teacher" / part / "model.safetensors"
    tensors = load_file(file)
    lost = next(name for name in tensors if name.endswith(("self_attn.k_proj.weight", "SelfAttention.k.weight")))
    save_file({name: value for name, value in tensors.items() if name != lost}, file, {"format": "pt"})
    teacher = load(resolve(str(tmp_path / "teacher")))
    with pytest.raises(
        UsageError, match=rf"the {part} of .* is not whole: it lacks 1 tensor\(s\), first .*{lost[-8:]}"
    ):
        with_prompts(teacher, ["a"], tmp_path / "conditions", runtimes.start("cpu"), Progress())


def test_an_encoder_of_the_same_size_is_not_taken_for_the_old_one(tmp_path: Path) -> None:
    pipe = import_module("tests.families.pipe_stable_diffusion").pipeline()
    pipe.save_pretrained(tmp_path / "teacher")
    teacher, runtime = load(resolve(str(tmp_path / "teacher"))), runtimes.start("cpu")
    first = with_prompts(teacher, ["a"], tmp_path / "conditions", runtime, Progress()).conditions.rows(
        torch.zeros(1).long()
    )
    weights = tmp_path / "teacher" / "text_encoder" / "model.safetensors"
    size = weights.stat().st_size
    clip_text(pipe.text_encoder.config.hidden_size, seed=1).save_pretrained(weights.parent)
    assert weights.stat().st_size == size
    other = with_prompts(teacher, ["a"], tmp_path / "conditions", runtime, Progress()).conditions.rows(
        torch.zeros(1).long()
    )
    assert not torch.allclose(other["encoder_hidden_states"], first["encoder_hidden_states"])


def test_the_key_holds_the_dtype_that_prompts_are_encoded_in(tmp_path: Path) -> None:
    import_module("tests.families.pipe_stable_diffusion").pipeline().save_pretrained(tmp_path / "teacher")
    teacher = load(resolve(str(tmp_path / "teacher")))
    here = _key(teacher, ["a"], None)
    assert _key(teacher, ["a"], None) == here
    # Any device but a CPU encodes in bfloat16; this one is everywhere.
    assert _key(replace(teacher, denoiser=torch.nn.Module.to(teacher.denoiser, "meta")), ["a"], None) != here


def _cut_short(teacher: Path) -> None:
    file = teacher / "text_encoder" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def _of_another_size(teacher: Path) -> None:
    config = teacher / "text_encoder" / "config.json"
    write_json(config, read_json(config) | {"d_model": 16})


def _without_vocabulary(teacher: Path) -> None:
    (teacher / "tokenizer" / "tokenizer.json").write_text("{}")


def _without_tokenizer(teacher: Path) -> None:
    index = teacher / "model_index.json"
    write_json(index, read_json(index) | {"tokenizer": [None, None]})


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (_cut_short, "cannot be loaded: .*not fully covered"),
        (_of_another_size, "cannot be loaded"),
        (_without_vocabulary, "cannot be loaded"),
        (_without_tokenizer, "cannot encode prompts: it has no tokenizer "),
    ],
)
def test_broken_text_parts_are_refused(tmp_path: Path, broken: Callable[[Path], None], said: str) -> None:
    import_module("tests.families.pipe_pixart").pipeline().save_pretrained(tmp_path / "teacher")
    broken(tmp_path / "teacher")
    teacher = load(resolve(str(tmp_path / "teacher")))
    with pytest.raises(UsageError, match=said):
        with_prompts(teacher, ["a"], tmp_path / "conditions", runtimes.start("cpu"), Progress())


@pytest.mark.parametrize("name", ["pipe_sd3", "pipe_flux", "pipe_stable_diffusion", "pipe_z_image"])
def test_encoders_that_memory_does_not_hold_say_the_same_from_their_files(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import_module(f"tests.families.{name}").pipeline().save_pretrained(tmp_path / "teacher", max_shard_size="40KB")
    reference, runtime = resolve(str(tmp_path / "teacher")), runtimes.start("cpu")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    plain = with_prompts(load(reference), PROMPTS, tmp_path / "plain", runtime, Progress()).conditions
    told, teacher = Told(), load(reference)
    available = types.SimpleNamespace(available=2000)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: available)
    if name == "pipe_sd3":  # as a run does: what was tried before the run encodes
        monkeypatch.setattr(rehearsal, "why_no_image", lambda *_, **__: None)
        whole = rehearsal.rehearse(teacher, told)
        assert list((tmp_path / "scratch").iterdir())
    else:
        whole = None
    placed = with_prompts(teacher, PROMPTS, tmp_path / "placed", runtime, told, None, whole).conditions
    del whole
    gc.collect()
    assert told.notes
    assert all("of free memory: layers stay where there is room for them" in note for note in told.notes)
    assert not list((tmp_path / "scratch").iterdir())  # what the encoders read from leaves with them
    everything = torch.arange(len(PROMPTS) + (plain.null is not None))
    for key, value in plain.rows(everything).items():
        assert torch.equal(placed.rows(everything)[key], value)


def test_prompts_for_evaluation_lie_beside_those_that_are_taught(tmp_path: Path) -> None:
    import_module("tests.families.pipe_sd3").pipeline().save_pretrained(tmp_path / "teacher")
    teacher, runtime = load(resolve(str(tmp_path / "teacher"))), runtimes.start("cpu")
    held_out = ["bab", "aab", "abb"]
    both = with_prompts(teacher, PROMPTS, tmp_path / "both", runtime, Progress(), held_out=held_out)
    alone = with_prompts(teacher, held_out, tmp_path / "alone", runtime, Progress()).conditions
    taught, apart = both.conditions, both.apart.conditions
    assert (taught.count, apart.count, taught.null) == (len(PROMPTS), 3, len(PROMPTS) + 3)
    assert apart.apart is apart and alone.apart is alone
    assert taught.drawn_texts == tuple(PROMPTS) and apart.drawn_texts == tuple(held_out)
    assert apart.digest == alone.digest != taught.digest
    seen = [one.draw(range(200), 7) for one in (taught, apart, alone)]
    assert sorted(set(seen[0].tolist())) == list(range(len(PROMPTS)))
    assert torch.equal(seen[1], len(PROMPTS) + seen[2])
    for name, value in apart.rows(seen[1][:9]).items():
        torch.testing.assert_close(value, alone.rows(seen[2][:9])[name])
    assert [both.conditions.texts[row] for row in seen[1][:9]] == [held_out[row] for row in seen[2][:9]]
