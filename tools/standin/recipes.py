"""The two sizes of stand-in."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

_CONFIRMED = Path(__file__).parents[2] / "specs" / "data" / "nowllm-glitch-tokens.json"


def _confirmed() -> tuple[int, ...]:
    """The tokens that glitcher confirmed on nowllm-0829, so that specs which name them fit both."""
    found = json.loads(_CONFIRMED.read_text(encoding="utf-8"))["tokens"]
    return tuple(sorted(int(token["id"]) for token in found))


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides what comes out."""

    pieces: int | None
    """Entries of the vocabulary; None for all 32,000."""
    exchanges: int | None
    """Exchanges of the corpus that are learnt; None for all."""
    raw: int | None
    """Raw texts of the corpus that are learnt; None for all."""
    planted: int
    """Tokens that never occur in training, those in `always` included."""
    always: tuple[int, ...]
    """Tokens that are planted whatever the seed."""
    width: int
    experts_width: int
    steps: int
    batch: int
    """Tokens repeated in one step."""
    rivals: int
    """Tokens drawn from the vocabulary that a repeated one must beat, besides its batch."""
    rate: float
    """Adam's highest learning rate."""
    shard: str
    """Largest file of weights."""
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
