"""Compare two sides: agreement of verdicts, overlap against chance, attack success rates.

`pair` matches the tokens of two sides; `Pair` computes everything from the matched tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from scipy.stats import hypergeom

from glitchrun.behaviour.significance import McNemar, Proportion, adjusted, wilson
from glitchrun.errors import UsageError
from glitchrun.report.comparison.matching import same_text, without_counterpart
from glitchrun.report.comparison.sides import Side, TokenVerdict
from glitchrun.spec.digest import Change, changed_paths

FOUND_BY_BOTH = "found by both"
_TAIL = 0.025
"""An overlap differs from chance if either tail is below this: 5 % in both together."""


@dataclass(frozen=True, slots=True)
class Counts:
    """Tokens on which both sides have a verdict, by which side calls them glitch tokens."""

    both: int
    only_left: int
    only_right: int
    neither: int

    @property
    def n(self) -> int:
        """Number of tokens."""
        return self.both + self.only_left + self.only_right + self.neither

    @property
    def agreement(self) -> float | None:
        """Share of equal verdicts; None without tokens."""
        return (self.both + self.neither) / self.n if self.n else None

    @property
    def by_chance(self) -> float | None:
        """Agreement expected if each side gave as many glitch verdicts, but at random."""
        if not self.n:
            return None
        left, right = self.both + self.only_left, self.both + self.only_right
        return (left * right + (self.n - left) * (self.n - right)) / self.n**2

    @property
    def kappa(self) -> float | None:
        """Cohen's kappa: agreement beyond chance, as a share of the largest possible.

        1 is complete agreement, 0 is chance, negative is less than chance. None without tokens, and
        where both sides give every token the same verdict, which leaves kappa undefined.
        Source: Cohen 1960, Educational and Psychological Measurement 20:37-46.
        """
        if self.agreement is None or self.by_chance is None or self.by_chance == 1:
            return None
        return (self.agreement - self.by_chance) / (1 - self.by_chance)


@dataclass(frozen=True, slots=True)
class Overlap:
    """The overlap of two sets of tokens, compared with two random sets of the same sizes."""

    what: str
    left: int
    right: int
    observed: int
    scope: int
    """Number of tokens from which either set could have been drawn."""
    at_least: bool = False
    """Whether the true overlap may be larger, because a side lists only some of its tokens."""

    @property
    def expected(self) -> float:
        """Mean of the hypergeometric distribution."""
        return self.left * self.right / self.scope

    @property
    def p_more(self) -> float:
        """Probability that chance gives an overlap at least this large."""
        return float(self._distribution.sf(self.observed - 1))

    @property
    def p_fewer(self) -> float:
        """Probability that chance gives an overlap at most this large."""
        return float(self._distribution.cdf(self.observed))

    @property
    def reading(self) -> str:
        """`more than chance`, `fewer than chance` or `as chance`."""
        if self.p_more < _TAIL:
            return "more than chance"
        if self.p_fewer < _TAIL and not self.at_least:
            return "fewer than chance"
        return "as chance"

    @property
    def _distribution(self) -> Any:
        return hypergeom(self.scope, self.left, self.right)


@dataclass(frozen=True, slots=True)
class MatchedToken:
    """A token that both sides list."""

    left: TokenVerdict
    right: TokenVerdict

    @property
    def agree(self) -> bool:
        """Whether both sides give the same verdict."""
        return self.left.found == self.right.found

    @property
    def judged(self) -> bool:
        """Whether both sides have a verdict on it."""
        return self.left.found is not None and self.right.found is not None

    @property
    def intervals(self) -> tuple[Proportion, Proportion] | None:
        """Wilson's 95 % intervals of both ASRs; None unless both sides count attempts."""
        left, right = _asr_interval(self.left), _asr_interval(self.right)
        return (left, right) if left and right else None


def _asr_interval(one: TokenVerdict) -> Proportion | None:
    if not one.attempts or one.failures is None:
        return None
    return wilson(one.failures, one.attempts)


def disjoint(left: Proportion, right: Proportion) -> bool:
    """Whether the intervals of two rates share no point."""
    return left.high < right.low or right.high < left.low


@dataclass(frozen=True, slots=True)
class Pair:
    """Two sides and the tokens that they share."""

    left: Side
    right: Side
    scope: int | None
    """Number of tokens that could have been examined; None if unknown."""
    matched: tuple[MatchedToken, ...]
    """Tokens on which both sides have a verdict, by id."""
    other_texts: int
    """Ids that both sides list with different texts; excluded from every figure."""

    @property
    def unmatched(self) -> tuple[int, int]:
        """For each side, the number of its tokens that the other side does not list."""
        left, right = self.left.tokens, self.right.tokens
        return without_counterpart(left, right), without_counterpart(right, left)

    @property
    def counts(self) -> Counts:
        """The matched tokens by verdict of both sides."""
        found = [(both.left.found, both.right.found) for both in self.matched]
        kinds = ((True, True), (True, False), (False, True), (False, False))
        return Counts(*(found.count(kind) for kind in kinds))

    @property
    def test(self) -> McNemar:
        """McNemar's exact test of the matched tokens."""
        counts = self.counts
        return McNemar(counts.n, counts.only_left, counts.only_right)

    @property
    def differences(self) -> list[MatchedToken]:
        """Tokens with different verdicts: those found by the left side, then by the right side."""
        unequal = [both for both in self.matched if not both.agree]
        return sorted(unequal, key=lambda both: (not both.left.found, both.left.id))

    @property
    def asr(self) -> list[MatchedToken]:
        """Tokens for which both sides count attempts."""
        return [both for both in self.matched if both.intervals]

    @property
    def asr_apart(self) -> list[MatchedToken]:
        """The tokens of `asr` whose intervals share no point, the largest difference first."""
        apart = [both for both in self.asr if both.intervals and disjoint(*both.intervals)]
        return sorted(apart, key=lambda b: -abs((b.left.asr or 0.0) - (b.right.asr or 0.0)))

    @property
    def p_distance(self) -> float | None:
        """Median difference of log10 p between the sides; None if no token has both."""
        logs = [
            abs(math.log10(both.left.p) - math.log10(both.right.p))
            for both in self.matched
            if both.left.p and both.right.p
        ]
        return median(logs) if logs else None

    @property
    def changes(self) -> list[Change]:
        """Differences between the specs of two runs; empty if a side is a file."""
        if self.left.spec is None or self.right.spec is None:
            return []
        return changed_paths(self.left.spec, self.right.spec)

    @property
    def overlaps(self) -> list[Overlap]:
        """Overlaps of the examined and found tokens of both sides.

        Empty unless both sides chose their tokens, or are matched by text: ids that the specs name,
        and scans of the whole scope, overlap by design. If they are matched by text, the tokens
        with both verdicts are the universe, unless the scope is given.
        """
        chose = self.left.chose and self.right.chose
        if not (chose or self.left.by_text):
            return []
        known = chose and self.scope is not None
        overlaps = list(_overlaps(self.left, self.right, self.scope or 0)) if known else []
        counts = self.counts
        if counts.n:
            left, right = counts.both + counts.only_left, counts.both + counts.only_right
            what = f"{FOUND_BY_BOTH}, of those with both verdicts"
            overlaps.append(Overlap(what, left, right, counts.both, counts.n))
        return overlaps


def _overlaps(left: Side, right: Side, scope: int) -> Iterator[Overlap]:
    if left.looked_at is not None and right.looked_at is not None:
        yield _overlap("examined by both", left, right, (False, False), scope)
    if right.looked_at is not None:
        what = f"found by {left.label}, examined by {right.label}"
        yield _overlap(what, left, right, (True, False), scope)
    if left.looked_at is not None:
        what = f"examined by {left.label}, found by {right.label}"
        yield _overlap(what, left, right, (False, True), scope)
    yield _overlap(FOUND_BY_BOTH, left, right, (True, True), scope)


def _overlap(
    what: str, left: Side, right: Side, only_found: tuple[bool, bool], scope: int
) -> Overlap:
    sides = list(zip((left, right), only_found, strict=True))
    sets = [side.found if only else side.seen for side, only in sides]
    sizes = [
        len(tokens) if only else max(side.looked_at or 0, len(tokens))
        for (side, only), tokens in zip(sides, sets, strict=True)
    ]
    unlisted = any(not only and not side.lists_all for side, only in sides)
    return Overlap(what, sizes[0], sizes[1], len(sets[0] & sets[1]), scope, unlisted)


def all_pairs(sides: Sequence[Side], scope: int | None = None) -> list[Pair]:
    """Every two of the sides, compared.

    Raises:
        UsageError: As for `pair`.
    """
    return [
        pair(left, right, scope) for place, left in enumerate(sides) for right in sides[place + 1 :]
    ]


def tested(pairs: Sequence[Pair]) -> list[tuple[McNemar, float]]:
    """The test of each pair, and its p adjusted over all of them as one family. A pair without a
    token that both sides judged is not a test: its p is 1."""
    tests = [one.test for one in pairs]
    ps = iter(adjusted([test.p for test in tests if test.n]))
    return [(test, next(ps) if test.n else 1.0) for test in tests]


def pair(left: Side, right: Side, scope: int | None = None) -> Pair:
    """The comparison of two sides.

    Args:
        left: The first side.
        right: The second side.
        scope: Number of tokens that could have been examined; None for the larger scope of both
            sides, which is exact if it contains the other.

    Raises:
        UsageError: `scope` is smaller than the number of tokens that a side examined.
    """
    common = [
        MatchedToken(left.tokens[i], right.tokens[i]) for i in left.tokens if i in right.tokens
    ]
    same = [both for both in common if left.by_text or same_text(both.left, both.right)]
    matched = sorted((both for both in same if both.judged), key=lambda both: both.left.id)
    return Pair(left, right, _scope(left, right, scope), tuple(matched), len(common) - len(same))


def _scope(left: Side, right: Side, asked: int | None) -> int | None:
    most = max(max(side.looked_at or 0, len(side.seen)) for side in (left, right))
    if asked is not None:
        if asked < most:
            raise UsageError(f"--scope {asked}: a side examined {most:,} tokens; give more")
        return asked
    if left.by_text:  # how many texts are tokens of both vocabularies is not known
        return None
    sizes = {side.vocabulary for side in (left, right) if side.vocabulary}
    if len(sizes) != 1:
        return None
    return max(most, *(side.scope or max(sizes) for side in (left, right)))


def disputed(sides: Iterable[Side]) -> list[list[TokenVerdict]]:
    """Tokens on which every side has a verdict, but not all the same one; by id."""
    return [row for row in _judged_by_all(sides) if len({one.found for one in row}) > 1]


def undisputed(sides: Iterable[Side]) -> list[list[TokenVerdict]]:
    """Tokens on which every side has the same verdict; by id."""
    return [row for row in _judged_by_all(sides) if len({one.found for one in row}) == 1]


def _judged_by_all(sides: Iterable[Side]) -> list[list[TokenVerdict]]:
    listed = list(sides)
    common = frozenset.intersection(*(side.judged for side in listed))
    return [[side.tokens[token_id] for side in listed] for token_id in sorted(common)]
