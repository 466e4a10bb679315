"""The units in which the weights of a checkpoint are streamed: a layer, an expert, a block of rows.

A pass over the model reads its units in order. Only the layout of Llama and Mixtral is read so, by
the names of tensors; names of other families are refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from glitchrun.checkpoint.headers import Header
from glitchrun.checkpoint.safetensors_files import TensorInfo, tensor_offsets

BLOCK_BYTES = 64 << 20
"""Most bytes of an embedding's or a head's rows that are read at a time."""
UnitKind = Literal["embedding", "layer", "expert", "norm", "head"]

_LAYER = re.compile(
    r"self_attn\.[qkvo]_proj\.(weight|bias)|self_attn\.[qk]_norm\.weight|[a-z_]*layernorm\.weight"
    r"|mlp\.(gate|up|down)_proj\.(weight|bias)|mlp\.gate\.weight"
)
"""Names of a layer's tensors, below the number of the layer."""
_SCALES = re.compile(
    r"(?<=_proj)(\.weight\.(absmax|nested_absmax|quant_map|nested_quant_map"
    r"|quant_state\.bitsandbytes__nf4)|\.SCB|\.weight_format)$"
)
"""What bitsandbytes stores beside the codes of a matrix."""
_CODES = {"uint8": 2, "int8": 1}
"""Elements of a matrix for each of its stored codes."""
_BLOCK = 64
"""Weights that share a scale in the only 4-bit format that a resident model computes itself."""
_EXPERT = re.compile(r"mlp\.experts\.(\d+)\.(w[123]|(?:gate|up|down)_proj)\.weight")
_FUSED = re.compile(r"mlp\.experts\.(gate_up|down)_proj")
_EXPERT_PARTS = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}
_NORMS = ("input_layernorm.weight", "post_attention_layernorm.weight")
"""Norms before attention and MLP. Families that have only others add them elsewhere."""
_SCALED = ("Granite",)
"""Families with the same tensors that scale embeddings, residuals or logits."""
_COMPUTED = re.compile(r"rotary_emb\.inv_freq$")
"""Stored by older versions of transformers, but computed instead of loaded."""


@dataclass(frozen=True, slots=True)
class TensorPlace:
    """A tensor, or a part of one, in a weight file."""

    info: TensorInfo
    file: Path
    offset: int
    """Of its first byte in the file."""

    @property
    def held(self) -> int:
        """Elements in memory at a time: those of a packed matrix, and its codes, counted in
        float32."""
        if self.info.dtype not in _CODES:
            return self.info.numel
        return _CODES[self.info.dtype] * self.info.numel + self.info.nbytes // 4

    def rows(self, start: int, end: int) -> TensorPlace:
        """The rows from `start` to `end` of a tensor `(R, ...)`."""
        rows, *rest = self.info.shape
        each = self.info.nbytes // rows
        info = TensorInfo(self.info.dtype, (end - start, *rest), (end - start) * each)
        return TensorPlace(info, self.file, self.offset + start * each)


@dataclass(frozen=True, slots=True)
class Unit:
    """Tensors that are read together."""

    kind: UnitKind
    tensors: Mapping[str, TensorPlace]
    """By the name of the parameter below the layer; of an expert `gate_proj`, `up_proj` and
    `down_proj`; of other units `weight`."""
    layer: int = 0
    expert: int = 0
    start: int = 0
    """First row of a block of the embedding or the head."""

    @property
    def nbytes(self) -> int:
        """Bytes in the files."""
        return sum(place.info.nbytes for place in self.tensors.values())

    @property
    def numel(self) -> int:
        """Number of elements that are in memory while it is used."""
        return sum(place.held for place in self.tensors.values())


@dataclass(frozen=True, slots=True)
class Units:
    """A checkpoint as units, in the order of a pass."""

    embedding: tuple[Unit, ...]
    layers: tuple[tuple[Unit, ...], ...]
    """For each layer its unit, followed by those of its experts."""
    norm: Unit
    head: tuple[Unit, ...]

    @property
    def body(self) -> tuple[Unit, ...]:
        """The units of all layers."""
        return tuple(unit for layer in self.layers for unit in layer)

    @property
    def whole_head(self) -> Unit:
        """The head as one unit."""
        first, last = self.head[0].tensors["weight"], self.head[-1].tensors["weight"]
        rows = self.head[-1].start + last.info.shape[0]
        nbytes = rows * (first.info.nbytes // first.info.shape[0])
        info = TensorInfo(first.info.dtype, (rows, *first.info.shape[1:]), nbytes)
        return Unit("head", {"weight": TensorPlace(info, first.file, first.offset)})

    @property
    def largest_tensor(self) -> int:
        """Elements of the largest tensor of a layer."""
        return max(place.held for unit in self.body for place in unit.tensors.values())

    @property
    def pass_bytes(self) -> int:
        """Bytes that a pass reads: every tensor once, and a tied embedding again as the head."""
        return self.headless_bytes + sum(unit.nbytes for unit in (self.norm, *self.head))

    @property
    def headless_bytes(self) -> int:
        """Bytes that a pass reads which needs no logits."""
        return sum(unit.nbytes for unit in (*self.embedding, *self.body))


def why_not_streamable(header: Header) -> str | None:
    """Why the weights of a checkpoint cannot be streamed; None if its names allow it."""
    if header.format == "pickle":
        return "pickled weights cannot be read tensor by tensor; convert them to safetensors"
    if header.prequantized and (reason := _other_format(header)):
        return (
            f"the weights are quantized on disk {reason}, which only a resident model supports; "
            "use the original checkpoint with model.quantization: int4 or int8"
        )
    if header.adapter is not None:
        return "an adapter is merged into a resident model; merge it into a checkpoint first"
    if header.format == "gguf":
        if header.architecture not in _GGUF_FAMILIES:
            return _other(header)
        header = as_converted(header)
    elif header.architecture.startswith(_SCALED):
        return _other(header)
    found = {rest for _, rest in _layer_names(header)}
    unknown = sorted(rest for rest in found if not _is_known(rest))
    has_norms = f"{header.prefix}norm.weight" in header.tensors and found.issuperset(_NORMS)
    if unknown or not has_norms:
        return _other(header, unknown[0] if unknown else "")
    return None


def _other(header: Header, tensor: str = "") -> str:
    found = f" (it has {tensor})" if tensor else ""
    return (
        f"{header.architecture} does not have the layers of Llama or Mixtral{found}, the only ones "
        "that are streamed"
    )


def _other_format(header: Header) -> str:
    """How weights are quantized that are not streamed; empty for bitsandbytes' int8 and nf4."""
    if header.prequantized != "bitsandbytes":
        return f"({header.prequantized})"
    settings = header.config.get("quantization_config") or {}
    is_nf4 = settings.get("bnb_4bit_quant_type") == "nf4"
    if settings.get("load_in_4bit") and not (is_nf4 and settings.get("bnb_4bit_use_double_quant")):
        return "by bitsandbytes, but not as nf4 with double quantization"
    if settings.get("bnb_4bit_quant_storage", "uint8") != "uint8":
        return f"by bitsandbytes, with codes stored as {settings['bnb_4bit_quant_storage']}"
    codes = (info for info in header.tensors.values() if info.dtype == "uint8")
    matrices = (info for info in codes if info.shape[1:] == (1,))
    if any(2 * info.numel % _BLOCK for info in matrices):
        return f"by bitsandbytes, in matrices whose size is not a multiple of {_BLOCK}"
    return ""


# GGUF files -----------------------------------------------------------------------------------

_GGUF_FAMILIES = ("llama", "qwen2", "qwen3", "mistral")
_GGUF_NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_GGUF_ENDS = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_GGUF_COMPUTED = "rope_freqs.weight"


def as_converted(header: Header) -> Header:
    """The header that the conversion of a GGUF file will have: float32, by the names of
    transformers. Any other header is returned as it is."""
    if header.format != "gguf":
        return header
    tensors = {}
    for name, info in header.tensors.items():
        if name == _GGUF_COMPUTED:
            continue
        converted = _GGUF_ENDS.get(name, name)
        if name.startswith("blk."):
            _, number, rest = name.split(".", 2)
            own, _, kind = rest.rpartition(".")
            converted = f"model.layers.{number}.{_GGUF_NAMES.get(own, own)}.{kind}"
        tensors[converted] = TensorInfo("float32", info.shape, 4 * info.numel)
    return replace(
        header,
        tensors=tensors,
        embedding=_GGUF_ENDS[header.embedding],
        prefix="model.",
        head=_GGUF_ENDS[header.head] if header.head else None,
    )


def is_scale(name: str) -> bool:
    """Whether a stored tensor belongs to the codes of a matrix, and is none of its own."""
    return bool(_SCALES.search(name))


def _is_known(rest: str) -> bool:
    rest = _SCALES.sub(".weight", rest)
    return any(pattern.fullmatch(rest) for pattern in (_LAYER, _EXPERT, _FUSED))


def _layer_names(header: Header) -> Iterator[tuple[str, str]]:
    """The stored name of each tensor of a layer, and its name below the number of the layer."""
    stack = f"{header.prefix}layers."
    for name in header.tensors:
        number, _, rest = name.removeprefix(stack).partition(".")
        # Draft layers are stored after the others and never loaded.
        is_layer = name.startswith(stack) and number.isdecimal()
        if is_layer and int(number) < header.dims.num_layers and not _COMPUTED.search(rest):
            yield name, rest.replace("block_sparse_moe.", "mlp.", 1)


def stream_units(header: Header) -> Units:
    """The units of a checkpoint that `why_not_streamable` does not refuse.

    Those of a GGUF file are its conversion's, whose places are not known.

    Raises ModelUnavailable where a file cannot be read.
    """
    if header.format == "gguf":
        header = as_converted(header)
        places = {
            name: TensorPlace(info, header.files[0], 0) for name, info in header.tensors.items()
        }
    else:
        places = {
            name: TensorPlace(info, file, offset)
            for file in header.files
            for name, (info, offset) in tensor_offsets(file).items()
        }
    layers: list[dict[int, dict[str, TensorPlace]]] = [{} for _ in range(header.dims.num_layers)]
    for name, rest in _layer_names(header):
        layer = layers[int(name.removeprefix(f"{header.prefix}layers.").partition(".")[0])]
        for expert, part, place in _parts(rest, places[name]):
            layer.setdefault(expert, {})[part] = place
    return Units(
        embedding=_blocks("embedding", places[header.embedding]),
        layers=tuple(tuple(_units(number, layer)) for number, layer in enumerate(layers)),
        norm=Unit("norm", {"weight": places[f"{header.prefix}norm.weight"]}),
        head=_blocks("head", places[header.head or header.embedding]),
    )


_NO_EXPERT = -1


def _parts(rest: str, place: TensorPlace) -> Iterator[tuple[int, str, TensorPlace]]:
    """The expert, the parameter and the place of each part of a stored tensor."""
    if found := _EXPERT.fullmatch(rest):
        yield int(found[1]), _EXPERT_PARTS.get(found[2], found[2]), place
    elif found := _FUSED.fullmatch(rest):
        experts, rows, columns = place.info.shape
        flat = TensorInfo(place.info.dtype, (experts * rows, columns), place.info.nbytes)
        stack, half = TensorPlace(flat, place.file, place.offset), rows // 2
        for expert in range(experts):
            start = expert * rows
            if found[1] == "down":
                yield expert, "down_proj", stack.rows(start, start + rows)
            else:
                yield expert, "gate_proj", stack.rows(start, start + half)
                yield expert, "up_proj", stack.rows(start + half, start + rows)
    else:
        yield _NO_EXPERT, rest, place


def _units(number: int, layer: dict[int, dict[str, TensorPlace]]) -> Iterator[Unit]:
    yield Unit("layer", layer.pop(_NO_EXPERT, {}), number)
    for expert in sorted(layer):
        yield Unit("expert", layer[expert], number, expert)


def _blocks(kind: UnitKind, place: TensorPlace) -> tuple[Unit, ...]:
    """A matrix as blocks of rows."""
    rows = place.info.shape[0]
    each = max(1, BLOCK_BYTES // (place.info.nbytes // rows))
    return tuple(
        Unit(kind, {"weight": place.rows(start, min(start + each, rows))}, start=start)
        for start in range(0, rows, each)
    )
