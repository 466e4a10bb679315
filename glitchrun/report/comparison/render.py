"""A comparison as text for a terminal, or as Markdown for a pull request."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from glitchrun.report.comparison.section import Section
from glitchrun.report.markup import code, grid, prose


def as_text(sections: Iterable[Section]) -> str:
    """Headings with indented sentences and aligned columns."""
    return "\n\n".join("\n".join(_text(section)) for section in sections) + "\n"


def _text(section: Section) -> Iterator[str]:
    yield section.title
    yield from (f"  {sentence}" for sentence in section.sentences)
    if not section.rows:
        return
    rows = [
        [f"«{cell}»" if place in section.tokens else cell for place, cell in enumerate(row)]
        for row in section.rows
    ]
    yield from _aligned([list(section.head), *rows])
    if section.hidden:
        yield f"    … {section.hidden:,} more; --all lists them"


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield f"    {'  '.join(cells)}".rstrip()


def as_markdown(sections: Iterable[Section]) -> str:
    """The same with Markdown's tables; no text in it is taken for markup."""
    return "\n\n".join(part for section in sections for part in _markdown(section)) + "\n"


def _markdown(section: Section) -> Iterator[str]:
    yield f"### {prose(section.title)}"
    yield from map(prose, section.sentences)
    if not section.rows:
        return
    rows = [
        [code(cell) if place in section.tokens else prose(cell) for place, cell in enumerate(row)]
        for row in section.rows
    ]
    yield grid([prose(cell) for cell in section.head], rows)
    if section.hidden:
        yield f"… and {section.hidden:,} more (`--all` lists them)."
