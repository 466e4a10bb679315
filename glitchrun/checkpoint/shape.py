"""The sizes of a decoder, from config.json or from a GGUF file's metadata."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glitchrun.checkpoint.stored import (
    ACTIVE,
    EXPERTS,
    HIDDEN,
    INTERMEDIATE,
    LAYERS,
    Stored,
    declared,
)
from glitchrun.errors import ModelUnavailable

# The names that families of models give to one quantity in config.json.
_HEADS = ("num_attention_heads", "n_head", "num_heads", "n_heads")
_KV_HEADS = ("num_key_value_heads", "num_kv_heads", "n_head_kv")
_EXPERT_INTERMEDIATE = ("moe_intermediate_size", "expert_intermediate_size")
_USUAL_HEAD = 64
"""Width of a head where config.json does not say how many there are (and a family's default
counts), or where there is no attention at all: the more heads, the more memory is planned."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a decoder-only language model."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    """Width of a feed-forward block, of one expert where there are experts."""
    experts: int
    """Experts in a layer; 0 where there are none."""
    active_experts: int
    """Experts that one token passes through; 0 where there are none."""


def shape_from_config(config: Mapping[str, Any], source: Path, stored: Stored) -> Shape:
    """The sizes that a config.json gives, and where it leaves one to its family, what is stored.

    Raises ModelUnavailable naming what it lacks, or what is no size.
    """
    may_lack = stored.layers > 0 and isinstance(config.get("model_type"), str)
    hidden = declared(config, HIDDEN, source) or (stored.hidden if may_lack else 0)
    layers = declared(config, LAYERS, source) or (stored.layers if may_lack else 0)
    for found, names in ((hidden, HIDDEN), (layers, LAYERS)):
        if not found:
            raise _no_size(names, source)
    heads = declared(config, _HEADS, source) or max(1, hidden // _USUAL_HEAD)
    experts = _optional(config, EXPERTS, 0)
    intermediate = _optional(config, INTERMEDIATE, stored.intermediate or 4 * hidden)
    return Shape(
        hidden=hidden,
        layers=layers,
        heads=heads,
        kv_heads=_optional(config, _KV_HEADS, heads),
        head_dim=_optional(config, ("head_dim",), -(-hidden // heads)),
        intermediate=_optional(config, _EXPERT_INTERMEDIATE, intermediate),
        experts=experts,
        active_experts=_optional(config, ACTIVE, experts) if experts else 0,
    )


def shape_from_gguf(metadata: Mapping[str, Any], source: Path) -> Shape:
    """The sizes that a GGUF file's metadata give. Raises ModelUnavailable naming what they lack."""
    prefix = f"{metadata.get('general.architecture')}."
    own = {
        key.removeprefix(prefix): max(value, default=0) if isinstance(value, list) else value
        for key, value in metadata.items()
        if key.startswith(prefix)
    }
    hidden = _required(own, ("embedding_length",), source)
    heads = _required(own, ("attention.head_count",), source)
    experts = _optional(own, ("expert_count",), 0)
    intermediate = _optional(own, ("feed_forward_length",), 4 * hidden)
    return Shape(
        hidden=hidden,
        layers=_required(own, ("block_count",), source),
        heads=heads,
        kv_heads=_optional(own, ("attention.head_count_kv",), heads),
        head_dim=_optional(own, ("attention.key_length",), -(-hidden // heads)),
        intermediate=_optional(own, ("expert_feed_forward_length",), intermediate),
        experts=experts,
        active_experts=_optional(own, ("expert_used_count",), experts) if experts else 0,
    )


def _required(values: Mapping[str, Any], names: tuple[str, ...], source: Path) -> int:
    found = _optional(values, names, 0)
    if not found:
        raise _no_size(names, source)
    return found


def _no_size(names: tuple[str, ...], source: Path) -> ModelUnavailable:
    return ModelUnavailable(
        f"{source}: there is no positive whole number under {' or '.join(names)}, so this is "
        "not a decoder that glitchrun can size; check that the file belongs to the weights"
    )


def _optional(values: Mapping[str, Any], names: tuple[str, ...], default: int) -> int:
    """The first of the names that holds a positive whole number below 2**31."""
    for name in names:
        value = values.get(name)
        if type(value) is int and 0 < value < 2**31:
            return value
    return default
