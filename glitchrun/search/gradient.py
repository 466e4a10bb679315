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
"""Entropies closer than this, in nats, may come out in either order on another machine."""
_TINY = torch.finfo(torch.float32).tiny


class GradientWalk:
    """Walks towards high entropy.

    From the current token, the k nearest unvisited tokens (distance between unit output embeddings)
    are ranked by a first-order estimate of entropy, H + (e_j − e_current)·∂H/∂e; the best are
    verified, and the one of them with the highest entropy is the next current token. The walk
    starts at the token in scope of least input-embedding norm, which is not verified itself unless
    the walk comes back to it.
    """

    def __init__(self, space: Space, k: int, start: int) -> None:
        self.counters: Counter[str] = Counter()
        self._space = space
        self._k = k
        self._current = start
        self._open = torch.zeros(len(space.embeddings), dtype=torch.bool)
        self._open[space.ids] = True
        # Distances are taken in float32 on the CPU: rounding them would reorder neighbours.
        self._table = space.embeddings.float().cpu()
        self._norms = self._table.norm(dim=1)

    @classmethod
    def build(cls, space: Space, config: Parameters) -> Self:
        start = config.start
        if start is None:
            norms = space.vocabulary.norms[space.ids]
            start = int(space.ids[norms.argmin()])
        return cls(space, config.k, start)

    def propose(self, n: int) -> list[int]:
        neighbours = self._neighbours()
        if not len(neighbours):
            # All others are verified; the start is left only where it is all that is in scope.
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
        """Ids of the k nearest open tokens, nearest first: fewer where fewer are left."""
        open_ = self._open.clone()
        open_[self._current] = False
        ids = open_.nonzero()[:, 0]
        dots = (self._table @ self._table[self._current])[ids]
        norms = self._norms[ids]
        cosine = dots / (norms * self._norms[self._current]).clamp_min(_TINY)
        # On the unit sphere the nearest are those of largest cosine. A row of zeros is not on it:
        # it lies in the middle, as far from all others as they are at a cosine of 1/2.
        cosine[norms == 0] = 0.5
        nearest = cosine.sort(descending=True, stable=True).indices[: self._k]
        return ids[nearest]
