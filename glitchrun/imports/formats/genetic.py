"""glitcher's genetic search: sequences of tokens, and the impact of single ones.

No verdicts: the tokens are a pool to search in again. Impacts stay with their tokens, sequences in
`extra`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from glitchrun.imports.document import Document, Malformed
from glitchrun.imports.fields import (
    claimed_model,
    items,
    mapping,
    objects,
    settings,
    string,
    token,
    whole,
)
from glitchrun.imports.formats.format import Content, Format
from glitchrun.imports.found import Found


def _sequences(document: Document) -> Content:
    data = document.data
    rows = list(objects(data["results"], "results"))
    found = [settings(row, "token_texts") for row, _ in rows]
    return Content(
        tokens=(one for row, place in rows for one in _members(row, place)),
        claimed_model=claimed_model(data),
        lists="findings",
        settings=settings(data, "results"),
        extra={"sequences": found},
    )


def _members(row: Mapping[str, Any], place: str) -> Iterator[Found]:
    ids = items(row.get("tokens"), f"{place}.tokens")
    texts: Sequence[Any] = items(row.get("token_texts", [None] * len(ids)), f"{place}.token_texts")
    if len(texts) != len(ids):
        raise Malformed(f"{place}.token_texts", f"{len(texts)} texts beside {len(ids)} tokens")
    for index, (token_id, text) in enumerate(zip(ids, texts, strict=True)):
        at = f"{place}.tokens[{index}]"
        yield Found(
            id=whole(token_id, at),
            place=at,
            text=None if text is None else string(text, f"{place}.token_texts[{index}]"),
        )


def _impacts(document: Document) -> Content:
    data, key = document.data, "token_impacts"
    about = mapping(data.get("metadata", data), "metadata")
    return Content(
        tokens=(token(row, place) for row, place in objects(data[key], key)),
        claimed_model=claimed_model(about),
        settings=settings(about, key),
    )


def _is_genetic(document: Document) -> bool:
    return document.keys() >= {"results", "base_text"}


FORMATS = (
    Format(
        "glitcher-genetic",
        "genetic_results.json: 'results' with 'tokens', beside 'base_text'",
        _is_genetic,
        _sequences,
    ),
    Format(
        "glitcher-impact",
        "token_impact_baseline.json: 'token_impacts'",
        lambda document: "token_impacts" in document.keys(),  # noqa: SIM118 - not a mapping
        _impacts,
    ),
)
