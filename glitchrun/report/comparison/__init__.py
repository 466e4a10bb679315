"""Compare runs and imported result files, and the cells of a matrix.

sides.py             a run or a file as tokens with verdicts
pairs.py             two sides: agreement, overlap against chance, differences
results.py           the main results of all sides, in one unit each
sections.py          the comparison for people, as sentences and tables
token_sections.py    its sections about tokens
figures.py           its figures
output.py            sections as text, Markdown or an HTML page; everything as JSON
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table."""

    label: str
    kind: str = "text"
    """`text`, `key` (never broken), `token`, or `number` (aligned to the right)."""


@dataclass(frozen=True, slots=True)
class Section:
    """A title with sentences and a table under it."""

    title: str
    sentences: tuple[str, ...] = ()
    columns: tuple[Column, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    hidden: int = 0
    """Rows that are left out and that `--all` lists."""
    equal: tuple[bool, ...] = ()
    """For each row whether all sides agree on it; empty where that means nothing."""
