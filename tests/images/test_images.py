"""The user's own images."""

import hashlib
import inspect
import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from diffcompress.bank import bank as banks
from diffcompress.errors import DoesNotFitError, RunStopped, UsageError
from diffcompress.images import folder, images, pixels
from diffcompress.pipeline.load import load
from diffcompress.recipe import BankSection
from diffcompress.runtime import Progress, StopRequest, start
from diffcompress.sources.resolve import resolve
from tests import tiny


def picture(path, size=(8, 8), value=255, mode="L"):
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], 3)
    Image.fromarray(np.full(shape, value, np.uint8)).save(path)


def test_images_are_scaled_to_minus_one_and_one(tmp_path):
    picture(tmp_path / "a.png", value=255)
    picture(tmp_path / "b.png", (20, 12), value=0, mode="RGB")
    found = images.read(tmp_path, (1, 8, 8), None)
    assert found.pixels().shape == (2, 1, 8, 8)
    assert found.pixels()[0].eq(1).all()
    assert found.pixels()[1].eq(-1).all()
    assert found.condition.tolist() == [0, 0]
    assert found.warnings == []


def test_class_subfolders_are_labels(tmp_path):
    for label, name in enumerate(("cat", "dog", "emu")):
        picture(tmp_path / name / "x.png", value=label)
    found = images.read(tmp_path, (1, 8, 8), 3)
    assert found.condition.tolist() == [0, 1, 2]
    assert found.notes == ("labels by class subfolder: cat = 0, dog = 1, emu = 2",)
    for classes in (2, 4):  # the first three of four classes are no better a guess than any others
        with pytest.raises(UsageError, match=f"3 class subfolders, the teacher has {classes}") as refused:
            images.read(tmp_path, (1, 8, 8), classes)
        assert "integer names state labels" in refused.value.hint


def test_integer_names_of_subfolders_state_the_labels(tmp_path):
    for label in range(11):
        picture(tmp_path / str(label) / "x.png", value=label)
    found = images.read(tmp_path, (1, 8, 8), 20)
    assert found.condition.tolist() == ((found.pixels()[:, 0, 0, 0] + 1) * 127.5).round().int().tolist()
    assert sorted(found.condition.tolist()) == list(range(11))
    assert found.notes == ("labels by class subfolder: 0 = 0, 1 = 1, 2 = 2, 3 = 3, 4 = 4, 5 = 5, ..., 10 = 10",)
    with pytest.raises(UsageError, match=r"10' states label 10, the teacher's go from 0 to 9"):
        images.read(tmp_path, (1, 8, 8), 10)
    picture(tmp_path / "-1" / "x.png")
    with pytest.raises(UsageError, match=r"-1' states label -1"):
        images.read(tmp_path, (1, 8, 8), 20)


def test_images_are_turned_as_their_exif_says(tmp_path):
    half = np.zeros((8, 16), np.uint8)
    half[:, 8:] = 255
    turned = Image.Exif()
    turned[0x0112] = 6  # to be shown turned by 90 degrees clockwise: its left is the top
    Image.fromarray(half).save(tmp_path / "a.png", exif=turned)
    found = images.read(tmp_path, (1, 16, 8), None)
    assert found.pixels()[0, 0, :8].eq(-1).all() and found.pixels()[0, 0, 8:].eq(1).all()
    assert not found.warnings and not found.notes  # turned, it has the size and shape of a sample


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_lies_on_white(tmp_path, mode):
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (0, 0, 4, 8))
    if mode == "P":  # opaque and transparent black are two entries of its palette
        image = Image.fromarray(np.repeat(np.array([[0, 1]], np.uint8), 4, axis=1).repeat(8, axis=0), "L")
        image.putpalette([0, 0, 0, 0, 0, 0])
        image.info["transparency"] = 1
    else:
        image = image.convert(mode)
    image.save(tmp_path / "a.png")
    for channels in (1, 3):
        clean = images.read(tmp_path, (channels, 8, 8), None).pixels()[0]
        assert clean[..., :4].eq(-1).all() and clean[..., 4:].eq(1).all()


@pytest.mark.parametrize(("suffix", "kind"), [("png", "<u2"), ("tif", "<u2"), ("tif", ">u2"), ("tif", "<i4")])
def test_sixteen_bits_of_grey_are_scaled_like_eight(tmp_path, suffix, kind):
    eight = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    Image.fromarray(eight).save(tmp_path / "a.png")
    Image.fromarray((eight.astype(np.uint16) * 257).astype(kind)).save(tmp_path / f"b.{suffix}")
    for channels in (1, 3):
        found = images.read(tmp_path, (channels, 8, 8), None)
        assert torch.equal(found.pixels()[0], found.pixels()[1])


def test_a_transparent_shade_of_sixteen_bits_is_white_and_more_bits_are_not_read(tmp_path):
    grey = np.full((8, 8), 32768, np.uint16)
    grey[:, :4] = 300
    Image.fromarray(grey).save(tmp_path / "a.png", transparency=300)
    Image.fromarray(grey.astype(np.int32) * 1000).save(tmp_path / "b.tif")
    found = images.read(tmp_path, (1, 8, 8), None)
    assert found.pixels()[0, 0, :, :4].eq(1).all() and found.pixels()[0, 0, :, 4:].abs().max() < 0.01
    assert "1 of 2 images could not be read, first" in found.warnings[0]


@pytest.mark.parametrize("scale", [1, 255])
def test_grey_in_floating_point_keeps_its_range(tmp_path, scale):
    eight = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    Image.fromarray(eight).save(tmp_path / "a.png")
    Image.fromarray(eight.astype(np.float32) * (scale / 255)).save(tmp_path / "b.tif")
    Image.fromarray(np.full((8, 8), -0.5, np.float32)).save(tmp_path / "c.tif")
    Image.fromarray(np.full((8, 8), np.nan, np.float32)).save(tmp_path / "d.tif")
    found = images.read(tmp_path, (1, 8, 8), None)
    assert torch.equal(found.stored[0], found.stored[1])
    assert "2 of 4 images could not be read" in found.warnings[0] and "values from -0.5" in found.warnings[0]


def test_enlarged_and_cropped_images_are_counted(tmp_path):
    for name, size in {"a": (8, 8), "b": (7, 20), "c": (4, 4), "d": (20, 10)}.items():
        picture(tmp_path / f"{name}.png", size)
    found = images.read(tmp_path, (1, 8, 8), None)
    assert found.warnings == ["2 of 4 images are smaller than 8 x 8 and were enlarged"]
    assert found.notes == ("2 of 4 images were cropped around their centre to the shape 8 x 8",)


def test_one_image_in_a_folder_is_a_bank_and_a_file_is_refused(tmp_path):
    teacher = load(resolve(str(tiny.save_pipeline(tmp_path / "teacher"))))
    channels, height, width = teacher.sample_shape
    picture(tmp_path / "own" / "a.png", (width, height))
    own = images.read_for(str(tmp_path / "own"), teacher, (), 5, Progress())
    bank = banks.fill(tmp_path / "bank", teacher, BankSection(), 0, own, start("cpu"), Progress())
    assert bank.clean.shape == (1, channels, height, width) and torch.equal(bank.clean, torch.ones_like(bank.clean))
    with pytest.raises(UsageError, match=r"a.png' is a file, not a folder of images"):
        images.read_for(str(tmp_path / "own" / "a.png"), teacher, (), 5, Progress())
    with pytest.raises(UsageError, match=r"a.png' is a file"):
        images.captions_of(str(tmp_path / "own" / "a.png"), 5, Progress())
    picture(tmp_path / "own" / "b.png", (width, height))
    more = images.read_for(str(tmp_path / "own"), teacher, (), 5, Progress())
    with pytest.raises(UsageError, match=r"began with the images of .*own, and now they are others"):
        banks.fill(tmp_path / "bank", teacher, BankSection(), 0, more, start("cpu"), Progress())


def test_a_teacher_of_four_channels_gets_rgba_where_they_are_pixels(tmp_path):
    place = tiny.save_pipeline(tmp_path / "teacher", in_channels=4, out_channels=4)
    (tmp_path / "own").mkdir()
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(tmp_path / "own" / "a.png")
    found = images.read_for(str(tmp_path / "own"), load(resolve(str(place))), (), 5, Progress())
    assert found.pixels()[0, :, 0, 0].tolist() == [1, -1, -1, -1]
    alone = load(resolve(str(place / "unet")))
    with pytest.raises(UsageError, match="samples of 4 channels are none"):
        images.read_for(str(tmp_path / "own"), alone, (), 5, Progress())


def test_a_folder_is_taken_up_to_a_limit_in_a_mixed_order_that_is_told(tmp_path):
    for label in range(40):
        picture(tmp_path / f"{label:02d}" / "x.png", value=label)
    few, more = (images.read(tmp_path, (1, 8, 8), 40, limit=limit) for limit in (8, 20))
    assert len(few) == 8 and few.condition.tolist() == more.condition.tolist()[:8]
    assert few.condition.tolist() == few.stored[:, 0, 0, 0].tolist() and max(few.condition) > 20
    assert any("8 of the 40 images" in note and "bank.num_samples" in note for note in few.notes)
    assert not any("of the 40" in note for note in images.read(tmp_path, (1, 8, 8), 40, limit=40).notes)


def test_broken_images_are_no_part_of_the_limit(tmp_path):
    for number in range(12):
        picture(tmp_path / f"{number}.png", value=number)
        (tmp_path / f"{number}-broken.png").write_bytes(b"no picture")
    found = images.read(tmp_path, (1, 8, 8), None, limit=10)
    assert len(found) == 10 and len(set(found.stored[:, 0, 0, 0].tolist())) == 10
    assert "images could not be read" in found.warnings[0]


def test_images_take_a_byte_a_value_and_are_computed_with_in_parts(tmp_path, monkeypatch):
    for number in range(5):
        picture(tmp_path / f"{number}.png", value=50 * number)
    monkeypatch.setattr(pixels, "SHARD_SIZE", 2)
    found = images.read(tmp_path, (1, 8, 8), None)
    assert (found.stored.dtype, [len(part) for part in found.parts()]) == (torch.uint8, [2, 2, 1])
    whole = found.pixels()
    assert torch.equal(torch.cat(list(found.parts())), whole)
    assert found.digest == hashlib.sha256(whole.numpy().tobytes()).hexdigest()


def test_what_memory_cannot_hold_is_refused_before_it_is_read(tmp_path):
    picture(tmp_path / "a.png")
    with pytest.raises(DoesNotFitError, match=r"1 images of 10000000 x 10000000 need 2.7 PB of memory, ") as refused:
        images.read(tmp_path, (3, 10_000_000, 10_000_000), None)
    assert "bank.num_samples" in refused.value.hint


def test_reading_tells_how_far_it_is_and_stops_when_it_is_asked_to(tmp_path):
    class Heard(Progress):
        done = []

        def update(self, task, done, total, **values):
            self.done.append((task, done, total))

    for name in "abc":
        picture(tmp_path / f"{name}.png")
    images.read(tmp_path, (1, 8, 8), None, progress=Heard())
    assert Heard.done == [("images", 1, 3), ("images", 2, 3), ("images", 3, 3)]
    with pytest.raises(RunStopped):
        images.read(tmp_path, (1, 8, 8), None, stop=StopRequest(signal=15))


def test_broken_files_are_counted(tmp_path):
    picture(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no picture")
    found = images.read(tmp_path, (1, 8, 8), None)
    assert len(found) == 1
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
    assert found.condition.tolist() == [1, 0]
    assert "1 of 3 images have no caption" in found.warnings[0]


def test_captions_end_with_their_line_and_begin_after_a_byte_order_mark(tmp_path):
    rows = [{"file_name": "a.png", "text": "an owl\u2028in fog"}, {"file_name": "b.png", "text": "a\x85b"}]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    (tmp_path / "metadata.jsonl").write_bytes(("\ufeff" + "\r\n".join(lines) + "\r\n").encode())
    assert folder.captions(tmp_path) == {row["file_name"]: row["text"] for row in rows}


@pytest.mark.parametrize("text", ["no json", '{"file_name": "a.png"}', "[1]"])
def test_a_bad_caption_is_named_by_its_line(tmp_path, text):
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "x"}\n' + text)
    with pytest.raises(UsageError, match="line 2"):
        folder.captions(tmp_path)


def test_a_text_teacher_needs_captions(tmp_path):
    picture(tmp_path / "a.png")
    with pytest.raises(UsageError, match="text-conditional"):
        images.read(tmp_path, (1, 8, 8), None, prompts=("a dog",))


def test_hidden_folders_are_none_and_linked_ones_are_entered(tmp_path):
    own = tmp_path / "own"
    for name in (".ipynb_checkpoints/a", "__MACOSX/a", "dog/b", "dog/.ipynb_checkpoints/b", "dog/.c"):
        picture(own / f"{name}.png", value=len(name))
    picture(tmp_path / "elsewhere" / "d.png", value=200)
    (own / "cat").symlink_to(tmp_path / "elsewhere")
    (own / "dog" / "up").symlink_to(own)  # leads back, and is not gone round in
    found = images.read(own, (1, 8, 8), 2)
    assert (found.condition.tolist(), found.stored[:, 0, 0, 0].tolist()) == ([0, 1], [200, len("dog/b")])
    assert found.notes == ("labels by class subfolder: cat = 0, dog = 1",) and not found.warnings


def test_mazes_of_links_and_deep_folders_are_walked_through(tmp_path):
    """More paths than anybody could walk lead to each image; another folder lies deeper than functions may nest."""
    for number in range(14):
        (tmp_path / f"{number}").mkdir()
        Image.new("L", (8, 8)).save(tmp_path / f"{number}" / "a.png")
        for other in range(14):
            (tmp_path / f"{number}" / f"to-{other}").symlink_to(f"../{other}")
    assert len(folder.image_files(tmp_path)) == 14 * 14
    deep = tmp_path / "deep"
    innermost = deep.joinpath(*["d"] * 300)
    innermost.mkdir(parents=True)
    Image.new("L", (8, 8)).save(innermost / "a.png")
    usual = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack(0)) + 200)
    try:
        assert len(folder.image_files(deep)) == 1
    finally:
        sys.setrecursionlimit(usual)


def test_files_that_are_passed_over_are_told(tmp_path):
    for name in ("a.png", "b.JPE", "c.jfif", "d.ppm"):
        Image.new("L", (8, 8)).save(tmp_path / name, {"ppm": "PPM", "png": "PNG"}.get(name[2:], "JPEG"))
    for name in ("e.heic", "f.heic", "g.svg", "h.txt", "LICENSE", "metadata.jsonl", ".hidden"):
        (tmp_path / name).touch()
    found = images.read(tmp_path, (1, 8, 8), None)
    assert len(found) == 4
    assert [text.partition(" in '")[0] for text in found.warnings] == ["3 files (2 .heic, 1 .svg)"]
    assert [text.partition(" in '")[0] for text in found.notes] == ["2 files (1 LICENSE, 1 .txt)"]


@pytest.mark.parametrize(
    ("text", "caption"),
    [
        *[(["a cat", "a small cat"], "a cat"), ("", None), ([], None), (None, None)],
        *((bad, ValueError) for bad in ({"en": "x"}, 3, True, [3], "x" * 30_000, "\ud800")),
    ],
)
def test_a_caption_is_a_text_or_the_first_of_several(tmp_path, text, caption):
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "text": text}))
    if caption is ValueError:
        with pytest.raises(
            UsageError, match=r"line 1 of .* has (the text .*, which is none|a text of 30,000 char|half a char)"
        ):
            folder.captions(tmp_path)
    else:
        assert folder.captions(tmp_path) == ({} if caption is None else {"a.png": caption})


@pytest.mark.parametrize(
    ("label", "taken"),
    [
        *[(2, 2), (2.0, 2), ("2", 2), (" 2 ", 2), (None, None)],
        *((bad, ValueError) for bad in (True, "cat", 2.5, "1" * 5000, float("nan"), float("inf"), [2])),
    ],
)
def test_a_label_is_an_integer_however_it_is_written(tmp_path, label, taken):
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "label": label}))
    if taken is ValueError:
        with pytest.raises(UsageError, match=r"line 1 of .* has the label .*, which is no integer"):
            folder.labels_in(tmp_path, 3)
    else:
        assert folder.labels_in(tmp_path, 3) == ({} if taken is None else {"a.png": taken})


def test_file_names_are_matched_however_they_are_spelled(tmp_path):
    names = ["b\u00e4r.png", "below/b.png", "c.png"]
    for name in names:
        picture(tmp_path / name)
    lines = [
        json.dumps({"file_name": n, "label": i}) for i, n in enumerate(("ba\u0308r.png", "below\\b.png", "./c.png"))
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    found = images.read(tmp_path, (1, 8, 8), 3)
    assert sorted(found.condition.tolist()) == [0, 1, 2] and not found.warnings
    (tmp_path / "c.png").unlink()
    assert images.read(tmp_path, (1, 8, 8), 3).warnings == [
        f"1 lines of metadata.jsonl name no image of '{tmp_path}', first 'c.png'"
    ]
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "/images/c.png", "label": 1}')
    with pytest.raises(UsageError, match=r"none of the 2 images .* has a label .* first '/images/c.png'") as refused:
        images.read(tmp_path, (1, 8, 8), 3)
    assert "such as 'below/b.png'" in refused.value.hint


def test_labels_beside_the_images_come_before_subfolders(tmp_path):
    for name in ("a.png", "b.png", "c.png"):
        picture(tmp_path / name)
    rows = [{"file_name": "a.png", "label": 4}, {"file_name": "c.png", "label": 0}, {"file_name": "b.png"}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    found = images.read(tmp_path, (1, 8, 8), 5)
    assert found.condition.tolist() == [4, 0]
    assert "1 of 3 images have no label" in found.warnings[0]
    with pytest.raises(UsageError, match=r"'a.png' .* has label 4, the teacher's go from 0 to 3"):
        images.read(tmp_path, (1, 8, 8), 4)
