"""Fields of the objects in result files, under the names of each tool, with checks of type."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from glitchrun.imports.records import ImportedToken
from glitchrun.imports.result_file import Malformed

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
"""The names that tools give to each field of `ImportedToken`."""
_BITS = 63
_MODEL = ("model_path", "model", "model_name")


def objects(value: Any, place: str) -> Iterator[tuple[Mapping[str, Any], str]]:
    """The objects of a list, each with its place.

    Raises:
        Malformed: the value is not a list of objects.
    """
    for index, item in enumerate(items(value, place)):
        yield mapping(item, f"{place}[{index}]"), f"{place}[{index}]"


def mapping(value: Any, place: str) -> Mapping[str, Any]:
    """The value as an object. Raises Malformed if it is none."""
    if not isinstance(value, Mapping):
        raise Malformed(place, f"expected an object, got {_short(value)}")
    return value


def items(value: Any, place: str) -> list[Any]:
    """The value as a list. Raises Malformed if it is none."""
    if not isinstance(value, list):
        raise Malformed(place, f"expected a list, got {_short(value)}")
    return value


def token(
    item: Mapping[str, Any], place: str, drop: tuple[str, ...] = (), **settled: Any
) -> ImportedToken:
    """The token that an object describes.

    Args:
        item: The object.
        place: Its place in the file.
        drop: Keys to leave out. Other unknown keys are kept in `said`.
        **settled: Fields that the format determines itself.

    Raises:
        Malformed: the object has no id, or a field of a wrong type.
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
    return _with_failures(ImportedToken(place=place, said=said, **fields))


def _first(item: Mapping[str, Any], keys: tuple[str, ...]) -> str | None:
    return next((key for key in keys if item.get(key) is not None), None)


def _with_failures(found: ImportedToken) -> ImportedToken:
    """Computes whichever of ASR, attempts and failures is missing: ASR = failures / attempts."""
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
    """A token id or a count. Raises Malformed unless it is a non-negative whole number."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise Malformed(place, f"expected a whole number from 0, got {_short(value)}")
    return _bounded(value, place)


def number(value: Any, place: str) -> float | None:
    """A number, None if it is not finite. Raises Malformed if it is no number."""
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
    """A probability or rate, None if not finite. Raises Malformed outside 0 to 1."""
    found = number(value, place)
    if found is not None and not 0 <= found <= 1 + 1e-6:
        raise Malformed(place, f"expected a number from 0 to 1, got {_short(value)}")
    return found


def string(value: Any, place: str) -> str:
    """A text. Raises Malformed if it is none."""
    if not isinstance(value, str):
        raise Malformed(place, f"expected a text, got {_short(value)}")
    return value


def flag(value: Any, place: str) -> bool:
    """A verdict. Raises Malformed unless it is true or false."""
    if not isinstance(value, bool):
        raise Malformed(place, f"expected true or false, got {_short(value)}")
    return value


def verdict(value: Any, place: str) -> tuple[bool, float | None]:
    """A verdict and its ASR, if any: glitcher writes either `true` or `[true, 0.8]`."""
    if isinstance(value, list) and len(value) == 2:
        return flag(value[0], f"{place}[0]"), share(value[1], f"{place}[1]")
    return flag(value, place), None


def count(data: Mapping[str, Any], key: str) -> int | None:
    """A count of the run, None if the file has none. Raises Malformed if it is no count."""
    return None if data.get(key) is None else whole(data[key], key)


def claimed_model(data: Mapping[str, Any]) -> str | None:
    """The model that a file names."""
    key = _first(data, _MODEL)
    return str(data[key]) if key else None


def settings(data: Mapping[str, Any], *leave: str) -> dict[str, Any]:
    """The settings of a run: all keys except the model and those in `leave`."""
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
