"""Where an evolution starts: random sequences, and ones made of tokens that had an effect alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.random import Generator

from glitchrun.search.evolution.settings import Ids, Settings


def sample(pool: Sequence[int], count: int, rng: Generator) -> list[int]:
    """Up to `count` different tokens of the pool, ascending."""
    chosen = rng.choice(len(pool), size=min(count, len(pool)), replace=False)
    return sorted(pool[int(place)] for place in chosen)


def random_sequence(pool: Sequence[int], settings: Settings, rng: Generator) -> Ids:
    """Tokens drawn alike from the pool; every length allowed is equally likely."""
    length = int(rng.integers(settings.min_tokens, settings.max_tokens + 1))
    return tuple(pool[int(place)] for place in rng.integers(len(pool), size=length))


def seeded_sequence(ranked: Sequence[int], settings: Settings, rng: Generator) -> Ids:
    """Tokens of the `seed_top` best singles, the r-th of them drawn with weight 1 / r.

    `ranked`: tokens by their effect alone, best first.
    """
    top = ranked[: settings.seed_top]
    length = int(rng.integers(settings.min_tokens, settings.max_tokens + 1))
    weights = 1 / np.arange(1, len(top) + 1)
    chosen = rng.choice(len(top), size=length, p=weights / weights.sum(), replace=length > len(top))
    return tuple(top[int(place)] for place in chosen)
