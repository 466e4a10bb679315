"""Token text for people: made visible, and compared with what a model said instead.

Needs the standard library only, so that the report can use it.
"""

from __future__ import annotations

import unicodedata

from glitchrun.events import Token
from glitchrun.vocabulary.byte_pieces import raw_bytes

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


def visible_token(token: Token) -> str:
    """A token's text made visible; the bytes of a part of a character (`⟨E6 97⟩`).

    Decoded, all of those are U+FFFD and look alike.
    """
    part = raw_bytes(token.piece) if token.category == "byte" and "\ufffd" in token.text else None
    return f"⟨{part.hex(' ').upper()}⟩" if part else visible(token.text)


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


def emitted_kind(expected: str | bytes, emitted: str | bytes, closing: str = "") -> str:
    """What a model said instead of `expected`, in the words of `events.Verified.emitted`.

    `case_space`: the same text but for case or white space. `prefix`: a piece that the right text
    begins with, case and white space in front aside. `whitespace`: nothing but white space.
    `other`: the rest, nothing at all too.

    Args:
        expected: The token's text, or its bytes where it may be a part of a character: decoded, all
            of these would look alike.
        emitted: The text or the bytes of what came.
        closing: What follows the token in the right answer, such as a quotation mark: a token that
            holds it as well is still a piece of the right text.
    """
    wanted, got = _decoded(expected), _decoded(emitted)
    if got and (wanted == got or (_bare(got) and _bare(wanted) == _bare(got))):
        return "case_space"
    if _begins(wanted, closing, got):
        return "prefix"
    return "whitespace" if got and not _bare(got) else "other"


def _decoded(text: str | bytes) -> str:
    """Text in which every byte that belongs to no character stays one of its own."""
    raw = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    return raw.decode("utf-8", "surrogateescape")


def _bare(text: str) -> str:
    return _folded("".join(text.split()))


def _folded(text: str) -> str:
    """Texts that differ in case, or in how accents are encoded, fold to the same (Unicode D145)."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())


def _begins(wanted: str, closing: str, piece: str) -> bool:
    # A piece may be the first byte of white space in front that takes several.
    if piece.strip() and _encoded(wanted).startswith(_encoded(piece)):
        return True
    # Where the text is nothing but white space, its pieces are white space too.
    if wanted.strip():
        wanted, piece = wanted.lstrip(), piece.lstrip()
    whole = wanted + closing
    return bool(piece) and (
        _folded(whole).startswith(_folded(piece)) or _encoded(whole).startswith(_encoded(piece))
    )


def _encoded(text: str) -> bytes:
    """The bytes again: the first byte of a character is a piece of it."""
    return text.encode("utf-8", "surrogateescape")
