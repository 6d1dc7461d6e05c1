"""A teacher's LoRA adapter in its student: the layers that are whole, under the student's names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import diffcompress
from diffcompress.errors import UsageError
from diffcompress.export.adapter import check_adapter, export_adapter
from diffcompress.families import registry
from diffcompress.families.shapes import shapes
from diffcompress.records.report import AdaptersFit
from diffcompress.student.adapters import fitting
from tests import tiny
from tests.families import pipe_sd3

SD3 = registry.find("SD3Transformer2DModel")
CONFIG = {**SD3.tiny_config(), "num_layers": 6, "dual_attention_layers": []}
STUDENT = SD3.shrunk_config(CONFIG, {"heads": 4, "head_dim": 8, "num_layers": 3})
THEIRS, OURS = (shapes("SD3Transformer2DModel", config).tensors for config in (CONFIG, STUDENT))
FITS = fitting(SD3.tensor_rules(CONFIG, STUDENT))
LAYERS = [f"transformer_blocks.{block}.attn.to_q" for block in range(6)]
KEPT = {theirs: ours for ours, theirs in FITS.items() if theirs in LAYERS}


def adapter(
    folder: Path, prefix: str = "transformer.", blocks: int = 6, more: dict[str, torch.Tensor] | None = None
) -> Path:
    """Of rank 2, in the queries of the first blocks, with one tensor of an encoder and peft's config in the header."""
    tensors = {"text_encoder.text_model.q_proj.lora_A.weight": torch.ones(2, 2), **(more or {})}
    for number, layer in enumerate(LAYERS[:blocks]):
        rows, columns = THEIRS[f"{layer}.weight"]
        tensors[f"{prefix}{layer}.lora_A.weight"] = torch.full((2, columns), number + 1.0)
        tensors[f"{prefix}{layer}.lora_B.weight"] = torch.full((rows, 2), 1.0)
        tensors[f"{prefix}{layer}.alpha"] = torch.tensor(float(number))
    config = {
        "transformer.r": 2,
        "transformer.target_modules": [*LAYERS, "to_k"],
        "transformer.rank_pattern": {LAYERS[5]: 2},
    }
    save_file(tensors, folder / "mine.safetensors", {"lora_adapter_metadata": json.dumps(config), "format": "pt"})
    return folder / "mine.safetensors"


@pytest.mark.parametrize("prefix", ["transformer.", "base_model.model.", ""])
def test_the_layers_that_are_left_bring_their_own_weights(tmp_path: Path, prefix: str) -> None:
    file = adapter(tmp_path, prefix)
    check_adapter(file, FITS, OURS)
    told = export_adapter(file, FITS, OURS, tmp_path / "adapter.safetensors")
    assert told == {"file": "adapter.safetensors", "layers": 3, "left_out": 3} and len(KEPT) == 3
    assert any(ours != theirs for theirs, ours in KEPT.items())  # or names would do
    before, found = load_file(file), load_file(tmp_path / "adapter.safetensors")
    expected = {
        f"{prefix}{ours}.{rest}": f"{prefix}{theirs}.{rest}"
        for theirs, ours in KEPT.items()
        for rest in ("lora_A.weight", "lora_B.weight", "alpha")
    }
    expected["text_encoder.text_model.q_proj.lora_A.weight"] = "text_encoder.text_model.q_proj.lora_A.weight"
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[ours], before[theirs]) for ours, theirs in expected.items())
    with safe_open(tmp_path / "adapter.safetensors", framework="pt") as opened:
        config = json.loads(opened.metadata()["lora_adapter_metadata"])
    assert set(KEPT.values()) | {"to_k"} <= set(config["transformer.target_modules"])
    assert config["transformer.rank_pattern"] == {KEPT.get(LAYERS[5], LAYERS[5]): 2}


def test_what_cannot_be_an_adapter_of_the_teacher_is_named(tmp_path: Path) -> None:
    def refused(file: Path, layers: dict[str, str] = FITS) -> str:
        with pytest.raises(UsageError) as told:
            check_adapter(file, layers, OURS)
        return told.value.message

    assert "is no file" in refused(tmp_path)
    assert "cannot be read as safetensors" in refused(Path(__file__))
    assert "none of its 6 layers is a whole layer" in refused(adapter(tmp_path), {})
    ours = next(iter(KEPT.values()))
    theirs = FITS[ours]
    assert "is of another model" in refused(adapter(tmp_path, more={f"{theirs}.lora_A.weight": torch.ones(2, 3)}))
    kohya = adapter(tmp_path, more={"lora_unet_mid_attn_to_q": torch.ones(1)})
    assert "a tensor 'lora_unet_mid_attn_to_q', which diffusers does not name so" in refused(kohya)
    file = adapter(tmp_path)
    save_file(load_file(file), file, {"lora_adapter_metadata": "{"})
    assert "is no JSON" in refused(file)


def test_plan_and_shrink_refuse_it_before_anything_is_made_where_widths_changed(tmp_path: Path) -> None:
    pipe_sd3.pipeline().save_pretrained(tmp_path / "teacher")
    asked = {"params": 49_416, "overrides": (*tiny.SHORTEST, f"export.adapter={adapter(tmp_path)}")}
    with pytest.raises(UsageError, match="does not fit: none of its 6 layers is a whole layer of the student"):
        diffcompress.plan(tmp_path / "teacher", **asked)
    with pytest.raises(UsageError, match="does not fit"):
        diffcompress.shrink(tmp_path / "teacher", output=tmp_path / "run", **asked)
    assert not (tmp_path / "run").exists()


def test_the_report_counts_by_block() -> None:
    rows = AdaptersFit.by_block(FITS)
    blocks = {row.student: row for row in rows}
    for number in range(3):
        row = blocks[f"transformer_blocks.{number}"]
        assert FITS[f"{row.student}.attn.to_q"] == f"{row.teacher}.attn.to_q"
    assert blocks["pos_embed"].teacher == "pos_embed" and sum(row.layers for row in rows) == len(FITS)


def test_a_student_that_lost_depth_alone_comes_with_it(tmp_path: Path) -> None:
    pipe_sd3.pipeline().save_pretrained(tmp_path / "teacher")
    file = adapter(tmp_path, blocks=4)

    def made() -> dict:
        """Its layers by what is in them: the number of the teacher's block."""
        diffcompress.shrink(
            tmp_path / "teacher",
            params=83_776,  # two of four blocks
            output=tmp_path / "run",
            overrides=(*tiny.SHORTEST, "student.importance=magnitude", f"export.adapter={file}"),
        )
        found = load_file(tmp_path / "run" / "exports" / "adapter.safetensors")
        return {
            name.split(".")[2]: value.mean().item()
            for name, value in found.items()
            if "lora_A" in name and "blocks" in name
        }

    plan = json.loads((made(), tmp_path / "run" / "plan.json")[1].read_text())
    theirs = {
        ours.split(".")[1]: int(plan["adapters"][ours].split(".")[1])
        for ours in plan["adapters"]
        if ours.endswith("attn.to_q")
    }
    assert made() == {ours: number + 1.0 for ours, number in theirs.items()} and len(theirs) == 2
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["exports"]["adapter"]["layers"] == report["exports"]["adapter"]["left_out"] == 2
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Where LoRA adapters of the teacher fit" in page and "2 layers of the adapter" in page
    save_file({name: 2 * value for name, value in load_file(file).items()}, file)  # trained on
    assert made() == {ours: 2 * (number + 1.0) for ours, number in theirs.items()}
