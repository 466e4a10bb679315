"""How many bytes a checkpoint's weights take once loaded, part by part.

The rules are those of `glitchrun.model`: int4 is nf4 in blocks of 64 with doubly quantized scales,
int8 is a byte a weight and a float32 scale a row; input embedding, head, norms, biases and routers
stay in 16 bits; the experts of a mixture are quantized like any linear layer, however stored.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from glitchrun.checkpoint.headers import Header
from glitchrun.checkpoint.safetensors_files import TensorInfo

WIDTH = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
"""Bytes of an element by dtype."""
QUANTIZED = ("int8", "int4")
_BLOCK = 64
"""Weights that share a scale in int4."""
_SCALE_BLOCK = 256
"""Scales that share a scale of their own in int4."""

_ROUTERS = ("gate", "router", "shared_expert_gate", "ffn_gate_inp")
# Tables of positions: looked up, not multiplied with, so they are no linear layers.
_POSITIONS = ("wpe", "embed_positions", "position_embeddings")
# Left by older versions of transformers in files; recomputed, never loaded.
_NOT_WEIGHTS = ("inv_freq", "masked_bias")
_CAUSAL_MASK_RANK = 4


@dataclass(frozen=True, slots=True)
class Weights:
    """What is held once the model is loaded. Bytes."""

    parameters: int | None
    """Numbers that were learned, tied ones once; None for weights quantized on disk."""
    parts: Mapping[str, int]
    """By part: embeddings, head, linear, experts, routers, other (norms, biases), scales."""
    dtype: str
    """Of activations and of what is not quantized."""
    largest_matrix: int
    """Elements of the largest matrix, embeddings and head included."""
    largest_layer: int
    """Elements of the largest layer."""

    @property
    def total(self) -> int:
        return sum(self.parts.values())


def load_dtype(header: Header, quantization: str) -> str:
    """The dtype of activations under a quantization: bfloat16 beside int8 and int4 weights."""
    if quantization == "none" or header.prequantized:
        return header.dtype
    return "bfloat16" if quantization in QUANTIZED else quantization


def weights(header: Header, quantization: str) -> Weights:
    """The bytes of a checkpoint's weights under none, float32, float16, bfloat16, int8 or int4.

    A checkpoint that is already quantized on disk is counted as stored, whatever is asked for.
    """
    dtype = load_dtype(header, quantization)
    loaded = {name: info for name, info in header.tensors.items() if _is_loaded(header, name, info)}
    parts: Counter[str] = Counter()
    for name, info in loaded.items():
        part = part_of(header, name, info)
        if header.prequantized:
            parts[part] += info.nbytes
        elif quantization in QUANTIZED and part in ("linear", "experts"):
            codes, scales = _quantized_bytes(info, quantization)
            parts[part] += codes
            parts["scales"] += scales
        else:
            parts[part] += info.numel * WIDTH[dtype]
    sizes = [info.numel for info in loaded.values()]
    return Weights(
        parameters=None if header.prequantized else sum(sizes),
        parts=dict(parts),
        dtype=dtype,
        largest_matrix=max(sizes, default=0),
        largest_layer=_largest_layer(loaded),
    )


def part_of(header: Header, name: str, info: TensorInfo) -> str:
    """Which part of the model a tensor belongs to (see `Weights.parts`)."""
    path = name.removesuffix(".weight").split(".")
    if name == header.embedding or path[-1] in _POSITIONS:
        return "embeddings"
    if name == header.head:
        return "head"
    if path[-1] in _ROUTERS and _chooses_experts(header, info):
        return "routers"
    if len(info.shape) < 2:
        return "other"
    # `experts` in a checkpoint folder, `ffn_up_exps` in a GGUF file.
    return "experts" if "experts" in path or path[-1].endswith("_exps") else "linear"


def _chooses_experts(header: Header, info: TensorInfo) -> bool:
    """Llama's feed-forward gate is named like a router; a router has a row for each expert."""
    return bool(header.dims.num_experts) and info.shape[0] in (1, header.dims.num_experts)


def _is_loaded(header: Header, name: str, info: TensorInfo) -> bool:
    last = name.rpartition(".")[2]
    if last in _NOT_WEIGHTS or (last == "bias" and len(info.shape) == _CAUSAL_MASK_RANK):
        return False
    tied_copy = header.head is None and name.endswith("lm_head.weight")
    return not tied_copy


def _quantized_bytes(info: TensorInfo, quantization: str) -> tuple[int, int]:
    """Bytes of codes and of scales. Of a stack (experts, rows, columns) every matrix for itself."""
    *stack, rows, columns = info.shape
    count = 1
    for length in stack:
        count *= length
    size = rows * columns
    if quantization == "int8":
        return count * size, count * rows * 4
    blocks = -(-size // _BLOCK)
    # A byte for each block, a float32 for each block of these, and a float32 offset.
    scales = blocks + 4 * -(-blocks // _SCALE_BLOCK) + 4
    return count * -(-size // 2), count * scales


def _largest_layer(tensors: Mapping[str, TensorInfo]) -> int:
    """Elements of the largest layer: tensors that share the name up to the layer's number."""
    layers: Counter[str] = Counter()
    for name, info in tensors.items():
        path = name.split(".")
        at = next((i for i, part in enumerate(path) if part.isdigit()), None)
        layers[".".join(path[: at + 1]) if at is not None else name] += info.numel
    return max(layers.values(), default=0)
