"""What an evolution is told before it starts."""

from __future__ import annotations

from dataclasses import dataclass

Ids = tuple[int, ...]
"""A sequence of token ids: the genome."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The parameters of the search; docs/spec.md says what each does."""

    population: int = 50
    generations: int = 50
    min_tokens: int = 1
    max_tokens: int = 3
    elite: int = 5
    tournament: int = 3
    crossover: float = 0.7
    mutation: str = "adaptive"
    """adaptive, linear or constant."""
    mutation_start: float = 0.8
    mutation_end: float = 0.1
    seed_ratio: float = 0.7
    seed_top: int = 20
    diversity_after: int = 10
    diversity_share: float = 0.3
    early_stop: float | None = 0.999
    patience: int | None = None
