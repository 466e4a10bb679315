"""Rates with intervals, tests of paired verdicts, corrections over families of tests, and intervals
over repeats. `wilson` and `difference` name their own sources.

Sources:

- McNemar 1947, "Note on the sampling error of the difference between correlated proportions or
  percentages", Psychometrika 12:153-157. The exact form is the sign test on the discordant pairs.
- Fisher 1935, "The logic of inductive inference", Journal of the Royal Statistical Society
  98:39-82.
- Benjamini and Hochberg 1995, "Controlling the false discovery rate", Journal of the Royal
  Statistical Society B 57:289-300.
- Student 1908, "The probable error of a mean", Biometrika 6:1-25.
- Mandelkern 2002, "Setting confidence intervals for bounded parameters", Statistical Science
  17:149-172: the part of an interval outside the possible values contains no possible mean, so
  that leaving it out keeps the coverage.

scipy computes the tests; it is imported when the first of them is used.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev

ALPHA = 0.05
"""The level at which a difference counts as shown, and the false discovery rate of a family."""


@dataclass(frozen=True, slots=True)
class McNemar:
    """The exact test of whether two sides differ in how often they find the same tokens."""

    n: int
    """Pairs: items with a verdict on both sides."""
    only_left: int
    """Items that the left side alone finds."""
    only_right: int

    @property
    def discordant(self) -> int:
        """Pairs with different verdicts; the other pairs say nothing about a difference."""
        return self.only_left + self.only_right

    @property
    def p(self) -> float:
        """Two-sided p: both kinds of discordant pairs are equally likely under no difference."""
        if not self.discordant:
            return 1.0
        from scipy.stats import binomtest

        return float(binomtest(self.only_left, self.discordant, 0.5).pvalue)

    @property
    def least(self) -> float:
        """The smallest p that this number of discordant pairs can give."""
        return min(1.0, 2.0 ** (1 - self.discordant)) if self.discordant else 1.0

    @property
    def power(self) -> str:
        """What the test cannot show, in a sentence; empty if it can show a difference."""
        if self.least <= ALPHA:
            return ""
        needed = pairs_needed()
        if not self.discordant:
            return (
                f"No verdict differs, so the test can show nothing; it needs {needed} discordant "
                "pairs."
            )
        pairs = (
            "1 discordant pair" if self.discordant == 1 else f"{self.discordant} discordant pairs"
        )
        return (
            f"With {pairs} the smallest p is {self.least:.2g}: the test needs {needed} to show a "
            f"difference at {100 * ALPHA:g} %."
        )


def mcnemar(left: Iterable[bool], right: Iterable[bool]) -> McNemar:
    """The test of two lists of verdicts on the same items.

    Raises:
        ValueError: the lists have different lengths.
    """
    pairs = list(zip(left, right, strict=True))
    return McNemar(len(pairs), pairs.count((True, False)), pairs.count((False, True)))


def pairs_needed(alpha: float = ALPHA) -> int:
    """The fewest discordant pairs with which McNemar's exact test can reach p <= `alpha`."""
    return math.ceil(1 - math.log2(alpha))


def fisher_more(found: int, n: int, other_found: int, other_n: int) -> float:
    """One-sided p of Fisher's exact test: that the first of two independent groups shows something
    as often as it did, or more often, if both have the same rate.

    Args:
        found: Items of the first group that show it.
        n: Its items.
        other_found: Items of the other group that show it.
        other_n: Its items.
    """
    from scipy.stats import hypergeom

    return float(hypergeom(n + other_n, found + other_found, n).sf(found - 1))


def adjusted(ps: Sequence[float]) -> list[float]:
    """The p values of a family of tests, adjusted by Benjamini and Hochberg, in the given order."""
    if not ps:
        return []
    from scipy.stats import false_discovery_control

    return [float(p) for p in false_discovery_control(ps)]


@dataclass(frozen=True, slots=True)
class Mean:
    """The mean over repeats, with Student's interval if there are at least two of them."""

    value: float
    n: int
    half: float | None
    """Half the width of the interval, uncut; None without an interval."""
    possible: tuple[float, float] = (-math.inf, math.inf)
    """The least and the largest possible mean."""

    @property
    def low(self) -> float | None:
        """The lower bound of the interval, at least the least possible mean."""
        return None if self.half is None else max(self.possible[0], self.value - self.half)

    @property
    def high(self) -> float | None:
        """The upper bound of the interval, at most the largest possible mean."""
        return None if self.half is None else min(self.possible[1], self.value + self.half)

    @property
    def is_cut(self) -> bool:
        """Whether the interval ends at a possible mean, so that it is not symmetric."""
        half = self.half or 0.0
        return self.value - half < self.possible[0] or self.value + half > self.possible[1]


def mean(
    values: Sequence[float],
    confidence: float = 0.95,
    possible: tuple[float, float] = (-math.inf, math.inf),
) -> Mean:
    """The mean of repeats with Student's t interval, for values that are about normal.

    There is no interval with one value, and none with equal values: they do not show how much
    others would vary, and a width of 0 would claim certainty.

    Args:
        values: At least one.
        confidence: Coverage of the two-sided interval.
        possible: The least and the largest possible mean.
    """
    found, spread = fmean(values), max(values) - min(values)
    if len(values) < 2 or spread <= 1e-12 * max(map(abs, values)):
        return Mean(found, len(values), None, possible)
    from scipy.stats import t

    quantile = float(t.ppf((1 + confidence) / 2, len(values) - 1))
    half = quantile * stdev(values) / math.sqrt(len(values))
    return Mean(found, len(values), half, possible)


def shown_p(p: float) -> str:
    """A p value for people: `0.031`, `< 0.0001`."""
    return "< 0.0001" if p < 1e-4 else f"{p:.2g}"


def stated_p(p: float) -> str:
    """A p value in a sentence: `p = 0.031`, `p < 0.0001`."""
    return f"p {shown_p(p)}" if p < 1e-4 else f"p = {shown_p(p)}"


@dataclass(frozen=True, slots=True)
class Proportion:
    """A share with its confidence interval."""

    value: float
    low: float
    high: float


def wilson(found: int, n: int, confidence: float = 0.95) -> Proportion:
    """The share `found` / `n` with Wilson's score interval (Wilson 1927, JASA 22:209-212).

    Args:
        found: Trials that count.
        n: All trials, at least 1.
        confidence: Coverage of the two-sided interval.
    """
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    p = found / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    # At 0 and 1 the bound equals the share; the formula would miss it by rounding.
    low = 0.0 if found == 0 else centre - half
    high = 1.0 if found == n else centre + half
    return Proportion(p, low, high)


def difference(one: Proportion, other: Proportion) -> Proportion:
    """The difference `one` - `other` with Newcombe's hybrid score interval.

    Method 10 of Newcombe 1998, "Interval estimation for the difference between independent
    proportions", Statistics in Medicine 17:873-890. Both rates have Wilson's interval at the
    same confidence.
    """
    value = one.value - other.value
    low = value - math.hypot(one.value - one.low, other.high - other.value)
    high = value + math.hypot(one.high - one.value, other.value - other.low)
    return Proportion(value, low, high)
