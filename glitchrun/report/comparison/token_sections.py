"""The sections of a comparison about tokens: agreement, overlap with chance, tokens that differ.

`sections.py` yields them with the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from glitchrun.behaviour.significance import ALPHA, pairs_needed, shown_p, stated_p
from glitchrun.report.comparison import Column, Section
from glitchrun.report.comparison.pairs import (
    FOUND_BY_BOTH,
    Counts,
    Pair,
    disputed,
    tested,
    undisputed,
)
from glitchrun.report.comparison.sides import Side, TokenVerdict
from glitchrun.report.formatting import (
    MISSING,
    count,
    counted,
    figure,
    in_one_unit,
    percent,
    share,
)

_BY = {
    "verdict": "A found token is one that the sampled attempts confirm; if there were no attempts, "
    "one that the probes call a glitch token.",
    "glitch": "A found token is one that the probes call a glitch token.",
    "confirmed": "A found token is one that the sampled attempts confirm.",
}


_P = (
    "p: exact McNemar test, two-sided, of the tokens that one side alone found; adjusted by "
    "Benjamini and Hochberg over the family of all {pairs}."
)
_SURELY = 1e-4
"""Probabilities of an overlap below this are not shown as numbers."""


def sections_of_two(by: str, pair: Pair, shown: int | None, equal_rows: bool) -> Iterator[Section]:
    """Agreement, overlap with chance, tokens that differ and attack success rates of two sides.

    Args:
        by: The kind of verdict that is compared.
        pair: The two sides.
        shown: Rows of each table of tokens; None for all.
        equal_rows: Whether to list tokens on which both agree, up to `shown`.
    """
    yield _agreement(by, pair)
    yield from _overlap(pair)
    yield from _differences(pair, shown, equal_rows)
    yield from _asr(pair, shown)


def sections_of_many(
    by: str, sides: Sequence[Side], pairs: Sequence[Pair], shown: int | None, equal_rows: bool
) -> Iterator[Section]:
    """A matrix of agreement and the tokens that differ.

    Args:
        by: The kind of verdict that is compared.
        sides: The sides with tokens.
        pairs: Every two of them.
        shown: Rows of each table; None for all.
        equal_rows: Whether to list tokens on which all agree, up to `shown`.
    """
    yield _matrix(by, sides, pairs, shown)
    yield from _disputed(sides, shown, equal_rows)


# Two sides


def _agreement(by: str, pair: Pair) -> Section:
    counts, left, right = pair.counts, pair.left.label, pair.right.label
    sentences = [
        *_matching(pair),
        f"Both have a verdict on {counted(counts.n, 'token')}.",
        *_kappa(counts),
        *_difference(pair),
        meaning(by, (pair.left, pair.right)),
        *(_unsampled(by, side) for side in (pair.left, pair.right)),
    ]
    if pair.other_texts:
        sentences.append(
            f"{counted(pair.other_texts, 'id')} listed by both left out: the texts differ."
        )
    if pair.p_distance is not None:
        factor = f"{10**pair.p_distance:.3g}"
        sentences.append(
            "Their probabilities are equal, or nearly so (median)."
            if factor == "1"
            else f"Their probabilities differ by a factor of {factor} (median)."
        )
    rows = (
        (f"{left} found", count(counts.both), count(counts.only_left)),
        (f"{left} did not", count(counts.only_right), count(counts.neither)),
    )
    head = (
        Column("", "key"),
        Column(f"{right} found", "number"),
        Column(f"{right} did not", "number"),
    )
    title, shown = "Agreement", tuple(filter(None, sentences))
    return Section(title, shown, head, rows) if counts.n else Section(title, shown)


def _matching(pair: Pair) -> Iterator[str]:
    """What was matched by text, and what was not."""
    if not pair.left.by_text:
        return
    alone = [
        f"{number:,} of the {counted(len(side.tokens), 'token')} of {side.label}"
        for side, number in zip((pair.left, pair.right), pair.unmatched, strict=True)
    ]
    yield (
        "The vocabularies differ, so tokens are matched by their text. "
        f"Not listed by the other side: {' and '.join(alone)}."
    )
    for side in (pair.left, pair.right):
        yield from _unmatchable(side)


def _unmatchable(side: Side) -> Iterator[str]:
    if side.unmatchable:
        yield (
            f"{side.label}: {counted(side.unmatchable, 'token')} left out whose text does not "
            "identify the token (parts of characters, and texts of several tokens)."
        )


def meaning(by: str, sides: Sequence[Side]) -> str:
    """What a found token is, in a sentence."""
    return _BY[by if any(side.sampled for side in sides) else "glitch"]


def _unsampled(by: str, side: Side) -> str:
    """A warning about a side whose found tokens are of two kinds; else empty."""
    if by != "verdict" or not (side.unsampled_glitch and side.sampled):
        return ""
    confirmed = sum(bool(one.confirmed) for one in side.sampled)
    return (
        f"{side.label}: {counted(confirmed, 'token')} confirmed; "
        f"{side.unsampled_glitch:,} by the probes alone."
    )


def _kappa(counts: Counts) -> Iterator[str]:
    if counts.agreement is None or counts.by_chance is None:
        return
    yield f"They agree on {percent(counts.agreement)} of them."
    if counts.kappa is None:
        yield (
            "Cohen's kappa is not defined: each side gives all these tokens the same verdict, so "
            "agreement cannot be distinguished from chance."
        )
        return
    yield (
        f"Cohen's kappa is {figure(counts.kappa)} (0: chance, 1: complete agreement). Random "
        f"verdicts in the same proportions would agree on {percent(counts.by_chance)}."
    )


def _difference(pair: Pair) -> Iterator[str]:
    """McNemar's test of two sides, and what it cannot show."""
    test = pair.test
    if test.n:
        left, right = pair.left.label, pair.right.label
        yield (
            f"{left} alone found {counted(test.only_left, 'token')}, {right} alone "
            f"{test.only_right:,}: {stated_p(test.p)} (exact McNemar test, two-sided; a family "
            f"of one test). {test.power}".rstrip()
        )


def _overlap(pair: Pair) -> Iterator[Section]:
    if not pair.overlaps and not (pair.left.chose and pair.right.chose):
        return
    sentences = ["By chance: expected overlap of two random sets of these sizes (hypergeometric)."]
    if pair.scope is None and pair.left.chose and pair.right.chose:
        sentences.append(f"{_sizes(pair)}: give the number of tokens in scope with --scope.")
    sentences += [
        f"The number of tokens that {side.label} examined is not known: a token missing from its "
        "findings may never have been examined."
        for side in (pair.left, pair.right)
        if side.looked_at is None
    ]
    expected = in_one_unit([one.expected for one in pair.overlaps])[1]
    rows = tuple(
        (
            one.what,
            count(one.left),
            count(one.right),
            count(one.scope),
            f"{'at least ' * one.at_least}{one.observed:,}",
            mean,
            f"< {_SURELY:.4f}" if one.p_more < _SURELY else f"{one.p_more:.4f}",
            one.reading,
        )
        for one, mean in zip(pair.overlaps, expected, strict=True)
    )
    numbers = (pair.left.label, pair.right.label, "Of", "Shared", "By chance", "P(as many or more)")
    columns = (Column(""), *(Column(label, "number") for label in numbers), Column("Reading"))
    yield Section("Overlap and chance", tuple(sentences), columns, rows)


def _sizes(pair: Pair) -> str:
    if pair.left.by_text:
        return "The number of texts that are tokens of both vocabularies is not known"
    known = [side.vocabulary for side in (pair.left, pair.right) if side.vocabulary]
    if len(known) < 2:
        return "The vocabulary's size is not known"
    return (
        f"The vocabularies have {known[0]:,} and {known[1]:,} entries, so one id may be two "
        "different tokens"
    )


def _differences(pair: Pair, shown: int | None, equal_rows: bool) -> Iterator[Section]:
    rows = [(both.left, both.right) for both in pair.differences]
    same = [(both.left, both.right) for both in pair.matched if both.agree] if equal_rows else []
    if rows or same:
        title = counted(len(rows), "verdict that differs", "verdicts that differ")
        title = title if rows else "No verdict differs"
        yield _token_section(title, (pair.left, pair.right), rows, shown, same)


def _asr(pair: Pair, shown: int | None) -> Iterator[Section]:
    if not pair.asr:
        return
    rows = [(both.left, both.right) for both in pair.asr_apart]
    title = "Attack success rates"
    sentence = (
        f"Both sampled {counted(len(pair.asr), 'token')}. For {len(rows):,} of them the 95 % "
        "intervals (Wilson) do not overlap, which is a conservative test of a difference."
    )
    if rows:
        yield _token_section(title, (pair.left, pair.right), rows, shown, (), sentence)
    else:
        yield Section(title, (sentence,))


# More than two sides


def _matrix(by: str, sides: Sequence[Side], pairs: Sequence[Pair], shown: int | None) -> Section:
    """A row for each two sides."""
    by_text = any(pair.left.by_text for pair in pairs)
    chance = by_text or any(pair.left.chose and pair.right.chose for pair in pairs)
    cells: dict[str, Callable[[Pair], str]] = {
        "Judged by both": lambda pair: count(pair.counts.n),
        "Agree (%)": lambda pair: _percent(pair.counts.agreement),
        "Kappa": lambda pair: MISSING if pair.counts.kappa is None else f"{pair.counts.kappa:.4f}",
        "Found by both": lambda pair: count(pair.counts.both),
        "Only by the first": lambda pair: count(pair.counts.only_left),
        "Only by the second": lambda pair: count(pair.counts.only_right),
    }
    tests = {id(one): found for one, found in zip(pairs, tested(pairs), strict=True)}
    cells["p"] = lambda pair: shown_p(tests[id(pair)][0].p)
    cells["p, adjusted"] = lambda pair: shown_p(tests[id(pair)][1])
    if chance:
        cells["Shared finds by chance"] = _by_chance
    if by_text:
        cells["Listed by the first alone"] = lambda pair: count(pair.unmatched[0])
        cells["Listed by the second alone"] = lambda pair: count(pair.unmatched[1])
    columns = (Column("Pair", "key"), *(Column(label, "number") for label in cells))
    rows = tuple(
        (f"{pair.left.label}, {pair.right.label}", *(cell(pair) for cell in cells.values()))
        for pair in pairs[:shown]
    )
    sentences = [
        *(["The vocabularies differ, so tokens are matched by their text."] if by_text else []),
        *(line for side in sides for line in _unmatchable(side)),
        meaning(by, sides),
        "Kappa is 0 for agreement by chance and 1 for complete agreement.",
        _P.format(pairs=counted(len(pairs), "pair")),
        *_too_few(pairs),
    ]
    sentences += filter(None, (_unsampled(by, side) for side in sides))
    return Section("Agreement", tuple(sentences), columns, rows, hidden=len(pairs) - len(rows))


def _too_few(pairs: Sequence[Pair]) -> Iterator[str]:
    """How many pairs the test cannot tell apart, whatever their verdicts."""
    weak = [one for one in pairs if one.test.n and one.test.power]
    if weak:
        needed = pairs_needed()
        yield (
            f"{counted(len(weak), 'pair has', 'pairs have')} fewer than {needed} tokens that one "
            f"side alone found: their p cannot fall to {ALPHA:g}, so they show no difference."
        )


def _percent(value: float | None) -> str:
    return MISSING if value is None else f"{100 * value:.2f}"


def _by_chance(pair: Pair) -> str:
    found = [one for one in pair.overlaps if one.what.startswith(FOUND_BY_BOTH)]
    return f"{found[0].expected:.2f}" if found else MISSING


def _disputed(sides: Sequence[Side], shown: int | None, equal_rows: bool) -> Iterator[Section]:
    rows = disputed(sides)
    same = undisputed(sides) if equal_rows else []
    if rows or same:
        title = f"{counted(len(rows), 'token')} with different verdicts"
        title = title if rows else "No verdict differs"
        yield _token_section(title, sides, rows, shown, same)


# Any number of sides


def _token_section(
    title: str,
    sides: Sequence[Side],
    found: Sequence[Sequence[TokenVerdict]],
    shown: int | None,
    same: Sequence[Sequence[TokenVerdict]] = (),
    *sentences: str,
) -> Section:
    """A table with a row for each token: its text, its id and the verdict of each side.

    Args:
        title: The section's title.
        sides: The sides.
        found: The tokens that differ.
        shown: Most rows of these, and of those that do not differ.
        same: Tokens that do not differ.
        sentences: Sentences above the table.
    """
    listed = [*found[:shown], *same[:shown]]
    differing = len(found[:shown])
    left_out = len(same) - (len(listed) - differing)
    if left_out:
        sentences += (f"{counted(left_out, 'token')} without a difference left out.",)
    columns = [Column("Token", "token")]
    cells = [[next((one.shown for one in row if one.shown != "?"), "?") for row in listed]]
    for place, side in enumerate(sides if sides[0].by_text else sides[:1]):
        columns.append(Column(f"{side.label} id" if side.by_text else "Id", "number"))
        ids = [row[place].id for row in listed]
        cells.append([MISSING if token_id < 0 else str(token_id) for token_id in ids])
    probabilities = iter(in_one_unit([one.p for row in listed for one in row], "probability")[1])
    by_row = [[next(probabilities) for _ in row] for row in listed]
    for place, side in enumerate(sides):
        columns += [
            Column(f"{side.label} verdict"),
            Column(f"{side.label} p", "number"),
            Column(f"{side.label} ASR", "number"),
        ]
        cells += [
            [row[place].verdict for row in listed],
            [row[place] for row in by_row],
            [_asr_cell(row[place]) for row in listed],
        ]
    kept = [place for place, column in enumerate(cells) if any(cell != MISSING for cell in column)]
    return Section(
        title,
        sentences,
        tuple(columns[place] for place in kept),
        tuple(zip(*(cells[place] for place in kept), strict=True)),
        hidden=len(found) - differing,
        equal=tuple(place >= differing for place in range(len(listed))) if same else (),
    )


def _asr_cell(one: TokenVerdict) -> str:
    if one.attempts and one.failures is not None:
        return f"{one.failures}/{one.attempts}"
    return MISSING if one.asr is None else share(one.asr, 1)
