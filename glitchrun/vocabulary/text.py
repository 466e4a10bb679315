"""Token text for people: made visible, and compared with what a model said instead.

Needs the standard library only, so that the report can use it.
"""

from __future__ import annotations

import unicodedata

_INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs"})
# Letters, marks and symbols that draw nothing: Hangul fillers, Khmer vowels, blank Braille, joiner.
_BLANK = frozenset("\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0\u034f")
_SELECTORS = range(0xFE00, 0xFE10)
# What this notation itself is made of, so that different texts stay different.
_NOTATION = frozenset({"⟨", "␣"} | {chr(0x2400 + code) for code in (*range(0x20), 0x21)})


def visible(text: str) -> str:
    """`text` with everything a reader could not see, or be misled by, written out.

    Spaces become `␣`, C0 controls their pictures (`␊`), and whatever else is invisible, changes the
    direction, or is a combining mark with nothing to sit on, its code point (`⟨U+202E⟩`). Different
    texts stay different: the characters of this notation are written as code points themselves.
    """
    before = [" ", *text[:-1]] if text else []
    return "".join(map(_visible_character, before, text))


def _visible_character(before: str, character: str) -> str:
    code = ord(character)
    if character == " ":
        return "␣"
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "␡"
    if _is_hidden(character) or character in _NOTATION or _is_loose_mark(before, character):
        return f"⟨U+{code:04X}⟩"
    return character


def _is_hidden(character: str) -> bool:
    return (
        unicodedata.category(character) in _INVISIBLE
        or character in _BLANK
        or ord(character) in _SELECTORS
    )


def _is_loose_mark(before: str, character: str) -> bool:
    """A combining mark that would sit on whatever is printed in front of the token."""
    return unicodedata.category(character) in ("Mn", "Me") and (before == " " or _is_hidden(before))


def emitted_kind(expected: str, emitted: str) -> str:
    """What a model said instead of `expected`, in the words of `events.Verified.emitted`.

    `case_space`: the same text but for case or white space. `prefix`: a piece that `expected`
    begins with (white space in front left aside). `whitespace`: nothing but white space. `other`:
    the rest.
    """
    wanted, got = _bare(expected), _bare(emitted)
    if got and wanted == got:
        return "case_space"
    if _is_proper_prefix(expected, emitted):
        return "prefix"
    if emitted and not got:
        return "whitespace"
    return "other"


def _bare(text: str) -> str:
    return "".join(text.split()).casefold()


def _is_proper_prefix(text: str, piece: str) -> bool:
    # Where the text is nothing but white space, its pieces are white space too.
    if text.strip():
        text, piece = text.lstrip(), piece.lstrip()
    return 0 < len(piece) < len(text) and text.startswith(piece)
