"""Plain lists of tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from glitchrun.imports.document import Document
from glitchrun.imports.fields import claimed_model, flag, items, settings, token, whole
from glitchrun.imports.formats.format import Content, Format
from glitchrun.imports.found import Found


def _bare(document: Document) -> Content:
    return Content(tokens=_each(document.data, ""))


def _under_tokens(document: Document) -> Content:
    data = document.data
    return Content(
        tokens=_each(data["tokens"], "tokens"),
        claimed_model=claimed_model(_plain(data)),
        settings=settings(data, "tokens"),
    )


def _plain(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """The data without a `model` that is more than a name."""
    return {key: value for key, value in data.items() if isinstance(value, str)}


def _each(value: Any, name: str) -> Iterator[Found]:
    for index, item in enumerate(items(value, name or "the file")):
        place = f"{name}[{index}]"
        if isinstance(item, Mapping):
            yield _with_verdict(item, place)
        else:
            yield Found(whole(item, place), place)


def _with_verdict(item: Mapping[str, Any], place: str) -> Found:
    """An object; `glitch` and `is_glitch` are verdicts where it has one."""
    key = next((key for key in ("glitch", "is_glitch") if item.get(key) is not None), None)
    found = flag(item[key], f"{place}.{key}") if key else None
    return token(item, place, ("glitch", "is_glitch"), glitch=found)


def _is_bare(document: Document) -> bool:
    data = document.data if document.kind == "json" else None
    return isinstance(data, list) and bool(data) and not any(isinstance(x, list) for x in data)


def _has_tokens(document: Document) -> bool:
    if "tokens" not in document.keys() or "kind" in document.keys():  # noqa: SIM118
        return False
    return isinstance(document.data["tokens"], list)


FORMATS = (
    Format("ids", "a list of ids, or of objects with 'token_id' or 'id'", _is_bare, _bare),
    Format("tokens", "'tokens' with ids or objects", _has_tokens, _under_tokens),
)
