"""Token ids from files of results."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from glitchrun.errors import RunError

_ID_KEYS = ("token_id", "id")


def read_ids(path: Path) -> list[int]:
    """Token ids from a result file, in its order.

    Reads a list of ids, a list of objects with `token_id` or `id`, an object that holds one of
    these under `tokens` or `glitch_token_ids`, an MLflow table, and `tokens.jsonl`. Of the latter
    two, and of any objects with a `glitch` field, only glitch tokens are taken.

    Raises:
        RunError: the file cannot be read or holds no ids.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise RunError(f"{path}: cannot be read as a list of tokens: {exc}") from exc
    ids = _ids(_parse(path, text))
    if not ids:
        raise RunError(
            f"{path}: holds no token ids; expected a list of ids, or objects with 'token_id'"
        )
    return ids


def _parse(path: Path, text: str) -> Any:
    try:
        if path.suffix == ".jsonl":
            return [json.loads(line) for line in text.splitlines() if line.strip()]
        return json.loads(text)
    except ValueError as exc:
        raise RunError(f"{path}: is not JSON: {exc}") from exc


def _ids(data: Any) -> list[int]:
    if isinstance(data, Mapping):
        if "columns" in data and "data" in data:
            return _ids([dict(zip(data["columns"], row, strict=True)) for row in data["data"]])
        return _ids(data.get("glitch_token_ids", data.get("tokens", [])))
    if not isinstance(data, list):
        return []
    found = (_id(item) for item in data)
    return [token_id for token_id in found if token_id is not None]


def _id(item: Any) -> int | None:
    if isinstance(item, Mapping):
        if item.get("glitch", True) is False:
            return None
        item = next((item[key] for key in _ID_KEYS if key in item), None)
    return item if isinstance(item, int) and not isinstance(item, bool) else None
