"""The arithmetic of a comparison, on counts alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from scipy.stats import binomtest, hypergeom

_UNUSUAL = 0.025
"""Below this share in either tail an overlap is called unlike chance: 5 % in both together."""


@dataclass(frozen=True, slots=True)
class Counts:
    """Tokens that both sides have a verdict on, by who calls them glitch tokens."""

    both: int
    only_left: int
    only_right: int
    neither: int

    @property
    def n(self) -> int:
        return self.both + self.only_left + self.only_right + self.neither

    @property
    def agreement(self) -> float | None:
        """Share of equal verdicts."""
        return (self.both + self.neither) / self.n if self.n else None

    @property
    def by_chance(self) -> float | None:
        """The agreement of sides that call as many tokens glitch tokens, but at random."""
        if not self.n:
            return None
        left, right = self.both + self.only_left, self.both + self.only_right
        return (left * right + (self.n - left) * (self.n - right)) / self.n**2

    @property
    def kappa(self) -> float | None:
        """Cohen's kappa (Educational and Psychological Measurement 20, 1960, 37-46): how far from
        agreement by chance to complete agreement.

        1 is complete agreement, 0 what chance gives, below 0 less than that. None where each side
        has one verdict only, of which nothing can be said, and for no tokens.
        """
        if self.agreement is None or self.by_chance is None or self.by_chance == 1:
            return None
        return (self.agreement - self.by_chance) / (1 - self.by_chance)


@dataclass(frozen=True, slots=True)
class Overlap:
    """How much of one set of tokens lies in another, beside what chance gives."""

    what: str
    left: int
    right: int
    observed: int
    scope: int
    """Tokens that either set could have been drawn from."""
    at_least: bool = False
    """Whether more may have been observed than is known: a side lists only some of its tokens."""

    @property
    def expected(self) -> float:
        """Mean of the hypergeometric distribution: two sets of these sizes drawn blindly."""
        return self.left * self.right / self.scope

    @property
    def p_more(self) -> float:
        """Probability that chance gives at least as much."""
        return float(self._chance.sf(self.observed - 1))

    @property
    def p_fewer(self) -> float:
        """Probability that chance gives at most as much."""
        return float(self._chance.cdf(self.observed))

    @property
    def reading(self) -> str:
        """What the overlap says: more than chance, fewer than chance or as chance."""
        if self.p_more < _UNUSUAL:
            return "more than chance"
        if self.p_fewer < _UNUSUAL and not self.at_least:
            return "fewer than chance"
        return "as chance"

    @property
    def _chance(self) -> Any:
        return hypergeom(self.scope, self.left, self.right)


def wilson(failures: int, attempts: int) -> tuple[float, float]:
    """Wilson's 95 % interval of an ASR."""
    interval = binomtest(failures, attempts).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def apart(left: tuple[float, float], right: tuple[float, float]) -> bool:
    """Whether two intervals share no point."""
    return left[1] < right[0] or right[1] < left[0]
