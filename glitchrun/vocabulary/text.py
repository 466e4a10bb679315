"""Token text: the bytes of a vocabulary entry, a visible form for people, and comparison of texts.

Needs the standard library only, so that the report can use it.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache

from glitchrun.events import Token

# ASCII and Latin letters; the letters of byte-level BPE are among them.
_PLAIN = re.compile("[ -~\xa1-\xac\xae-\u024f]*")
_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs"})
# Letters, marks and symbols without ink: Hangul fillers, Khmer vowels, blank Braille, joiner.
_BLANK = frozenset("\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0\u034f")
_SELECTORS = range(0xFE00, 0xFE10)
# The characters of this notation, which are escaped so that different texts stay different.
_NOTATION = frozenset({"⟨", "␣"} | {chr(0x2400 + code) for code in (*range(0x20), 0x21)})


def raw_bytes(piece: str) -> bytes | None:
    """The bytes of a vocabulary entry that is not text by itself; None for any other entry.

    Such an entry is one byte in SentencePiece's spelling (`<0x0A>`), or a part of a character in
    the letters of byte-level BPE.
    """
    single = _BYTE_PIECE.fullmatch(piece)
    if single:
        return bytes([int(single[1], 16)])
    letters = _byte_letters()
    if not piece or any(letter not in letters for letter in piece):
        return None
    data = bytes(letters[letter] for letter in piece)
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return data
    return None


@cache
def _byte_letters() -> dict[str, int]:
    """Each byte by its letter in byte-level BPE (Radford et al. 2019, GPT-2).

    Printable Latin-1 bytes are their own letters; the others follow in order from U+0100.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    letters = {chr(byte): byte for byte in printable}
    return letters | {chr(0x100 + rank): byte for rank, byte in enumerate(others)}


def visible(text: str) -> str:
    """`text` with invisible and misleading characters written out.

    Spaces become `␣` and C0 controls their pictures (`␊`). Everything else that is invisible or
    changes the direction, and combining marks without a base, become code points (`⟨U+202E⟩`). So
    do the characters of this notation, so that different texts stay different.
    """
    if _PLAIN.fullmatch(text):  # nearly all, and ten times as fast
        return text.replace(" ", "␣")
    before = [" ", *text[:-1]] if text else []
    return "".join(map(_visible_character, before, text))


def visible_token(token: Token) -> str:
    """A token's text made visible, or the bytes of a part of a character (`⟨E6 97⟩`).

    Decoded, all such parts are U+FFFD.
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
    """Whether it is a combining mark that would combine with the text before the token."""
    return unicodedata.category(character) in ("Mn", "Me") and (before == " " or _is_hidden(before))


def emitted_kind(expected: str | bytes, emitted: str | bytes, closing: str = "") -> str:
    """The kind of a wrong answer: a value of `events.Verified.emitted`.

    `case_space`: the expected text apart from case or white space. `prefix`: a piece with which the
    expected text begins, apart from case and leading white space. `whitespace`: only white space.
    `other`: everything else, also an empty text.

    Args:
        expected: The token's text; its bytes if it may be a part of a character, because all such
            parts decode to the same text.
        emitted: The text or the bytes of the emitted token.
        closing: The text after the token in the right answer, such as a quotation mark. A piece of
            the right text may extend into it.
    """
    wanted, got = _decoded(expected), _decoded(emitted)
    if got and (wanted == got or (bare(got) and bare(wanted) == bare(got))):
        return "case_space"
    if _begins(wanted, closing, got):
        return "prefix"
    return "whitespace" if got and not bare(got) else "other"


def _decoded(text: str | bytes) -> str:
    """Decode bytes so that every byte outside of a character stays distinct."""
    raw = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    return raw.decode("utf-8", "surrogateescape")


def bare(text: str) -> str:
    """`text` without white space, case and the encoding of accents."""
    return _folded("".join(text.split()))


def _folded(text: str) -> str:
    """Fold case and the encoding of accents (Unicode D145)."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())


def _begins(wanted: str, closing: str, piece: str) -> bool:
    # A piece may be the first byte of leading white space that has several bytes.
    if piece.strip() and _encoded(wanted).startswith(_encoded(piece)):
        return True
    # The pieces of a text of only white space are white space too.
    if wanted.strip():
        wanted, piece = wanted.lstrip(), piece.lstrip()
    whole = wanted + closing
    return bool(piece) and (
        _folded(whole).startswith(_folded(piece)) or _encoded(whole).startswith(_encoded(piece))
    )


def _encoded(text: str) -> bytes:
    """The bytes of a decoded text, because the first byte of a character is a piece of it."""
    return text.encode("utf-8", "surrogateescape")
