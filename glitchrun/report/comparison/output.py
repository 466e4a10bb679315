"""A comparison as text for a terminal, as Markdown, as an HTML page, or as JSON."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

from glitchrun.behaviour.significance import McNemar
from glitchrun.report.comparison import Column, Section
from glitchrun.report.comparison.figures import drawings
from glitchrun.report.comparison.pairs import MatchedToken, Pair, tested
from glitchrun.report.comparison.regressions import Regression
from glitchrun.report.comparison.sections import sections
from glitchrun.report.comparison.sides import Side, TokenVerdict
from glitchrun.report.figures.style import style
from glitchrun.report.formatting import code, grid, prose
from glitchrun.report.html import render_page
from glitchrun.report.writing import rounded

_UNLIMITED = 10_000
"""Columns of a line where nothing limits it."""
_INDENT = 4
_GAP = 2
_LEAST = 24
"""Width to which a column of text may shrink before its table is split."""
_HEAD = 12
"""Width over which the label of a column of numbers is wrapped."""
_SHOWN = 500
"""Rows of a table of tokens that differ on the page, and as many that do not."""
_Cells = tuple[Column, list[str]]
"""A column with its cells as text."""


def as_text(sections: Iterable[Section], width: int | None = None) -> str:
    """Sections as plain text with aligned columns.

    Args:
        sections: The sections.
        width: Columns of the terminal, to which long lines are wrapped and wide tables split; None
            for no limit.
    """
    return "\n\n".join("\n".join(_text(section, width)) for section in sections) + "\n"


def _text(section: Section, width: int | None) -> Iterator[str]:
    yield section.title
    for sentence in section.sentences:
        yield from textwrap.wrap(
            sentence,
            width or _UNLIMITED,
            initial_indent="  ",
            subsequent_indent="  ",
            break_long_words=False,
            break_on_hyphens=False,
        )
    yield from table_lines(section, width)
    if section.hidden:
        yield f"    … {section.hidden:,} more; --all lists them"


def table_lines(section: Section, width: int | None) -> Iterator[str]:
    """The lines of a section's table, indented. A table that is too wide becomes several, each with
    the first column.

    Args:
        section: The section.
        width: As for `as_text`.
    """
    columns = [
        (column, [_cell(row[place], column) for row in section.rows])
        for place, column in enumerate(section.columns)
    ]
    room = (width or _UNLIMITED) - _INDENT
    for place, block in enumerate(_blocks(columns, room)):
        if place:
            yield ""
        for line in _drawn(block, room):
            yield f"{' ' * _INDENT}{line}".rstrip()


def _cell(text: str, column: Column) -> str:
    return f"«{text}»" if column.kind == "token" else text


def _blocks(columns: Sequence[_Cells], room: int) -> Iterator[list[_Cells]]:
    """The columns in groups that fit into `room`, each group led by the names: the first column,
    and the second if the first has no label."""
    if not columns or not columns[0][1]:
        return
    lead = 1 if columns[0][0].label or len(columns) < 3 else 2
    names, others = [*columns[:lead]], columns[lead:]
    block, used = [*names], sum(map(_least_width, names))
    for column in others:
        needed = _least_width(column) + _GAP
        if used + needed > room and len(block) > lead:
            yield block
            # The letters alone are enough from the second block on.
            block, used = [columns[0]], _least_width(columns[0])
            lead = 1
        block.append(column)
        used += needed
    yield block


def _least_width(cells: _Cells) -> int:
    """The width that a column needs: that of its longest cell, or less if its text may wrap."""
    from rich.cells import cell_len

    column, texts = cells
    natural = max(map(cell_len, (*_head(cells).split("\n"), *texts)))
    return min(natural, _LEAST) if column.kind == "text" else natural


def _head(cells: _Cells) -> str:
    """The label, over numbers on several lines if it is longer than they are."""
    column, texts = cells
    if column.kind != "number":
        return column.label
    longest = max(_HEAD, *map(len, (*texts, *column.label.split())))
    return "\n".join(textwrap.wrap(column.label, longest, break_long_words=False))


def _drawn(block: Sequence[_Cells], room: int) -> list[str]:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), show_edge=False)
    for cells in block:
        column = cells[0]
        table.add_column(
            Text(_head(cells)),
            justify="right" if column.kind == "number" else "left",
            no_wrap=column.kind != "text",
            overflow="fold" if column.kind == "text" else "crop",
            vertical="bottom" if column.kind == "number" else "top",
        )
    for row in zip(*(texts for _, texts in block), strict=True):
        table.add_row(*map(Text, row))
    console = Console(width=room, file=io.StringIO(), color_system=None, legacy_windows=False)
    with console.capture() as captured:
        console.print(table)
    return captured.get().splitlines()


def as_markdown(sections: Iterable[Section]) -> str:
    """Sections as Markdown; no text of a run or file is taken for markup."""
    return "\n\n".join(part for section in sections for part in _markdown(section)) + "\n"


def _markdown(section: Section) -> Iterator[str]:
    yield f"### {prose(section.title)}"
    yield from map(prose, section.sentences)
    if not section.rows:
        return
    rows = [
        [
            code(cell) if column.kind == "token" else prose(cell)
            for cell, column in zip(row, section.columns, strict=True)
        ]
        for row in section.rows
    ]
    head = [prose(column.label) for column in section.columns]
    yield grid(head, rows, [column.kind == "number" for column in section.columns])
    if section.hidden:
        yield f"… and {section.hidden:,} more (`--all` lists them)."


def as_html(
    by: str, sides: Sequence[Side], pairs: Sequence[Pair], regressed: Regression | None = None
) -> str:
    """The comparison as a page.

    Args:
        by: The kind of verdict that is compared.
        sides: Two or more sides.
        pairs: Every two of the sides.
        regressed: The metrics against those of the first side, if that was asked.

    Raises:
        MissingExtra: jinja2 or matplotlib is not installed.
    """
    experiments = {side.record.identity.experiment: None for side in sides if side.record}
    with style():
        return render_page(
            "comparison.html.j2",
            drawings(sides, pairs),
            above="",
            description="",
            noun="runs" if all(side.record for side in sides) else "runs and files",
            title=", ".join(experiments) or "result files",
            legend=[(side.label, side.title, side.name) for side in sides],
            sections=list(sections(by, sides, pairs, _SHOWN, regressed, equal_rows=True)),
        )


def as_json(
    sides: Sequence[Side], pairs: Sequence[Pair], by: str, regressed: Regression | None = None
) -> dict[str, Any]:
    """The comparison as JSON-ready data: `by`, the sides, and every pair with all its tokens; with
    `regressed`, the metrics against those of the first side."""
    return {
        "by": by,
        "sides": [_side(side) for side in sides],
        "pairs": [
            _pair(one) | {"mcnemar": _test(*test, len(pairs))}
            for one, test in zip(pairs, tested(pairs), strict=True)
        ],
        **({"regression": regressed.to_json()} if regressed else {}),
    }


def _test(test: McNemar, p_adjusted: float, family: int) -> dict[str, Any]:
    return {
        "p": rounded(test.p),
        "p_adjusted": rounded(p_adjusted),
        "family": family,
        "smallest_p": rounded(test.least),
        "power": test.power,
    }


def _side(side: Side) -> dict[str, Any]:
    return {
        "label": side.label,
        "name": side.name,
        "kind": side.kind,
        "tokens": len(side.tokens),
        "looked_at": side.looked_at,
        "lists_all": side.lists_all,
        "found": len(side.found),
        "glitch": sum(bool(one.glitch) for one in side.verified),
        "verified": len(side.verified),
        "confirmed": sum(bool(one.confirmed) for one in side.sampled),
        "sampled": len(side.sampled),
        "unsampled_glitch": side.unsampled_glitch,
        "chose_tokens": side.chose,
        "scope": side.scope,
        "vocabulary": side.vocabulary,
        "note": side.note,
        "unmatchable": side.unmatchable,
        "metrics": {name: rounded(metric.value) for name, metric in side.metrics.items()},
        "setting": dict(side.setting),
    }


def _pair(pair: Pair) -> dict[str, Any]:
    counts = pair.counts
    return {
        "left": pair.left.label,
        "right": pair.right.label,
        "scope": pair.scope,
        "tokens": counts.n,
        **asdict(counts),
        "agreement": rounded(counts.agreement),
        "agreement_by_chance": rounded(counts.by_chance),
        "kappa": rounded(counts.kappa),
        "other_texts": pair.other_texts,
        "matched_by": "text" if pair.left.by_text else "id",
        "unmatched": dict(zip(("left", "right"), pair.unmatched, strict=True)),
        "p_distance": rounded(pair.p_distance),
        "overlaps": [
            {
                **asdict(one),
                "expected": rounded(one.expected),
                "p_more": rounded(one.p_more),
                "p_fewer": rounded(one.p_fewer),
                "reading": one.reading,
            }
            for one in pair.overlaps
        ],
        "differences": [_both(both) for both in pair.differences],
        "asr": {"tokens": len(pair.asr), "apart": [_both(both) for both in pair.asr_apart]},
        "changes": [
            {"path": path, "kind": kind, "left": old, "right": new}
            for path, kind, old, new in pair.changes
        ],
    }


def _both(both: MatchedToken) -> dict[str, Any]:
    text = both.left.text if both.left.text is not None else both.right.text
    return {
        "token_id": both.left.id,
        "right_token_id": both.right.id,
        "token": text,
        "left": _judged(both.left),
        "right": _judged(both.right),
    }


def _judged(one: TokenVerdict) -> dict[str, Any]:
    return {
        "verdict": one.verdict,
        "found": one.found,
        "p": rounded(one.p),
        "asr": rounded(one.asr),
        "attempts": one.attempts,
        "failures": one.failures,
    }
