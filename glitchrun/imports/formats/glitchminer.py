"""GlitchMiner's results: what its functions return, written as JSON, and what it prints."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from glitchrun.imports.document import Document, Malformed
from glitchrun.imports.fields import items, objects, settings, string, token, whole
from glitchrun.imports.formats.format import Content, Format
from glitchrun.imports.found import Found

# `print_language="ENG"`; the token's text may hold anything, line breaks too.
_PRINTED = re.compile(
    r"Current token: '(?P<text>.*?)', token id: (?P<id>\d+), "
    r"is glitch token: (?P<glitch>Yes|No), entropy: (?P<entropy>[\d.]+|nan)",
    re.DOTALL,
)


def _pair(document: Document) -> Content:
    """`GlitchMiner(...)` returns the texts and the ids of the glitch tokens."""
    texts, ids = document.data
    if len(texts) != len(ids):
        raise Malformed("[0]", f"{len(texts)} texts beside {len(ids)} ids in [1]")
    rows = enumerate(zip(texts, ids, strict=True))
    return Content(
        tokens=(
            Found(whole(i, f"[1][{n}]"), f"[1][{n}]", string(text, f"[0][{n}]"), glitch=True)
            for n, (text, i) in rows
        ),
        lists="findings",
    )


def _counted(document: Document) -> Content:
    """`strict_glitch_verification(...)` returns a count and the ids verified."""
    rows = enumerate(document.data[1])
    return Content(
        tokens=(Found(whole(i, f"[1][{n}]"), f"[1][{n}]", glitch=True) for n, i in rows),
        lists="findings",
    )


def _walk(document: Document) -> Content:
    """Its walk, a list of verified tokens for each iteration."""
    key = "iterations"
    tokens = (
        token(row, place, ("glitch",), glitch=row.get("glitch"), said={"iteration": step})
        for step, batch in enumerate(items(document.data[key], key))
        for row, place in objects(batch, f"{key}[{step}]")
    )
    return Content(tokens, settings=settings(document.data, key))


def _printed(document: Document) -> Content:
    return Content(tokens=_lines(document.data))


def _lines(text: str) -> Iterator[Found]:
    for match in _PRINTED.finditer(text):
        entropy = float(match["entropy"])
        yield Found(
            id=int(match["id"]),
            place=f"line {text.count(chr(10), 0, match.start()) + 1}",
            text=match["text"],
            glitch=match["glitch"] == "Yes",
            entropy=entropy if entropy == entropy else None,
        )


def _is_pair(document: Document, first: type) -> bool:
    data: Any = document.data if document.kind == "json" else None
    if not (isinstance(data, list) and len(data) == 2 and isinstance(data[1], list)):
        return False
    if first is int:
        return isinstance(data[0], int)
    return isinstance(data[0], list) and all(isinstance(text, str) for text in data[0][:1])


def _is_walk(document: Document) -> bool:
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
        lambda document: document.kind == "text" and bool(_PRINTED.search(document.data)),
        _printed,
    ),
)
