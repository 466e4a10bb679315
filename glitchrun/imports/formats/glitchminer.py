"""GlitchMiner's results: what its functions return, written as JSON, and what it prints."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from glitchrun.imports.fields import (
    items,
    number,
    objects,
    settings,
    string,
    token,
    whole,
)
from glitchrun.imports.records import Content, Format, ImportedToken
from glitchrun.imports.result_file import Malformed, ResultFile

# With `print_language="ENG"`. The token's text may contain anything, even line breaks.
_HEAD = "Current token: '"
_TAIL = re.compile(
    r"', token id: (?P<id>\d+), is glitch token: (?P<glitch>Yes|No), entropy: (?P<entropy>\S*)"
)
_NUMBER = re.compile(r"-?\d+(\.\d*)?(e[+-]?\d+)?|nan|-?inf", re.ASCII)
_MOST_DIGITS = 20


def _pair(document: ResultFile) -> Content:
    """The return value of `GlitchMiner(...)`: texts and ids of the glitch tokens."""
    texts, ids = document.data
    if len(texts) != len(ids):
        raise Malformed("[0]", f"{len(texts)} texts beside {len(ids)} ids in [1]")
    rows = enumerate(zip(texts, ids, strict=True))
    return Content(
        tokens=(
            ImportedToken(
                whole(i, f"[1][{n}]"), f"[1][{n}]", string(text, f"[0][{n}]"), glitch=True
            )
            for n, (text, i) in rows
        ),
        lists="findings",
    )


def _counted(document: ResultFile) -> Content:
    """The return value of `strict_glitch_verification(...)`: a count and the ids."""
    rows = enumerate(document.data[1])
    return Content(
        tokens=(ImportedToken(whole(i, f"[1][{n}]"), f"[1][{n}]", glitch=True) for n, i in rows),
        lists="findings",
    )


def _walk(document: ResultFile) -> Content:
    """GlitchMiner's walk: a list of verified tokens for each iteration."""
    key = "iterations"
    tokens = (
        token(row, place, ("glitch",), glitch=row.get("glitch"), said={"iteration": step})
        for step, batch in enumerate(items(document.data[key], key))
        for row, place in objects(batch, f"{key}[{step}]")
    )
    return Content(tokens, settings=settings(document.data, key))


def _printed(document: ResultFile) -> Content:
    return Content(tokens=_lines(document.data))


def _printed_tokens(text: str) -> Iterator[tuple[int, str, re.Match[str]]]:
    """For each token the place and the text behind `_HEAD`, and the rest of what was printed."""
    end = 0
    for match in _TAIL.finditer(text):
        start = text.find(_HEAD, end, match.start())
        if start >= 0:
            yield start, text[start + len(_HEAD) : match.start()], match
        end = match.end()


def _lines(text: str) -> Iterator[ImportedToken]:
    line, counted = 1, 0
    for start, named, match in _printed_tokens(text):
        line += text.count("\n", counted, start)
        counted, place = start, f"line {line}"
        digits, value = match["id"], match["entropy"]
        if len(digits) > _MOST_DIGITS:
            raise Malformed(place, "the token id is too large")
        if not _NUMBER.fullmatch(value):
            raise Malformed(place, f"expected a number after 'entropy:', got {value[:20]!r}")
        yield ImportedToken(
            id=whole(int(digits), place),
            place=place,
            text=named,
            glitch=match["glitch"] == "Yes",
            entropy=number(float(value), place),
        )


def _is_pair(document: ResultFile, first: type) -> bool:
    data: Any = document.data if document.kind == "json" else None
    if not (isinstance(data, list) and len(data) == 2 and isinstance(data[1], list)):
        return False
    if first is int:
        return isinstance(data[0], int)
    return isinstance(data[0], list) and all(isinstance(text, str) for text in data[0][:1])


def _is_walk(document: ResultFile) -> bool:
    listed = document.data["iterations"] if "iterations" in document.keys() else None  # noqa: SIM118
    return isinstance(listed, list)


FORMATS = (
    Format(
        "glitchminer",
        "what GlitchMiner() returns: [[text, ...], [id, ...]]",
        lambda document: _is_pair(document, list),
        _pair,
    ),
    Format(
        "glitchminer-strict",
        "what strict_glitch_verification() returns: [count, [id, ...]]",
        lambda document: _is_pair(document, int),
        _counted,
    ),
    Format("glitchminer-walk", "GlitchMiner's walk: 'iterations' with lists", _is_walk, _walk),
    Format(
        "glitchminer-printed",
        "what GlitchMiner prints: lines with \"Current token: '...', token id: ...\"",
        lambda document: document.kind == "text" and any(_printed_tokens(document.data)),
        _printed,
    ),
)
