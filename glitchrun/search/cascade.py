"""Screen everything, verify in the screen's order, and audit what was left aside."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import takewhile
from typing import Self

import numpy as np

from glitchrun.events import Verified
from glitchrun.search.base import Parameters, Scores, Space
from glitchrun.search.ordered import Ordered
from glitchrun.search.recall import Audit, Recall, most_missed, recall, sample_size

_BLOCK = 64
"""Tokens of the front between two looks at its yield."""
_WINDOW = 256
"""Tokens at the end of the front, at least, whose yield says whether to go on."""
_SHARE = 0.1
"""The window as a share of the front."""
_EDGE = 0.05
"""Yield of the window below which the front ends for the first time; halved each time after."""
_AUDIT = 0.05
"""Share of the rest that an audit takes where a much smaller one could do."""
_SAFETY = 3
"""How many times that smaller one, at most."""


class Cascade:
    """Ends when the recall asked for is reached with the confidence asked for.

    The front follows the screen from the worst score on, until its end hardly yields any more.
    Then a uniform random sample of the rest is verified: its hits bound what was missed. Where the
    bound is too wide, the front goes on to a lower yield and the audit grows, each round with half
    of the error that is left, so that the bounds of all rounds hold together (union bound). The
    ends of fronts and the sizes of audits depend on verdicts in the front alone, and the audit
    follows one random order fixed by the seed; so each audit is a uniform sample.
    """

    def __init__(self, space: Space, share: float, confidence: float) -> None:
        if space.scores is None:
            raise ValueError("a cascade needs the screen's scores")
        self.counters: Counter[str] = Counter()
        self.confidence = confidence
        self._share = share
        self._front = by_score(space.ids.tolist(), space.scores, space.limit)
        rng = np.random.default_rng((space.seed, 1))
        self._random = rng.permutation(space.ids.numpy()).tolist()
        self._rank = {token_id: place for place, token_id in enumerate(self._front)}
        self._found: dict[int, bool] = {}
        self._end = min(_BLOCK, len(self._front))
        self._round = 0
        self._sample: list[int] | None = None
        """The audit of this round; None while the front goes on. It may be empty: where what was
        found outweighs all that is left."""

    @classmethod
    def build(cls, space: Space, config: Parameters) -> Self:
        return cls(space, config.recall, config.confidence)

    def propose(self, n: int) -> list[int]:
        while not (open_ := self._open()) and self._advance():
            pass
        return open_[:n]

    def update(self, verdicts: Sequence[Verified]) -> None:
        self._found |= {verdict.token.id: verdict.glitch for verdict in verdicts}

    @property
    def reached(self) -> Recall | None:
        """What the audit says of all that was verified so far; None before it has begun, and where
        there is nothing to find.

        Where a budget ends the search in a front or an audit, the front is as far as it came, and
        the audit what came first in the random order: that is a uniform sample of the rest too.
        """
        self.propose(0)  # so that it rests on the verdicts alone, not on what was asked last
        return self._recall()

    def _recall(self) -> Recall | None:
        if len(self._found) == len(self._front):
            every = any(self._found.values())
            return Recall(1.0, 1.0, 1.0, self.confidence) if every else None
        waits = bool(self._open())
        end = self._end
        if self._sample is None and waits:
            end = next(n for n, token_id in enumerate(self._front) if token_id not in self._found)
        aside = (token_id for token_id in self._random if self._rank[token_id] >= end)
        sample = list(takewhile(self._found.__contains__, aside))
        if not sample and (self._sample is None or waits):
            return None
        audit = Audit(len(self._front) - end, len(sample), self._hits(sample))
        alpha = self._alpha if self._sample is not None else self._alpha / 2
        return recall(self._hits(self._front[:end]), audit, alpha, self.confidence)

    @property
    def _alpha(self) -> float:
        return (1 - self.confidence) / 2**self._round

    def _open(self) -> list[int]:
        """What this stage has still to verify, in its order."""
        stage = self._front[: self._end] if self._sample is None else self._sample
        return [token_id for token_id in stage if token_id not in self._found]

    def _advance(self) -> bool:
        """Goes on to the next stage; whether there is one."""
        if self._sample is not None:
            if self._settled():
                return False
            self._sample = None
            self._end = min(self._end + _BLOCK, len(self._front))
        elif self._end < len(self._front) and not self._exhausted():
            self._end = min(self._end + _BLOCK, len(self._front))
        elif self._end < len(self._front):
            self._round += 1
            self._sample = self._drawn()
        else:
            return False
        return True

    def _exhausted(self) -> bool:
        """Whether the end of the front hardly yields any more."""
        window = max(_WINDOW, int(_SHARE * self._end))
        if self._end < window:
            return False
        hits = self._hits(self._front[self._end - window : self._end])
        return hits < _EDGE / 2**self._round * window

    def _drawn(self) -> list[int]:
        rest = len(self._front) - self._end
        found = max(1, self._hits(self._front[: self._end]))
        least = sample_size(rest, most_missed(found, self._share), self._alpha)
        size = min(_SAFETY * least, max(least, int(_AUDIT * rest)), rest)
        aside = (i for i in self._random if self._rank[i] >= self._end)
        return [token_id for token_id, _ in zip(aside, range(size), strict=False)]

    def _settled(self) -> bool:
        reached = self._recall()
        return reached is None or reached.low >= self._share

    def _hits(self, ids: Sequence[int]) -> int:
        return sum(self._found[token_id] for token_id in ids)


def screened(space: Space, config: Parameters) -> Ordered:
    """The order of the screen alone, the worst score first."""
    assert space.scores is not None
    return Ordered(by_score(space.ids.tolist(), space.scores, space.limit))


def by_score(ids: Sequence[int], scores: Scores, limit: float) -> list[int]:
    """Ids from the likeliest glitch on; equal scores by id.

    Where a glitch has to be improbable (`limit` below 1) the least log-probability comes first,
    else the largest gap: that is what failing means then.
    """
    column, places = (scores.log_p if limit < 1 else -scores.gap), np.asarray(ids)
    return places[np.lexsort((places, column))].tolist()
