"""Bounds on recall from a random sample of the tokens that a search did not verify."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from scipy.stats import hypergeom


@dataclass(frozen=True, slots=True)
class Audit:
    """A uniform sample, without replacement, of the tokens that a search left out."""

    rest: int
    """Tokens left out, including the sample."""
    sample: int
    """Tokens in the sample."""
    hits: int
    """Glitch tokens in the sample."""

    def most(self, alpha: float) -> int:
        """Upper confidence bound on the glitch tokens in `rest`, at level 1 - alpha.

        Exact (hypergeometric): the largest number for which at most `hits` in the sample has a
        probability of at least alpha.
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
        """Lower confidence bound on the glitch tokens in `rest`, at level 1 - alpha."""
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
        """Unbiased estimate of the glitch tokens in `rest`."""
        return self.hits * self.rest / self.sample if self.sample else 0.0


@dataclass(frozen=True, slots=True)
class Recall:
    """The share of all glitch tokens that was found; each bound has the `confidence` given."""

    estimate: float
    low: float
    high: float
    confidence: float


def recall(found: int, audit: Audit, alpha: float, confidence: float) -> Recall | None:
    """Recall after an audit, whose hits count as found. None if there is nothing to find.

    Args:
        found: Glitch tokens that the search found outside of `audit.rest`.
        audit: The sample of the tokens that it left out.
        alpha: Error probability of each bound.
        confidence: The confidence to report.
    """
    known = found + audit.hits

    def share(missed: float) -> float:
        return known / (known + missed) if known + missed else math.nan

    low, high = (share(bound - audit.hits) for bound in (audit.most(alpha), audit.least(alpha)))
    estimate = share(audit.expected - audit.hits)
    return None if math.isnan(estimate) else Recall(estimate, low, high, confidence)


def most_missed(found: int, share: float) -> int:
    """The largest number of missed tokens for which `found` is at least `share` of all.

    Exact arithmetic on the decimal as written: 9 found and 0.9 allow 1.
    """
    exact = Fraction(str(share))
    return int(found * (1 - exact) / exact)


def sample_size(rest: int, allowed: int, alpha: float) -> int:
    """The smallest sample of `rest` that, without a hit, bounds the missed tokens by `allowed`."""
    low, high = 0, rest
    while low < high:
        middle = (low + high) // 2
        if Audit(rest, middle, 0).most(alpha) <= allowed:
            high = middle
        else:
            low = middle + 1
    return low
