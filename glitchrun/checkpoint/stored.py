"""A decoder's sizes according to its tensors, compared with config.json.

Building a model uses config.json alone: a wrong number there costs minutes, or all of the
memory, before the first tensor is read. The headers are read anyway.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glitchrun.checkpoint.tensors import TensorInfo
from glitchrun.errors import ModelUnavailable

LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
HIDDEN = ("hidden_size", "n_embd", "d_model", "dim", "model_dim")
VOCAB = ("vocab_size",)
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
ACTIVE = ("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_top_k")
INTERMEDIATE = ("intermediate_size", "n_inner", "ffn_dim", "d_ff", "hidden_dim")
_LABELS = ("num_labels",)
_STACKS = ("layers", "layer", "h", "blocks", "block", "blk")
"""What families call the list of layers."""
_DRAFT_LAYERS = re.compile(r"nextn|mtp")
"""Settings that count layers for drafting, stored behind the others and never loaded."""
_EMBEDDING_WIDTHS = ("word_embed_proj_dim", "embedding_size", "embedding_dim", "embed_dim")
"""Settings of models whose embedding is narrower than their layers."""
_MORE_ROWS = ("additional_vocab_size", "prompt_types", "codebook_vocab_size")
_EXTRA_ROWS = 8
"""Rows that a few families have beyond `vocab_size` without a setting that says so (Mllama: 8)."""
_UP = ("gate_proj", "up_proj", "w1", "w3", "fc1", "fc_in", "c_fc", "dense_h_to_4h")
_LABELS_AT_LEAST = 100_000
_COUNTS = re.compile(r"(num|n|encoder|decoder|vision).*(layers?|blocks?|experts?)$|^depth$")
_COUNTS_AT_LEAST = 4096


@dataclass(frozen=True, slots=True)
class Stored:
    """Sizes derived from tensors' names and shapes; 0 where unknown."""

    layers: int
    hidden: int
    vocab: int
    experts: int
    intermediate: int
    """Widest feed-forward block outside of experts."""


def stored_sizes(tensors: Mapping[str, TensorInfo], embedding: str, prefix: str) -> Stored:
    """The sizes of the decoder whose tensors begin with `prefix`."""
    vocab, hidden = tensors[embedding].shape
    paths = {name: name.split(".") for name in tensors}
    return Stored(
        layers=_layers(tensors, prefix),
        hidden=hidden,
        vocab=vocab,
        experts=max((_experts(paths[n], i) for n, i in tensors.items()), default=0),
        intermediate=max((_inner(paths[n], i) for n, i in tensors.items()), default=0),
    )


def check(config: Mapping[str, Any], stored: Stored, source: Path, *, packed: bool) -> None:
    """Compare config.json with the stored tensors.

    `packed` weights are quantized on disk: their shapes are no sizes, only their count is.
    Raises ModelUnavailable with both numbers.
    """
    for key, said, found, what in _pairs(config, stored, packed):
        if said != found:
            raise ModelUnavailable(
                f"{source}: {key} is {said:,}, but the weights have {found:,} {what}; config.json "
                "and weights do not belong together: restore the config.json of these weights"
            )


def check_bounds(config: Mapping[str, Any], stored: Stored, tensors: int, source: Path) -> None:
    """Refuse numbers anywhere in config.json that would exhaust memory while building the model.

    `tensors` is how many there are in all: no stack has more layers. Raises ModelUnavailable.
    """
    window = config.get("sliding_window")
    if window is not None and type(window) is not int:
        raise ModelUnavailable(f"{source}: sliding_window is {_short(window)}, not a whole number")
    for key, number in _whole(config, tuple(config)):
        if not -(2**63) <= number < 2**63:
            limit, what = 2**63 - 1, "the most that a tensor can hold"
        elif key in _LABELS:
            limit, what = max(_LABELS_AT_LEAST, stored.vocab), "rows of its largest embedding"
        elif _COUNTS.search(key):
            limit, what = max(_COUNTS_AT_LEAST, tensors), "tensors that are stored"
        else:
            continue
        if abs(number) > limit:
            raise ModelUnavailable(
                f"{source}: {key} is {_short(number)}, more than {limit:,}, {what}; restore the "
                "config.json of these weights"
            )
    for nested in config.values():
        if isinstance(nested, dict):
            check_bounds(nested, stored, tensors, source)


def check_layers(layers: int, stored: Stored, source: Path) -> None:
    """As `check`, for the layers that a GGUF file's metadata announces."""
    if stored.layers and layers != stored.layers:
        raise ModelUnavailable(
            f"{source}: block_count is {layers:,}, but the file has {stored.layers:,} layers; it "
            "is damaged or cut short: fetch it again"
        )


def declared(config: Mapping[str, Any], names: tuple[str, ...], source: Path) -> int | None:
    """The first of the names that config.json gives; None where it gives none of them.

    Raises ModelUnavailable where it is no whole number from 1 to 2**31.
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


def _pairs(
    config: Mapping[str, Any], stored: Stored, packed: bool
) -> Iterator[tuple[str, int, int, str]]:
    """(key, number in config.json, number stored, what is counted), where both are known."""
    draft = sum(n for key, n in _whole(config, tuple(config)) if _DRAFT_LAYERS.search(key))
    for key, said in _whole(config, LAYERS):
        if stored.layers and not said <= stored.layers <= said + draft:
            yield key, said, stored.layers, "layers"
        break
    for key, said in _whole(config, EXPERTS):
        if stored.experts:
            yield key, said, stored.experts, "experts in a layer"
        break
    for key, said in _whole(config, ACTIVE):
        if stored.experts and said > stored.experts:
            yield key, said, stored.experts, "experts in a layer"
    if packed or "auto_map" in config:
        return
    narrower = {number for _, number in _whole(config, _EMBEDDING_WIDTHS)}
    for key, said in list(_whole(config, HIDDEN))[:1]:
        if stored.hidden not in narrower:
            yield key, said, stored.hidden, "columns in the input embedding"
    more = _EXTRA_ROWS + sum(n for _, n in _whole(config, _MORE_ROWS))
    for key, said in _whole(config, VOCAB):
        if not said <= stored.vocab <= said + more:
            yield key, said, stored.vocab, "rows in the input embedding"
    for key, said in list(_whole(config, INTERMEDIATE))[:1]:
        if stored.intermediate and said > 2 * stored.intermediate:
            yield key, said, stored.intermediate, "rows in the widest feed-forward matrix"


def _whole(config: Mapping[str, Any], names: tuple[str, ...]) -> Iterator[tuple[str, int]]:
    for name in names:
        value = config.get(name)
        if type(value) is int:
            yield name, value


def _layers(tensors: Mapping[str, TensorInfo], prefix: str) -> int:
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


def _experts(path: list[str], info: TensorInfo) -> int:
    """Experts that a tensor's name counts to, or its stack holds."""
    if "experts" not in path:
        return 0
    after = path[path.index("experts") + 1 :]
    if after and after[0].isdecimal() and len(after[0]) < 10:
        return int(after[0]) + 1
    return info.shape[0] if len(info.shape) == 3 else 0


def _inner(path: list[str], info: TensorInfo) -> int:
    """The larger side of a matrix into a feed-forward block."""
    is_up = len(path) > 1 and path[-2] in _UP and path[-1] == "weight"
    return max(info.shape) if is_up and len(info.shape) == 2 else 0


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
