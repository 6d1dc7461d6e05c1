"""Feature spaces: which extractor a file or folder holds, and what its features are."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from diffcompress.errors import UsageError
from diffcompress.evaluation import extractors, features, vision
from diffcompress.evaluation.cache import Drawn
from diffcompress.evaluation.distances import called
from diffcompress.evaluation.embedded import Extractor
from diffcompress.evaluation.features import cached_space, demo_space, find_space
from diffcompress.evaluation.inception import Inception, _stretch
from diffcompress.evaluation.material import Material
from diffcompress.evaluation.score import measure
from diffcompress.records.evaluation import Metrics
from diffcompress.records.fingerprints import sha256
from diffcompress.records.metrics import KINDS, Metric
from diffcompress.records.protocol import Protocol
from diffcompress.runtime import Progress
from tests.families.tiny_text import seeded

TINY: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def inception():
    torch.manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        model = Inception().eval()
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    return model


@pytest.fixture(scope="module")
def weights(inception, tmp_path_factory):
    """As the public file: no batch counters."""
    folder = tmp_path_factory.mktemp("inception")
    state = {name: value for name, value in inception.state_dict().items() if "num_batches" not in name}
    torch.save(state, folder / "weights.pth")
    return folder / "weights.pth"


@pytest.fixture(scope="module")
def dino(tmp_path_factory):
    from transformers import Dinov2Config, Dinov2Model

    folder = tmp_path_factory.mktemp("dino")
    Dinov2Model(Dinov2Config(**TINY, image_size=28, patch_size=14)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    folder = tmp_path_factory.mktemp("clip")
    words = ["<|startoftext|>", "<|endoftext|>", *"abcdefgh", *(c + "</w>" for c in "abcdefgh")]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=8).save_pretrained(folder)
    text = {**TINY, "vocab_size": len(words), "intermediate_size": 16, "max_position_embeddings": 8}
    text |= {"bos_token_id": 0, "eos_token_id": 1}
    vision = {**TINY, "intermediate_size": 16, "image_size": 16, "patch_size": 8}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)
    seeded(lambda: CLIPModel(config)).save_pretrained(folder)
    return folder


def test_inception_has_the_layout_of_the_public_weights(inception):
    """The counts and names of pt_inception-2015-12-05; forward passes were compared with torch-fidelity's own."""
    state = {name for name in inception.state_dict() if "num_batches" not in name}
    assert len(state) == 94 * 5 + 2
    assert sum(p.numel() for p in inception.parameters()) == 23_850_960
    assert {"Conv2d_1a_3x3.conv.weight", "Mixed_6e.branch7x7dbl_5.bn.running_var", "fc.bias"} <= state
    assert tuple(inception.Mixed_7c.branch3x3dbl_3b.conv.weight.shape) == (384, 384, 3, 1)


@torch.no_grad()
def test_inception_features(inception):
    seen: dict[str, Any] = {}
    inception.Conv2d_1a_3x3.register_forward_pre_hook(lambda _, inputs: seen.update(first=inputs[0]))
    inception.Mixed_7c.register_forward_hook(lambda _m, _i, output: seen.update(last=output))
    images = torch.rand(2, 1, 40, 30) * 4 - 2
    found = inception.features(images)
    assert found.shape == (2, 2048)
    assert torch.equal(found, seen["last"].mean((2, 3)))
    assert found.std(0).mean() > 1e-3 * found.abs().mean()
    first = seen["first"]
    assert first.shape == (2, 3, 299, 299)
    assert torch.equal(first[:, 0], first[:, 2])
    assert first.min() >= -1 and first.max() <= 127 / 128
    level = ((images[1, 0, 0, 0].clamp(-1, 1) + 1) * 127.5).round()
    assert first[1, 0, 0, 0] == (level - 128) / 128


def test_resizing_is_tensorflow_1s():
    """Position i * size / 299, with no half-pixel shift: by loops on one row."""
    row = torch.rand(1, 1, 1, 7)
    found = _stretch(row, 3)[0, 0, 0]
    for i in (0, 1, 150, 297, 298):
        low, share = divmod(i * 7 / 299, 1)
        expected = row[0, 0, 0, int(low)] * (1 - share) + row[0, 0, 0, min(int(low) + 1, 6)] * share
        assert found[i].item() == pytest.approx(expected.item(), abs=1e-5)
    assert not torch.allclose(found, F.interpolate(row[0], 299, mode="linear")[0, 0], atol=1e-3)


def test_inception_is_recognised_whatever_its_file_is_called(weights, inception, tmp_path):
    space = find_space(None, weights)
    assert (space.name, space.dimension, space.real) == ("inception", 2048, None)
    assert space.digest == sha256(weights)
    for name, value in space.extractor.state_dict().items():
        assert torch.equal(value, inception.state_dict()[name])
    save_file(inception.state_dict(), tmp_path / "mine.safetensors")
    assert find_space(None, tmp_path / "mine.safetensors").name == "inception"
    broken = {name: value for name, value in inception.state_dict().items() if name != "fc.bias"}
    torch.save(broken, tmp_path / "broken.pth")
    with pytest.raises(UsageError, match=r"fc\.bias is missing"):
        find_space(None, tmp_path / "broken.pth")


@torch.no_grad()
def test_dino_is_the_class_token_of_transformers(dino):
    from transformers import BitImageProcessor, Dinov2Model

    space = find_space(None, dino)
    assert (space.name, space.dimension) == ("dinov2", 16)
    images = torch.rand(3, 3, 64, 64) * 2 - 1
    found = space.features(images, batch_size=2)
    levels = ((images + 1) * 127.5).round().byte()
    processor = BitImageProcessor(
        size={"height": 224, "width": 224}, do_center_crop=False, do_convert_rgb=False, resample=3,
        image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225],
    )  # fmt: skip
    pixels = processor(list(levels), return_tensors="pt").pixel_values
    expected = Dinov2Model.from_pretrained(dino).eval()(pixels).last_hidden_state[:, 0]
    assert torch.allclose(found, expected, atol=0.02)
    assert space.features(torch.zeros(1, 1, 28, 28)).shape == (1, 16)


@torch.no_grad()
def test_clip_embeds_images_and_prompts(clip):
    from transformers import CLIPModel, CLIPTokenizer

    space = find_space(None, clip)
    assert (space.name, space.dimension) == ("clip", 12)
    assert torch.allclose(space.features(torch.rand(2, 3, 20, 20)).norm(dim=1), torch.ones(2), atol=1e-5)
    prompts = ["a b", "c", "h g f e d c b a h g f e d c b a"]
    tokens = CLIPTokenizer.from_pretrained(clip)(prompts, padding=True, truncation=True, return_tensors="pt")
    model = CLIPModel.from_pretrained(clip).eval()
    embeds = model(**tokens, pixel_values=torch.zeros(1, 3, 16, 16)).text_embeds
    assert torch.allclose(space.extractor.text_features(prompts, batch_size=3), embeds, atol=1e-5)


@torch.no_grad()
def test_pickscore_is_the_logit_of_its_clip(clip):
    """Against transformers' own forward pass; beside the demo's space, and alone."""
    from transformers import CLIPModel, CLIPTokenizer

    prompts, images = ["a b", "c", "h g f"], 2 * torch.rand(3, 3, 16, 16) - 1
    tokens = CLIPTokenizer.from_pretrained(clip)(prompts, padding=True, return_tensors="pt")
    model = CLIPModel.from_pretrained(clip).eval()
    pixels = vision._prepared(images, 16, vision._OPENAI)
    expected = model(**tokens, pixel_values=pixels).logits_per_image.diagonal().mean()
    pick = replace(find_space(None, clip), name="pick")
    features = pick.features(images)
    protocol = Protocol(feature_space=None, sampler="ddim", sampler_steps=2, num_samples=3, seed=0)
    for space, beside in ((replace(demo_space(), pick=pick), {"pick": features}), (pick, {})):
        drawn = Drawn(images, torch.zeros(3), features if space is pick else torch.zeros(3, 128), images, beside)
        metrics = Metrics(not_computed=[])
        measure(Material({}, {"student": drawn}, space, protocol, prompts), metrics, [KINDS["pick_score"]])
        assert metrics["pick_score"].value == pytest.approx(float(expected), rel=1e-4)
    assert pick.judge_of("clip_score") is None  # whose weights are others


def test_what_is_no_extractor(tmp_path, dino):
    save_file({"a": torch.zeros(3)}, tmp_path / "other.safetensors")
    (tmp_path / "broken.safetensors").write_text("no")
    (tmp_path / "empty").mkdir()
    save_file({}, tmp_path / "nothing.safetensors")
    save_file({"body.0.weight": torch.zeros(3), "head.4.bias": torch.zeros(())}, tmp_path / "odd.safetensors")
    for name, text in (("deep", "[" * 10**5), ("list", "[1]"), ("words", '{"model_type": ["clip"]}')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(text)
    (tmp_path / "pipe").mkdir()
    os.mkfifo(tmp_path / "pipe" / "config.json")
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "config.json").write_bytes((dino / "config.json").read_bytes())
    for name, message in (
        ("other.safetensors", "no known feature extractor: its first tensor is a"),
        ("broken.safetensors", "cannot be read"),
        ("missing.safetensors", "no feature extractor at"),
        ("empty", "no readable config.json"),
        ("nothing.safetensors", "no floating-point tensors"),
        ("odd.safetensors", "does not hold all weights of its extractor"),
        ("deep", "too deeply nested"),
        ("list", "holds no JSON object"),
        ("words", r"model_type is \['clip'\]"),
        ("pipe", "is no regular file"),
        ("bert", "model_type is 'bert'"),
        ("half", "cannot read the dinov2 model"),
    ):
        with pytest.raises(UsageError, match=message):
            find_space(None, tmp_path / name)
    with pytest.raises(UsageError, match="nor in the Hub's local cache") as caught:
        find_space(None, "facebook/dinov2-of-nobody")
    assert "pt_inception-2015-12-05" in caught.value.hint


def test_weights_that_other_tools_left_behind(weights, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(extractors, "cached", lambda _id: None)
    assert cached_space((3, 64, 64), Progress()) is None
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "pt_inception-2015-12-05-6726825d.pth").symlink_to(weights)
    assert cached_space((3, 64, 64), Progress()).name == "inception"
    assert cached_space((1, 28, 28), Progress()) is None
    assert cached_space((4, 64, 64), Progress()) is None


def test_weights_that_cannot_be_read_and_that_nobody_asked_for_are_passed_over(tmp_path, monkeypatch):
    class Told(Progress):
        def warn(self, text):
            self.text = text

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(extractors, "cached", lambda _id: None)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "pt_inception-2015-12-05-6726825d.pth").write_bytes(b"half a download")
    told = Told()
    assert cached_space((3, 64, 64), told) is None
    assert "is not used" in told.text


def test_which_images_fit(inception):
    grey, latent = (1, 28, 28), (4, 64, 64)
    embedded = features.FeatureSpace("demo", "", Extractor())
    assert embedded.why_unfit(grey) is None
    assert embedded.why_unfit((3, 32, 32)) == "it reads 1x28x28 images, the student makes 3x32x32"
    large = features.FeatureSpace("inception", "", inception)
    assert large.why_unfit(grey) is large.why_unfit((3, 32, 32)) is None
    assert large.why_unfit(latent) == "it reads grey or RGB images, the student makes 4x64x64"


def test_fid_is_only_what_the_word_means():
    large, small = Metric.named("fd_inception"), Metric.named("fd_demo")
    assert called(large, 10_000, 10_000).name == "fid"
    assert called(large, 9_999, 10_000) == called(large, 10_000, 9_999) == large
    assert called(small, 50_000, 50_000) == small
