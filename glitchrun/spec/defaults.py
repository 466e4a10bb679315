"""Fills in the schema's defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from glitchrun.spec.schema import closed, fragments


def with_defaults(data: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a valid document with a value for every key that has a default.

    Parameters that the chosen search does not use are left out.
    """
    filled: dict[str, Any] = _filled(data, closed())
    filled["steps"] = [step_with_defaults(step) for step in data["steps"]]
    return filled


def _filled(data: Any, schema: Mapping[str, Any]) -> Any:
    if not isinstance(data, dict):
        return _copy(data)
    filled = {key: _copy(value) for key, value in data.items()}
    for key, part in schema.get("properties", {}).items():
        if part.get("default") is not None:
            filled.setdefault(key, _copy(part["default"]))
        elif "properties" in part and key != "matrix":
            inner = _filled(data.get(key, {}), part)
            if inner:
                filled[key] = inner
    return filled


def named(user: str | list[str]) -> list[str]:
    """The values of `x-used-by` as a list."""
    return [user] if isinstance(user, str) else user


def step_with_defaults(step: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of one step with its id and the defaults of its strategy."""
    filled = {"id": step["strategy"], **_copy(dict(step))}
    properties = fragments()[step["strategy"]]["properties"]
    for name, part in properties.items():
        users = part.get("x-used-by", {}).items()
        unused = any(
            filled.get(key, properties[key].get("default")) not in named(user)
            for key, user in users
        )
        if part.get("default") is not None and not unused:
            filled.setdefault(name, _copy(part["default"]))
    return filled


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_copy(item) for item in value]
    # 1.0 in the schema is the 1 of a document (nodes.plain).
    return int(value) if isinstance(value, float) and value.is_integer() else value
