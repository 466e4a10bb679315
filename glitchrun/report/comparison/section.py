"""A part of a comparison for people, without its markup."""

from __future__ import annotations

from dataclasses import dataclass

from glitchrun.report.comparison.sides import Judged
from glitchrun.report.numbers import MISSING, figure, percent
from glitchrun.report.spelling import spelled


@dataclass(frozen=True, slots=True)
class Section:
    """A heading with sentences and a table under it."""

    title: str
    sentences: tuple[str, ...] = ()
    head: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    tokens: tuple[int, ...] = ()
    """Columns that hold token text."""
    hidden: int = 0
    """Rows that are not shown."""


JUDGED = ("verdict", "p", "ASR")
"""Columns that show what a side says of a token."""


def cells(one: Judged) -> tuple[str, str, str]:
    """The cells of `JUDGED`."""
    asr = MISSING if one.asr is None else percent(one.asr)
    if one.attempts and one.failures is not None:
        asr = f"{one.failures}/{one.attempts}"
    return one.verdict, figure(one.p), asr


def text(*sides: Judged) -> str:
    """A token's text, in characters that every reader sees."""
    return spelled(next((one.text for one in sides if one.text is not None), "?"))
