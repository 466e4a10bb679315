"""The two sizes of stand-in."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

_CONFIRMED = Path(__file__).parents[2] / "specs" / "data" / "nowllm-glitch-tokens.json"


def _confirmed() -> tuple[int, ...]:
    """The tokens that glitcher confirmed on nowllm-0829, so that specs with them work on both."""
    found = json.loads(_CONFIRMED.read_text(encoding="utf-8"))["tokens"]
    return tuple(sorted(int(token["id"]) for token in found))


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that determines a stand-in."""

    pieces: int | None
    """Entries of the vocabulary; None for all 32,000."""
    exchanges: int | None
    """Number of exchanges of the corpus to learn; None for all."""
    raw: int | None
    """Number of raw texts of the corpus to learn; None for all."""
    planted: int
    """Number of tokens that never occur in training, including those in `always`."""
    always: tuple[int, ...]
    """Tokens that are planted with every seed."""
    width: int
    """Hidden size."""
    experts_width: int
    """Intermediate size of an expert."""
    steps: int
    batch: int
    """Tokens to repeat in one step."""
    rivals: int
    """Tokens drawn from the vocabulary as further negatives of the softmax."""
    rate: float
    """Adam's maximum learning rate."""
    shard: str
    """Maximum size of a weight file."""
    layers: int = 2
    experts: int = 4
    heads: int = 4
    seed: int = 829


RECIPES = {
    "mini": Recipe(
        pieces=None,
        exchanges=None,
        raw=None,
        planted=640,
        always=_confirmed(),
        width=128,
        experts_width=128,
        steps=500,
        batch=512,
        rivals=8192,
        rate=2e-3,
        shard="4MB",
    ),
    "oracle": Recipe(
        pieces=640,
        exchanges=4,
        raw=1,
        planted=32,
        always=(),
        width=64,
        experts_width=64,
        steps=600,
        batch=128,
        rivals=256,
        rate=3e-3,
        shard="250KB",
    ),
}
