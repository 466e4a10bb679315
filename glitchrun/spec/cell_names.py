"""The names of a matrix' cells."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Any

_MAX_VALUE = 60


def cell_names(cells: Sequence[Mapping[str, Any]]) -> list[str]:
    """Readable and unique names for the cells: `quantization=int4, seed=2`."""
    axes = list(dict.fromkeys(axis for cell in cells for axis in cell))
    last = {axis: axis.rsplit(".", 1)[-1] for axis in axes}
    short = {axis: name if _once(name, last.values()) else axis for axis, name in last.items()}
    names = [", ".join(f"{short[a]}={_show(v)}" for a, v in cell.items()) for cell in cells]
    repeated = {name for name in names if not _once(name, names)}
    if repeated:  # shortened to the same text
        names = [
            f"{name} #{number}" if name in repeated else name
            for number, name in enumerate(names, start=1)
        ]
    return names


def _once(name: str, names: Iterable[str]) -> bool:
    return list(names).count(name) == 1


def _show(value: Any) -> str:
    if isinstance(value, str):
        text = PurePath(value).name if "/" in value else value
    else:
        text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _MAX_VALUE else text[: _MAX_VALUE - 1] + "…"
