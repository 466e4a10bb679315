"""Searches that know their whole order before they start."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from glitchrun.events import Verified
from glitchrun.search.base import Space
from glitchrun.vocabulary.groups import group_of

if TYPE_CHECKING:
    from glitchrun.strategies.mine import Config


class Ordered:
    """Proposes token ids in a fixed order."""

    def __init__(self, order: Iterable[int]) -> None:
        self.counters: Counter[str] = Counter()
        self._order = list(order)
        self._next = 0

    def propose(self, n: int) -> list[int]:
        return self._order[self._next : self._next + n]

    def update(self, verdicts: Sequence[Verified]) -> None:
        self._next += len(verdicts)


def by_norm(space: Space, config: Config) -> Ordered:
    """Ascending L2 norm of the input embedding."""
    norms = space.vocabulary.norms[space.ids]
    return Ordered(space.ids[norms.sort(stable=True).indices].tolist())


def at_random(space: Space, config: Config) -> Ordered:
    """A uniformly random order, fixed by the seed."""
    order = np.random.default_rng(space.seed).permutation(space.ids.numpy())
    return Ordered(order.tolist())


def by_range(space: Space, config: Config) -> Ordered:
    """The token ids of the given spans, in the order given, both ends included."""
    spans = config.ranges or ()
    ids = space.ids.tolist()
    order = [i for low, high in spans for i in ids if low <= i <= high]
    return Ordered(dict.fromkeys(order))


def by_category(space: Space, config: Config) -> Ordered:
    """Tokens of the given groups of characters, by id."""
    wanted = set(config.groups or ())
    text = space.vocabulary.text
    return Ordered(i for i in space.ids.tolist() if group_of(text(i)) in wanted)


def by_pattern(space: Space, config: Config) -> Ordered:
    """Tokens whose text one of the given regular expressions matches anywhere, by id."""
    patterns = [re.compile(pattern) for pattern in config.patterns or ()]
    text = space.vocabulary.text
    return Ordered(
        i for i in space.ids.tolist() if any(pattern.search(text(i)) for pattern in patterns)
    )
