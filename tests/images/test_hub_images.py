"""Data sets on the Hub as the user's images: what is read of which layout, what is kept, and what is refused."""

from __future__ import annotations

import io
import json
import os
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

datasets = pytest.importorskip("datasets")

from diffcompress.bank import bank as banks  # noqa: E402
from diffcompress.errors import AccessError, RunStopped, UsageError  # noqa: E402
from diffcompress.images import hub_images, images  # noqa: E402
from diffcompress.pipeline.load import load  # noqa: E402
from diffcompress.recipe import BankSection  # noqa: E402
from diffcompress.runtime import Progress, StopRequest, start  # noqa: E402
from diffcompress.sources.resolve import resolve  # noqa: E402
from tests import tiny  # noqa: E402
from tests.images.hub_data import FILES, TABLE, png, save_files, save_table  # noqa: E402


def fetch(data: str, limit: int = 100) -> hub_images.HubImages:
    return hub_images.fetch(data, limit, Progress())


def rows(found: hub_images.HubImages) -> list[dict]:
    return [json.loads(line) for line in (found.folder / "metadata.jsonl").read_text().splitlines()]


def grey(found: hub_images.HubImages) -> list[int]:
    return [int(np.asarray(Image.open(found.folder / row["file_name"]))[0, 0]) for row in rows(found)]


def test_class_folders_are_labels_in_mixed_order(hub):
    found = fetch(FILES, 12)
    assert found.commit == hub.repositories[f"datasets/{FILES}"].refs["main"]
    assert (found.num_images, found.complete, found.columns.classes) == (12, False, ["cat", "dog", "emu"])
    assert [row["label"] for row in rows(found)] == [value // 10 for value in grey(found)]
    assert {row["label"] for row in rows(found)} == {0, 1, 2}  # in the order of the files, the first 12 are of two
    assert any(found.commit in note and "'label'" in note for note in found.notes)


def test_integer_names_of_classes_state_the_labels_as_they_do_in_a_folder(hub, tmp_path):
    names = {f"{label}/{i}.png": 10 * label + i for label in (*range(11), 20) for i in range(2)}
    hub.add("datasets/someone/digits", save_files(tmp_path / "digits", names))
    found = fetch("someone/digits")
    assert [row["label"] for row in rows(found)] == [value // 10 for value in grey(found)]
    assert any("named by integers" in note for note in found.notes)
    folder = images.read(tmp_path / "digits", (1, 8, 8), 21)
    same = images.read(found.folder, (1, 8, 8), 21)
    for one in (folder, same):
        assert (one.stored[:, 0, 0, 0] // 10).tolist() == one.condition.tolist()
    with pytest.raises(UsageError, match="has label 20, the teacher's go from 0 to 19"):
        images.read(found.folder, (1, 8, 8), 20)


def test_only_what_is_needed_is_downloaded(hub):
    fetch(FILES, 2)
    read = [request for request in hub.requests if request.endswith(".png") and request.startswith("GET")]
    assert len(read) <= 16 < 24


def test_labels_and_captions_of_a_table(hub):
    found = fetch(TABLE)
    assert (found.num_images, found.complete, found.split) == (9, True, "train")
    assert sorted(grey(found)) == list(range(9))
    for value, row in zip(grey(found), rows(found), strict=True):
        assert (row["label"], row["text"]) == (value % 3, f"number {value}")
    assert sorted(images.captions_of(TABLE, 4, Progress())) == sorted(row["text"] for row in rows(found)[:4])


def test_captions_beside_files(hub, tmp_path):
    told = [{"file_name": "a.png", "text": "a dog"}, {"file_name": "b.png", "text": ""}]
    hub.add("datasets/someone/told", save_files(tmp_path / "told", {"a.png": 1, "b.png": 2}, told))
    found = fetch("someone/told")
    assert sorted(zip(grey(found), (row["text"] for row in rows(found)), strict=True)) == [(1, "a dog"), (2, None)]


def test_what_was_fetched_comes_back_without_the_hub(hub, monkeypatch):
    first = fetch(FILES, 12)
    hub.requests.clear()
    again = fetch(FILES, 5)
    assert again.folder == first.folder
    assert hub.requests == [f"GET /api/datasets/{FILES}"]
    hub.fail("*", 503)
    stale = fetch(FILES, 12)
    assert (stale.folder, "are used" in stale.notes[0]) == (first.folder, True)
    hub.requests.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in (FILES, f"{FILES}@main", f"{FILES}@{first.commit}"):
        assert fetch(name, 12).folder == first.folder
    for name, limit in ((FILES, 13), (TABLE, 1), (f"{FILES}@v9", 1)):
        with pytest.raises(AccessError, match="not in the local cache"):
            fetch(name, limit)
    assert hub.requests == []


def _flip(file):
    content = bytearray(file.read_bytes())
    content[-20] ^= 1
    file.write_bytes(bytes(content))


DAMAGES = {"flipped": _flip, "empty": lambda file: file.write_bytes(b""), "gone": lambda file: file.unlink()}
DAMAGES |= {"a pipe": lambda file: (file.unlink(), os.mkfifo(file)), "other": lambda file: file.write_bytes(png(99))}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("name", ["000003.png", "metadata.jsonl", "record.json"])
def test_what_was_damaged_in_the_cache_is_fetched_again(hub, monkeypatch, name, damage):
    first = fetch(FILES, 5)
    whole = {file.name: file.read_bytes() for file in first.folder.iterdir()}
    warned = []
    monkeypatch.setattr(Progress, "warn", lambda _self, text: warned.append(text))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    damage(first.folder / name)
    with pytest.raises(AccessError, match="not in the local cache"):
        fetch(FILES, 5)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    fetch(FILES, 5)
    assert {file.name: file.read_bytes() for file in first.folder.iterdir()} == whole
    assert [name in text and text.endswith("is fetched again") for text in warned] == [True] * len(warned)
    assert len(warned) == (0 if damage is DAMAGES["gone"] and name == "record.json" else 1)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"../../elsewhere", b"a\0b"])
def test_a_damaged_name_of_a_commit_is_asked_for_again(hub, monkeypatch, content):
    first = fetch(FILES, 5)
    file = first.folder.parent / "refs" / "main"
    file.write_bytes(content)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(AccessError, match="not in the local cache"):
        fetch(FILES, 5)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    assert fetch(FILES, 5) == first and file.read_text() == first.commit


def test_more_of_the_same_begins_with_the_same(hub):
    few = grey(fetch(FILES, 5))
    more = fetch(FILES, 24)
    assert grey(more)[:5] == few
    assert sorted(grey(more)) == sorted(10 * number + i for number in range(3) for i in range(8))


def test_a_revision_is_taken_and_pinned(hub, tmp_path):
    old = hub.repositories[f"datasets/{FILES}"].refs["main"]
    new = hub.add(f"datasets/{FILES}", save_files(tmp_path / "new", {"a.png": 99}))
    assert hub_images.pinned(FILES) == f"{FILES}@{new}"
    assert hub_images.pinned(f"{FILES}@{old}") == f"{FILES}@{old}"
    assert (hub_images.pinned(None), hub_images.pinned(str(tmp_path))) == (None, str(tmp_path))
    assert grey(fetch(FILES)) == [99]
    assert fetch(f"{FILES}@{old}").num_images == 24


def test_another_split_where_there_is_no_training_split(hub, tmp_path):
    hub.add("datasets/someone/test", save_table(tmp_path / "t", "data/test-00000-of-00001.parquet", image=[1, 2]))
    found = fetch("someone/test")
    assert found.split == "test"
    assert any("no split 'train'" in note for note in found.notes)


def test_files_of_this_machine_are_not_read_for_a_row(hub, tmp_path):
    secret = save_files(tmp_path / "secret", {"a.png": 7}) / "a.png"
    place = tmp_path / "rows" / "data"
    place.mkdir(parents=True)
    table = {"image": [{"bytes": None, "path": str(secret)}, {"bytes": png(1), "path": None}]}
    types = datasets.Features({"image": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}})
    datasets.Dataset.from_dict(table, features=types).to_parquet(place / "train.parquet")
    hub.add("datasets/someone/rows", tmp_path / "rows")
    found = fetch("someone/rows")
    assert (grey(found), found.skipped) == ([1], 1)
    assert any("1 rows" in note for note in found.notes)


def test_no_code_of_a_data_set_runs(hub, tmp_path):
    ran = tmp_path / "ran"
    folder = tmp_path / "script"
    folder.mkdir()
    (folder / "script.py").write_text(f"open({str(ran)!r}, 'w')\n")
    hub.add("datasets/someone/script", folder)
    with pytest.raises(UsageError, match="cannot be read as a data set of images"):
        fetch("someone/script")
    assert not ran.exists()


def test_what_is_no_data_set_of_images(hub, tmp_path):
    hub.add("datasets/someone/numbers", save_table(tmp_path / "numbers", number=[1, 2]))
    with pytest.raises(UsageError, match=r"no image column \(its columns are number\)"):
        fetch("someone/numbers")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "train.parquet").write_bytes(b"PAR1 and no more")
    hub.add("datasets/someone/damaged", tmp_path / "damaged")
    with pytest.raises(UsageError, match="cannot be read as a data set of images"):
        fetch("someone/damaged")
    assert not list((tmp_path / "home" / "diffcompress").rglob("*.part"))


@pytest.mark.parametrize(
    ("name", "change", "said", "hint"),
    [
        ("someone/nothing", {}, "'datasets/someone/nothing' is not on the Hub", "spelling"),
        (f"{FILES}@v9", {}, "has no revision 'v9'", "/datasets/someone/files/tree/main"),
        (FILES, {"gated": True}, "is gated, and its conditions are not accepted", "/datasets/someone/files"),
        (FILES, {"fail": 403}, "forbids reading", "token"),
        (FILES, {"fail": 429}, "too many requests", "wait"),
        (FILES, {"fail": 500}, r"failed \(500\)", "later"),
        (FILES, {"down": True}, "connection to http.* failed", "network"),
    ],
)
def test_what_the_hub_refuses(hub, tmp_path, name, change, said, hint):
    hub.repositories[f"datasets/{FILES}"].gated = change.get("gated", False)
    if "fail" in change:
        hub.fail("GET /api/datasets/*", change["fail"])
    if "down" in change:
        hub.__exit__()
    with pytest.raises(AccessError, match=said) as caught:
        fetch(name)
    assert hint in caught.value.hint
    assert not list(tmp_path.rglob("record.json"))


def test_a_connection_that_keeps_breaking_leaves_nothing(hub, tmp_path):
    hub.truncate("GET /blobs/*", 50)
    with pytest.raises(AccessError, match="broke off"):
        fetch(TABLE)
    assert not list((tmp_path / "home" / "diffcompress").rglob("*.p*"))
    hub.mend()
    assert fetch(TABLE).num_images == 9


def test_archives_of_images_with_classes_and_captions(hub, tmp_path):
    folder = tmp_path / "tar"
    folder.mkdir()
    with tarfile.open(folder / "train-0.tar", "w") as archive:
        for i in range(4):
            for suffix, content in (("jpg", png(i)), ("cls", str(i).encode()), ("txt", f"number {i}".encode())):
                entry = tarfile.TarInfo(f"{i:04d}.{suffix}")
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
    hub.add("datasets/someone/tar", folder)
    found = fetch("someone/tar")
    told = [(row["label"], row["text"]) for row in rows(found)]
    assert told == [(value, f"number {value}") for value in grey(found)]


def test_a_teacher_needs_its_conditions(hub, tmp_path):
    hub.add("datasets/someone/bare", save_table(tmp_path / "bare", image=[1, 2]))
    bare, table = fetch("someone/bare"), fetch(TABLE)
    bare.check(None, needs_text=False)
    table.check(3, needs_text=True)
    with pytest.raises(UsageError, match="no class labels"):
        bare.check(3, needs_text=False)
    with pytest.raises(UsageError, match="no captions"):
        bare.check(None, needs_text=True)
    with pytest.raises(UsageError, match="3 classes, the teacher has 2"):
        table.check(2, needs_text=False)


def test_a_stop_leaves_nothing_half(hub, tmp_path):
    with pytest.raises(RunStopped):
        hub_images.fetch(FILES, 12, Progress(), StopRequest(signal=15))
    assert not list((tmp_path / "home").rglob("*.png"))
    assert fetch(FILES, 12).num_images == 12


def test_without_the_library_the_error_says_what_to_install(hub, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(UsageError, match="is not installed") as caught:
        fetch(TABLE)
    assert "diffcompress[datasets]" in caught.value.hint


def test_a_bank_of_a_data_set(hub, tmp_path):
    teacher = load(resolve(str(tiny.save_pipeline(tmp_path / "teacher", num_classes=3))))
    runtime = start("cpu")

    def fill(folder: str, data: str) -> banks.Bank:
        own = images.read_for(data, teacher, (), 6, Progress())
        return banks.fill(tmp_path / folder, teacher, BankSection(num_samples=6), 0, own, runtime, Progress())

    one = fill("one", TABLE)
    found = fetch(TABLE)
    assert one.clean.shape == (6, 1, 8, 8)
    torch.testing.assert_close(one.clean[:, 0, 0, 0], torch.tensor(grey(found)[:6]) / 127.5 - 1)
    assert one.condition.tolist() == [value % 3 for value in grey(found)[:6]]
    record = json.loads((tmp_path / "one" / "bank.json").read_text())
    assert (record["source"], record["key"]) == (f"{TABLE}@{found.commit}", one.key)
    again, pinned = fill("one", TABLE), fill("two", f"{TABLE}@{found.commit}")
    assert one.key == again.key == pinned.key
    assert torch.equal(one.clean, pinned.clean)
    hub.add(f"datasets/{TABLE}", save_table(tmp_path / "later", image=[1], label=[1], caption=[["x"]]))
    with pytest.raises(UsageError, match=f"this run began with the images of {TABLE}@{found.commit}"):
        fill("one", TABLE)
    assert fill("three", TABLE).key != one.key


@pytest.mark.parametrize(("num_classes", "told"), [(3, False), (5, True)])
def test_fewer_classes_than_the_teacher_has_are_told(hub, tmp_path, num_classes, told):
    teacher = load(resolve(str(tiny.save_pipeline(tmp_path / "teacher", num_classes=num_classes))))
    found = images.read_for(FILES, teacher, (), 12, Progress())
    assert any(f"has 3 classes, the teacher {num_classes}" in text for text in found.warnings) is told
    assert any("cropped" in note for note in found.notes) and any("is taken at commit" in note for note in found.notes)
