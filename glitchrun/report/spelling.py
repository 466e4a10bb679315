"""Visible token text in characters that every font has."""

from __future__ import annotations

from glitchrun.events import Token
from glitchrun.vocabulary.text import visible, visible_token

# fmt: off
_C0 = (
    "NUL", "SOH", "STX", "ETX", "EOT", "ENQ", "ACK", "BEL", "BS", "TAB", "LF", "VT", "FF", "CR",
    "SO", "SI", "DLE", "DC1", "DC2", "DC3", "DC4", "NAK", "SYN", "ETB", "CAN", "EM", "SUB", "ESC",
    "FS", "GS", "RS", "US", "SP", "DEL",
)
# fmt: on
_SPELLED = {0x2400 + place: f"⟨{name}⟩" for place, name in enumerate(_C0)}


def spelled(text: str) -> str:
    """As `visible`, but control characters by name, `⟨LF⟩` for `␊`: few fonts have pictures."""
    return visible(text).translate(_SPELLED)


def spelled_token(token: Token) -> str:
    """As `visible_token`, with control characters by name."""
    return visible_token(token).translate(_SPELLED)
