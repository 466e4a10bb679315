"""The dimensions of a decoder: from config.json or GGUF metadata, and from the stored tensors.

transformers builds a model from config.json alone. A wrong number there costs minutes, or all of
the memory, before the first tensor is read. The tensors' shapes are in the headers that glitchrun
reads anyway, so the two are compared first.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glitchrun.checkpoint.safetensors_files import TensorInfo
from glitchrun.errors import ModelUnavailable

# The names that families of models give to one quantity in config.json.
LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
HIDDEN = ("hidden_size", "n_embd", "d_model", "dim", "model_dim")
VOCAB = ("vocab_size",)
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_TOP_K = ("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_top_k")
_INTERMEDIATE = ("intermediate_size", "n_inner", "ffn_dim", "d_ff", "hidden_dim")
_HEADS = ("num_attention_heads", "n_head", "num_heads", "n_heads")
_KV_HEADS = ("num_key_value_heads", "num_kv_heads", "n_head_kv")
_EXPERT_INTERMEDIATE = ("moe_intermediate_size", "expert_intermediate_size")

_DEFAULT_HEAD_DIM = 64
"""Assumed where config.json gives no number of heads (the family has a default) or the model has no
attention. A small value gives many heads, so the plan reserves more memory rather than less."""
_LABELS = ("num_labels",)
_STACKS = ("layers", "layer", "h", "blocks", "block", "blk")
"""Names that families give to the list of layers."""
_DRAFT_LAYERS = re.compile(r"nextn|mtp")
"""Settings that count draft layers. These are stored after the others and never loaded."""
_EMBEDDING_WIDTHS = ("word_embed_proj_dim", "embedding_size", "embedding_dim", "embed_dim")
"""Settings of models whose embedding is narrower than their layers."""
_MORE_ROWS = ("additional_vocab_size", "prompt_types", "codebook_vocab_size")
_EXTRA_ROWS = 8
"""Rows beyond `vocab_size` that a few families have without a setting for them (Mllama: 8)."""
_UP = ("gate_proj", "up_proj", "w1", "w3", "fc1", "fc_in", "c_fc", "dense_h_to_4h")
_MIN_LABEL_LIMIT = 100_000
_COUNTS = re.compile(r"(num|n|encoder|decoder|vision).*(layers?|blocks?|experts?)$|^depth$")
_MIN_COUNT_LIMIT = 4096


@dataclass(frozen=True, slots=True)
class ModelDims:
    """Dimensions of a decoder-only language model."""

    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    """Width of a feed-forward block; of one expert in a mixture of experts."""
    num_experts: int
    """Experts in a layer; 0 for a dense model."""
    top_k: int
    """Experts that one token passes through; 0 for a dense model."""


@dataclass(frozen=True, slots=True)
class StoredDims:
    """Dimensions derived from the names and shapes of tensors; 0 where unknown."""

    num_layers: int
    hidden_size: int
    vocab_size: int
    num_experts: int
    intermediate_size: int
    """Width of the widest feed-forward block outside of experts."""


def dims_from_config(config: Mapping[str, Any], source: Path, stored: StoredDims) -> ModelDims:
    """The dimensions in config.json, completed from the stored tensors.

    `source` is the path of config.json, for messages.
    Raises ModelUnavailable naming a setting that is missing or is no size.
    """
    may_lack = stored.num_layers > 0 and isinstance(config.get("model_type"), str)
    hidden = declared(config, HIDDEN, source) or (stored.hidden_size if may_lack else 0)
    layers = declared(config, LAYERS, source) or (stored.num_layers if may_lack else 0)
    for found, names in ((hidden, HIDDEN), (layers, LAYERS)):
        if not found:
            raise _no_size(names, source)
    heads = declared(config, _HEADS, source) or max(1, hidden // _DEFAULT_HEAD_DIM)
    experts = _optional(config, _EXPERTS, 0)
    intermediate = _optional(config, _INTERMEDIATE, stored.intermediate_size or 4 * hidden)
    return ModelDims(
        hidden_size=hidden,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=_optional(config, _KV_HEADS, heads),
        head_dim=_optional(config, ("head_dim",), -(-hidden // heads)),
        intermediate_size=_optional(config, _EXPERT_INTERMEDIATE, intermediate),
        num_experts=experts,
        top_k=_optional(config, _TOP_K, experts) if experts else 0,
    )


def dims_from_gguf(metadata: Mapping[str, Any], source: Path) -> ModelDims:
    """The dimensions in a GGUF file's metadata.

    Raises ModelUnavailable naming a key that is missing or is no size.
    """
    prefix = f"{metadata.get('general.architecture')}."
    own = {
        key.removeprefix(prefix): max(value, default=0) if isinstance(value, list) else value
        for key, value in metadata.items()
        if key.startswith(prefix)
    }

    def required(name: str) -> int:
        found = _optional(own, (name,), 0)
        if not found:
            raise _no_size((name,), source)
        return found

    hidden, heads = required("embedding_length"), required("attention.head_count")
    experts = _optional(own, ("expert_count",), 0)
    intermediate = _optional(own, ("feed_forward_length",), 4 * hidden)
    return ModelDims(
        hidden_size=hidden,
        num_layers=required("block_count"),
        num_heads=heads,
        num_kv_heads=_optional(own, ("attention.head_count_kv",), heads),
        head_dim=_optional(own, ("attention.key_length",), -(-hidden // heads)),
        intermediate_size=_optional(own, ("expert_feed_forward_length",), intermediate),
        num_experts=experts,
        top_k=_optional(own, ("expert_used_count",), experts) if experts else 0,
    )


def stored_dims(tensors: Mapping[str, TensorInfo], embedding: str, prefix: str) -> StoredDims:
    """The dimensions of the decoder whose tensor names begin with `prefix`."""
    vocab_size, hidden_size = tensors[embedding].shape
    paths = {name: name.split(".") for name in tensors}
    return StoredDims(
        num_layers=_num_layers(tensors, prefix),
        hidden_size=hidden_size,
        vocab_size=vocab_size,
        num_experts=max((_num_experts(paths[n], i) for n, i in tensors.items()), default=0),
        intermediate_size=max((_up_width(paths[n], i) for n, i in tensors.items()), default=0),
    )


def check_dims(
    config: Mapping[str, Any], stored: StoredDims, source: Path, *, packed: bool
) -> None:
    """Compare the numbers of config.json with the stored tensors.

    `packed`: the weights are quantized on disk, so only the number of tensors is meaningful.
    Raises ModelUnavailable with both numbers.
    """
    for key, value, found, what in _comparisons(config, stored, packed):
        if value != found:
            raise ModelUnavailable(
                f"{source}: {key} is {value:,}, but the weights have {found:,} {what}; config.json "
                "and weights do not belong together: restore the config.json of these weights"
            )


def check_bounds(
    config: Mapping[str, Any], stored: StoredDims, num_tensors: int, source: Path
) -> None:
    """Refuse numbers in config.json that would exhaust memory while the model is built.

    `num_tensors` bounds the number of layers of any stack. Raises ModelUnavailable.
    """
    window = config.get("sliding_window")
    if window is not None and type(window) is not int:
        raise ModelUnavailable(f"{source}: sliding_window is {_short(window)}, not a whole number")
    for key, number in _integers(config, tuple(config)):
        if not -(2**63) <= number < 2**63:
            limit, what = 2**63 - 1, "the largest integer of a tensor"
        elif key in _LABELS:
            limit, what = max(_MIN_LABEL_LIMIT, stored.vocab_size), "rows of its largest embedding"
        elif _COUNTS.search(key):
            limit, what = max(_MIN_COUNT_LIMIT, num_tensors), "the number of stored tensors"
        else:
            continue
        if abs(number) > limit:
            raise ModelUnavailable(
                f"{source}: {key} is {_short(number)}, more than {limit:,}, {what}; restore the "
                "config.json of these weights"
            )
    for nested in config.values():
        if isinstance(nested, dict):
            check_bounds(nested, stored, num_tensors, source)


def check_gguf_layers(num_layers: int, stored: StoredDims, source: Path) -> None:
    """Compare the number of layers in GGUF metadata with the stored tensors.

    Raises ModelUnavailable with both numbers.
    """
    if stored.num_layers and num_layers != stored.num_layers:
        raise ModelUnavailable(
            f"{source}: block_count is {num_layers:,}, but the file has {stored.num_layers:,} "
            "layers; it is damaged or cut short: fetch it again"
        )


def declared(config: Mapping[str, Any], names: tuple[str, ...], source: Path) -> int | None:
    """The value of the first of `names` that config.json sets; None where it sets none of them.

    Raises ModelUnavailable where the value is not a whole number from 1 to 2**31.
    """
    for name in names:
        value = config.get(name)
        if value is None:
            continue
        if type(value) is int and 0 < value < 2**31:
            return value
        if isinstance(value, list) and value and all(type(one) is int for one in value):
            return max(1, *map(int, value))  # a number for each layer
        raise ModelUnavailable(
            f"{source}: {name} is {_short(value)}, not a positive whole number; restore the "
            "config.json of these weights"
        )
    return None


def _comparisons(
    config: Mapping[str, Any], stored: StoredDims, packed: bool
) -> Iterator[tuple[str, int, int, str]]:
    """Yield (key, number in config.json, stored number, unit) where both are known."""
    draft = sum(n for key, n in _integers(config, tuple(config)) if _DRAFT_LAYERS.search(key))
    for key, value in _integers(config, LAYERS)[:1]:
        if stored.num_layers and not value <= stored.num_layers <= value + draft:
            yield key, value, stored.num_layers, "layers"
    for key, value in _integers(config, _EXPERTS)[:1]:
        if stored.num_experts:
            yield key, value, stored.num_experts, "experts in a layer"
    for key, value in _integers(config, _TOP_K)[:1]:
        if stored.num_experts and value > stored.num_experts:
            yield key, value, stored.num_experts, "experts in a layer"
    if packed or "auto_map" in config:
        return
    narrower = {number for _, number in _integers(config, _EMBEDDING_WIDTHS)}
    for key, value in _integers(config, HIDDEN)[:1]:
        if stored.hidden_size not in narrower:
            yield key, value, stored.hidden_size, "columns in the input embedding"
    more = _EXTRA_ROWS + sum(n for _, n in _integers(config, _MORE_ROWS))
    for key, value in _integers(config, VOCAB):
        if not value <= stored.vocab_size <= value + more:
            yield key, value, stored.vocab_size, "rows in the input embedding"
    for key, value in _integers(config, _INTERMEDIATE)[:1]:
        if stored.intermediate_size and value > 2 * stored.intermediate_size:
            yield key, value, stored.intermediate_size, "rows in the widest feed-forward matrix"


def _integers(config: Mapping[str, Any], names: tuple[str, ...]) -> list[tuple[str, int]]:
    return [(name, config[name]) for name in names if type(config.get(name)) is int]


def _num_layers(tensors: Mapping[str, TensorInfo], prefix: str) -> int:
    """Layers in the decoder's main stack: the list of layers nearest to the embedding."""
    while True:
        stacks: dict[str, int] = {}
        for name in tensors:
            if name.startswith(prefix):
                path = name[len(prefix) :].split(".")
                at = next((i for i, part in enumerate(path) if part.isdecimal()), 0)
                if at and path[at - 1] in _STACKS and len(path[at]) < 10:
                    stack = ".".join(path[:at])
                    stacks[stack] = max(stacks.get(stack, 0), int(path[at]) + 1)
        if stacks:
            return stacks[min(stacks, key=lambda stack: (stack.count("."), stack))]
        if not prefix:
            return 0
        prefix = prefix[: prefix.rstrip(".").rfind(".") + 1]


def _num_experts(path: list[str], info: TensorInfo) -> int:
    """Experts that a tensor's name or its fused stack implies."""
    if "experts" not in path:
        return 0
    after = path[path.index("experts") + 1 :]
    if after and after[0].isdecimal() and len(after[0]) < 10:
        return int(after[0]) + 1
    return info.shape[0] if len(info.shape) == 3 else 0


def _up_width(path: list[str], info: TensorInfo) -> int:
    """The larger side of a matrix into a feed-forward block."""
    is_up = len(path) > 1 and path[-2] in _UP and path[-1] == "weight"
    return max(info.shape) if is_up and len(info.shape) == 2 else 0


def _no_size(names: tuple[str, ...], source: Path) -> ModelUnavailable:
    return ModelUnavailable(
        f"{source}: there is no positive whole number under {' or '.join(names)}, so this is "
        "not a decoder that glitchrun can size; check that the file belongs to the weights"
    )


def _optional(values: Mapping[str, Any], names: tuple[str, ...], default: int) -> int:
    """The first positive whole number below 2**31 under any of the names."""
    for name in names:
        value = values.get(name)
        if type(value) is int and 0 < value < 2**31:
            return value
    return default


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
