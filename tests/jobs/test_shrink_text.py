"""shrink of a text-conditional teacher: whose prompts it is asked with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from PIL import Image
from safetensors.torch import load_file

import diffcompress
from diffcompress.errors import UsageError
from diffcompress.images import prompts
from diffcompress.images.grammar import grammar
from diffcompress.pipeline.conditions import Conditions
from diffcompress.pipeline.stored_rows import stored_table
from diffcompress.records.fingerprints import weight_hashes
from diffcompress.records.provenance import Provenance
from diffcompress.records.run_files import read_json
from diffcompress.records.run_folder import RunFolder
from diffcompress.report.card import usage
from diffcompress.sources.resolve import resolve
from tests import tiny
from tests.families import pipe_dit, pipe_pixart, pipe_sd3
from tests.telling import Told

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
SHORT = (*tiny.SHORTEST, "student.importance=magnitude")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("text") / "teacher"
    pipe_pixart.pipeline().save_pretrained(folder)
    return str(folder)


def images(folder: Path, captions: list[str | None]) -> str:
    folder.mkdir()
    rows = []
    for number, text in enumerate(captions):
        grey = np.full((16, 16), 40 * number, np.uint8)
        Image.fromarray(grey).save(folder / f"{number}.png")
        rows.append(json.dumps({"file_name": f"{number}.png", "text": text}))
    (folder / "metadata.jsonl").write_text("\n".join(rows))
    return str(folder)


def test_captions_of_the_users_images_are_the_prompts(teacher: str, tmp_path: Path) -> None:
    data, told = images(tmp_path / "own", ["a cat", "a dog", "a cat", None]), Told()
    unused = str(tmp_path / "p.txt")
    run = RunFolder(tmp_path / "run")
    asked = {"ratio": 0.5, "output": str(run.path), "overrides": SHORT}
    diffcompress.shrink(teacher, data=data, prompts=unused, progress=told, **asked)
    assert read_json(run.bank / "bank.json")["num_samples"] == 3
    assert [text for text in told.warnings if "--prompts" in text] == [
        f"--prompts {unused} is not used: the captions of --data are the prompts"
    ]


def test_images_without_captions_are_refused(teacher: str, tmp_path: Path) -> None:
    data = images(tmp_path / "own", [None, None])
    with pytest.raises(UsageError, match=r"no image of .* has a caption"):
        diffcompress.shrink(teacher, ratio=0.5, data=data, output=str(tmp_path / "run"), overrides=SHORT)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("whose", ["teacher", "run"])
def test_a_pipeline_without_one_of_its_text_encoders(
    whose: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the teacher comes without it, and where the run leaves it out and halves the others."""
    absent = {"text_encoder_3": None, "tokenizer_3": None}
    parts = pipe_sd3._parts() | (absent if whose == "teacher" else {})
    StableDiffusion3Pipeline(**parts).save_pretrained(tmp_path / "teacher")
    run = RunFolder(tmp_path / "run")
    without = ("student.without=[text_encoder_3]", "export.half_parts=true") if whose == "run" else ()
    asked = {"params": 40_000, "output": str(run.path)}
    result = diffcompress.shrink(str(tmp_path / "teacher"), overrides=(*SHORT, *without), **asked)
    ours, theirs = (
        sum(file.stat().st_size for file in folder.glob("*/*")) for folder in (run.pipeline, tmp_path / "teacher")
    )
    assert result["whole"] == {"bytes": ours, "teacher_bytes": theirs, "ratio": ours / theirs}
    index = read_json(run.pipeline / "model_index.json")
    assert all(index[part] == [None, None] and not (run.pipeline / part).exists() for part in absent)
    card = (run.pipeline / "README.md").read_text()
    assert "| Whole pipeline on disk |" in card and "It goes without text_encoder_3 and tokenizer_3." in card
    assert ("both asked without text_encoder_3" in card) == (whose == "run")
    # CLIP's 12 tokens, then zeros for T5's.
    encoded = stored_table(sorted(run.conditions.glob("*/shard-*.safetensors")))["encoder_hidden_states"]
    rows = encoded[torch.arange(encoded.shape[0])]
    assert rows[:, :12].any() and not rows[:, 12:].any()
    weights = ["vae/diffusion_pytorch_model.safetensors", "text_encoder_2/model.safetensors"]
    stored = [{value.dtype for value in load_file(run.pipeline / file).values()} for file in weights]
    assert stored == [{torch.float16 if whose == "run" else torch.float32}] * 2
    assert ("half precision rounds both" in card) == (whose == "run")
    if whose == "run":
        with pytest.raises(UsageError, match=r"recipe\.student\.without\.0 was 'text_encoder_3', now None"):
            diffcompress.shrink(str(tmp_path / "teacher"), overrides=SHORT, **asked)
    assert read_json(run.proof)["image_difference"] is not None
    provenance = read_json(run.pipeline / "diffcompress.json")
    schema = read_json(Path(__file__).parents[2] / "docs" / "schemas" / "provenance.schema.json")
    jsonschema.Draft202012Validator(schema).validate(provenance)
    monkeypatch.chdir(tmp_path)
    exec(usage(Provenance.model_validate(provenance), str(run.pipeline)), {})
    assert (tmp_path / "sample.png").is_file()


def test_a_finished_run_may_have_its_parts_halved_later(tmp_path: Path) -> None:
    pipe_dit.pipeline().save_pretrained(tmp_path / "teacher")
    run, vae = RunFolder(tmp_path / "run"), "vae/diffusion_pytorch_model.safetensors"

    def asked(**changes: str) -> dict[str, Any]:
        half = tuple(f"export.{name}={value}" for name, value in changes.items())
        overrides = (*tiny.SHORTEST, "student.importance=magnitude", *half)
        return diffcompress.shrink(str(tmp_path / "teacher"), params=84_800, output=str(run.path), overrides=overrides)

    def of(folder: Path, name: str = vae) -> bytes:
        return (folder / name).read_bytes()

    first = asked()
    assert of(run.pipeline) == of(tmp_path / "teacher")
    denoiser, measured = of(run.pipeline, WEIGHTS), run.metrics.read_bytes()
    second = asked(half_parts="true")
    assert {value.dtype for value in load_file(run.pipeline / vae).values()} == {torch.float16}
    provenance, proof = read_json(run.provenance), read_json(run.proof)
    assert provenance["files"] == proof["files"] == weight_hashes(run.pipeline)
    assert proof["passed"] and proof["image_difference"] is not None
    assert (of(run.pipeline, WEIGHTS), run.metrics.read_bytes()) == (denoiser, measured)
    assert second["whole"]["bytes"] < first["whole"]["bytes"]
    assert "half precision where it was stored in more" in run.report_html.read_text()
    written = run.proof.stat().st_mtime_ns
    assert asked(half_parts="true")["whole"] == second["whole"] and run.proof.stat().st_mtime_ns == written
    assert not run.exports.exists()
    assert asked()["whole"]["bytes"] == pytest.approx(first["whole"]["bytes"], abs=200)  # the card lies elsewhere
    assert of(run.pipeline) == of(tmp_path / "teacher")


def test_students_are_judged_by_prompts_that_they_were_not_taught(teacher: str, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    asked = (*SHORT, "bank.num_prompts=5")
    diffcompress.shrink(teacher, ratio=0.5, output=str(run.path), overrides=asked)
    reference = resolve(teacher)
    held_out = prompts.held_out_for(reference, grammar(5))
    digest = Conditions(count=len(held_out), texts=tuple(held_out)).digest
    assert read_json(run.metrics)["protocol"]["conditions"] == digest
    taught = torch.cat([load_file(file)["condition"] for file in sorted(run.bank.glob("shard-*.safetensors"))])
    assert taught.min() >= 0 and taught.max() < 5
    again = diffcompress.evaluate(run.pipeline, teacher=teacher, num_samples=2, sampler_steps=1, output=tmp_path / "e")
    assert again["protocol"]["conditions"] == digest
