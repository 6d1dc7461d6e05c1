"""Teachers on the Hub: what is downloaded when, which commit is recorded, and a message for all that can go wrong."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import pytest
import torch
from huggingface_hub import snapshot_download

from diffcompress.errors import AccessError, ExitStatus, UsageError
from diffcompress.pipeline.load import check_teacher, load
from diffcompress.sources.halves import saving
from diffcompress.sources.licence import licence_of
from diffcompress.sources.resolve import SHORT_NAMES, resolve
from tests import tiny
from tests.families import pipe_sd3
from tests.hub_server import TOKEN, HubServer

NAME = "someone/ddpm"
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tiny.save_pipeline(tmp_path_factory.mktemp("teachers") / "ddpm")
    tiny.unet().half().save_pretrained(folder / "unet", variant="fp16")
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"never to be read")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    return folder


@pytest.fixture
def server(tmp_path):
    with HubServer(tmp_path / "hub") as server:
        yield server


@pytest.fixture
def waits(monkeypatch):
    """Nothing is waited for; how long it would have been is kept."""
    found: list[float] = []
    monkeypatch.setattr(time, "sleep", found.append)
    return found


@pytest.fixture
def hub(server, saved, tmp_path, monkeypatch, waits):
    """The client of this process talks to `server`, which holds one pipeline, and starts with an empty cache."""
    from huggingface_hub import constants

    server.add(NAME, saved)
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, server.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return server


@pytest.fixture
def logged_out(monkeypatch):
    monkeypatch.delenv("HF_TOKEN")


@pytest.fixture
def offline(monkeypatch):
    """As --offline sets it, after huggingface_hub was imported."""
    return lambda: monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def _refused(call, said: str, hint: str) -> None:
    with pytest.raises(AccessError, match=said) as caught:
        call()
    assert hint in caught.value.hint
    assert caught.value.exit_status == ExitStatus.NO_ACCESS
    assert "\n" not in caught.value.message


def _all_weights(folder: Path) -> list[str]:
    return sorted(f.name for f in folder.rglob("*") if f.suffix in (".safetensors", ".bin"))


def test_configs_come_first_and_weights_when_they_are_needed(hub, saved):
    found = resolve(NAME)
    assert (found.id, found.name, found.class_name) == (NAME, "ddpm", "UNet2DModel")
    assert found.revision == hub.repositories[NAME].refs["main"]
    assert any(found.revision in note for note in found.notes)
    assert check_teacher(found) == "float32"
    assert _all_weights(found.pipeline) == []
    assert (found.pipeline / "README.md").is_file()
    loaded = load(found)
    # One variant, full precision, safetensors.
    assert _all_weights(found.pipeline) == ["diffusion_pytorch_model.safetensors"]
    theirs = load(resolve(str(saved)))
    assert loaded.fingerprint == theirs.fingerprint
    pairs = zip(loaded.denoiser.state_dict().values(), theirs.denoiser.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_a_header_costs_few_bytes(hub, tmp_path):
    hub.add("someone/larger", tiny.save_pipeline(tmp_path / "larger", dtype=torch.float16, **tiny.DEMO))
    found = resolve("someone/larger")
    hub.bytes_sent.clear()
    assert check_teacher(found) == "float16"
    whole = sum(len(content) for name, content in hub.files("someone/larger").items() if name.endswith(".safetensors"))
    assert hub.bytes_sent.total() < 110_000 < whole / 10


def test_a_revision_is_a_branch_a_tag_or_a_commit(hub, saved, tmp_path):
    other = shutil.copytree(saved, tmp_path / "other")
    config = other / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "prediction_type": "v_prediction"}))
    commit = hub.add(NAME, other, revision="v2")
    hub.add(NAME, other, revision="refs/pr/1")
    for revision in ("v2", commit, "refs/pr/1"):
        found = resolve(f"{NAME}@{revision}")
        assert (found.revision, found.scheduler["prediction_type"]) == (commit, "v_prediction")
        assert found.id == f"{NAME}@{revision}"
    assert resolve(NAME).scheduler["prediction_type"] == "epsilon"
    _refused(lambda: resolve(f"{NAME}@v3"), "has no revision 'v3'", "branches and tags")


def test_a_denoiser_alone(hub, saved):
    hub.add("someone/unet", saved / "unet")
    with pytest.raises(UsageError, match="without a scheduler"):
        resolve("someone/unet")
    found = resolve("someone/unet", str(saved / "scheduler"))
    assert found.pipeline is None
    assert load(found).dtype == torch.float32


def test_a_denoiser_in_a_subfolder_without_a_pipeline_index(hub, saved, tmp_path, offline):
    """As `shrink` exports denoisers whose class makes no pipeline alone."""
    folder = shutil.copytree(saved, tmp_path / "part")
    (folder / "model_index.json").unlink()
    hub.add("someone/part", folder)
    found = resolve("someone/part")
    assert (found.pipeline, found.name, found.denoiser_part) == (None, "part", "unet")
    assert licence_of(found).id == "mit"
    assert check_teacher(found) == "float32"
    assert load(found).fingerprint == load(resolve(str(folder))).fingerprint
    offline()
    assert load(resolve("someone/part")).dtype == torch.float32


def test_pickled_weights_are_told_before_they_are_here(hub, saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "pickled")
    for file in folder.rglob("*.safetensors"):
        file.unlink()
    torch.save(tiny.unet().state_dict(), folder / "unet" / "diffusion_pytorch_model.bin")
    hub.add("someone/pickled", folder)
    found = resolve("someone/pickled")
    assert any("weights_only=True" in note for note in found.notes)
    assert load(found).dtype == torch.float32


def test_what_is_no_diffusers_model(hub, tmp_path):
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "old.safetensors").write_bytes(b"x")
    hub.add("someone/files", tmp_path / "files")
    with pytest.raises(UsageError, match="neither model_index") as caught:
        resolve("someone/files")
    assert "old.safetensors" in caught.value.hint


def test_a_short_name_says_what_it_means(hub, saved):
    hub.add(SHORT_NAMES["stabilityai/sd3"], saved)
    found = resolve("stabilityai/sd3")
    assert found.repository.id == "stabilityai/stable-diffusion-3-medium-diffusers"
    assert "'stabilityai/sd3' means 'stabilityai/stable-diffusion-3-medium-diffusers'" in found.notes


def test_a_folder_wins_over_the_hub(hub, saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(saved, tmp_path / NAME)
    hub.requests.clear()
    assert resolve(NAME).revision is None
    assert hub.requests == []


@pytest.mark.parametrize("text", ["./someone/ddpm", "/someone/ddpm", "~/x", "a/b/c", "someone/x.safetensors", "word"])
def test_what_looks_like_a_path_is_not_asked_for(hub, text):
    with pytest.raises(UsageError, match="no model at"):
        resolve(text)
    assert hub.requests == []


def test_a_moved_repository_is_followed(hub, saved):
    hub.moved["someone/old"] = NAME
    found = resolve("someone/old")
    assert found.repository.id == NAME
    assert f"'someone/old' has moved to '{NAME}'" in found.notes
    assert load(found).fingerprint == load(resolve(str(saved))).fingerprint


def test_missing(hub):
    _refused(lambda: resolve("someone/nothing"), "not on the Hub, or your token may not read it", "spelling")


def test_a_missing_token_looks_like_a_missing_repository(hub, saved, logged_out):
    hub.add("someone/secret", saved, private=True)
    _refused(lambda: resolve("someone/secret"), "private or gated: without a token", "hf auth login")


def test_a_private_repository_is_read_with_a_token(hub, saved):
    hub.add("someone/secret", saved, private=True)
    assert resolve("someone/secret").revision


def test_a_gated_repository(hub, saved, monkeypatch):
    hub.add("someone/gated", saved, gated=True)
    _refused(lambda: resolve("someone/gated"), "gated", f"accept them on {hub.url}/someone/gated")
    monkeypatch.delenv("HF_TOKEN")
    _refused(lambda: resolve("someone/gated"), "gated", "hf auth login")


def test_a_token_that_is_not_valid(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_" + "b" * 34)
    _refused(lambda: resolve(NAME), "does not accept your token", "hf auth login")


def test_forbidden(hub):
    hub.fail("GET /api/models/*", 403)
    _refused(lambda: resolve(NAME), "forbids reading", "settings/tokens")


def test_disabled(hub):
    hub.fail("GET /api/models/*", 403, headers={"X-Error-Message": "Access to this resource is disabled."})
    _refused(lambda: resolve(NAME), "is disabled on the Hub", f"{hub.url}/{NAME}")


def test_a_mirror_that_does_not_say_what_it_did_not_find(hub, logged_out):
    hub.fail("GET /api/models/*", 404)
    _refused(lambda: resolve(NAME), "is not on the Hub, or it is private", "hf auth login")


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\n", None])
def test_weights_that_are_damaged_on_the_hub(hub, saved, tmp_path, content):
    folder = shutil.copytree(saved, tmp_path / "damaged")
    (folder / WEIGHTS).write_bytes((saved / WEIGHTS).read_bytes()[:500] if content is None else content)
    hub.add("someone/damaged", folder)
    found = resolve("someone/damaged")
    with pytest.raises(UsageError, match=f"'{WEIGHTS}' of 'someone/damaged' .* damaged on the Hub"):
        check_teacher(found)


def test_too_many_requests_are_waited_for(hub, waits):
    hub.fail("GET /api/models/someone/ddpm", 429, times=2, headers={"Retry-After": "7"})
    assert resolve(NAME).revision
    assert waits == [7, 7]


def test_too_many_requests_for_too_long(hub, waits):
    hub.fail("GET /api/models/*", 429, headers={"Retry-After": "3600"})
    _refused(lambda: resolve(NAME), "too many requests.*wait 3600 s", "hf auth login")
    assert waits == []


@pytest.mark.parametrize("path", ["GET /api/models/someone/ddpm", "HEAD */unet/config.json", "GET */unet/config.json"])
def test_a_failing_hub_is_asked_again(hub, waits, path):
    hub.fail(path, 500, times=2)
    assert resolve(NAME).revision
    assert waits


def test_a_hub_that_keeps_failing(hub, waits):
    hub.fail("*", 503)
    _refused(lambda: resolve(NAME), r"failed \(503\)", "later")
    assert 1 <= len(waits) < 10


def test_no_network(hub):
    hub.__exit__()
    _refused(lambda: resolve(NAME), "connection to http.* failed", "network")


def test_what_answers_is_not_the_hub(hub):
    """A login page, for one."""
    hub.fail("GET /api/*", 200)
    _refused(lambda: resolve(NAME), f"what answers at {hub.url} does not speak", "login page")


def test_without_a_network_the_cached_copy_does(hub):
    commit = resolve(NAME).revision
    load(resolve(NAME))
    hub.fail("*", 500)
    found = resolve(NAME)
    assert found.revision == commit
    assert any("cached copy" in note and "failed (500)" in note for note in found.notes)
    assert load(found).dtype == torch.float32


def test_offline_from_the_cache(hub, offline, saved):
    commit = resolve(NAME).revision
    hub.requests.clear()
    offline()
    found = resolve(NAME)
    assert (found.revision, found.other_bytes(), check_teacher(found)) == (commit, None, None)
    _refused(lambda: load(found), "unet of 'someone/ddpm' is not in the local cache", "without --offline")
    _refused(lambda: resolve("someone/nothing"), "'someone/nothing' is not in the local cache", "without --offline")
    _refused(lambda: resolve(f"{NAME}@v9"), "revision 'v9' of", "without --offline")
    assert hub.requests == []


def test_offline_with_the_weights_in_the_cache(hub, offline, saved):
    resolve(NAME).fetch()
    hub.requests.clear()
    offline()
    found = resolve(NAME)
    found.fetch()
    assert load(found).fingerprint == load(resolve(str(saved))).fingerprint
    assert check_teacher(found) == "float32"
    assert hub.requests == []


def test_offline_with_a_part_of_it_in_the_cache(hub, offline, saved, tmp_path):
    """As other tools leave it there, and downloads that were broken off."""
    folder = shutil.copytree(saved, tmp_path / "sharded")
    shutil.rmtree(folder / "unet")
    tiny.unet().save_pretrained(folder / "unet", max_shard_size="100KB")
    hub.add("someone/sharded", folder)
    snapshot_download(NAME, allow_patterns="model_index.json")
    snapshot_download("someone/sharded", allow_patterns=["*.json", "*00001-of*"])
    offline()
    _refused(lambda: resolve(NAME), "not whole in the local cache.*unet/config.json", "without --offline")
    found = resolve("someone/sharded")
    assert check_teacher(found) is None
    _refused(lambda: load(found), "unet of 'someone/sharded' is not in the local cache", "without --offline")


def test_a_truncated_download_is_resumed(hub, saved):
    hub.truncate("GET /blobs/*", 3000, times=1)
    assert load(resolve(NAME)).fingerprint == load(resolve(str(saved))).fingerprint


def test_a_truncated_download_leaves_nothing_behind(hub, saved, tmp_path):
    found = resolve(NAME)
    hub.truncate("GET /blobs/*", 3000)
    _refused(lambda: load(found), "broke off|incomplete", "again")
    assert _all_weights(tmp_path / "home") == []
    hub.mend()
    assert load(found).fingerprint == load(resolve(str(saved))).fingerprint


def test_damaged_in_transit(hub, saved, tmp_path):
    found = resolve(NAME)
    digest = found.repository.files[WEIGHTS].sha256
    good = hub.blobs[digest]
    hub.blobs[digest] = tmp_path / "bad"
    content = bytearray(good.read_bytes())
    content[-1] ^= 1
    hub.blobs[digest].write_bytes(content)
    _refused(lambda: load(found), "arrived damaged", "again")
    assert _all_weights(tmp_path / "home") == []
    hub.blobs[digest] = good
    assert load(found).fingerprint == load(resolve(str(saved))).fingerprint


def test_the_other_parts_come_when_they_are_asked_for(hub, saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "latent")
    for name in ("config.json", "model.safetensors", "model.fp16.safetensors", "model.msgpack", "flax_model.bin"):
        (folder / "text_encoder").mkdir(exist_ok=True)
        (folder / "text_encoder" / name).write_text("{}")
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"text_encoder": ["transformers", "CLIPTextModel"], "safety_checker": [None, None]}
    (folder / "model_index.json").write_text(json.dumps(index))
    hub.add("someone/latent", folder)
    found = resolve("someone/latent")
    encoder = found.pipeline / "text_encoder"
    assert os.listdir(encoder) == ["config.json"]
    scheduler = (folder / "scheduler" / "scheduler_config.json").stat().st_size
    assert found.other_bytes() == scheduler + 2 * len("{}")
    found.fetch()
    assert sorted(os.listdir(encoder)) == ["config.json", "model.safetensors"]


def test_what_half_precision_saves_is_known_before_the_download(hub, tmp_path):
    pipe_sd3.pipeline().save_pretrained(tmp_path / "sd3")
    hub.add("someone/sd3", tmp_path / "sd3")
    here, there = resolve(str(tmp_path / "sd3")), resolve("someone/sd3")
    saved = {part: saving(there, part) for part in there.parts}
    assert saved == {part: saving(here, part) for part in here.parts} and saved["text_encoder_3"] > 0
    assert not list(there.pipeline.rglob("*.safetensors"))
    there.fetch()
    assert saved == {part: saving(there, part) for part in there.parts}
