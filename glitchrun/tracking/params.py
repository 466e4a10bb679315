"""What a person compares runs by: the spec's choices, flat, in words that fit a table."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from glitchrun.ledger.record import RunRecord
from glitchrun.tracking import limits

MOST = 100
"""Params of a run; further ones are counted and left to spec.resolved.yaml."""

_SHOWN_ITEMS = 12


def params(record: RunRecord) -> tuple[dict[str, str], int]:
    """Params by name, and how many were left out.

    They come from what never changes in a run, because MLflow takes a param only once.
    """
    found: dict[str, str] = {}
    for name, value in _choices(record):
        found.setdefault(limits.key(name), limits.value(_text(value), limits.PARAM))
    kept = dict(list(found.items())[:MOST])
    return kept, len(found) - len(kept)


def model_name(record: RunRecord) -> str:
    """The model in one short word: the last part of its path."""
    path = str(record.spec.get("model", {}).get("path", "unknown"))
    return path.rstrip("/").rpartition("/")[2] or path


def _choices(record: RunRecord) -> Iterator[tuple[str, Any]]:
    spec = record.spec
    model = spec.get("model", {})
    yield from record.identity.assignments.items()
    yield "model", model_name(record)
    yield "model.quantization", model.get("quantization", "none")
    yield from _flat("model", {key: value for key, value in model.items() if key != "path"})
    yield "template", spec.get("template", "auto")
    if "system" in spec:
        yield "system", spec["system"]
    yield "seed", spec.get("seed", 0)
    yield from _flat("thresholds", spec.get("thresholds", {}))
    yield from _flat("tokens", spec.get("tokens", {}))
    for step in record.steps:
        yield f"{step.id}.strategy", step.strategy
        yield from _flat(step.id, step.params)


def _flat(prefix: str, value: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, inner in value.items():
        if isinstance(inner, Mapping) and inner:
            yield from _flat(f"{prefix}.{name}", inner)
        elif inner not in (None, {}, []):
            yield f"{prefix}.{name}", inner


def _text(value: Any) -> str:
    if isinstance(value, list) and len(value) > _SHOWN_ITEMS:
        start = ", ".join(_text(item) for item in value[:_SHOWN_ITEMS])
        return f"{len(value):,} items: {start}, …"
    if isinstance(value, list):
        return ", ".join(_text(item) for item in value)
    if isinstance(value, bool | Mapping):
        return json.dumps(value, ensure_ascii=False)
    return limits.storable(str(value))
