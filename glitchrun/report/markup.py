"""Markdown in which no text is taken for markup."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from glitchrun.report.spelling import spelled


def grid(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def code(text: str) -> str:
    """A code span that holds `text` as it is, whatever is in it, inside a table too."""
    runs = re.findall(r"`+", text)
    fence = "`" * (1 + max(map(len, runs), default=0))
    padded = f" {text} " if runs else text
    return f"{fence}{padded}{fence}".replace("|", r"\|")


def prose(text: str) -> str:
    """Text in which no character is markup."""
    return escaped(spelled(text).replace("␣", " "))


def escaped(text: str) -> str:
    return re.sub(r"([\\`*_{}\[\]<>#|~&])", r"\\\1", text)
