"""The walk of GlitchMiner (Wu et al., AAAI 2026, arXiv 2410.15052)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from glitchrun.events import Verified
from glitchrun.search.base import Parameters, Space

_TIE = 1e-4
"""Entropies closer than this, in nats, may have another order on another machine."""
_TINY = torch.finfo(torch.float32).tiny


class GradientWalk:
    """Walks through the output embedding towards high entropy.

    1. Take the k nearest unverified tokens of the current one (distance of unit embeddings).
    2. Rank them by a first-order estimate of entropy, H + (e_j − e_current)·∂H/∂e.
    3. Verify the best. The one with the highest measured entropy is the next current token.

    By default the walk starts at the token in scope of least input-embedding norm. The start is
    verified only if the walk returns to it.
    """

    def __init__(self, space: Space, k: int, start: int) -> None:
        self.counters: Counter[str] = Counter()
        self._space = space
        self._k = k
        self._current = start
        self._open = torch.zeros(len(space.embeddings), dtype=torch.bool)
        self._open[space.ids] = True
        # float32 on the CPU: lower precision would reorder neighbours.
        self._table = space.embeddings.float().cpu()
        self._norms = self._table.norm(dim=1)

    @classmethod
    def build(cls, space: Space, config: Parameters) -> Self:
        """The walk with the parameters `k` and `start`."""
        start = config.start
        if start is None:
            norms = space.vocabulary.norms[space.ids]
            start = int(space.ids[norms.argmin()])
        return cls(space, config.k, start)

    def propose(self, n: int) -> list[int]:
        neighbours = self._neighbours()
        if not len(neighbours):
            # All others are verified; the current token is the only one that can be left.
            return [self._current] if self._open[self._current] else []
        entropy, gradient = self._space.gradient(self._current)
        self.counters["gradients"] += 1
        delta = self._table[neighbours] - self._table[self._current]
        estimate = entropy + delta @ gradient.cpu()
        best = estimate.sort(descending=True, stable=True)
        if len(best.values) > n and best.values[n - 1] - best.values[n] < _TIE:
            self.counters["walk_ties"] += 1
        return neighbours[best.indices[:n]].tolist()

    def update(self, verdicts: Sequence[Verified]) -> None:
        ids = [verdict.token.id for verdict in verdicts]
        first = [next(iter(verdict.probes.values())).entropy for verdict in verdicts]
        self._open[ids] = False
        ranked = sorted(first, reverse=True)
        if len(ranked) > 1 and ranked[0] - ranked[1] < _TIE:
            self.counters["walk_ties"] += 1
        self._current = ids[first.index(ranked[0])]

    def _neighbours(self) -> Tensor:
        """Ids `(k,)` of the nearest unverified tokens, nearest first; fewer at the end."""
        open_ = self._open.clone()
        open_[self._current] = False
        ids = open_.nonzero()[:, 0]
        dots = (self._table @ self._table[self._current])[ids]
        norms = self._norms[ids]
        cosine = dots / (norms * self._norms[self._current]).clamp_min(_TINY)
        # On the unit sphere the nearest tokens have the largest cosine. A row of zeros is at its
        # centre, at the distance that two unit rows have at a cosine of 1/2.
        cosine[norms == 0] = 0.5
        nearest = cosine.sort(descending=True, stable=True).indices[: self._k]
        return ids[nearest]
