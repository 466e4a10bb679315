"""glitcher's lists of findings as objects: ranges, special tokens, Unicode blocks, low norms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from glitchrun.imports.document import Document
from glitchrun.imports.fields import claimed_model, count, objects, settings, token
from glitchrun.imports.formats.format import Content, Format
from glitchrun.imports.found import Found

_GUESSED = ("high", "medium", "low")
"""What a consolidated list calls tokens that nothing verified; the others are `verified`."""


def _found_in_ranges(document: Document) -> Content:
    data = document.data
    rows = list(objects(data["glitch_tokens"], "glitch_tokens"))
    with_id = [(row, place) for row, place in rows if row.get("token_id") != -1]
    missing = len(rows) - len(with_id)
    return Content(
        tokens=(_finding(row, place) for row, place in with_id),
        claimed_model=claimed_model(data),
        lists="findings",
        looked_at=count(data, "total_tokens_tested"),
        settings=settings(data, "glitch_tokens", "ranges_tested") | _ranges(data),
        left_out={"entries without a token id (-1)": missing} if missing else {},
    )


def _finding(item: Mapping[str, Any], place: str) -> Found:
    return token(item, place, glitch=None if item.get("confidence") in _GUESSED else True)


def _ranges(data: Mapping[str, Any]) -> dict[str, Any]:
    """The ranges without their tokens, which `glitch_tokens` lists once more."""
    if "ranges_tested" not in data:
        return {}
    found = objects(data["ranges_tested"], "ranges_tested")
    return {"ranges_tested": [settings(one, "glitch_tokens") for one, _ in found]}


def _is_list_of_objects(document: Document) -> bool:
    keys = document.keys()
    if "glitch_tokens" not in keys or "glitch_token_ids" in keys:
        return False
    listed = document.data["glitch_tokens"]
    return isinstance(listed, list) and all(isinstance(one, Mapping) for one in listed[:1])


def _low_norms(document: Document) -> Content:
    data, key = document.data, "lowest_norm_tokens"
    return Content(
        tokens=(token(row, place) for row, place in objects(data[key], key)),
        claimed_model=claimed_model(data),
        settings=settings(data, key),
    )


FORMATS = (
    Format(
        "glitcher-range",
        "range, special and unicode results, consolidated lists: 'glitch_tokens' with objects",
        _is_list_of_objects,
        _found_in_ranges,
    ),
    Format(
        "glitcher-low-norm",
        "low_norm_tokens.json: 'lowest_norm_tokens'",
        lambda document: "lowest_norm_tokens" in document.keys(),  # noqa: SIM118 - not a mapping
        _low_norms,
    ),
)
