"""The embedded latent teachers load in plain diffusers and draw what they are asked for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import DiTPipeline, StableDiffusion3Pipeline

from diffcompress.evaluation.features import demo_space
from diffcompress.sources.reference import DEMO_FOLDER, demo_names

NAMES = ["t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"]
# Classes that look alike (t-shirt, pullover, coat, shirt, dress) are left out: these five are told apart with ease.
ASKED = [1, 5, 7, 8, 9]


@pytest.fixture(scope="module")
def dit() -> DiTPipeline:
    pipeline = DiTPipeline.from_pretrained(DEMO_FOLDER / "dit", torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def mmdit() -> StableDiffusion3Pipeline:
    pipeline = StableDiffusion3Pipeline.from_pretrained(DEMO_FOLDER / "mmdit", torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def share_recognised(images: np.ndarray, labels: list[int]) -> float:
    """Of images `[N, 28, 28, 1]` in [0, 1], by the embedded classifier."""
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() * 2 - 1
    found = demo_space().extractor(pixels).argmax(1)
    return (found == torch.tensor(labels)).float().mean().item()


@pytest.mark.parametrize("name", ["dit", "mmdit"])
def test_the_folder_is_found_and_small(name):
    assert name in demo_names()
    assert sum(p.stat().st_size for p in (DEMO_FOLDER / name).rglob("*") if p.is_file()) < 8e6


def test_dit_draws_the_class_it_is_asked_for(dit):
    labels = ASKED * 4
    images = dit(
        labels, guidance_scale=1.0, num_inference_steps=12, generator=torch.manual_seed(0), output_type="np"
    ).images
    assert images.shape == (20, 28, 28, 1)
    assert share_recognised(images, labels) >= 0.6


def test_dit_knows_its_labels_and_has_a_null_class(dit):
    assert dit.get_label_ids(NAMES) == list(range(10))
    assert dit.transformer.transformer_blocks[0].norm1.emb.class_embedder.embedding_table.num_embeddings == 11
    assert dit.transformer.config.out_channels == 2 * dit.transformer.config.in_channels


def test_dit_learned_the_null_class(dit):
    latents = torch.randn(8, 4, 14, 14, generator=torch.manual_seed(0))
    times = torch.full((8,), 500)
    with torch.no_grad():
        null, bag = (dit.transformer(latents, timestep=times, class_labels=torch.full((8,), c)).sample for c in (10, 8))
    assert (null - bag)[:, :4].abs().mean() > 0.01


def test_mmdit_third_encoder_is_silent(mmdit):
    embeddings, *_ = mmdit.encode_prompt(["a sneaker", "zebra"], None, None, max_sequence_length=8)
    clip = mmdit.tokenizer.model_max_length
    assert embeddings.shape[1] == clip + 8
    assert embeddings[:, clip:].abs().max() == 0
    assert (embeddings[0, :clip] - embeddings[1, :clip]).abs().max() > 0.1


@pytest.mark.parametrize("length", [8, 256])
def test_mmdit_draws_what_the_prompt_says(mmdit, length):
    count = 4 if length == 8 else 1  # 256 tokens, the pipeline's own default, take five times as long
    prompts = ["a photo of a pair of trousers", "a sandal", "a picture of a sneaker", "a handbag", "an ankle boot"]
    images = mmdit(
        prompts * count,
        guidance_scale=2.0,
        num_inference_steps=12,
        max_sequence_length=length,
        generator=torch.manual_seed(0),
        output_type="np",
    ).images
    assert images.shape == (5 * count, 28, 28, 1)
    assert share_recognised(images, ASKED * count) >= 0.6


def test_mmdit_prompts_fit_and_have_a_token_for_every_word(mmdit):
    prompts = (DEMO_FOLDER / "mmdit" / "prompts.txt").read_text().splitlines()
    assert len(prompts) == len(set(prompts)) == 120
    for prompt in prompts:
        ids = mmdit.tokenizer(prompt).input_ids
        words = prompt.replace("-", " - ").split()
        assert mmdit.tokenizer.convert_ids_to_tokens(ids)[1:-1] == [f"{word}</w>" for word in words]
        assert len(ids) <= mmdit.tokenizer.model_max_length


def test_mmdit_tokenizer_reads_from_vocabulary_and_merges_alone(mmdit, tmp_path):
    from transformers import CLIPTokenizer

    for file in ("vocab.json", "merges.txt"):
        (tmp_path / file).write_bytes((DEMO_FOLDER / "mmdit" / "tokenizer" / file).read_bytes())
    alone = CLIPTokenizer.from_pretrained(tmp_path)
    for prompt in ("a photo of a short-sleeved top", "zebra"):
        assert alone(prompt).input_ids == mmdit.tokenizer(prompt).input_ids
