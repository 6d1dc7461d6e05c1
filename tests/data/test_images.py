"""The user's own images."""

import json

import numpy as np
import pytest
from PIL import Image

from diffcompress.data import images
from diffcompress.errors import UsageError


def picture(path, size=(8, 8), value=255, mode="L"):
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], 3)
    Image.fromarray(np.full(shape, value, np.uint8)).save(path)


def test_images_are_scaled_to_minus_one_and_one(tmp_path):
    picture(tmp_path / "a.png", value=255)
    picture(tmp_path / "b.png", (20, 12), value=0, mode="RGB")
    found = images.read(tmp_path, (1, 8, 8), None)
    assert found.clean.shape == (2, 1, 8, 8)
    assert found.clean[0].eq(1).all()
    assert found.clean[1].eq(-1).all()
    assert found.index.tolist() == [0, 0]
    assert found.warnings == []


def test_class_subfolders_are_labels(tmp_path):
    for label, name in enumerate(("cat", "dog", "emu")):
        picture(tmp_path / name / "x.png", value=label)
    assert images.read(tmp_path, (1, 8, 8), 3).index.tolist() == [0, 1, 2]
    with pytest.raises(UsageError, match="3 class subfolders, the teacher has 2"):
        images.read(tmp_path, (1, 8, 8), 2)


def test_broken_files_are_counted(tmp_path):
    picture(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no picture")
    found = images.read(tmp_path, (1, 8, 8), None)
    assert len(found.clean) == 1
    assert "1 of 2 images could not be read" in found.warnings[0]
    (tmp_path / "a.png").unlink()
    with pytest.raises(UsageError, match="no readable image"):
        images.read(tmp_path, (1, 8, 8), None)


def test_missing_and_unlabelled_folders_are_refused(tmp_path):
    with pytest.raises(UsageError, match="no image folder"):
        images.read(tmp_path / "nowhere", (1, 8, 8), None)
    picture(tmp_path / "a.png")
    with pytest.raises(UsageError, match="0 class subfolders"):
        images.read(tmp_path, (1, 8, 8), 10)


def test_captions_are_the_conditions_of_a_text_teacher(tmp_path):
    for name in ("a.png", "b.png", "c.png"):
        picture(tmp_path / name)
    rows = [{"file_name": "b.png", "text": "a dog"}, {"file_name": "a.png", "text": "a cat"}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    found = images.read(tmp_path, (1, 8, 8), None, prompts=("a dog", "a cat"))
    assert found.index.tolist() == [1, 0]
    assert "1 of 3 images have no caption" in found.warnings[0]


@pytest.mark.parametrize("text", ["no json", '{"file_name": "a.png"}', "[1]"])
def test_a_bad_caption_is_named_by_its_line(tmp_path, text):
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "x"}\n' + text)
    with pytest.raises(UsageError, match="line 2"):
        images.captions(tmp_path)


def test_a_text_teacher_needs_captions(tmp_path):
    picture(tmp_path / "a.png")
    with pytest.raises(UsageError, match="text-conditional"):
        images.read(tmp_path, (1, 8, 8), None, prompts=("a dog",))


def test_labels_beside_the_images_come_before_subfolders(tmp_path):
    for name in ("a.png", "b.png", "c.png"):
        picture(tmp_path / name)
    rows = [{"file_name": "a.png", "label": 4}, {"file_name": "c.png", "label": 0}, {"file_name": "b.png"}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    found = images.read(tmp_path, (1, 8, 8), 5)
    assert found.index.tolist() == [4, 0]
    assert "1 of 3 images have no label" in found.warnings[0]
    assert images.read(tmp_path, (1, 8, 8), 5, limit=1).index.tolist() == [4]
    with pytest.raises(UsageError, match=r"'a.png' .* has label 4, the teacher's go from 0 to 3"):
        images.read(tmp_path, (1, 8, 8), 4)
