"""Pushing a finished run to a Hub on the loopback: what arrives, who is refused, and that a failure loses nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import diffusers
import huggingface_hub
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from diffcompress.errors import AccessError, DiffCompressError, ExitStatus, UsageError
from diffcompress.export import hub
from diffcompress.export.provenance import relicense
from diffcompress.export.weights import export_pipeline
from diffcompress.pipeline.load import LoadedPipeline
from diffcompress.records.run_files import read_json
from diffcompress.records.run_folder import RunFolder
from diffcompress.report.page import write_report
from diffcompress.runtime import Progress
from diffcompress.sources.licence import Licence, stated_by_user
from tests.export.loopback import point_client_at
from tests.hub_server import HubServer
from tests.report.synthetic_run import write_run

MIT = Licence("mit", "the teacher's model card")
NOW = {"Retry-After": "0"}


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with HubServer(tmp_path / "hub") as opened:
        point_client_at(opened, monkeypatch)
        yield opened


@pytest.fixture
def run(tmp_path: Path, teacher: LoadedPipeline, student: diffusers.UNet2DModel) -> RunFolder:
    found = write_run(tmp_path / "run")
    export_pipeline(student, teacher, found, dtype=torch.float32, provenance={"seed": 7, "license": "mit"})
    return found


def everything(folder: Path) -> dict[str, bytes]:
    return {f.relative_to(folder).as_posix(): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def commits(server: HubServer) -> int:
    return sum("/commit/" in request for request in server.requests)


def test_one_commit_with_weights_and_card_private(server: HubServer, run: RunFolder) -> None:
    pushed = hub.push(run, "someone/small", public=False)
    files = server.files("someone/small")
    assert commits(server) == 1
    assert files == everything(run.pipeline)
    assert set(files) >= {
        "README.md",
        "diffcompress.json",
        "model_index.json",
        "unet/diffusion_pytorch_model.safetensors",
    }
    assert server.repositories["someone/small"].private
    assert pushed.to_json() == read_json(run.pushed)
    assert not pushed.public
    assert pushed.commit == server.repositories["someone/small"].refs["main"]
    card = ModelCard(files["README.md"].decode())
    assert card.data.get("license") == "mit"
    assert 'from_pretrained("someone/small")' in card.text
    assert str(run.path.parent) not in json.dumps({name: content.decode("latin1") for name, content in files.items()})


def test_what_was_pushed_loads_from_there(server: HubServer, run: RunFolder, tmp_path: Path) -> None:
    hub.push(run, "someone/small", public=False)
    there = tmp_path / "downloaded"
    for path, content in server.files("someone/small").items():
        (there / path).parent.mkdir(parents=True, exist_ok=True)
        (there / path).write_bytes(content)
    pipeline = diffusers.DiffusionPipeline.from_pretrained(there)
    name = "unet/diffusion_pytorch_model.safetensors"
    for key, value in load_file(run.pipeline / name).items():
        assert torch.equal(pipeline.unet.state_dict()[key], value)


def test_public_only_when_said(server: HubServer, run: RunFolder) -> None:
    assert hub.push(run, "someone/open", public=True).public
    assert not server.repositories["someone/open"].private
    with pytest.raises(AccessError, match="public") as caught:
        hub.check("someone/open", public=False, licence=MIT)
    assert "--public" in caught.value.hint
    hub.check("someone/open", public=True, licence=MIT)


def test_a_private_repository_stays_private_and_says_so(server: HubServer, run: RunFolder) -> None:
    class Told(Progress):
        warnings: list[str] = []

        def warn(self, text: str) -> None:
            self.warnings.append(text)

    hub.push(run, "someone/small", public=False)
    assert not hub.push(run, "someone/small", public=True, progress=Told()).public
    assert "stays private" in Told.warnings[0]


def test_pushing_again_changes_nothing(server: HubServer, run: RunFolder) -> None:
    first = hub.push(run, "someone/small", public=False)
    write_report(run)
    before = server.files("someone/small")
    assert everything(run.pipeline) == before
    assert hub.push(run, "someone/small", public=False).commit == first.commit


def test_the_report_says_where_it_went_until_the_weights_change(server: HubServer, run: RunFolder) -> None:
    hub.push(run, "someone/small", public=False)
    pushed = write_report(run).pushed
    assert pushed is not None and pushed.repo == "someone/small"
    assert "someone/small" in run.report_html.read_text()
    record = read_json(run.pipeline / "diffcompress.json")
    (run.pipeline / "diffcompress.json").write_text(json.dumps(record | {"files": {"unet/other.safetensors": "0"}}))
    assert write_report(run).pushed is None


@pytest.mark.parametrize(
    ("pattern", "status"),
    [
        ("POST /api/repos/create", 500),
        ("POST */preupload/*", 429),
        ("POST */commit/*", 503),
        ("PUT /lfs/*", 500),
        ("POST */validate-yaml", 502),
    ],
)
def test_a_failing_hub_is_asked_again(server: HubServer, run: RunFolder, pattern: str, status: int) -> None:
    server.fail(pattern, status, times=1, headers=NOW)
    hub.push(run, "someone/small", public=False)
    assert server.files("someone/small") == everything(run.pipeline)


@pytest.mark.parametrize(
    ("pattern", "status", "code"),
    [
        ("POST */commit/*", 503, ExitStatus.RUN_FAILED),
        ("POST */commit/*", 403, ExitStatus.NO_ACCESS),
        ("POST /api/repos/create", 401, ExitStatus.NO_ACCESS),
    ],
)
def test_a_failed_push_loses_nothing_and_can_be_repeated(
    server: HubServer, run: RunFolder, pattern: str, status: int, code: ExitStatus
) -> None:
    hub.push(run, "someone/other", public=False)
    weights = (run.pipeline / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    run.pushed.unlink()
    server.fail(pattern, status, headers=NOW)
    with pytest.raises(DiffCompressError, match="someone/small") as caught:
        hub.push(run, "someone/small", public=False)
    assert caught.value.exit_status == code
    assert "same command again pushes it" in caught.value.hint
    assert not run.pushed.exists()
    assert (run.pipeline / "unet" / "diffusion_pytorch_model.safetensors").read_bytes() == weights
    server.mend()
    hub.push(run, "someone/small", public=False)
    assert server.files("someone/small") == everything(run.pipeline)


def test_the_hub_s_reasons_are_told(server: HubServer, run: RunFolder) -> None:
    server.fail("POST */validate-yaml", 400, content={"errors": [{"message": '"license" must be one of [mit]'}]})
    with pytest.raises(DiffCompressError, match=r'push to .* failed: .*"license" must be one of \[mit\]') as caught:
        hub.push(run, "someone/small", public=False)
    assert "\n" not in caught.value.message


def test_no_network_at_all(server: HubServer, run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(DiffCompressError, match="cannot be reached") as caught:
        hub.push(run, "someone/small", public=False)
    assert caught.value.exit_status == ExitStatus.RUN_FAILED
    with pytest.raises(DiffCompressError, match="cannot be reached"):
        hub.check("someone/small", public=False, licence=MIT)


def test_what_is_refused_before_any_training(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("small", "a/b/c", "/x", "me/", "someone/a--b", "someone/small.", "someone/" + "x" * 97):
        with pytest.raises(UsageError, match="not a repository"):
            hub.check(name, public=False, licence=MIT)
    with pytest.raises(AccessError, match="licence of the student is unknown") as caught:
        hub.check("someone/small", public=False, licence=Licence("unknown", "nobody"))
    assert "--license" in caught.value.hint
    with pytest.raises(AccessError, match="'stranger' is neither you"):
        hub.check("stranger/small", public=False, licence=MIT)
    monkeypatch.setenv("HF_TOKEN", "hf_" + "b" * 34)
    server.fail("GET /api/whoami-v2", 401)
    with pytest.raises(AccessError, match="401"):
        hub.check("someone/small", public=False, licence=MIT)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(AccessError, match="offline"):
        hub.check("someone/small", public=False, licence=MIT)
    assert not server.repositories


def test_no_token(server: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(AccessError, match="no token") as caught:
        hub.check("someone/small", public=False, licence=MIT)
    assert "hf auth login" in caught.value.hint


def test_a_licence_can_be_stated_later_but_the_teachers_stays(run: RunFolder) -> None:
    file = run.pipeline / "diffcompress.json"
    relicense(run, "apache-2.0")
    assert read_json(file)["license"]["id"] == "apache-2.0"
    assert "--license apache-2.0" in write_report(run).command
    file.write_text(json.dumps(read_json(file) | {"license": MIT.as_json()}))
    relicense(run, "apache-2.0")
    assert read_json(file)["license"]["id"] == "mit"
    unclear = Licence("unknown", "the teacher's model card: it says two").as_json()
    file.write_text(json.dumps(read_json(file) | {"license": unclear}))
    relicense(run, "apache-2.0")
    assert read_json(file)["license"] == unclear
    with pytest.raises(UsageError, match="not a licence id"):
        stated_by_user("My Licence")
