"""Prompts of the text demo teacher: phrases for the ten classes, a CLIP tokenizer of their words, frozen encoders.

The encoders are random on purpose: they hold no knowledge, they only tell phrases apart, and the transformer learns
what the phrases mean. Everything follows from the seed.
"""

from __future__ import annotations

import json
from pathlib import Path

import fashion_mnist
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

SEED = 11
MAX_TOKENS = 12
WIDTH = 32
SPECIAL = ("<|startoftext|>", "<|endoftext|>")
TEMPLATES = ("{}", "a photo of {}", "a picture of {}", "{} on black")
NOUNS = {
    "t-shirt": ("a t-shirt", "a tee", "a short-sleeved top"),
    "trouser": ("a pair of trousers", "some pants", "a pair of slacks"),
    "pullover": ("a pullover", "a sweater", "a jumper"),
    "dress": ("a dress", "a gown", "a frock"),
    "coat": ("a coat", "an overcoat", "a jacket"),
    "sandal": ("a sandal", "a flip-flop", "an open shoe"),
    "shirt": ("a shirt", "a blouse", "a button-up shirt"),
    "sneaker": ("a sneaker", "a trainer", "a running shoe"),
    "bag": ("a bag", "a handbag", "a purse"),
    "ankle boot": ("an ankle boot", "a boot", "a bootee"),
}


def phrases() -> list[list[str]]:
    """The phrases of each class, in the order of the labels, every class as many."""
    return [[t.format(noun) for t in TEMPLATES for noun in NOUNS[name]] for name in fashion_mnist.CLASS_NAMES]


def prompts() -> list[str]:
    """All phrases; any ten in a row that start at a multiple of ten are of ten classes."""
    return [phrase for row in zip(*phrases(), strict=True) for phrase in row]


def build_tokenizer() -> CLIPTokenizer:
    """A byte-level BPE tokenizer as CLIP has, its merges learned from the phrases until every word is one token."""
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=2000, end_of_word_suffix="</w>", initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(prompts(), trainer)
    merges = [tuple(pair) for pair in json.loads(bpe.to_str())["model"]["merges"]]
    tokens = [*alphabet, *(f"{letter}</w>" for letter in alphabet), *("".join(pair) for pair in merges), *SPECIAL]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=MAX_TOKENS)


def save_tokenizer(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Write vocab.json and merges.txt, CLIP's own files, beside those of save_pretrained, which may leave them out."""
    tokenizer.save_pretrained(folder)
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False))
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))


def build_encoder(tokenizer: CLIPTokenizer, index: int) -> CLIPTextModelWithProjection:
    """Encoder `index` (0 or 1): two layers, `WIDTH` wide, random; its weights are exact in half precision."""
    torch.manual_seed(SEED + index)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=MAX_TOKENS,
        hidden_act="quick_gelu" if index == 0 else "gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    encoder = CLIPTextModelWithProjection(config)
    with torch.no_grad():
        # CLIP's own start (0.02) leaves the words of an untrained encoder all but invisible to its readers.
        for name, parameter in encoder.named_parameters():
            if name.endswith("token_embedding.weight"):
                parameter.normal_()
            elif name.endswith("position_embedding.weight"):
                parameter.normal_(std=0.3)
    return encoder.half().float().eval().requires_grad_(False)


def embeddings(pipeline, texts: list[str]) -> tuple[Tensor, Tensor]:
    """`[N, MAX_TOKENS + 1, D]` and pooled `[N, 2 WIDTH]`, from the pipeline itself; the last token stands for the
    missing third encoder."""
    tokens, _, pooled, _ = pipeline.encode_prompt(
        texts, None, None, do_classifier_free_guidance=False, max_sequence_length=1
    )
    return tokens, pooled
