"""The number of positions of a model: its longest possible text, in tokens."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Keys of config.json that give the number, by family of models; GGUF files use context_length.
_NAMES = (
    "max_position_embeddings",
    "n_positions",
    "max_target_positions",
    "max_seq_len",
    "max_sequence_length",
    "n_ctx",
    "context_length",
)
_LEARNED = re.compile(
    r"(^|\.)(wpe|embed_positions|position_embeddings?|positions_embed|position_embd"
    r"|pos_embed|pos_embeddings?)\.weights?$"
)
"""Position embeddings: learned tables with one row per position, so that longer texts fail."""
_TABLED = (
    "bart bert bert-generation big_bird bigbird_pegasus biogpt blenderbot blenderbot-small "
    "camembert codegen ctrl data2vec-text electra ernie gpt-sw3 gpt2 gpt_bigcode gpt_neo gptj "
    "marian mbart megatron-bert mpt mvp openai-gpt opt pegasus plbart prophetnet reformer rembert "
    "roberta roberta-prelayernorm roc_bert roformer trocr whisper xlm xlm-roberta xlm-roberta-xl "
    "xmod"
)
_TABLES = frozenset(_TABLED.split())
"""Families (`model_type`) whose forward pass fails beyond their positions; each was tried. Some
compute their table, so it is in no checkpoint."""
_BEHIND_PADDING = (
    "camembert data2vec-text luke roberta roberta-prelayernorm xlm-roberta xlm-roberta-xl xmod"
)
_SHIFTED = {**dict.fromkeys(_BEHIND_PADDING.split(), 1), "prophetnet": 2}
"""Families whose first position is the padding token's id plus this number."""


@dataclass(frozen=True, slots=True)
class Positions:
    """The positions that a model was made for."""

    count: int
    """Largest number of tokens of a text."""
    fixed: bool
    """Whether a longer text fails. Rotary and other computed positions continue, but untrained."""


def positions(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> Positions | None:
    """The positions of a model; None if no limit is known.

    Args:
        config: Content of config.json, or metadata of a GGUF file.
        shapes: Shapes of the model's tensors by name.
    """
    kind = str(config.get("model_type") or config.get("general.architecture") or "")
    configured = _configured(config, kind)
    rows = [shape[0] for name, shape in shapes.items() if len(shape) == 2 and _LEARNED.search(name)]
    fixed = bool(rows) or kind in _TABLES
    found = [count for count in (configured, *rows) if count]
    if not found:
        return None
    shift = _SHIFTED.get(kind)
    taken = 0 if shift is None else _whole(config.get("pad_token_id"), 1) + shift
    return Positions(min(found) - taken, fixed)


def _configured(config: Mapping[str, Any], kind: str) -> int | None:
    text = config.get("text_config")
    decoder = {**config, **text} if isinstance(text, Mapping) else config
    for name in (*_NAMES, f"{kind}.context_length"):
        if count := _whole(decoder.get(name), 0):
            return count
    return None


def _whole(value: Any, default: int) -> int:
    return value if type(value) is int and 0 <= value < 2**31 else default
