"""Two sides held against each other."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from glitchrun.errors import UsageError
from glitchrun.report.comparison.agreement import Counts, Overlap, apart, wilson
from glitchrun.report.comparison.sides import Judged, Side
from glitchrun.spec.digest import Change, changed_paths
from glitchrun.vocabulary.text import visible

_SHOWN = 3
FOUND_BY_BOTH = "found by both"


@dataclass(frozen=True, slots=True)
class Both:
    """A token that both sides list."""

    left: Judged
    right: Judged

    @property
    def agree(self) -> bool:
        return self.left.found == self.right.found

    @property
    def judged(self) -> bool:
        """Whether both have a verdict on it."""
        return self.left.found is not None and self.right.found is not None

    @property
    def intervals(self) -> tuple[tuple[float, float], tuple[float, float]] | None:
        """Wilson's intervals of both ASRs; None where either side has no attempts to count."""
        found = [_interval(one) for one in (self.left, self.right)]
        return (found[0], found[1]) if found[0] and found[1] else None


def _interval(one: Judged) -> tuple[float, float] | None:
    if not one.attempts or one.failures is None:
        return None
    return wilson(one.failures, one.attempts)


@dataclass(frozen=True, slots=True)
class Pair:
    """Two sides and what they have in common. `scope` is how many tokens there are to look at."""

    left: Side
    right: Side
    scope: int | None
    matched: tuple[Both, ...]
    """Tokens that both have a verdict on, by id."""
    other_texts: int
    """Ids that both list, but with another text each: left out of everything."""

    @property
    def counts(self) -> Counts:
        found = [(both.left.found, both.right.found) for both in self.matched]
        kinds = ((True, True), (True, False), (False, True), (False, False))
        return Counts(*(found.count(kind) for kind in kinds))

    @property
    def differences(self) -> list[Both]:
        """Tokens with unequal verdicts: those that the left side found, then the right side's."""
        unequal = [both for both in self.matched if not both.agree]
        return sorted(unequal, key=lambda both: (not both.left.found, both.left.id))

    @property
    def asr(self) -> list[Both]:
        """Tokens whose attempts both sides count."""
        return [both for both in self.matched if both.intervals]

    @property
    def asr_apart(self) -> list[Both]:
        """Those of them whose intervals share no point, the largest difference first."""
        far = [both for both in self.asr if both.intervals and apart(*both.intervals)]
        return sorted(far, key=lambda b: -abs((b.left.asr or 0.0) - (b.right.asr or 0.0)))

    @property
    def p_distance(self) -> float | None:
        """Median distance of the two probabilities, in powers of ten; None without any."""
        logs = [
            abs(math.log10(both.left.p) - math.log10(both.right.p))
            for both in self.matched
            if both.left.p and both.right.p
        ]
        return median(logs) if logs else None

    @property
    def changes(self) -> list[Change]:
        """What differs between two runs' specs; nothing where a side is a file."""
        if self.left.spec is None or self.right.spec is None:
            return []
        return changed_paths(self.left.spec, self.right.spec)

    @property
    def overlaps(self) -> list[Overlap]:
        """Of what was looked at and found, how much both share, beside what chance gives."""
        found = [] if self.scope is None else list(_overlaps(self.left, self.right, self.scope))
        counts = self.counts
        if counts.n:
            left, right = counts.both + counts.only_left, counts.both + counts.only_right
            what = f"{FOUND_BY_BOTH}, of those with both verdicts"
            found.append(Overlap(what, left, right, counts.both, counts.n))
        return found


def pair(left: Side, right: Side, scope: int | None = None) -> Pair:
    """The comparison of two sides, in a scope of so many tokens: by default the vocabulary.

    Raises:
        UsageError: their ids mean different tokens, or the scope is smaller than what they list.
    """
    common = [Both(left.tokens[i], right.tokens[i]) for i in left.tokens if i in right.tokens]
    same = [both for both in common if _same_text(both)]
    other = [both for both in common if not _same_text(both)]
    if len(other) * 2 > len(common):
        raise UsageError(_different_vocabularies(left, right, other, len(common)))
    matched = sorted((both for both in same if both.judged), key=lambda both: both.left.id)
    return Pair(left, right, _scope(left, right, scope), tuple(matched), len(other))


def _same_text(both: Both) -> bool:
    """Tools that decode a SentencePiece entry alone lose its space; tables hold visible text."""
    left, right = both.left.text, both.right.text
    if left is None or right is None or left == right:
        return True
    return left.strip(" ") == right.strip(" ") or visible(left) == right or left == visible(right)


def _different_vocabularies(left: Side, right: Side, other: Sequence[Both], n: int) -> str:
    shown = ", ".join(
        f"{b.left.id} is «{visible(b.left.text or '')}» and «{visible(b.right.text or '')}»"
        for b in other[:_SHOWN]
    )
    return (
        f"{left.name} and {right.name} are about different vocabularies: {len(other)} of {n} ids "
        f"that both list are other texts ({shown}); check which model each was made with, a file "
        "with glitchrun import --model"
    )


def _scope(left: Side, right: Side, asked: int | None) -> int | None:
    known = {side.vocabulary for side in (left, right) if side.vocabulary}
    scope = asked or (known.pop() if len(known) == 1 else None)
    largest = max((side.looked_at or 0, len(side.seen)) for side in (left, right))
    if scope is not None and scope < max(largest):
        raise UsageError(f"--scope {scope}: a side looked at {max(largest):,} tokens; give more")
    return scope


def _overlaps(left: Side, right: Side, scope: int) -> Iterator[Overlap]:
    if left.looked_at is not None and right.looked_at is not None:
        yield _overlap("looked at by both", left, right, (False, False), scope)
    if right.looked_at is not None:
        what = f"found by {left.label}, looked at by {right.label}"
        yield _overlap(what, left, right, (True, False), scope)
    if left.looked_at is not None:
        what = f"looked at by {left.label}, found by {right.label}"
        yield _overlap(what, left, right, (False, True), scope)
    yield _overlap(FOUND_BY_BOTH, left, right, (True, True), scope)


def _overlap(
    what: str, left: Side, right: Side, findings: tuple[bool, bool], scope: int
) -> Overlap:
    sets = [
        side.found if only else side.seen
        for side, only in zip((left, right), findings, strict=True)
    ]
    sizes = [
        len(tokens) if only else max(side.looked_at or 0, len(tokens))
        for side, only, tokens in zip((left, right), findings, sets, strict=True)
    ]
    unlisted = any(
        not only and not side.lists_all for side, only in zip((left, right), findings, strict=True)
    )
    return Overlap(what, sizes[0], sizes[1], len(sets[0] & sets[1]), scope, unlisted)


def all_pairs(sides: Sequence[Side], scope: int | None = None) -> list[Pair]:
    """Every two of the sides."""
    return [
        pair(left, right, scope) for place, left in enumerate(sides) for right in sides[place + 1 :]
    ]


def split(sides: Iterable[Side]) -> list[list[Judged]]:
    """Tokens that every side has a verdict on, where the sides do not all agree; by id."""
    listed = list(sides)
    common = frozenset.intersection(*(side.judged for side in listed))
    rows = [[side.tokens[token_id] for side in listed] for token_id in sorted(common)]
    return [row for row in rows if len({one.found for one in row}) > 1]
