"""Rates and differences of rates, with intervals."""

from __future__ import annotations

from dataclasses import dataclass
from math import hypot, sqrt
from statistics import NormalDist


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
    half = z * sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
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
    low = value - hypot(one.value - one.low, other.high - other.value)
    high = value + hypot(one.high - one.value, other.value - other.low)
    return Proportion(value, low, high)
