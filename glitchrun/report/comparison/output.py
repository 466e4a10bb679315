"""A comparison as text for a terminal, as Markdown for a pull request, or as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

from glitchrun.report.comparison.pairs import MatchedToken, Pair
from glitchrun.report.comparison.sections import Section
from glitchrun.report.comparison.sides import Side, TokenVerdict
from glitchrun.report.formatting import code, grid, prose
from glitchrun.report.writing import rounded


def as_text(sections: Iterable[Section]) -> str:
    """Sections as plain text, with aligned columns."""
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
    """Sections as Markdown; no text of a run or file is taken for markup."""
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


def as_json(sides: Sequence[Side], pairs: Sequence[Pair], by: str) -> dict[str, Any]:
    """The comparison as JSON-ready data: `by`, the sides, and every pair with all its tokens."""
    return {"by": by, "sides": [_side(side) for side in sides], "pairs": [_pair(p) for p in pairs]}


def _side(side: Side) -> dict[str, Any]:
    return {
        "label": side.label,
        "name": side.name,
        "kind": side.kind,
        "tokens": len(side.tokens),
        "looked_at": side.looked_at,
        "lists_all": side.lists_all,
        "found": len(side.found),
        "vocabulary": side.vocabulary,
        "note": side.note,
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
