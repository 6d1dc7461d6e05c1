import json
import sys
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image

from benchmarks import demo_latent_teachers, train_demo_latent
from diffcompress.families.flux import FAMILY as FLUX
from diffcompress.sources.reference import DEMO_FOLDER
from tests.jobs.tiny_teacher import run, save_teacher, settings

ROOT = Path(__file__).parents[1]


def script(name: str, *arguments: object) -> str:
    """What benchmarks/NAME prints; in a warm process."""
    done = run([sys.executable, str(ROOT / "benchmarks" / name), *map(str, arguments)])
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_methods_are_compared_by_training_as_the_product_does(tmp_path: Path) -> None:
    small = ["bank.num_samples=4", "bank.sampler_steps=2", "training.batch_size=2", "student.importance=magnitude"]
    sets = [text for value in small for text in ("--set", value)]
    asked = ["--steps", "2", "--seeds", "3", "--arm", "output-kd", "--num-samples", "128", "--sampler-steps", "2"]
    script("compare.py", *asked, *sets, "--curve-points", 1, "--work", tmp_path)
    (row,) = map(json.loads, (tmp_path / "results.jsonl").read_text().splitlines())
    assert (row["arm"], row["seed"], row["steps"], row["last"]["step"]) == ("output-kd", 3, 2, 1)
    assert row["params"] == 30_840
    assert {"fd_demo", "fd_demo_held_out", "agreement", "failed_samples"} <= set(row["metrics"])


def test_runs_end_well_under_kills_full_disks_damage_and_little_memory() -> None:
    """A handful of each; the numbers of docs/reliability.md are those of the whole."""
    told = script("hostile.py", "--few")
    assert told.count("| all kept |") == 2 * 4


def test_students_are_quantised_in_all_their_layers_and_judged_by_what_is_left_of_their_weights(tmp_path: Path) -> None:
    teacher = save_teacher(tmp_path / "teacher")
    asked = ["--teacher", teacher, "--ratio", 0.3, "--steps", 28, "--num-samples", 8, "--sampler-steps", 2]
    asked += [*settings(bank__num_samples=4, evaluation__num_samples=2), "--work", tmp_path]
    script("quantise.py", *asked)
    rows = {row["bits"]: row for row in map(json.loads, (tmp_path / "results.jsonl").read_text().splitlines())}
    assert rows.keys() == {16, 8, 4} and len({row["params"] for row in rows.values()}) == 1
    assert rows[16]["bytes"] == 2 * rows[16]["params"]
    assert rows[8]["bytes"] < 0.55 * rows[16]["bytes"] and rows[4]["bytes"] < 0.32 * rows[16]["bytes"]
    agreement = {bits: row["metrics"]["agreement"] for bits, row in rows.items()}
    assert 0 < abs(agreement[8] - agreement[16]) < 1e-3 < abs(agreement[4] - agreement[16])
    assert script("quantise.py", *asked, "--table").count(f"| {teacher.name} | 0.3 |") == 3


def test_the_script_for_a_gpu_runs_on_a_cpu_with_tiny_models(tmp_path: Path) -> None:
    file = tmp_path / "gpu.json"
    printed = script("gpu.py", "--tiny", "--output", file)
    told = json.loads(file.read_text())
    assert told["tiny"] and told["environment"]["device"] == "cpu"
    rows = {(row["part"], row["what"]): row for row in told["rows"]}
    assert len(rows) == len(told["rows"]) == printed.count("\n") - 2
    assert all({"part", "what", "value", "unit"} <= row.keys() and row["value"] is not None for row in told["rows"])
    assert {part for part, _ in rows} == {
        "ceiling", "demo", "training", "sd15", "sdxl-base", "sd3-medium", "dit-xl-2-256",
    }  # fmt: skip
    for again in ("repeated", "stopped and resumed"):
        assert rows["training", f"{again}: largest change of a weight"]["bit_equal"] is True
    assert rows["training", "first loss, beside that on the CPU"]["relative"] == 0
    assert rows["demo", "agreement"]["samples"] == 4 and rows["demo", "bank"]
    for name in ("sd15", "sdxl-base", "sd3-medium", "dit-xl-2-256"):
        assert rows[name, "waits of the host in a step"]["value"] == 0
        assert rows[name, "operations of a step"]["value"] > 100
        for what in ("teacher's call, eager", "step, fed"):
            assert rows[name, what]["of_ceiling"] > 0
        memory = rows[name, "memory of training, a sample at a time"]
        assert 0.3 < memory["value"] / memory["plan"] < 3
    for name in ("sd15", "dit-xl-2-256"):
        for what in ("teacher's call, compiled", "step, compiled"):
            assert rows[name, what]["of_ceiling"] > 0


def test_what_remains_of_a_pipeline_is_as_the_page_on_releases_says() -> None:
    told = script("parts.py")
    page = (ROOT / "docs" / "release.md").read_text().replace(" %)", "%)")
    rows = [line.strip("| ").split(" | ") for line in told.splitlines()[2:]]
    assert len(rows) == 3
    for name, whole, student, half, without in rows:
        half = "as before: half already" if half == student else half
        assert f"| {name} | {whole} | {student} | {half} | {without}" in page


def test_the_gallery_shows_every_student_beside_its_teacher(tmp_path: Path) -> None:
    teacher, docs = save_teacher(tmp_path / "teacher"), tmp_path / "docs"
    asked = ["--teacher", teacher, "--ratio", 0.3, *settings(), "--work", tmp_path / "work", "--docs", docs]
    script("gallery.py", *asked)
    page = (docs / "gallery.md").read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| ")]
    assert [row[0] for row in rows] == ["ratio", "---", "teacher", "0.3"]
    assert rows[2][:3] == ["teacher", "163,985", "1"]
    with Image.open(docs / "images" / "gallery-teacher.png") as sheet:
        assert sheet.size == (2 * 4 * 8, 2 * 2 * 8)
    (docs / "gallery.md").unlink()
    script("gallery.py", *asked, "--table")
    assert (docs / "gallery.md").read_text(encoding="utf-8") == page


def test_the_doctor_names_no_cause_in_healthy_runs_and_some_in_others() -> None:
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in script("false_alarms.py").splitlines()[2:]]
    assert len(rows) == 4
    assert all(int(runs) > 100 and alarms == "0" for _, runs, alarms, *_ in rows)
    assert sum(int(row[-1]) for row in rows) >= 3


def test_a_teacher_larger_than_memory_is_planned_and_taught_from(tmp_path: Path) -> None:
    config = tmp_path / "tiny.json"
    config.write_text(json.dumps({"_class_name": "FluxTransformer2DModel", **FLUX.tiny_config()}))
    (line,) = script("too_large.py", config, "--ratio", 0.5, "--memory", 1000, "--work", tmp_path).splitlines()
    told = json.loads(line)
    assert told["teacher"] == "tiny" and told["card"] == "RTX 4060"
    assert all(told[part] > 0 for part in ("bank", "student-init", "stage-1-lift", "stage-2-place", "resident_gb"))
    assert not (tmp_path / "tiny").exists()


@pytest.mark.slow
def test_students_are_judged_after_every_round(tmp_path: Path) -> None:
    quick = [text for value in ("bank.num_samples=8", "bank.sampler_steps=2") for text in ("--set", value)]
    script("rounds.py", "--rounds", 2, "--steps", 4, "--num-samples", 128, *quick, "--work", tmp_path)
    first, second = map(json.loads, (tmp_path / "results.jsonl").read_text().splitlines())
    assert (first["steps"], second["steps"]) == (4, 8)
    assert 0 < second["error"] != first["error"] > 0 and 0 < second["fd"] != first["fd"] > 0
    *_, above, last = script("rounds.py", "--table", "--work", tmp_path).splitlines()
    assert above.startswith("| `demo` 0.05, 0 | 4 | ") and last.startswith("|  | 8 | ") and last.count(" %)") == 2


def test_latent_teachers_go_on_from_their_checkpoints(tmp_path):
    """And the second DiT, which is not embedded, learns by another schedule."""
    vae = AutoencoderKL.from_pretrained(DEMO_FOLDER / "dit" / "vae")
    clean = torch.randn(64, 4, 14, 14, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(64) % 10
    whole, stopped = (demo_latent_teachers.build("dit-cosine", vae) for _ in range(2))
    for teacher, folder, epochs in ((whole, "whole", (2,)), (stopped, "stopped", (1, 2))):
        (tmp_path / folder).mkdir()
        for until in epochs:
            train_demo_latent.train(teacher, clean, labels, tmp_path / folder, until)
    assert train_demo_latent.load_average(stopped, tmp_path / "stopped") == 4
    assert isinstance(whole, demo_latent_teachers.Dit)
    assert whole.scheduler.config["beta_schedule"] == "squaredcos_cap_v2"
    begun = demo_latent_teachers.build("dit-cosine", vae).model.state_dict()
    assert any(not torch.equal(value, begun[name]) for name, value in stopped.model.state_dict().items())
