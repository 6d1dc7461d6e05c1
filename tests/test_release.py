"""examples/release.sh and docs/release.md against a Hub on the loopback: every exit code, every schema."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import psutil
import pytest
from huggingface_hub import ModelCard

from diffcompress.records.schemas import SCHEMAS as SCHEMAS_OF_RECORDS
from diffcompress.records.schemas import schema
from tests import tiny, warm
from tests.cli.command import run as cli
from tests.export.loopback import point_client_at
from tests.families import pipe_stable_diffusion
from tests.hub_server import HubServer
from tests.jobs.tiny_teacher import save_teacher, settings
from tests.tutorials import command, missing

ROOT = Path(__file__).parent.parent
SCHEMAS = ROOT / "docs" / "schemas"
REPO = "someone/small"
OPTIONS = settings(stages__0__num_steps=400, stages__1__num_steps=100)


def validate(name: str, value: object) -> None:
    told = json.loads((SCHEMAS / f"{name}.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator(told).validate(value)


@dataclass
class Release:
    """A workshop: the script, its teacher and the Hub that it pushes to."""

    folder: Path
    teacher: Path
    hub: HubServer
    bin: Path
    client: dict[str, str]

    @property
    def run(self) -> Path:
        return self.folder / "out" / "run"

    def steps(self) -> int:
        """Logged so far: one line each."""
        return sum(len(log.read_text().splitlines()) for log in self.run.glob("stage-*/metrics.jsonl"))

    def start(self, **variables: str) -> subprocess.Popen[str]:
        own = {
            "TEACHER": str(self.teacher),
            "RATIO": "0.3",
            "MAX_TIME": "3s",
            "OUT": str(self.folder / "out"),
            "REPO": REPO,
            "LEAST_AGREEMENT": "0.01",
            "SHRINK_OPTIONS": " ".join(OPTIONS),
            "EVALUATE_OPTIONS": "--num-samples 4 --sampler-steps 2",
            "PATH": os.pathsep.join(map(str, (self.bin, Path(sys.executable).parent, os.environ["PATH"]))),
            "OMP_NUM_THREADS": "1",
        }
        env = os.environ | self.client | own | variables
        page = command("release-pipeline", "release.sh").words
        assert {word.partition("=")[0] for word in page[:-2]} <= own.keys()
        script = [page[-2], str(ROOT / page[-1])]
        pipe = subprocess.PIPE
        return subprocess.Popen(
            script, env=env, cwd=self.folder, stdout=pipe, stderr=pipe, text=True, start_new_session=True
        )

    def signal_when(
        self, script: subprocess.Popen[str], condition: Callable[[], bool], number: int, *, to_all: bool = False
    ) -> None:
        """To the diffcompress that the script is running, or to the script and all that it runs, as `timeout` does."""
        deadline = time.monotonic() + 240
        while not condition():
            assert script.poll() is None, script.communicate()
            assert time.monotonic() < deadline, "the condition never held"
            time.sleep(0.01)
        if to_all:
            os.killpg(script.pid, number)
            return
        (child,) = psutil.Process(script.pid).children()
        child.send_signal(number)

    def command(self, *more: str) -> list[str]:
        """The shrink of the script."""
        target = ["--ratio", "0.3", "--max-time", "3s", "--output", str(self.run)]
        return ["shrink", str(self.teacher), *target, *OPTIONS, "--json", "--quiet", *more]


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Release]:
    folder = tmp_path_factory.mktemp("release")
    teacher = save_teacher(folder / "teacher")
    (teacher / "README.md").write_text("---\nlicense: mit\n---\n# A tiny teacher\n")
    (folder / "bin").mkdir()
    warm.script(str(folder / "bin" / "diffcompress"), "-m", "diffcompress")
    with HubServer(folder / "hub") as hub:
        with warm.started(str(folder / "bin"), hub.environment(folder / "home")) as client:
            yield Release(folder, teacher, hub, folder / "bin", client)


@pytest.fixture(scope="module")
def released(release: Release) -> tuple[Release, str]:
    """Interrupted (130), stopped as a whole (75), stopped within (75, which the script mends itself), finished (0)."""
    first = release.start()
    release.signal_when(first, lambda: release.steps() >= 1, signal.SIGINT)
    _, told = first.communicate(timeout=240)
    assert first.returncode == 130, told
    assert "run this script again" in told
    assert not (release.run / "pipeline").exists()
    before = release.steps()
    ended = release.start()
    release.signal_when(ended, lambda: release.steps() > before, signal.SIGTERM, to_all=True)
    _, told = ended.communicate(timeout=240)
    assert ended.returncode == 75, told
    before = release.steps()
    second = release.start()
    release.signal_when(second, lambda: release.steps() > before, signal.SIGTERM)
    out, told = second.communicate(timeout=240)
    assert second.returncode == 0, told
    assert "shrink was stopped, going on (1 of 3)" in told
    return release, out


def test_the_script_releases_through_every_stop(released: tuple[Release, str]) -> None:
    release, out = released
    assert not missing(command("release-pipeline", "release.sh").shown, out)
    assert re.findall(r"release: (\w+) done", out) == ["plan", "shrink", "evaluate", "report", "push"]
    files = release.hub.files(REPO)
    assert release.hub.repositories[REPO].private
    pipeline = release.run / "pipeline"
    assert files == {f.relative_to(pipeline).as_posix(): f.read_bytes() for f in pipeline.rglob("*") if f.is_file()}
    card = ModelCard(files["README.md"].decode())
    assert card.data.get("license") == "mit"
    assert card.data.get("library_name") == "diffusers"
    assert "| `agreement>0.01` |" in card.text
    told = json.loads((release.folder / "out" / "push.json").read_text())
    assert told["pushed"]["commit"] in out
    assert "<testsuite" in (release.folder / "out" / "gates.xml").read_text()
    assert sum("/commit/" in request for request in release.hub.requests) == 1


def test_quiet_leaves_warnings_alone_on_stderr(released: tuple[Release, str]) -> None:
    lines = [line for log in (released[0].folder / "out").glob("*.log") for line in log.read_text().splitlines()]
    assert [line for line in lines if not line.startswith(("warning: ", "hint: "))] == []


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("plan", "plan.json"),
        ("shrink", "shrink.json"),
        ("shrink", "push.json"),
        ("evaluate", "evaluate.json"),
        ("evaluate", "run/evaluation/evaluation.json"),
        ("report", "report.json"),
        ("report", "run/report.json"),
        ("provenance", "run/pipeline/diffcompress.json"),
    ],
)
def test_what_it_left_fits_the_schemas(released: tuple[Release, str], name: str, file: str) -> None:
    path = released[0].folder / "out" / file
    validate(name, json.loads(path.read_text(encoding="utf-8")))
    assert subprocess.run([sys.executable, "-m", "json.tool", str(path)], capture_output=True).returncode == 0
    damaged = json.loads(path.read_text(encoding="utf-8"))
    for one in (damaged.pop(next(iter(damaged))), None):
        with pytest.raises(jsonschema.ValidationError):
            validate(name, damaged if one is not None else [{}])


def test_a_missed_gate_is_3(released: tuple[Release, str]) -> None:
    release, _ = released
    options = ["--teacher", release.teacher, "--num-samples", 4, "--sampler-steps", 2, "--json", "--quiet"]
    gates = ["--gate", "params<1", "--gate", "agreement>0.01", "--junit", release.folder / "missed.xml"]
    outcome = cli("evaluate", release.run / "pipeline", *options, *gates, "--output", release.folder / "missed")
    assert outcome.code == 3
    told = json.loads(outcome.stdout)
    validate("evaluate", told)
    assert [gate["passed"] for gate in told["gates"]] == [False, True]
    assert "<failure" in (release.folder / "missed.xml").read_text()


def test_a_failed_push_is_1_and_the_same_command_mends_it(
    released: tuple[Release, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    release, _ = released
    point_client_at(release.hub, monkeypatch)
    weights = release.run / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors"
    before = weights.stat().st_mtime_ns
    release.hub.fail("POST */commit/*", 503, headers={"Retry-After": "0"})
    outcome = cli(*release.command("--push-to-hub", "someone/again"))
    assert outcome.code == 1
    assert "someone/again" in outcome.stderr
    assert "same command again pushes it" in outcome.stderr
    assert outcome.stdout == ""
    release.hub.mend()
    outcome = cli(*release.command("--push-to-hub", "someone/again"))
    assert outcome.code == 0, outcome.stderr
    told = json.loads(outcome.stdout)
    validate("shrink", told)
    assert told["pushed"]["repo"] == "someone/again"
    assert weights.stat().st_mtime_ns == before
    assert "README.md" in release.hub.files("someone/again")


def test_a_finished_run_can_be_asked_for_another_format(released: tuple[Release, str]) -> None:
    release, _ = released
    weights = release.run / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors"
    before = weights.stat().st_mtime_ns
    outcome = cli(*release.command("--set", "export.single_file=true"))
    assert outcome.code == 0, outcome.stderr
    assert weights.stat().st_mtime_ns == before
    snippet = re.search(r"```python\n(.*?)```", (ROOT / "docs" / "release.md").read_text(), re.DOTALL)[1]
    found: dict[str, Any] = {}
    exec(snippet.replace("run/exports", str(release.run / "exports")), found)
    assert found["denoiser"].num_parameters() == json.loads(outcome.stdout)["student"]["params"]
    validate("report", json.loads((release.run / "report.json").read_text(encoding="utf-8")))
    assert "denoiser.safetensors" in (release.run / "report.html").read_text(encoding="utf-8")


def test_an_unknown_licence_is_4_before_anything_is_made(tmp_path: Path) -> None:
    teacher = save_teacher(tmp_path / "teacher")
    options = ["--ratio", "0.3", "--output", tmp_path / "run", "--push-to-hub", REPO]
    outcome = cli("shrink", teacher, *options)
    assert outcome.code == 4
    assert "licence" in outcome.stderr
    assert "--license" in outcome.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("variables", "told"),
    [({"HF_TOKEN": ""}, "HF_TOKEN"), ({}, "licence is unknown")],
    ids=["no token", "no licence"],
)
def test_the_script_refuses_a_push_before_it_trains(
    variables: dict[str, str], told: str, release: Release, tmp_path: Path
) -> None:
    own = {"TEACHER": str(save_teacher(tmp_path / "teacher")), "OUT": str(tmp_path / "out")}
    script = release.start(**own | variables)
    _, errors = script.communicate(timeout=240)
    assert script.returncode == 4
    assert told in errors
    assert not (tmp_path / "out" / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["plan", "demo", "--ratio", "2"], 2, "not between 0 and 1"),
        (["shrink", "demo", "--ratio", "0.05", "--public"], 2, "--push-to-hub"),
        (["shrink", "demo", "--ratio", "0.05", "--push-to-hub", "nowhere"], 2, "owner/name"),
        (["plan", "demo", "--ratio", "0.0001"], 5, "hint:"),
    ],
)
def test_codes_2_and_5(
    arguments: list[str], code: int, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = cli(*arguments)
    assert outcome.code == code, outcome.stderr
    assert told in outcome.stderr
    assert outcome.stdout == ""
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("plan", ["plan", "demo", "--ratio", "0.1,0.0001"]),
        ("recipes", ["recipes", "list"]),
        ("recipe", ["recipes", "show", "demo"]),
        ("env", ["env"]),
    ],
)
def test_other_commands_fit_their_schemas(name: str, arguments: list[str]) -> None:
    outcome = cli(*arguments, "--json")
    assert outcome.code == 0, outcome.stderr
    validate(name, json.loads(outcome.stdout))


def test_schemas_are_schemas_and_documented() -> None:
    documented = (ROOT / "docs" / "release.md").read_text(encoding="utf-8")
    files = sorted(SCHEMAS.glob("*.json"))
    assert {file.name.partition(".")[0] for file in files} == set(SCHEMAS_OF_RECORDS)
    for file in files:
        jsonschema.Draft202012Validator.check_schema(json.loads(file.read_text(encoding="utf-8")))
        assert f"(schemas/{file.name})" in documented


@pytest.mark.parametrize("name", SCHEMAS_OF_RECORDS)
def test_a_schema_is_its_record(name: str) -> None:
    told = json.loads((SCHEMAS / f"{name}.schema.json").read_text(encoding="utf-8"))
    assert told == schema(name), "a record has changed: run make schemas"


def test_links_and_options_of_the_page_exist() -> None:
    page = (ROOT / "docs" / "release.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", page)
    assert len(links) > 8
    for link in links:
        assert (ROOT / "docs" / link).exists(), link
    options = set(re.findall(r"--[a-z-]+", cli("shrink", "--help").stdout + cli("evaluate", "--help").stdout))
    assert set(re.findall(r"`(--[a-z-]+)", page)) <= options


def test_the_images_that_other_judges_take_are_drawn_as_the_page_says(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    pipe_stable_diffusion.pipeline().save_pretrained(tmp_path / "run" / "pipeline")
    (tmp_path / "prompts.txt").write_text("ab\nba\n", encoding="utf-8")
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True)
    told = json.loads((tmp_path / "images.json").read_text(encoding="utf-8"))
    assert told == {"ab": "images/00000.png", "ba": "images/00001.png"}
    first, second = ((tmp_path / file).read_bytes() for file in told.values())
    assert first.startswith(b"\x89PNG") and second.startswith(b"\x89PNG") and first != second


def test_the_page_says_how_to_quantise_and_every_layer_is(tmp_path: Path) -> None:
    """In a process of its own: the library warns of other things."""
    page = (ROOT / "docs" / "release.md").read_text(encoding="utf-8")
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "optimum" in block)
    tiny.save_pipeline(tmp_path / "run" / "pipeline")
    code += """
from torch import nn
from optimum.quanto import QTensor
layers = [one for one in denoiser.modules() if isinstance(one, (nn.Linear, nn.Conv2d))]
assert len(layers) > 20 and all(isinstance(one.weight, QTensor) for one in layers)
assert len(pipeline(batch_size=2, num_inference_steps=2).images) == 2
"""
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True)
