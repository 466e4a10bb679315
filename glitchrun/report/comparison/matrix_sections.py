"""More than two sides, for people: what each pair of them comes to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from glitchrun.report.comparison.pairs import FOUND_BY_BOTH, Pair, split
from glitchrun.report.comparison.section import JUDGED, Section, cells, text
from glitchrun.report.comparison.sides import Side
from glitchrun.report.numbers import MISSING, counted, figure, percent


def matrix_sections(
    sides: Sequence[Side], pairs: Sequence[Pair], shown: int | None
) -> Iterator[Section]:
    """A matrix for each number of a pair, then the tokens that the sides do not all agree on."""
    yield from _matrices(sides, pairs)
    yield from _split(sides, shown)


def _matrices(sides: Sequence[Side], pairs: Sequence[Pair]) -> Iterator[Section]:
    for title, (sentence, cell) in _KINDS.items():
        found = {(pair.left.label, pair.right.label): cell(pair) for pair in pairs}
        rows = tuple(
            (row.label, *(_mirrored(found, row.label, column.label) for column in sides))
            for row in sides
        )
        yield Section(title, (sentence,), ("", *(side.label for side in sides)), rows)


def _mirrored(found: dict[tuple[str, str], str], row: str, column: str) -> str:
    return found.get((row, column)) or found.get((column, row)) or ""


def _kappa(pair: Pair) -> str:
    return f"{figure(pair.counts.kappa)} ({pair.counts.n:,})"


def _share(pair: Pair) -> str:
    return MISSING if pair.counts.agreement is None else percent(pair.counts.agreement)


def _found_by_both(pair: Pair) -> str:
    shared = len(pair.left.found & pair.right.found)
    if pair.scope is None:
        return f"{shared:,}"
    by_chance = next(one for one in pair.overlaps if one.what == FOUND_BY_BOTH).expected
    return f"{shared:,} ({figure(by_chance)})"


_KINDS: dict[str, tuple[str, Callable[[Pair], str]]] = {
    "Cohen's kappa": (
        "0 is agreement by chance, 1 complete, – undefined. In brackets: tokens both judged.",
        _kappa,
    ),
    "Agreement": ("Share of equal verdicts on those tokens.", _share),
    "Found by both": ("In brackets: as many as chance gives.", _found_by_both),
}


def _split(sides: Sequence[Side], shown: int | None) -> Iterator[Section]:
    found = split(sides)
    if not found:
        return
    head = ("Token", "Id", *(f"{side.label} {what}" for side in sides for what in JUDGED))
    rows = tuple(
        (text(*row), str(row[0].id), *(cell for one in row for cell in cells(one)))
        for row in found[:shown]
    )
    title = f"{counted(len(found), 'token')} that the sides do not all agree on"
    yield Section(title, (), head, rows, tokens=(0,), hidden=len(found) - len(rows))
