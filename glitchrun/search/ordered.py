"""Searches that know their whole order before they start."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction

import numpy as np

from glitchrun.events import Verified
from glitchrun.search.base import Parameters, Space
from glitchrun.vocabulary.character_groups import group_of


class Ordered:
    """Proposes token ids in a fixed order."""

    def __init__(self, order: Iterable[int]) -> None:
        self.counters: Counter[str] = Counter()
        self._order = list(order)
        self._next = 0

    @property
    def size(self) -> int:
        """How many tokens there are to propose in all."""
        return len(self._order)

    def propose(self, n: int) -> list[int]:
        return self._order[self._next : self._next + n]

    def update(self, verdicts: Sequence[Verified]) -> None:
        self._next += len(verdicts)


def by_norm(space: Space, config: Parameters) -> Ordered:
    """Ascending L2 norm of the input embedding."""
    norms = space.vocabulary.norms[space.ids]
    return Ordered(space.ids[norms.sort(stable=True).indices].tolist())


def at_random(space: Space, config: Parameters) -> Ordered:
    """A uniformly random order, fixed by the seed."""
    order = np.random.default_rng(space.seed).permutation(space.ids.numpy())
    return Ordered(order.tolist())


def by_range(space: Space, config: Parameters) -> Ordered:
    """The token ids of the given spans, in the order given, both ends included."""
    ids = space.ids.tolist()
    parts = [[i for i in ids if low <= i <= high] for low, high in config.ranges or ()]
    return Ordered(dict.fromkeys(i for part in _drawn(parts, space, config) for i in part))


def by_category(space: Space, config: Parameters) -> Ordered:
    """Tokens of the given groups of characters, by id."""
    text = space.vocabulary.text
    parts: dict[str, list[int]] = {group: [] for group in config.groups or ()}
    for i in space.ids.tolist():
        parts.get(group_of(text(i)), []).append(i)
    return Ordered(sorted(i for part in _drawn(parts.values(), space, config) for i in part))


def by_pattern(space: Space, config: Parameters) -> Ordered:
    """Tokens whose text one of the given regular expressions matches anywhere, by id."""
    text = space.vocabulary.text
    patterns = [re.compile(pattern) for pattern in config.patterns or ()]
    parts = [[i for i in space.ids.tolist() if found.search(text(i))] for found in patterns]
    return Ordered(sorted({i for part in _drawn(parts, space, config) for i in part}))


def _drawn(parts: Iterable[list[int]], space: Space, config: Parameters) -> Iterator[list[int]]:
    """Of each part, in ascending order of id, the sample that the spec asks for; else all of it.

    What is drawn of a part depends on the seed, its place among the parts and its tokens alone.
    """
    for place, part in enumerate(parts):
        size = len(part)
        if config.sample_rate is not None:
            # In exact numbers, of the share as it is written: 0.07 of 100 are 7.
            size = math.ceil(Fraction(str(config.sample_rate)) * size)
        if config.sample_size is not None:
            size = min(size, config.sample_size)
        rng = np.random.default_rng([space.seed, place])
        yield part if size >= len(part) else sorted(rng.choice(part, size, replace=False).tolist())
