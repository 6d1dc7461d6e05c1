"""Prompts of the text demo teacher: phrases for the ten classes, a CLIP tokenizer of their words, frozen encoders.

The CLIP encoders are random on purpose: they hold no knowledge, they only tell phrases apart, and the transformer
learns what the phrases mean. The T5 encoder is silent: diffusers loads no StableDiffusion3Pipeline without one unless
told so by hand. Everything follows from the seed.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import torch
from diffusers import StableDiffusion3Pipeline
from tokenizers import pre_tokenizers
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from benchmarks import fashion_mnist

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
    words = sorted({word for prompt in prompts() for word in re.findall(r"[a-z]+|[^\sa-z]+", prompt)})
    merges = learn_merges(words)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *(f"{letter}</w>" for letter in alphabet), *("".join(pair) for pair in merges), *SPECIAL]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    # transformers' hint is of the file's lines; pairs are what its docstring asks for.
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=MAX_TOKENS)  # type: ignore[arg-type]


def learn_merges(words: list[str]) -> list[tuple[str, str]]:
    """Byte-pair merges, the most frequent pair first, until every word is whole.

    Of equally frequent pairs the first in the alphabet: `tokenizers`' own trainer breaks ties by chance, and other
    numbers for the words would be other words to the frozen encoders.
    """
    split = [[*word[:-1], f"{word[-1]}</w>"] for word in words]
    merges: list[tuple[str, str]] = []
    while counts := Counter(pair for parts in split for pair in pairwise(parts)):
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        for parts in split:
            for i in reversed(range(len(parts) - 1)):
                if tuple(parts[i : i + 2]) == best:
                    parts[i : i + 2] = ["".join(best)]
    return merges


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


def build_silent_tokenizer() -> T5Tokenizer:
    """Of the phrases' words, one token each, and of letters for the rest."""
    words = sorted({f"\u2581{word}" for prompt in prompts() for word in prompt.split()})
    letters = [f"{chr(code)}" for code in range(ord("a"), ord("z") + 1)]
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0)]
    vocabulary = special + [(word, -3.0) for word in words] + [(letter, -8.0) for letter in letters]
    return T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=256)


def build_silent_encoder(tokenizer: T5Tokenizer) -> T5EncoderModel:
    """All its outputs are zero: what the pipeline itself puts in the place of a missing third encoder."""
    torch.manual_seed(SEED + 2)
    config = T5Config(vocab_size=len(tokenizer), d_model=2 * WIDTH, d_kv=16, d_ff=2 * WIDTH, num_layers=1, num_heads=2)
    encoder = T5EncoderModel(config)
    nn.init.zeros_(encoder.encoder.final_layer_norm.weight)
    return encoder.eval().requires_grad_(False)


def embeddings(pipeline: StableDiffusion3Pipeline, texts: list[str]) -> tuple[Tensor, Tensor]:
    """`[N, MAX_TOKENS + 1, D]` and pooled `[N, 2 WIDTH]`, from the pipeline itself; the last token, zero, stands for
    all those of the silent encoder."""
    tokens, _, pooled, _ = pipeline.encode_prompt(
        texts, texts, texts, do_classifier_free_guidance=False, max_sequence_length=MAX_TOKENS
    )
    return tokens[:, : MAX_TOKENS + 1], pooled
