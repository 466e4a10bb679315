"""Checkpoint files written byte by byte, so that tests can make unsound ones. No torch."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

WIDTH = {"F32": 4, "BF16": 2, "F16": 2, "U8": 1, "I64": 8, "I8": 1, "I32": 4, "F8_E4M3": 1}
LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "vocab_size": 10,
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
}
TENSORS: dict[str, tuple[str, tuple[int, ...]]] = {
    "model.embed_tokens.weight": ("BF16", (10, 8)),
    "model.layers.0.self_attn.q_proj.weight": ("BF16", (8, 8)),
    "model.norm.weight": ("BF16", (8,)),
    "lm_head.weight": ("BF16", (10, 8)),
}


def entries(tensors: Mapping[str, tuple[str, Sequence[int]]]) -> dict[str, Any]:
    """The header's JSON for tensors that follow one another."""
    at, described = 0, {}
    for name, (dtype, shape) in tensors.items():
        size = WIDTH[dtype]
        for length in shape:
            size *= length
        described[name] = {
            "dtype": dtype,
            "shape": list(shape),
            "data_offsets": [at, at + size],
        }
        at += size
    return described


def safetensors(
    path: Path, tensors: Mapping[str, tuple[str, Sequence[int]]], fill: bytes = b"\0"
) -> Path:
    """A sound safetensors file."""
    described = entries(tensors)
    size = max((entry["data_offsets"][1] for entry in described.values()), default=0)
    return safetensors_raw(path, json.dumps(described).encode(), fill * size)


def safetensors_raw(path: Path, header: bytes, data: bytes, length: int | None = None) -> Path:
    """A safetensors file with any header, any data and any announced length."""
    announced = len(header) if length is None else length
    path.write_bytes(struct.pack("<Q", announced) + header + data)
    return path


def folder(
    path: Path,
    *,
    config: Mapping[str, Any] = LLAMA,
    tensors: Mapping[str, tuple[str, Sequence[int]]] = TENSORS,
    fill: bytes = b"\0",
) -> Path:
    """A checkpoint folder with one weight file."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    safetensors(path / "model.safetensors", tensors, fill)
    return path


def gguf_string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def gguf_key(name: str, value: int | str) -> bytes:
    """A key with a uint32 or a string."""
    if isinstance(value, str):
        return gguf_string(name) + struct.pack("<I", 8) + gguf_string(value)
    return gguf_string(name) + struct.pack("<II", 4, value)


def gguf_tensor(name: str, ne: Sequence[int], kind: int, offset: int) -> bytes:
    """A tensor's description; `ne` counts from the innermost dimension."""
    described = gguf_string(name) + struct.pack("<I", len(ne))
    described += b"".join(struct.pack("<Q", length) for length in ne)
    return described + struct.pack("<IQ", kind, offset)


GGUF_KEYS = (
    gguf_key("general.architecture", "llama"),
    gguf_key("llama.embedding_length", 32),
    gguf_key("llama.block_count", 1),
    gguf_key("llama.attention.head_count", 2),
    gguf_string("tokenizer.ggml.tokens")
    + struct.pack("<IIQ", 9, 8, 2)
    + gguf_string("a")
    + gguf_string("b"),
)


def gguf(
    path: Path,
    *,
    keys: Sequence[bytes] = GGUF_KEYS,
    tensors: Sequence[bytes] = (gguf_tensor("token_embd.weight", (32, 2), 2, 0),),
    data: bytes = b"\0" * 36,
    version: int = 3,
    counts: tuple[int, int] | None = None,
) -> Path:
    """A GGUF file; the default is sound, with one embedding of 2 x 32 in Q4_0 (36 bytes)."""
    tensor_count, key_count = counts or (len(tensors), len(keys))
    head = b"GGUF" + struct.pack("<IQQ", version, tensor_count, key_count)
    head += b"".join(keys) + b"".join(tensors)
    path.write_bytes(head + b"\0" * (-len(head) % 32) + data)
    return path
