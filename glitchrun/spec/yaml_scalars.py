r"""Values of YAML scalars, and the characters that libyaml misreads.

Plain scalars follow the core schema of YAML 1.2 (section 10.3.2): `no`, `12:30` and dates are text,
`017` is 17, and `1e-5` is a number.

libyaml rejects surrogate pairs as JSON writes them (`"\ud83d\ude00"` for one character beyond
U+FFFF), which YAML 1.2 allows. They are escapes only inside a double-quoted value, and where those
are is unknown until libyaml has parsed the text. So each of a pair's twelve characters is replaced
by a private-use character, which keeps every position; after parsing the twelve become the
character, or the text as written.
"""

from __future__ import annotations

import math
import re

from glitchrun.terminal import shortened

MAX_NUMBER = 64
"""Largest number of characters of a number."""

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
    """A number that is too long or not finite, or a text that its tag does not allow."""

    def __init__(self, message: str, code: str = "GR010") -> None:
        super().__init__(message)
        self.code = code


def resolve(text: str) -> Scalar:
    """The value of a plain scalar without a tag.

    Raises:
        BadScalar: a number is too long or not finite.
    """
    if text in _WORDS:
        return _WORDS[text]
    # Every number starts with one of these.
    return _number(text) if text[0] in "+-.0123456789" else text


def resolve_tagged(text: str, tag: str) -> Scalar:
    """The value of a scalar with a core tag (`str`, `int`, `float`, `bool`, `null`).

    Raises:
        BadScalar: a number is too long or not finite, or the text does not fit the tag.
    """
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
        raise BadScalar(f"a number has {len(text)} characters; at most {MAX_NUMBER} are allowed")
    if _INT.match(text):
        return int(text)
    if text[:2] in ("0o", "0x"):
        return int(text, 0)
    value = float(text)
    if not math.isfinite(value):
        raise BadScalar(f"{text!r} is too large for a floating-point number")
    return value


def is_utf8(text: str) -> bool:
    """Whether text from the command line or the environment consists of characters only, not of
    other bytes, which Python represents by lone surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


_FIRST_PRIVATE = 0xF1000
_TO_PRIVATE = {ord(c): chr(_FIRST_PRIVATE + ord(c)) for c in "\\u0123456789abcdefABCDEF"}
FROM_PRIVATE = {ord(private): chr(code) for code, private in _TO_PRIVATE.items()}
"""For `str.translate`: private-use characters back to the characters as written."""

# Matches one escape at a time, so that an escaped backslash before `ud83d` is not taken for a pair.
_ESCAPE = re.compile(
    r"\\(?:(u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})|.)", re.DOTALL
)
_PRIVATE = re.compile(f"[{chr(_FIRST_PRIVATE)}-{chr(_FIRST_PRIVATE + 0x7F)}]")
_PAIR = re.compile(f"[{''.join(_TO_PRIVATE.values())}]{{12}}")


def hide_pairs(text: str) -> str:
    """`text` with private-use characters for every surrogate pair.

    A text that contains these private-use characters itself is returned unchanged.
    """
    if r"\u" not in text or _PRIVATE.search(text):
        return text
    return _ESCAPE.sub(
        lambda found: found[0].translate(_TO_PRIVATE) if found[1] else found[0], text
    )


def decode_pairs(value: str) -> str:
    """A double-quoted value with the one character that each hidden surrogate pair encodes."""
    return _PAIR.sub(lambda found: _character(found[0].translate(FROM_PRIVATE)), value)


def _character(escapes: str) -> str:
    r"""The character of `\ud83d\ude00`."""
    high, low = int(escapes[2:6], 16), int(escapes[8:], 16)
    return chr(0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00))
