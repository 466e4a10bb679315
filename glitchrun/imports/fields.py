"""One object's fields, by whatever name a tool gave them, each checked for its type."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from glitchrun.imports.document import Malformed
from glitchrun.imports.found import Found

_NAMES = {
    "id": ("token_id", "id"),
    "text": ("token_text", "token", "text", "token_str"),
    "p": ("p", "target_probability", "target_prob"),
    "entropy": ("entropy",),
    "norm": ("norm", "l2_norm"),
    "asr": ("asr", "enhanced_asr"),
    "attempts": ("attempts", "num_attempts"),
    "failures": ("failures", "glitch_attempts"),
}
"""What the tools call each field of `Found`."""
_BITS = 63
_MODEL = ("model_path", "model", "model_name")


def objects(value: Any, place: str) -> Iterator[tuple[Mapping[str, Any], str]]:
    """The objects of a list, each with its place.

    Raises:
        Malformed: it is no list, or holds something else.
    """
    for index, item in enumerate(items(value, place)):
        yield mapping(item, f"{place}[{index}]"), f"{place}[{index}]"


def mapping(value: Any, place: str) -> Mapping[str, Any]:
    """The object at a place. Raises Malformed where it is none."""
    if not isinstance(value, Mapping):
        raise Malformed(place, f"expected an object, got {_short(value)}")
    return value


def items(value: Any, place: str) -> list[Any]:
    """The list at a place. Raises Malformed where it is none."""
    if not isinstance(value, list):
        raise Malformed(place, f"expected a list, got {_short(value)}")
    return value


def token(item: Mapping[str, Any], place: str, drop: tuple[str, ...] = (), **settled: Any) -> Found:
    """The token that an object describes. `settled` are fields that the format knows better;
    what is neither known nor in `drop` is kept in `said`.

    Raises:
        Malformed: no id, or a field of a wrong type.
    """
    named = {name: _first(item, keys) for name, keys in _NAMES.items()}
    known = {name: key for name, key in named.items() if key is not None}
    if "id" not in known:
        raise Malformed(place, "no token id; expected 'token_id' or 'id'")
    read: dict[str, Any] = {
        name: _READERS[name](item[key], f"{place}.{key}") for name, key in known.items()
    }
    used = {*known.values(), *drop}
    said = {key: value for key, value in item.items() if key not in used} | settled.pop("said", {})
    fields: dict[str, Any] = read | {
        name: value for name, value in settled.items() if value is not None
    }
    return _with_failures(Found(place=place, said=said, **fields))


def _first(item: Mapping[str, Any], keys: tuple[str, ...]) -> str | None:
    return next((key for key in keys if item.get(key) is not None), None)


def _with_failures(found: Found) -> Found:
    """ASR is failures by attempts: where a file has two of the three, the third is known."""
    asr, attempts, failures = found.asr, found.attempts, found.failures
    if failures is not None and attempts is not None and failures > attempts:
        raise Malformed(found.place, f"{failures} failures in {attempts} attempts")
    if failures is None and asr is not None and attempts:
        nearest = round(asr * attempts)
        if abs(nearest - asr * attempts) < 1e-6 * attempts:
            return replace(found, failures=nearest)
    if asr is None and attempts and failures is not None:
        return replace(found, asr=failures / attempts)
    return found


def whole(value: Any, place: str) -> int:
    """A token id or a count: a whole number that is not negative."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise Malformed(place, f"expected a whole number from 0, got {_short(value)}")
    return _bounded(value, place)


def number(value: Any, place: str) -> float | None:
    """A number; None for one that is not finite, as JSON writers other than Python's have null."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Malformed(place, f"expected a number, got {_short(value)}")
    if isinstance(value, int):
        return float(_bounded(value, place))
    return value if math.isfinite(value) else None


def _bounded(value: int, place: str) -> int:
    if value.bit_length() > _BITS:
        raise Malformed(place, "the number is too large")
    return value


def share(value: Any, place: str) -> float | None:
    """A probability or a rate: a number from 0 to 1, but for rounding."""
    found = number(value, place)
    if found is not None and not 0 <= found <= 1 + 1e-6:
        raise Malformed(place, f"expected a number from 0 to 1, got {_short(value)}")
    return found


def string(value: Any, place: str) -> str:
    """A text."""
    if not isinstance(value, str):
        raise Malformed(place, f"expected a text, got {_short(value)}")
    return value


def flag(value: Any, place: str) -> bool:
    """A verdict."""
    if not isinstance(value, bool):
        raise Malformed(place, f"expected true or false, got {_short(value)}")
    return value


def verdict(value: Any, place: str) -> tuple[bool, float | None]:
    """A verdict and its ASR: glitcher writes either `true` or `[true, 0.8]`."""
    if isinstance(value, list) and len(value) == 2:
        return flag(value[0], f"{place}[0]"), share(value[1], f"{place}[1]")
    return flag(value, place), None


def count(data: Mapping[str, Any], key: str) -> int | None:
    """A count that a file may give of its run."""
    return None if data.get(key) is None else whole(data[key], key)


def claimed_model(data: Mapping[str, Any]) -> str | None:
    """The model that a file says it is about."""
    key = _first(data, _MODEL)
    return str(data[key]) if key else None


def settings(data: Mapping[str, Any], *leave: str) -> dict[str, Any]:
    """What a file says of its run: all but the model and the lists of tokens named in `leave`."""
    return {key: value for key, value in data.items() if key not in (*_MODEL, *leave)}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


_READERS: dict[str, Callable[[Any, str], Any]] = {
    "id": whole,
    "text": string,
    "p": share,
    "entropy": number,
    "norm": number,
    "asr": share,
    "attempts": whole,
    "failures": whole,
}
