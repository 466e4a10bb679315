"""Searches by the screen's scores: its order alone, and a cascade with an audit of the rest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from copy import copy
from itertools import islice, takewhile
from typing import Self

import numpy as np

from glitchrun.events import Verified
from glitchrun.search.base import Parameters, Scores, Space
from glitchrun.search.ordered import Ordered
from glitchrun.search.recall import Audit, Recall, cheapest_sample, recall

_BLOCK = 64
"""Tokens by which the front grows before its yield is checked again."""
_WINDOW = 256
"""Smallest number of tokens at the end of the front over which the yield is taken."""
_SHARE = 0.1
"""The same as a share of the front; the larger of the two counts."""
_EDGE = 0.05
"""Yield (hits / tokens) below which the first front ends; halved for each further front."""
_FIRST = 0.8
"""Share of the error probability that the first audit gets. Each later one gets half of what is
left."""
_NEXT_FRONT = 0.25
"""Guess of the tokens that a further front adds, as a share of the front so far."""


class Cascade:
    """Ends when an audit shows the required recall with the required confidence.

    1. The front: verify tokens in the order of the screen, the worst score first, until the yield
       at its end is low.
    2. The audit: verify a uniform random sample of the rest. Its hits bound the number missed.
    3. If the bound is too wide, repeat with a lower yield and a larger audit.

    Audits share the error probability, so the bounds of all rounds hold together (union bound).
    Where fronts end and how large audits are depends only on verdicts in the front, and audits
    follow one random order fixed by the seed: each is a uniform sample.
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
        self._place = 0
        """Tokens of this stage before this place are verified."""

    @classmethod
    def build(cls, space: Space, config: Parameters) -> Self:
        """The cascade with the parameters `recall` and `confidence`."""
        return cls(space, config.recall, config.confidence)

    def propose(self, n: int) -> list[int]:
        while not (open_ := self._open(max(n, 1))) and self._advance():
            pass
        return open_[:n]

    def update(self, verdicts: Sequence[Verified]) -> None:
        self._found |= {verdict.token.id: verdict.glitch for verdict in verdicts}

    def expect(self, ids: Sequence[int]) -> Self | None:
        """See `glitchrun.search.base.Foreseeable`. A stage does not foresee the next one."""
        following = copy(self)
        # A front with nothing but glitch tokens continues.
        following._found = self._found | dict.fromkeys(ids, True)
        is_over = self._sample is not None and not following._open(1)
        return None if is_over else following

    @property
    def stage(self) -> tuple[str, int | None]:
        """The stage of the last proposal, front or audit, and how many more tokens it verifies;
        None for a front, whose end depends on its verdicts."""
        if self._sample is None:
            return "front", None
        self._open(1)  # moves `_place`
        return "audit", len(self._sample) - self._place

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
        waits, end, number = bool(self._open(1)), self._end, self._round
        if self._sample is None:  # a front that a budget ended is one more round
            number += 1
            if waits:
                end = next(n for n, i in enumerate(self._front) if i not in self._found)
        aside = (token_id for token_id in self._random if self._rank[token_id] >= end)
        sample = list(takewhile(self._found.__contains__, aside))
        if not sample and (self._sample is None or waits):
            return None
        audit = Audit(len(self._front) - end, len(sample), self._hits(sample))
        found = self._hits(self._front[:end])
        return recall(found, audit, self._alpha(number), self.confidence)

    def _alpha(self, number: int) -> float:
        """Error probability of the audit of a round, from 1."""
        share = _FIRST if number == 1 else (1 - _FIRST) / 2 ** (number - 1)
        return (1 - self.confidence) * share

    def _open(self, n: int) -> list[int]:
        """The next n unverified tokens of this stage, in its order."""
        stage, end = self._front, self._end
        if self._sample is not None:
            stage, end = self._sample, len(self._sample)
        while self._place < end and stage[self._place] in self._found:
            self._place += 1
        waiting = islice(stage, self._place, end)
        return list(islice((i for i in waiting if i not in self._found), n))

    def _advance(self) -> bool:
        """Begins the next stage; returns whether there is one."""
        if self._sample is not None:
            if self._settled():
                return False
            self._sample, self._place = None, self._end
            self._end = min(self._end + _BLOCK, len(self._front))
        elif self._end < len(self._front) and not self._exhausted():
            self._end = min(self._end + _BLOCK, len(self._front))
        elif self._end < len(self._front):
            self._round += 1
            self._sample, self._place = self._drawn(), 0
        else:
            return False
        return True

    def _exhausted(self) -> bool:
        """Whether the yield at the end of the front is low."""
        window = self._window()
        limit = _EDGE / 2**self._round * len(window)
        return len(window) >= _WINDOW and self._hits(window) < limit

    def _window(self) -> list[int]:
        """The tokens at the end of the front over which the yield is taken."""
        size = max(_WINDOW, int(_SHARE * self._end))
        return self._front[max(0, self._end - size) : self._end]

    def _drawn(self) -> list[int]:
        """The sample of this round. Its size depends on verdicts of the front only."""
        size = cheapest_sample(
            max(1, self._hits(self._front[: self._end])),
            len(self._front) - self._end,
            self._share,
            self._alpha(self._round),
            missed=max(1, self._hits(self._window())),
            failure=_NEXT_FRONT * self._end,
        )
        aside = (i for i in self._random if self._rank[i] >= self._end)
        return list(islice(aside, size))

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
