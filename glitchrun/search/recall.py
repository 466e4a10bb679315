"""Bounds on recall from a random sample of the tokens that a search did not verify."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

_MOST_HITS = 16
"""Hits that the size of an audit may allow for, at most."""


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
            if at_most(self.hits, self.rest, middle, self.sample) >= alpha:
                low = middle
            else:
                high = middle - 1
        return low

    def least(self, alpha: float) -> int:
        """Lower confidence bound on the glitch tokens in `rest`, at level 1 - alpha."""
        low, high = self.hits, self.rest - (self.sample - self.hits)
        while low < high:
            middle = (low + high) // 2
            if 1 - at_most(self.hits - 1, self.rest, middle, self.sample) >= alpha:
                high = middle
            else:
                low = middle + 1
        return low

    @property
    def expected(self) -> float:
        """Unbiased estimate of the glitch tokens in `rest`."""
        return self.hits * self.rest / self.sample if self.sample else 0.0


def at_most(hits: int, rest: int, glitches: int, sample: int) -> float:
    """The probability of at most `hits` glitch tokens in a sample of `rest` tokens.

    The hypergeometric distribution, summed from its last term down: as exact as
    scipy.stats.hypergeom.cdf, and tens of times as fast for one value.
    """
    least = max(0, sample - (rest - glitches))
    k = min(hits, glitches, sample)
    if k < least:
        return 0.0
    term = math.exp(
        _log_choose(glitches, k)
        + _log_choose(rest - glitches, sample - k)
        - _log_choose(rest, sample)
    )
    total = 0.0
    while k >= least and term > total * 1e-17:
        total += term
        term *= k * (rest - glitches - sample + k) / ((glitches - k + 1) * (sample - k + 1))
        k -= 1
    return min(total, 1.0)


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


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


def sample_size(found: int, rest: int, share: float, alpha: float, hits: int = 0) -> int:
    """The smallest sample of `rest` tokens that shows a recall of `share`.

    Args:
        found: Glitch tokens outside of `rest`; at least 1.
        rest: Tokens left out.
        share: The recall to show.
        alpha: Error probability of the bound.
        hits: Glitch tokens in the sample.
    """
    allowed = hits + most_missed(found + hits, share)
    low, high = min(hits, rest), rest
    while low < high:
        middle = (low + high) // 2
        if Audit(rest, middle, hits).most(alpha) <= allowed:
            high = middle
        else:
            low = middle + 1
    return low


def cheapest_sample(
    found: int, rest: int, share: float, alpha: float, missed: int, failure: float
) -> int:
    """The size of sample with the least expected cost in verifications.

    A larger sample still suffices if it has some hits; a smaller one costs less if it has none.

    Args:
        found: Glitch tokens outside of `rest`; at least 1.
        rest: Tokens left out.
        share: The recall to show.
        alpha: Error probability of the bound.
        missed: Guess of the glitch tokens in `rest`. It affects only the cost.
        failure: Cost of a sample that does not suffice, in verifications, besides itself.
    """
    cheapest, least = rest, math.inf
    for hits in range(_MOST_HITS):
        size = sample_size(found, rest, share, alpha, hits)
        if size >= min(rest, least):
            break
        insufficient = 1 - at_most(hits, rest, min(missed, rest), size)
        cost = size + insufficient * (size + failure)
        if cost < least:
            cheapest, least = size, cost
    return cheapest
