"""What glitcher's `mine` writes, at its end and at every checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from glitchrun.imports.document import Document, Malformed
from glitchrun.imports.fields import claimed_model, count, items, settings, string, whole
from glitchrun.imports.formats.format import Content, Format
from glitchrun.imports.found import Found

_IDS, _TEXTS = "glitch_token_ids", "glitch_tokens"


def _read(document: Document) -> Content:
    data = document.data
    return Content(
        tokens=_tokens(data),
        claimed_model=claimed_model(data),
        lists="findings",
        looked_at=count(data, "total_tokens_checked"),
        settings=settings(data, _IDS, _TEXTS),
    )


def _tokens(data: Mapping[str, Any]) -> Iterator[Found]:
    ids = items(data[_IDS], _IDS)
    texts = items(data.get(_TEXTS, [None] * len(ids)), _TEXTS)
    if len(texts) != len(ids):
        raise Malformed(
            _TEXTS,
            f"{len(texts)} texts beside {len(ids)} ids, so they cannot be paired; take "
            f"{_TEXTS!r} out to go by the ids alone",
        )
    for index, (token_id, text) in enumerate(zip(ids, texts, strict=True)):
        place = f"{_IDS}[{index}]"
        yield Found(
            id=whole(token_id, place),
            place=place,
            text=None if text is None else string(text, f"{_TEXTS}[{index}]"),
            glitch=True,
        )


FORMATS = (
    Format(
        "glitcher-mine",
        "glitch_tokens.json, glitch_progress.json: 'glitch_token_ids' beside 'glitch_tokens'",
        lambda document: _IDS in document.keys(),  # noqa: SIM118 - not a mapping
        _read,
    ),
)
