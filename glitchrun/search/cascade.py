"""Searches by the screen's scores: its order alone, and a cascade with an audit of the rest."""

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
"""Tokens by which the front grows before its yield is checked again."""
_WINDOW = 256
"""Least number of tokens at the end of the front over which the yield is taken."""
_SHARE = 0.1
"""The same as a share of the front; the larger of the two counts."""
_EDGE = 0.05
"""Yield (hits / tokens) below which the first front ends; halved for each further front."""
_AUDIT = 0.05
"""Share of the rest that an audit takes if the smallest sufficient sample is smaller."""
_SAFETY = 3
"""Upper bound on such an audit, as a multiple of the smallest sufficient sample."""


class Cascade:
    """Ends when an audit shows the required recall with the required confidence.

    1. The front: verify tokens in the order of the screen, the worst score first, until the yield
       at its end is low.
    2. The audit: verify a uniform random sample of the rest. Its hits bound the number missed.
    3. If the bound is too wide, repeat with a lower yield and a larger audit.

    Each round gets half of the remaining error probability, so the bounds of all rounds hold
    together (union bound). Where fronts end and how large audits are depends only on verdicts in
    the front, and audits follow one random order fixed by the seed: each is a uniform sample.
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
        """The audit of this round; None during the front. It is empty where the required recall is
        reached even if all remaining tokens are glitch tokens."""

    @classmethod
    def build(cls, space: Space, config: Parameters) -> Self:
        """The cascade with the parameters `recall` and `confidence`."""
        return cls(space, config.recall, config.confidence)

    def propose(self, n: int) -> list[int]:
        while not (open_ := self._open()) and self._advance():
            pass
        return open_[:n]

    def update(self, verdicts: Sequence[Verified]) -> None:
        self._found |= {verdict.token.id: verdict.glitch for verdict in verdicts}

    @property
    def stage(self) -> tuple[str, int | None]:
        """The stage of the last proposal, front or audit, and how many more tokens it verifies;
        None for a front, whose end depends on its verdicts."""
        return ("front", None) if self._sample is None else ("audit", len(self._open()))

    @property
    def reached(self) -> Recall | None:
        """Recall of everything verified so far; None before the first audit, and if there is
        nothing to find.

        If a budget ended the search early, the front counts as far as it was verified, and the
        audit is the verified part of the random order, which is also a uniform sample.
        """
        self.propose(0)  # moves on to the stage that the verdicts determine
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
        """The unverified tokens of this stage, in its order."""
        stage = self._front[: self._end] if self._sample is None else self._sample
        return [token_id for token_id in stage if token_id not in self._found]

    def _advance(self) -> bool:
        """Begins the next stage; returns whether there is one."""
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
        """Whether the yield at the end of the front is low."""
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
    """The order of the screen, the worst score first."""
    assert space.scores is not None
    return Ordered(by_score(space.ids.tolist(), space.scores, space.limit))


def by_score(ids: Sequence[int], scores: Scores, limit: float) -> list[int]:
    """Ids by descending likelihood of being a glitch token; equal scores by id.

    The score is the log-probability if thresholds.probability (`limit`) is below 1, and the gap
    otherwise: a verdict depends on the same number.
    """
    column, order = (scores.log_p if limit < 1 else -scores.gap), np.asarray(ids)
    return order[np.lexsort((order, column))].tolist()
