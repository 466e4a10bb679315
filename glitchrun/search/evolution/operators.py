"""Selection, crossover and mutation: pure functions of what they are given, the generator too."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from numpy.random import Generator

from glitchrun.search.evolution.settings import Ids

Draw = Callable[[], int]
"""One token id from the pool."""

_SWAPS, _RESIZES = 0.1, 0.2
"""Shares of mutations that exchange two tokens, and that add or drop one; the rest replace one."""


def tournament(ranked: Sequence[Ids], size: int, rng: Generator) -> Ids:
    """The best of `size` members drawn with replacement; `ranked` is best first."""
    return ranked[int(rng.integers(len(ranked), size=size).min())]


def crossover(first: Ids, second: Ids, bounds: tuple[int, int], rng: Generator) -> Ids:
    """Single-point: a head of the first and a tail of the second, each cut at a place of its own.

    Sequences of one length are cut at one place, so that the child has that length too. Otherwise
    the child is trimmed at its end to the larger of `bounds`, and where it falls short of the
    smaller, filled up from the longer parent's end.
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
    """One change: a token replaced, two exchanged, one added or one dropped."""
    low, high = bounds
    kind = rng.random()
    if kind < _SWAPS and len(ids) > 1:
        return _swapped(ids, rng)
    if kind < _SWAPS + _RESIZES and low < high:
        grow = len(ids) < high and (len(ids) <= low or rng.random() < 0.5)
        place = int(rng.integers(len(ids) + grow))
        return ids[:place] + ((draw(),) if grow else ()) + ids[place + (not grow) :]
    place = int(rng.integers(len(ids)))
    return (*ids[:place], draw(), *ids[place + 1 :])


def _swapped(ids: Ids, rng: Generator) -> Ids:
    first, second = (int(place) for place in rng.choice(len(ids), size=2, replace=False))
    changed = list(ids)
    changed[first], changed[second] = changed[second], changed[first]
    return tuple(changed)
