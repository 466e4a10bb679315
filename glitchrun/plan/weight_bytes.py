"""Bytes that the weights of a checkpoint take once they are loaded, by part of the model.

The rules are those of `glitchrun.model`. int4 is nf4 in blocks of 64 with doubly quantized scales;
int8 is one byte per weight and one float32 scale per row. Input embedding, head, norms, biases and
routers stay in 16 bits. The experts of a mixture are quantized like any linear layer, in whatever
form they are stored.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from glitchrun.checkpoint.headers import Header
from glitchrun.checkpoint.packed_weights import becomes_floats, elements
from glitchrun.checkpoint.safetensors_files import TensorInfo

ITEM_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
"""Bytes per element by dtype."""
QUANTIZED = ("int8", "int4")
_BLOCK = 64
"""Weights that share one scale in int4."""
_SCALE_BLOCK = 256
"""int4 scales that share one second-level scale."""

_ROUTERS = ("gate", "router", "shared_expert_gate", "ffn_gate_inp")
# Position embeddings are looked up, not multiplied: they are not linear layers.
_POSITIONS = ("wpe", "embed_positions", "position_embeddings")
# Stored by older versions of transformers, but recomputed instead of loaded.
_NOT_WEIGHTS = ("inv_freq", "masked_bias")
_CAUSAL_MASK_RANK = 4


@dataclass(frozen=True, slots=True)
class Weights:
    """Sizes of a loaded model's weights."""

    parameters: int
    """Number of learned parameters, tied ones once."""
    parts: Mapping[str, int]
    """Bytes by part: embeddings, head, linear, experts, routers, other (norms, biases), scales."""
    dtype: str
    """dtype of activations and of weights that are not quantized."""
    largest_matrix: int
    """Elements of the largest matrix, including embeddings and head."""
    largest_layer: int
    """Elements of the largest layer."""

    @property
    def total(self) -> int:
        """Bytes of all parts."""
        return sum(self.parts.values())


def load_dtype(header: Header, quantization: str) -> str:
    """The dtype of activations: bfloat16 with int8 and int4 weights, else that of the weights."""
    if quantization == "none" or header.prequantized:
        return header.dtype
    return "bfloat16" if quantization in QUANTIZED else quantization


def weights(
    header: Header, quantization: str, kind: str = "cpu", capability: float | None = None
) -> Weights:
    """Sizes of a checkpoint's weights when loaded with a quantization.

    Args:
        header: The checkpoint.
        quantization: none, float32, float16, bfloat16, int8 or int4. Weights that are quantized on
            disk are counted as stored, whatever it says.
        kind: Kind of device, cpu or cuda. On some, transformers converts weights that are quantized
            on disk to floats.
        capability: CUDA compute capability of the device; None where it is not known.
    """
    dtype = load_dtype(header, quantization)
    loaded = {name: info for name, info in header.tensors.items() if _is_loaded(header, name, info)}
    parts: Counter[str] = Counter()
    sizes = {name: elements(header, name, info) for name, info in loaded.items()}
    is_stored = header.prequantized and not becomes_floats(header, kind, capability)
    for name, info in loaded.items():
        part = part_of(header, name, info)
        if is_stored:
            parts[part] += info.nbytes
        elif header.prequantized:
            parts[part] += sizes[name] * ITEM_BYTES[dtype]
        elif quantization in QUANTIZED and part in ("linear", "experts"):
            codes, scales = _quantized_bytes(info, quantization)
            parts[part] += codes
            parts["scales"] += scales
        else:
            parts[part] += info.numel * ITEM_BYTES[dtype]
    return Weights(
        parameters=sum(sizes.values()),
        parts={part: count for part, count in parts.items() if count},
        dtype=dtype,
        largest_matrix=max(sizes.values(), default=0),
        largest_layer=_largest_layer(sizes),
    )


def part_of(header: Header, name: str, info: TensorInfo) -> str:
    """The part of the model that a tensor belongs to (see `Weights.parts`)."""
    path = name.removesuffix(".weight").split(".")
    if name == header.embedding or path[-1] in _POSITIONS:
        return "embeddings"
    if name == header.head:
        return "head"
    if path[-1] in _ROUTERS and _is_router(header, info):
        return "routers"
    if len(info.shape) < 2:
        return "other"
    # `experts` in a checkpoint folder, `ffn_up_exps` in a GGUF file.
    return "experts" if "experts" in path or path[-1].endswith("_exps") else "linear"


def active_parameters(header: Header) -> float:
    """Parameters that one position is multiplied with; of the experts only the active ones."""
    dims = header.dims
    share = dims.top_k / dims.num_experts if dims.num_experts else 1.0
    total = 0.0
    for name, info in header.tensors.items():
        part = part_of(header, name, info)
        if part in ("linear", "routers"):
            total += elements(header, name, info)
        elif part == "experts":
            total += elements(header, name, info) * share
    return total


def _is_router(header: Header, info: TensorInfo) -> bool:
    """Llama's feed-forward gate has the name of a router, but only a router has a row per
    expert."""
    return bool(header.dims.num_experts) and info.shape[0] in (1, header.dims.num_experts)


def _is_loaded(header: Header, name: str, info: TensorInfo) -> bool:
    last = name.rpartition(".")[2]
    if last in _NOT_WEIGHTS or (last == "bias" and len(info.shape) == _CAUSAL_MASK_RANK):
        return False
    tied_copy = header.head is None and name.endswith("lm_head.weight")
    return not tied_copy


def _quantized_bytes(info: TensorInfo, quantization: str) -> tuple[int, int]:
    """Bytes of codes and of scales; each matrix of a stack (experts, rows, columns) separately."""
    *stack, rows, columns = info.shape
    count = 1
    for length in stack:
        count *= length
    size = rows * columns
    if quantization == "int8":
        return count * size, count * rows * 4
    blocks = -(-size // _BLOCK)
    # One byte per block, one float32 per block of scales, and one float32 offset.
    scales = blocks + 4 * -(-blocks // _SCALE_BLOCK) + 4
    return count * -(-size // 2), count * scales


def _largest_layer(sizes: Mapping[str, int]) -> int:
    """Elements of the largest layer: tensors whose names agree up to the number of the layer."""
    layers: Counter[str] = Counter()
    for name, size in sizes.items():
        path = name.split(".")
        at = next((i for i, part in enumerate(path) if part.isdigit()), None)
        layers[".".join(path[: at + 1]) if at is not None else name] += size
    return max(layers.values(), default=0)
