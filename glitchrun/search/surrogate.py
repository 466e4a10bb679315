"""A search that learns from its own verdicts which tokens fail."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import chain, islice
from typing import Self

import numpy as np
from numpy.typing import NDArray

from glitchrun.events import Verified
from glitchrun.search import ridge
from glitchrun.search.base import Parameters, Space
from glitchrun.search.features import Features, Floats

_WARM = 64
"""Tokens verified before anything is learned."""
_GROWTH = 1 / 16
"""The model is fitted again when this share of verdicts is new."""
_STRONGER, _STRONGEST = 30.0, 200.0
"""The ridge: times the likeliest one, and at most. The likeliest predicts best on average; at the
top of the order, which is all that is verified, its errors are chosen along with what it got right.
On SmolLM2 and on Gemma 3 ridges of 100 and 300 found a tenth more than the likeliest."""
_FLOOR = 1e-6
"""Probabilities below this are all as low."""


class Surrogate:
    """Verifies the tokens that a linear model of the verdicts so far expects most of.

    The first tokens are half the ends of every indicator (the tokens of least and largest norm,
    and so on), half random. From then on a ridge regression on the features of all tokens verified
    predicts the sum of two standardized targets: whether a token is a glitch, and how improbable
    it was (−log p), which tells severe ones from others and has something to say where no glitch
    was found yet.
    """

    def __init__(self, space: Space) -> None:
        self.counters: Counter[str] = Counter()
        self._features = Features(space)
        self._ids = space.ids.numpy()
        self._place = {token_id: place for place, token_id in enumerate(self._ids.tolist())}
        self._rank = np.random.default_rng(space.seed).permutation(len(self._ids))
        """Settles ties, and the order of the random half of the first tokens."""
        self._order = self._warm_up()
        self._verified: list[int] = []
        self._targets: list[tuple[float, float]] = []
        self._fit_at = self._fitted_at = 0

    @classmethod
    def build(cls, space: Space, config: Parameters) -> Self:
        return cls(space)

    def propose(self, n: int) -> list[int]:
        if self._fit_at > self._fitted_at:
            self._fit()
        done = set(self._verified)
        open_ = (place for place in self._order.tolist() if place not in done)
        return [int(self._ids[place]) for place, _ in zip(open_, range(n), strict=False)]

    def update(self, verdicts: Sequence[Verified]) -> None:
        for verdict in verdicts:
            self._verified.append(self._place[verdict.token.id])
            p = max(result.p for result in verdict.probes.values())
            self._targets.append((float(verdict.glitch), -float(np.log(max(p, _FLOOR)))))
        # Decided by counts alone, so that a resumed search fits where the first one did.
        count = len(self._verified)
        if count >= max(_WARM, self._fit_at * (1 + _GROWTH)):
            self._fit_at = count

    def _fit(self) -> None:
        places = np.array(self._verified[: self._fit_at])
        target = _combined(np.array(self._targets[: self._fit_at]))
        weights = ridge.fit(self._features.rows(places), target, _STRONGER, _STRONGEST)
        scores = self._features.times(weights).round(6)
        self._order = np.lexsort((self._rank, -scores))
        self._fitted_at = self._fit_at
        self.counters["refits"] += 1

    def _warm_up(self) -> NDArray[np.int64]:
        by_value = [np.lexsort((self._rank, v)) for v in self._features.indicators.values()]
        ends = [order[::step] for order in by_value for step in (1, -1)]
        in_turn = islice(zip(*ends, strict=True), _WARM)
        extreme = list(dict.fromkeys(chain.from_iterable(in_turn)))
        random = np.argsort(self._rank).tolist()
        mixed = chain.from_iterable(zip(extreme[: _WARM // 2], random, strict=False))
        return np.array(list(dict.fromkeys([*mixed, *random])))


def _combined(targets: Floats) -> Floats:
    """The sum of the columns, each standardized; one without any spread says nothing."""
    about = targets - targets.mean(axis=0)
    spread = about.std(axis=0)
    total: Floats = (about / np.where(spread > 0, spread, np.inf)).sum(axis=1)
    return total
