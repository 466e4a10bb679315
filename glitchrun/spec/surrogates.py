r"""Surrogate pairs as JSON writes them: `"\ud83d\ude00"` for one character beyond U+FFFF.

YAML 1.2 takes JSON as it is, and libyaml refuses these. Only in a double-quoted value are they
escapes, which is not known before libyaml has read the text. So each of a pair's twelve characters
is swapped for a private-use one, which leaves every position as it was; afterwards the twelve are
the character that they stand for, or the text that was written.
"""

from __future__ import annotations

import re

_FIRST = 0xF1000
_SWAPPED = {ord(c): chr(_FIRST + ord(c)) for c in "\\u0123456789abcdefABCDEF"}
WRITTEN = {ord(private): chr(code) for code, private in _SWAPPED.items()}
"""From a private-use character's code point to the character that was written."""

# One escape at a time, so that the pair in `\\ud83d` with a backslash before it is none.
_ESCAPE = re.compile(
    r"\\(?:(u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})|.)", re.DOTALL
)
_PRIVATE = re.compile(f"[{chr(_FIRST)}-{chr(_FIRST + 0x7F)}]")
_PAIR = re.compile(f"[{''.join(_SWAPPED.values())}]{{12}}")


def swap_pairs(text: str) -> str:
    """`text` with every surrogate pair swapped; unchanged where it has the private-use characters
    itself."""
    if r"\u" not in text or _PRIVATE.search(text):
        return text
    return _ESCAPE.sub(lambda found: found[0].translate(_SWAPPED) if found[1] else found[0], text)


def joined_pairs(value: str) -> str:
    """A double-quoted value with every swapped pair as its character."""
    return _PAIR.sub(lambda found: _character(found[0].translate(WRITTEN)), value)


def _character(escapes: str) -> str:
    r"""The character of `\ud83d\ude00`."""
    high, low = int(escapes[2:6], 16), int(escapes[8:], 16)
    return chr(0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00))
