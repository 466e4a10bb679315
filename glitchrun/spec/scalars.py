"""Plain scalars by the core schema of YAML 1.2 (section 10.3.2), in which `no`, `12:30` and dates
are text, `017` is 17 and `1e-5` a number."""

from __future__ import annotations

import math
import re

MAX_NUMBER = 64
"""Longest number, in characters."""

_INT = re.compile(r"[-+]?[0-9]+\Z")
_OCTAL = re.compile(r"0o[0-7]+\Z")
_HEX = re.compile(r"0x[0-9a-fA-F]+\Z")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?\Z")
_NOT_FINITE = re.compile(r"[-+]?\.(?:inf|Inf|INF)\Z|\.(?:nan|NaN|NAN)\Z")

_WORDS: dict[str, bool | None] = {
    **dict.fromkeys(("null", "Null", "NULL", "~", ""), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}

Scalar = str | int | float | bool | None


class BadScalar(ValueError):
    """A number that is too long or not finite, or text that its tag does not allow."""

    def __init__(self, message: str, code: str = "GR010") -> None:
        super().__init__(message)
        self.code = code


def resolve(text: str) -> Scalar:
    """The value of an untagged plain scalar; raises BadScalar."""
    if text in _WORDS:
        return _WORDS[text]
    # Everything else that is not text starts with one of these.
    return _number(text) if text[0] in "+-.0123456789" else text


def resolve_tagged(text: str, tag: str) -> Scalar:
    """The value of a scalar with a core tag (`str`, `int`, `float`, `bool`, `null`)."""
    if tag == "str":
        return text
    value = resolve(text)
    if tag == "float" and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    wanted = {"int": int, "float": float, "bool": bool, "null": type(None)}[tag]
    if type(value) is not wanted:
        raise BadScalar(f"{shortened(text)!r} is not a !!{tag}", "GR009")
    return value


def _number(text: str) -> Scalar:
    if _NOT_FINITE.match(text):
        raise BadScalar(f"{text!r} is not a finite number")
    looks_numeric = _FLOAT.match(text) or _OCTAL.match(text) or _HEX.match(text)
    if not looks_numeric:
        return text
    if len(text) > MAX_NUMBER:
        raise BadScalar(f"a number of {len(text)} characters; at most {MAX_NUMBER} are read")
    if _INT.match(text):
        return int(text)
    if text[:2] in ("0o", "0x"):
        return int(text, 0)
    value = float(text)
    if not math.isfinite(value):
        raise BadScalar(f"{text!r} is too large for a number")
    return value


def shortened(text: str, limit: int = 60) -> str:
    """`text`, cut where it is too long to show."""
    return text if len(text) <= limit else text[: limit - 1] + "…"
