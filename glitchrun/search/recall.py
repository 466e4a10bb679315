"""What a random sample of the tokens not looked at says about how many were missed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from scipy.stats import hypergeom


@dataclass(frozen=True, slots=True)
class Audit:
    """A uniform sample, without replacement, of tokens that a search left aside."""

    rest: int
    """Tokens left aside, the sample included."""
    sample: int
    hits: int
    """Of the sample, those that are what the search looks for."""

    def most(self, alpha: float) -> int:
        """Upper confidence bound on the hits among all `rest`, at level 1 - alpha.

        Exact (hypergeometric): the largest number under which so few hits in the sample are no
        less likely than alpha.
        """
        low, high = self.hits, self.rest - (self.sample - self.hits)
        while low < high:
            middle = (low + high + 1) // 2
            if hypergeom.cdf(self.hits, self.rest, middle, self.sample) >= alpha:
                low = middle
            else:
                high = middle - 1
        return low

    def least(self, alpha: float) -> int:
        """Lower confidence bound, at level 1 - alpha."""
        low, high = self.hits, self.rest - (self.sample - self.hits)
        while low < high:
            middle = (low + high) // 2
            if hypergeom.sf(self.hits - 1, self.rest, middle, self.sample) >= alpha:
                high = middle
            else:
                low = middle + 1
        return low

    @property
    def expected(self) -> float:
        """Unbiased estimate of the hits among all `rest`."""
        return self.hits * self.rest / self.sample if self.sample else 0.0


@dataclass(frozen=True, slots=True)
class Recall:
    """The share of what there is that was found, with bounds that each hold with `confidence`."""

    estimate: float
    low: float
    high: float
    confidence: float


def recall(found: int, audit: Audit, alpha: float, confidence: float) -> Recall | None:
    """Recall after an audit whose hits are found too. None where there is nothing to find.

    Args:
        found: What the search found outside of `audit.rest`.
        audit: The sample of what it left aside.
        alpha: Share of errors allowed for each bound.
        confidence: As it is to be reported.
    """
    known = found + audit.hits

    def share(missed: float) -> float:
        return known / (known + missed) if known + missed else math.nan

    low, high = (share(bound - audit.hits) for bound in (audit.most(alpha), audit.least(alpha)))
    estimate = share(audit.expected - audit.hits)
    return None if math.isnan(estimate) else Recall(estimate, low, high, confidence)


def most_missed(found: int, share: float) -> int:
    """How many may be missed beside `found` so that those are still `share` of all.

    In exact numbers, of the share as it is written: 9 found and 0.9 allow 1.
    """
    exact = Fraction(str(share))
    return int(found * (1 - exact) / exact)


def sample_size(rest: int, allowed: int, alpha: float) -> int:
    """The smallest sample of `rest` that, without a hit, bounds the hits by `allowed`."""
    low, high = 0, rest
    while low < high:
        middle = (low + high) // 2
        if Audit(rest, middle, 0).most(alpha) <= allowed:
            high = middle
        else:
            low = middle + 1
    return low
