"""The operators of an evolution: settings, first sequences, selection, crossover and mutation. They
are pure functions; each random one takes its generator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from glitchrun.fitness import Ids

Draw = Callable[[], int]
"""Draws one token id from the pool."""

_SWAPS, _RESIZES = 0.1, 0.2
"""Shares of mutations that swap two tokens, and that add or drop one. The rest replace one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvolutionSettings:
    """The parameters of the search."""

    population: int = 50
    """Sequences in each generation."""
    generations: int = 50
    """Generations bred after the first population, at most."""
    min_tokens: int = 1
    """Smallest length of a sequence, in tokens."""
    max_tokens: int = 3
    """Greatest length of a sequence, in tokens."""
    elite: int = 5
    """Fittest sequences that pass unchanged into the next generation; a tenth of the population."""
    tournament: int = 3
    """Sequences drawn for each choice of a parent, of which the fittest wins."""
    crossover: float = 0.7
    """Probability that a child has two parents."""
    mutation: str = "adaptive"
    """How the mutation rate develops: adaptive, linear or constant; see `mutation_rate`."""
    mutation_start: float = 0.8
    """Mutation rate of the first generation bred; high, to explore."""
    mutation_end: float = 0.1
    """Mutation rate of the last generation, unless the rate is constant; low, to refine."""
    seed_ratio: float = 0.7
    """Share of the first population that consists of tokens that were effective alone."""
    seed_top: int = 20
    """How many of the most effective single tokens seed sequences and mutations."""
    diversity_after: int = 10
    """Generations without improvement after which random sequences are injected."""
    diversity_share: float = 0.3
    """Share of the population that an injection replaces."""
    early_stop: float | None = 0.999
    """Fitness at which the search ends; None to use all generations."""
    patience: int | None = None
    """Generations without improvement after which the search ends; None for no such limit."""


def sample_pool(pool: Sequence[int], count: int, rng: Generator) -> list[int]:
    """Up to `count` different tokens of the pool, ascending."""
    chosen = rng.choice(len(pool), size=min(count, len(pool)), replace=False)
    return sorted(pool[int(index)] for index in chosen)


def random_sequence(pool: Sequence[int], settings: EvolutionSettings, rng: Generator) -> Ids:
    """Tokens drawn uniformly from the pool; every allowed length is equally likely."""
    length = int(rng.integers(settings.min_tokens, settings.max_tokens + 1))
    return tuple(pool[int(index)] for index in rng.integers(len(pool), size=length))


def seeded_sequence(ranked: Sequence[int], settings: EvolutionSettings, rng: Generator) -> Ids:
    """Tokens from the first `seed_top` of `ranked`, the r-th drawn with weight 1 / r.

    Args:
        ranked: Tokens by their effect alone, the most effective first.
        settings: The allowed lengths, and `seed_top`.
        rng: The source of random numbers.
    """
    top = ranked[: settings.seed_top]
    length = int(rng.integers(settings.min_tokens, settings.max_tokens + 1))
    weights = 1 / np.arange(1, len(top) + 1)
    chosen = rng.choice(len(top), size=length, p=weights / weights.sum(), replace=length > len(top))
    return tuple(top[int(index)] for index in chosen)


def tournament(ranked: Sequence[Ids], size: int, rng: Generator) -> Ids:
    """The fittest of `size` members drawn with replacement; `ranked` has the fittest first."""
    return ranked[int(rng.integers(len(ranked), size=size).min())]


def crossover(first: Ids, second: Ids, bounds: tuple[int, int], rng: Generator) -> Ids:
    """A head of the first parent and a tail of the second (single-point crossover).

    Where all sequences have one length, both parents are cut at the same position. Otherwise each
    is cut at its own position; a child that is too long loses its end, and one that is too short
    is extended from the end of the longer parent.
    """
    low, high = bounds
    if low == high:
        cut = int(rng.integers(0, low + 1))
        return first[:cut] + second[cut:]
    head = int(rng.integers(0, len(first) + 1))
    tail = int(rng.integers(0, len(second) + 1))
    child = (first[:head] + second[tail:])[:high]
    missing = low - len(child)
    return child if missing <= 0 else child + max(second, first, key=len)[-missing:]


def mutate(ids: Ids, bounds: tuple[int, int], draw: Draw, rng: Generator) -> Ids:
    """A copy with one change: a token replaced, two swapped, one added or one dropped."""
    low, high = bounds
    kind = rng.random()
    if kind < _SWAPS and len(ids) > 1:
        return _swapped(ids, rng)
    if kind < _SWAPS + _RESIZES and low < high:
        grow = len(ids) < high and (len(ids) <= low or rng.random() < 0.5)
        position = int(rng.integers(len(ids) + grow))
        return ids[:position] + ((draw(),) if grow else ()) + ids[position + (not grow) :]
    position = int(rng.integers(len(ids)))
    return (*ids[:position], draw(), *ids[position + 1 :])


def _swapped(ids: Ids, rng: Generator) -> Ids:
    first, second = (int(index) for index in rng.choice(len(ids), size=2, replace=False))
    changed = list(ids)
    changed[first], changed[second] = changed[second], changed[first]
    return tuple(changed)


def mutation_rate(settings: EvolutionSettings, generation: int, stagnant: int) -> float:
    """The probability that a child of this generation (from 1) is mutated.

    `constant` stays at mutation_start. `linear` falls from there to mutation_end in the last
    generation. `adaptive` falls like `linear`, but rises with each generation without improvement,
    up to mutation_start after `diversity_after` of them.
    """
    if settings.mutation == "constant":
        return settings.mutation_start
    height = 1 - (generation - 1) / max(1, settings.generations - 1)
    if settings.mutation == "adaptive":
        height = max(height, min(1.0, stagnant / settings.diversity_after))
    return settings.mutation_end + (settings.mutation_start - settings.mutation_end) * height
