"""Searches whose order is fixed before they start."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy
from fractions import Fraction
from typing import Self

import numpy as np

from glitchrun.errors import PreflightError
from glitchrun.events import Verified
from glitchrun.search.base import Parameters, Space
from glitchrun.vocabulary.character_groups import group_of
from glitchrun.vocabulary.indicators import Indicators

_LENGTHS = (1, 3, 6)
"""Upper ends of the length buckets 1, 2 to 3, and 4 to 6 characters; the last is 7 and more."""


class Ordered:
    """Proposes token ids in a fixed order."""

    def __init__(self, order: Iterable[int]) -> None:
        self.counters: Counter[str] = Counter()
        self._order = list(order)
        self._next = 0

    @property
    def size(self) -> int:
        """Number of tokens that it proposes in all."""
        return len(self._order)

    def propose(self, n: int) -> list[int]:
        return self._order[self._next : self._next + n]

    def update(self, verdicts: Sequence[Verified]) -> None:
        self._next += len(verdicts)

    def expect(self, ids: Sequence[int]) -> Self:
        """See `glitchrun.search.base.Foreseeable`."""
        following = copy(self)
        following._next += len(ids)
        return following


def by_norm(space: Space, config: Parameters) -> Ordered:
    """Ascending L2 norm of the input embedding."""
    norms = space.vocabulary.norms[space.ids]
    return Ordered(space.ids[norms.sort(stable=True).indices].tolist())


def at_random(space: Space, config: Parameters) -> Ordered:
    """A uniformly random order, fixed by the seed."""
    order = np.random.default_rng(space.seed).permutation(space.ids.numpy())
    return Ordered(order.tolist())


def stratified(space: Space, config: Parameters) -> Ordered:
    """A random order in which every prefix contains each stratum in proportion to its size.

    A stratum is a norm quintile × group of characters × length. Member r (from 0, in random order)
    of a stratum of size s gets the key (r + u) / s, with u uniform in [0, 1) for each stratum;
    the order is that of the keys. So each stratum differs from proportion by at most one token.
    """
    rng = np.random.default_rng(space.seed)
    ids = space.ids.numpy()
    norms = space.vocabulary.norms[space.ids].numpy()
    quintiles = np.searchsorted(np.quantile(norms, [0.2, 0.4, 0.6, 0.8]), norms)
    strata: dict[tuple[int, str, int], list[int]] = {}
    for token_id, quintile in zip(ids.tolist(), quintiles.tolist(), strict=True):
        text = space.vocabulary.text(token_id)
        length = int(np.searchsorted(_LENGTHS, len(text.strip())))
        strata.setdefault((quintile, group_of(text), length), []).append(token_id)
    keyed: list[tuple[float, int]] = []
    for stratum in sorted(strata):
        members = rng.permutation(strata[stratum]).tolist()
        shift = float(rng.random())
        keyed += [((rank + shift) / len(members), m) for rank, m in enumerate(members)]
    return Ordered(token_id for _, token_id in sorted(keyed))


def by_range(space: Space, config: Parameters) -> Ordered:
    """The token ids of `ranges`, in that order, both ends included."""
    parts = in_ranges(space.ids.tolist(), space.vocabulary.text, config.ranges or ())
    return Ordered(dict.fromkeys(i for part in _drawn(parts, space, config) for i in part))


def by_category(space: Space, config: Parameters) -> Ordered:
    """Tokens of the given groups of characters, by ascending id."""
    parts = in_groups(space.ids.tolist(), space.vocabulary.text, config.groups or ())
    return Ordered(sorted(i for part in _drawn(parts, space, config) for i in part))


def by_pattern(space: Space, config: Parameters) -> Ordered:
    """Tokens in whose text one of the regular expressions matches, by ascending id."""
    parts = matching(space.ids.tolist(), space.vocabulary.text, config.patterns or ())
    return Ordered(sorted({i for part in _drawn(parts, space, config) for i in part}))


def in_ranges(
    ids: Sequence[int], text: Callable[[int], str], ranges: Iterable[tuple[int, int]]
) -> list[list[int]]:
    """The ids in each of the `ranges`, both ends included."""
    return [[i for i in ids if low <= i <= high] for low, high in ranges]


def in_groups(
    ids: Sequence[int], text: Callable[[int], str], groups: Iterable[str]
) -> list[list[int]]:
    """For each of the character groups `groups`, the ids whose text belongs to it."""
    parts: dict[str, list[int]] = {group: [] for group in groups}
    for i in ids:
        parts.get(group_of(text(i)), []).append(i)
    return list(parts.values())


def matching(
    ids: Sequence[int], text: Callable[[int], str], patterns: Iterable[str]
) -> list[list[int]]:
    """The ids in whose text each of the regular expressions `patterns` matches."""
    return [[i for i in ids if found.search(text(i))] for found in map(re.compile, patterns)]


def _drawn(parts: Iterable[list[int]], space: Space, config: Parameters) -> Iterator[list[int]]:
    """The sample of each part that the spec asks for, ids ascending; the whole part by default.

    A sample depends only on the seed, the part's index and its tokens.
    """
    for index, part in enumerate(parts):
        size = len(part)
        if config.sample_rate is not None:
            # Exact arithmetic on the decimal as written: 0.07 of 100 is 7.
            size = math.ceil(Fraction(str(config.sample_rate)) * size)
        if config.sample_size is not None:
            size = min(size, config.sample_size)
        rng = np.random.default_rng([space.seed, index])
        yield part if size >= len(part) else sorted(rng.choice(part, size, replace=False).tolist())


def by_indicator(space: Space, config: Parameters) -> Ordered:
    """Ascending value of the indicator that `indicator` names.

    Raises:
        PreflightError: the indicator needs reference rows, and the vocabulary has none.
    """
    found = space.indicators or Indicators.of_tables(
        space.input_embeddings, space.embeddings, space.vocabulary
    )
    name = str(config.own["indicator"])
    name = found.main if name == "auto" else name
    values = found.values(name)
    if values is None:
        raise PreflightError(
            f"indicator: {name} needs rows that training hardly changed, and the vocabulary has "
            "no unused, unreachable or byte token; name such rows with "
            "tokens: {unused: {ids: [...]}}"
        )
    known = values[space.ids].nan_to_num(nan=float("inf"))
    return Ordered(space.ids[known.sort(stable=True).indices].tolist())
