"""glitcher's classified_tokens.json: what behavioural tests said of tokens.

A test whose code failed was counted as a finding ("Glitch behavior detected: '"username"'"): such
errors are kept apart here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from glitchrun.imports.document import Document
from glitchrun.imports.fields import claimed_model, objects, settings, token
from glitchrun.imports.formats.format import Content, Format
from glitchrun.imports.found import Found

_KEY = "classifications"


def _read(document: Document) -> Content:
    data = document.data
    tokens = [_classified(row, place) for row, place in objects(data[_KEY], _KEY)]
    answers = sum(len(found.said["tests"]) for found in tokens)
    return Content(
        tokens=tokens,
        claimed_model=claimed_model(data),
        settings=settings(data, _KEY),
        left_out={"prompts and answers of tests": answers} if answers else {},
    )


def _classified(item: Mapping[str, Any], place: str) -> Found:
    tests = {
        str(test.get("test_name", at)): _outcome(test)
        for test, at in objects(item.get("test_results", []), f"{place}.test_results")
    }
    return token(item, place, ("test_results",), said={"tests": tests})


def _outcome(test: Mapping[str, Any]) -> str:
    if test.get("error"):
        return f"error, counted as {'a finding' if test.get('is_positive') else 'none'}"
    return "positive" if test.get("is_positive") else "negative"


FORMATS = (
    Format(
        "glitcher-classified",
        "classified_tokens.json: 'classifications'",
        lambda document: _KEY in document.keys(),  # noqa: SIM118 - not a mapping
        _read,
    ),
)
