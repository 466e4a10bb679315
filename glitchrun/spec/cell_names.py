"""The names of a matrix' cells, and the texts of the values of an axis."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from glitchrun.spec.matrix_axes import canonical

_MAX_VALUE = 60
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def cell_names(cells: Sequence[Mapping[str, Any]]) -> list[str]:
    """Readable and unique names for the cells: `quantization=int4, seed=2`."""
    axes = list(dict.fromkeys(axis for cell in cells for axis in cell))
    last = {axis: axis.rsplit(".", 1)[-1] for axis in axes}
    times = Counter(last.values())
    short = {axis: name if times[name] == 1 else axis for axis, name in last.items()}
    shown = {axis: _shown(cell[axis] for cell in cells if axis in cell) for axis in axes}
    names = [
        ", ".join(f"{short[axis]}={shown[axis][canonical(value)]}" for axis, value in cell.items())
        for cell in cells
    ]
    often = Counter(names)  # long values may be shortened to the same text
    return [
        f"{name} #{number}" if often[name] > 1 else name
        for number, name in enumerate(names, start=1)
    ]


def value_texts(values: Iterable[Any]) -> dict[str, str]:
    """The text of each value, by the value as JSON. Different values have different texts.

    A path is shown by its last part, or by as many parts as tell the paths apart: `a/model` and
    `b/model`. Strings are shown without quotes, unless that looks like another value.

    Args:
        values: Plain data, as a spec contains it.
    """
    known = {canonical(value): value for value in values}
    parts = [len(PurePath(value).parts) for value in known.values() if _is_path(value)]
    texts = {key: _text(value, 1) for key, value in known.items()}
    for count in range(2, max(parts, default=0) + 1):
        often = Counter(texts.values())
        if max(often.values()) == 1:
            return texts
        texts |= {
            key: _text(value, count)
            for key, value in known.items()
            if often[texts[key]] > 1 and _is_path(value)
        }
    for quoted in (False, True):
        often = Counter(texts.values())
        texts |= {
            key: value if isinstance(value, str) and not quoted else key
            for key, value in known.items()
            if often[texts[key]] > 1
        }
    return texts


def _shown(values: Iterable[Any]) -> dict[str, str]:
    """`value_texts`, on one line and of at most `_MAX_VALUE` characters each."""
    texts = {key: _CONTROL.sub(_escape, text) for key, text in value_texts(values).items()}
    cuts: tuple[Callable[[str], str], ...] = (
        lambda text: text[: _MAX_VALUE - 1] + "…",
        lambda text: f"{text[: _MAX_VALUE // 2 - 1]}…{text[-_MAX_VALUE // 2 :]}",
    )
    for cut in (*cuts, cuts[0]):
        found = {key: text if len(text) <= _MAX_VALUE else cut(text) for key, text in texts.items()}
        if len(set(found.values())) == len(found):
            break
    return found


def _escape(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode("ascii")


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and "/" in value


def _text(value: Any, count: int) -> str:
    """A value; of a path the last `count` parts."""
    if not isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    return str(PurePath(*PurePath(value).parts[-count:])) if _is_path(value) else value
