"""A tiny GGUF file with a real tokenizer in it, written with the package gguf."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np

from tests.support.tiny_models import CHATML, SPECIAL, bpe_tokenizer

HIDDEN, LAYERS, HEADS, KV_HEADS, INNER = 64, 2, 4, 2, 128


def tiny_gguf(
    path: Path,
    *,
    seed: int = 0,
    chat_template: str = CHATML,
    folder: Path | None = None,
    pre: str | None = "gpt-2",
    add_bos: bool | None = None,
    renamed: Mapping[str, tuple[str, gguf.TokenType]] | None = None,
) -> Path:
    """A llama of some 400 tokens: matrices in Q8_0, norms in F32, embeddings tied.

    Its tokenizer is that of a `folder`, else one of its own; `renamed` gives tokens another text
    and type.
    """
    folder = folder or bpe_tokenizer(path.parent / "vocabulary")
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].get)
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    types = {token: (token, control if token in SPECIAL else normal) for token in vocabulary}
    types.update(renamed or {})
    writer = gguf.GGUFWriter(path, "llama")
    _add_sizes(writer, len(vocabulary))
    writer.add_tokenizer_model("gpt2")
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list([types[token][0] for token in vocabulary])
    writer.add_token_types([types[token][1] for token in vocabulary])
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    if add_bos is not None:
        writer.add_add_bos_token(add_bos)
    writer.add_chat_template(chat_template)
    _add_tensors(writer, len(vocabulary), np.random.default_rng(seed))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_sizes(writer: gguf.GGUFWriter, vocabulary: int) -> None:
    writer.add_name("tiny")
    writer.add_context_length(256)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(vocabulary)


def _add_tensors(writer: gguf.GGUFWriter, vocabulary: int, rng: np.random.Generator) -> None:
    narrow = HIDDEN * KV_HEADS // HEADS
    shapes = {
        "attn_q": (HIDDEN, HIDDEN),
        "attn_k": (narrow, HIDDEN),
        "attn_v": (narrow, HIDDEN),
        "attn_output": (HIDDEN, HIDDEN),
        "ffn_gate": (INNER, HIDDEN),
        "ffn_up": (INNER, HIDDEN),
        "ffn_down": (HIDDEN, INNER),
    }
    _add_matrix(writer, "token_embd.weight", (vocabulary, HIDDEN), rng)
    ones = np.ones(HIDDEN, dtype=np.float32)
    writer.add_tensor("output_norm.weight", ones)
    for layer in range(LAYERS):
        writer.add_tensor(f"blk.{layer}.attn_norm.weight", ones)
        writer.add_tensor(f"blk.{layer}.ffn_norm.weight", ones)
        for name, shape in shapes.items():
            _add_matrix(writer, f"blk.{layer}.{name}.weight", shape, rng)


def _add_matrix(
    writer: gguf.GGUFWriter, name: str, shape: tuple[int, int], rng: np.random.Generator
) -> None:
    kind = gguf.GGMLQuantizationType.Q8_0
    weights = rng.normal(0, 0.1, shape).astype(np.float32)
    writer.add_tensor(name, gguf.quants.quantize(weights, kind), raw_dtype=kind)
