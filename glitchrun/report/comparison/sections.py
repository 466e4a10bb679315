"""A comparison for people: titled sections of sentences and tables, without markup.

`sections` yields them in order. Two sides are compared in full; more sides as one matrix for each
figure. `comparison.output` writes sections as text or Markdown.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from glitchrun.report.comparison.pairs import FOUND_BY_BOTH, Counts, Pair, disputed
from glitchrun.report.comparison.sides import Side, TokenVerdict
from glitchrun.report.formatting import MISSING, count, counted, figure, percent, spelled


@dataclass(frozen=True, slots=True)
class Section:
    """A title with sentences and a table under it."""

    title: str
    sentences: tuple[str, ...] = ()
    head: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    tokens: tuple[int, ...] = ()
    """Columns that contain token text."""
    hidden: int = 0
    """Rows that are left out."""


def sections(sides: Sequence[Side], pairs: Sequence[Pair], shown: int | None) -> Iterator[Section]:
    """The sections of a comparison.

    Args:
        sides: Two or more sides.
        pairs: Every two of the sides, from `all_pairs`.
        shown: Rows of each table of tokens; None for all.
    """
    yield _compared(sides)
    if not any(side.tokens for side in sides):
        pass  # runs of steps without verdicts, such as profile: only their metrics are compared
    elif len(pairs) == 1:
        yield _agreement(pairs[0])
        yield _overlap(pairs[0])
        yield from _differences(pairs[0], shown)
        yield from _asr(pairs[0], shown)
    else:
        yield from _matrices(sides, pairs)
        yield from _disputed(sides, shown)
    yield from _metrics(sides)
    for pair in pairs[: len(sides) - 1]:  # the first side against each other one
        yield from _changes(pair)


def _compared(sides: Sequence[Side]) -> Section:
    if not any(side.tokens for side in sides):
        named = tuple((side.label, side.name, side.note or "") for side in sides)
        return Section("Compared", (), ("", "Run or file", "Note"), named)
    rows = tuple(
        (side.label, side.name, count(side.looked_at), count(len(side.found)), side.note or "")
        for side in sides
    )
    return Section("Compared", (), ("", "Run or file", "Examined", "Found", "Note"), rows)


# Two sides


def _agreement(pair: Pair) -> Section:
    counts, left, right = pair.counts, pair.left.label, pair.right.label
    sentences = [f"Both have a verdict on {counted(counts.n, 'token')}.", *_kappa(counts)]
    if pair.other_texts:
        sentences.append(
            f"{counted(pair.other_texts, 'id')} listed by both left out: the texts differ."
        )
    if pair.p_distance is not None:
        sentences.append(
            f"Their probabilities differ by a factor of {figure(10**pair.p_distance)} (median)."
        )
    rows = (
        (f"{left} found", count(counts.both), count(counts.only_left)),
        (f"{left} did not", count(counts.only_right), count(counts.neither)),
    )
    head = ("", f"{right} found", f"{right} did not")
    return Section("Agreement", tuple(sentences), head, rows if counts.n else ())


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


def _overlap(pair: Pair) -> Section:
    sentences = ["By chance: expected overlap of two random sets of these sizes (hypergeometric)."]
    if pair.scope is None:
        sentences.append(f"{_sizes(pair)}: give the number of tokens in scope with --scope.")
    sentences += [
        f"The number of tokens that {side.label} examined is not known: a token missing from its "
        "findings may never have been examined."
        for side in (pair.left, pair.right)
        if side.looked_at is None
    ]
    rows = tuple(
        (
            one.what,
            count(one.left),
            count(one.right),
            count(one.scope),
            f"{'at least ' * one.at_least}{one.observed:,}",
            figure(one.expected),
            figure(one.p_more) if one.p_more else "< 1e-300",
            one.reading,
        )
        for one in pair.overlaps
    )
    left, right = pair.left.label, pair.right.label
    head = ("", left, right, "Of", "Shared", "By chance", "P(as many or more)", "Reading")
    return Section("Overlap and chance", tuple(sentences), head, rows)


def _sizes(pair: Pair) -> str:
    known = [side.vocabulary for side in (pair.left, pair.right) if side.vocabulary]
    if len(known) < 2:
        return "The vocabulary's size is not known"
    return (
        f"The vocabularies have {known[0]:,} and {known[1]:,} entries, so one id may be two "
        "different tokens"
    )


def _differences(pair: Pair, shown: int | None) -> Iterator[Section]:
    rows = [(both.left, both.right) for both in pair.differences]
    if rows:
        title = counted(len(rows), "verdict that differs", "verdicts that differ")
        yield _token_section(title, (pair.left, pair.right), rows, shown)


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
        yield _token_section(title, (pair.left, pair.right), rows, shown, sentence)
    else:
        yield Section(title, (sentence,))


# More than two sides


def _matrices(sides: Sequence[Side], pairs: Sequence[Pair]) -> Iterator[Section]:
    for title, (sentence, cell) in _MATRICES.items():
        cells = {frozenset((p.left.label, p.right.label)): cell(p) for p in pairs}
        rows = tuple(
            (row.label, *(cells.get(frozenset((row.label, side.label)), "") for side in sides))
            for row in sides
        )
        yield Section(title, (sentence,), ("", *(side.label for side in sides)), rows)


def _found_by_both(pair: Pair) -> str:
    shared = len(pair.left.found & pair.right.found)
    if pair.scope is None:
        return f"{shared:,}"
    by_chance = next(one for one in pair.overlaps if one.what == FOUND_BY_BOTH).expected
    return f"{shared:,} ({figure(by_chance)})"


_MATRICES: dict[str, tuple[str, Callable[[Pair], str]]] = {
    "Cohen's kappa": (
        "0: chance, 1: complete agreement, –: undefined. In brackets: tokens that both judged.",
        lambda pair: f"{figure(pair.counts.kappa)} ({pair.counts.n:,})",
    ),
    "Agreement": (
        "Share of equal verdicts on those tokens.",
        lambda pair: MISSING if pair.counts.agreement is None else percent(pair.counts.agreement),
    ),
    "Found by both": ("In brackets: expected by chance.", _found_by_both),
}


def _disputed(sides: Sequence[Side], shown: int | None) -> Iterator[Section]:
    rows = disputed(sides)
    if rows:
        title = f"{counted(len(rows), 'token')} with different verdicts"
        yield _token_section(title, sides, rows, shown)


# Any number of sides


def _token_section(
    title: str,
    sides: Sequence[Side],
    found: Sequence[Sequence[TokenVerdict]],
    shown: int | None,
    *sentences: str,
) -> Section:
    """A table with a row for each token: its text, its id and the verdict of each side."""
    columns = (f"{side.label} {what}" for side in sides for what in ("verdict", "p", "ASR"))
    rows = tuple(
        (_text(row), str(row[0].id), *(cell for one in row for cell in _cells(one)))
        for row in found[:shown]
    )
    head = ("Token", "Id", *columns)
    return Section(title, sentences, head, rows, tokens=(0,), hidden=len(found) - len(rows))


def _text(row: Sequence[TokenVerdict]) -> str:
    return spelled(next((one.text for one in row if one.text is not None), "?"))


def _cells(one: TokenVerdict) -> tuple[str, str, str]:
    asr = MISSING if one.asr is None else percent(one.asr)
    if one.attempts and one.failures is not None:
        asr = f"{one.failures}/{one.attempts}"
    return one.verdict, figure(one.p), asr


def _metrics(sides: Sequence[Side]) -> Iterator[Section]:
    runs = [side for side in sides if side.metrics]
    names = dict.fromkeys(name for side in runs for name in side.metrics)
    if not runs:
        return
    rows = tuple(
        (name, *(_metric(side, name) for side in runs))
        for name in names
        if any(name in side.metrics and side.metrics[name].value is not None for side in runs)
    )
    yield Section("Metrics", (), ("Metric", *(side.label for side in runs)), rows)


def _metric(side: Side, name: str) -> str:
    return figure(side.metrics[name].value) if name in side.metrics else ""


def _changes(pair: Pair) -> Iterator[Section]:
    left, right = pair.left, pair.right
    if left.spec is None or right.spec is None:
        return
    setting = [
        (name, "setting", _shown(left.setting.get(name)), _shown(right.setting.get(name)))
        for name in dict.fromkeys((*left.setting, *right.setting))
        if left.setting.get(name) != right.setting.get(name)
    ]
    spec = [(path, kind, _shown(old), _shown(new)) for path, kind, old, new in pair.changes]
    title = f"Differences between {left.label} and {right.label}"
    if not setting and not spec:
        yield Section(title, ("None: the same spec, model contents and versions.",))
        return
    head = ("What", "Kind", left.label, right.label)
    yield Section(title, (), head, (*setting, *spec))


def _shown(value: Any) -> str:
    return "(absent)" if value is None else json.dumps(value, ensure_ascii=False)
