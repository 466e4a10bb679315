"""Vocabulary entries that are raw bytes rather than text."""

from __future__ import annotations

import re
from functools import cache

_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def raw_bytes(piece: str) -> bytes | None:
    """The bytes of a piece that is no text by itself; None for any other.

    Either one byte as SentencePiece writes it (`<0x0A>`), or a run of bytes, in the letters that
    byte-level BPE writes bytes with, that is not valid UTF-8: a part of a character.
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
    """Byte-level BPE's letter for each byte: itself where that is printable Latin-1, and the others
    in order from U+0100 (Radford et al. 2019, GPT-2)."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    letters = {chr(byte): byte for byte in printable}
    return letters | {chr(0x100 + rank): byte for rank, byte in enumerate(others)}
