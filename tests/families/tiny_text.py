"""Tiny text encoders and tokenizers of the kinds that pipelines use, from configs alone: nothing is downloaded."""

from __future__ import annotations

import string
from collections.abc import Callable
from typing import Any

import torch
from transformers import (  # type: ignore[attr-defined]  # T5TokenizerFast: made at import by transformers 5
    BertConfig,
    BertModel,
    BertTokenizer,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Gemma2Config,
    Gemma2Model,
    GemmaTokenizer,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
    UMT5Config,
    UMT5EncoderModel,
)

LETTERS = string.ascii_letters + string.digits + string.punctuation


def seeded(build: Callable[[], Any], seed: int = 0) -> Any:
    """What `build()` returns, in eval mode, its random weights drawn from `seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build().eval()


def clip_tokenizer(length: int = 12) -> CLIPTokenizer:
    """Letter by letter, at most `length` tokens."""
    tokens = [*LETTERS, *(letter + "</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    vocab = {token: number for number, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=length)


def clip_text(dim: int = 8, *, projection: int | None = None, length: int = 12, seed: int = 0) -> Any:
    """Hidden states of `dim` channels; with `projection` the class whose pooled output has that many."""
    tokens = len(clip_tokenizer())
    config = CLIPTextConfig(
        vocab_size=tokens,
        hidden_size=dim,
        intermediate_size=2 * dim,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=length,
        projection_dim=projection or dim,
        hidden_act="quick_gelu",
        bos_token_id=tokens - 2,
        eos_token_id=tokens - 1,
        pad_token_id=tokens - 1,
    )
    return seeded(lambda: (CLIPTextModelWithProjection if projection else CLIPTextModel)(config), seed)


def t5_tokenizer(length: int = 16) -> T5TokenizerFast:
    """Letter by letter, at most `length` tokens unless a pipeline asks for more."""
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -1.0), *((letter, -2.0) for letter in LETTERS)]
    return T5TokenizerFast(vocab=vocab, extra_ids=0, model_max_length=length)


def t5_encoder(dim: int = 8, *, seed: int = 0) -> T5EncoderModel:
    """Hidden states of `dim` channels."""
    return seeded(lambda: T5EncoderModel(T5Config(**_t5(dim))), seed)


def umt5_encoder(dim: int = 8, *, seed: int = 0) -> UMT5EncoderModel:
    """As `t5_encoder`, of the multilingual kind; it takes the same tokenizer."""
    return seeded(lambda: UMT5EncoderModel(UMT5Config(**_t5(dim))), seed)


def _t5(dim: int) -> dict[str, Any]:
    tokens = len(t5_tokenizer())
    return {
        "vocab_size": tokens,
        "d_model": dim,
        "d_kv": 4,
        "d_ff": 2 * dim,
        "num_layers": 2,
        "num_heads": 2,
        "dropout_rate": 0.0,
    }


def bert_tokenizer(length: int = 77) -> BertTokenizer:
    """Letter by letter, lower case, at most `length` tokens unless a pipeline asks for more."""
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *("##" + letter for letter in LETTERS)]
    return BertTokenizer(vocab={token: number for number, token in enumerate(tokens)}, model_max_length=length)


def bert_encoder(dim: int = 8, *, length: int = 77, seed: int = 0) -> BertModel:
    """Hidden states of `dim` channels of at most `length` tokens."""
    config = BertConfig(
        vocab_size=len(bert_tokenizer()),
        hidden_size=dim,
        intermediate_size=2 * dim,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=length,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return seeded(lambda: BertModel(config), seed)


def gemma_tokenizer(length: int = 64) -> GemmaTokenizer:
    """Letter by letter, at most `length` tokens unless a pipeline asks for more."""
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *LETTERS]
    vocab = {token: number for number, token in enumerate(tokens)}
    return GemmaTokenizer(vocab=vocab, model_max_length=length, add_bos_token=True)


def gemma2_encoder(dim: int = 8, *, seed: int = 0) -> Gemma2Model:
    """Hidden states of `dim` channels, each of what stands before it."""
    options: dict[str, Any] = {"attn_implementation": "eager"}
    config = Gemma2Config(
        vocab_size=len(gemma_tokenizer()),
        hidden_size=dim,
        intermediate_size=2 * dim,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=4,
        query_pre_attn_scalar=4,
        **options,
    )
    return seeded(lambda: Gemma2Model(config), seed)


def qwen_tokenizer(length: int = 64) -> Qwen2Tokenizer:
    """Letter by letter, at most `length` tokens unless a pipeline asks for more; with a template for chats."""
    turns = ["<|im_start|>", "<|im_end|>"]
    tokens = ["<|endoftext|>", *turns, "Ġ", "Ċ", *LETTERS]  # the marks stand for a space and a line's end
    vocab = {token: number for number, token in enumerate(tokens)}
    tokenizer = Qwen2Tokenizer(vocab=vocab, merges=[], model_max_length=length, extra_special_tokens=turns)
    tokenizer.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    return tokenizer


def qwen3_encoder(dim: int = 8, *, seed: int = 0) -> Qwen3Model:
    """Hidden states of `dim` channels, each of what stands before it."""
    config = Qwen3Config(
        vocab_size=len(qwen_tokenizer()),
        hidden_size=dim,
        intermediate_size=2 * dim,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=4,
    )
    return seeded(lambda: Qwen3Model(config), seed)


def qwen_vl_encoder(dim: int = 8, *, seed: int = 0) -> Qwen2_5_VLForConditionalGeneration:
    """Hidden states of `dim` channels, each of what stands before it; it could read images too."""
    tokens = len(qwen_tokenizer())
    text = {
        "vocab_size": tokens,
        "hidden_size": dim,
        "intermediate_size": 2 * dim,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, dim // 4 - 2]},
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 0,
    }
    vision = {"depth": 1, "hidden_size": 8, "intermediate_size": 8, "num_heads": 2, "out_hidden_size": dim}
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision)
    return seeded(lambda: Qwen2_5_VLForConditionalGeneration(config), seed)
