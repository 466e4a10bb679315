"""Format values for people: numbers with units, token text, and Markdown without stray markup."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from glitchrun.events import Token
from glitchrun.vocabulary.text import visible, visible_token

MISSING = "–"
"""Printed for a value that does not exist."""

# fmt: off
_C0 = (
    "NUL", "SOH", "STX", "ETX", "EOT", "ENQ", "ACK", "BEL", "BS", "TAB", "LF", "VT", "FF", "CR",
    "SO", "SI", "DLE", "DC1", "DC2", "DC3", "DC4", "NAK", "SYN", "ETB", "CAN", "EM", "SUB", "ESC",
    "FS", "GS", "RS", "US", "SP", "DEL",
)
# fmt: on
_NAMES = {chr(0x2400 + place): f"⟨{name}⟩" for place, name in enumerate(_C0)}
_PICTURES = re.compile(f"[{''.join(_NAMES)}]")


_BYTES = (("B", 1.0), ("kB", 1e3), ("MB", 1e6), ("GB", 1e9))


# Numbers


def count(value: float | None) -> str:
    """A whole number: `49,152`; a dash for None."""
    return MISSING if value is None else f"{value:,.0f}"


def counted(value: int, one: str, many: str | None = None) -> str:
    """A number with its noun: `1 token`, `2 tokens`."""
    return f"{value:,} {one if value == 1 else many or one + 's'}"


def figure(value: float | None, digits: int = 3) -> str:
    """A number to `digits` significant digits, whole numbers in full; a dash for None."""
    if value is None:
        return MISSING
    if not math.isfinite(value):
        return str(value)
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    if not 1e-4 <= abs(value) < 1e6:
        return f"{value:.{digits - 1}e}"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{decimals}f}"


def written(value: float) -> str:
    """A threshold or limit as the spec writes it: `0.5`, `1000`."""
    return f"{value:.10g}"


def share(part: float, whole: float) -> str:
    """`part / whole` in per cent: `2.5 %`; a dash if `whole` is 0."""
    return MISSING if not whole else percent(part / whole)


def percent(value: float) -> str:
    """A fraction in per cent, to three digits: `2.5 %` for 0.025, `-2.5 %` for -0.025.

    Values that only round to 0 or 100 % are written `< 0.01 %` and `> 99.9 %`.
    """
    if value < 0:
        text = percent(-value)
        bound = {"<": ">", ">": "<"}.get(text[0])
        return f"{bound} -{text[2:]}" if bound else f"-{text}"
    scaled = abs(100 * value)
    if scaled in (0, 100):
        return f"{scaled:.0f} %"
    if scaled < 0.01:
        return "< 0.01 %"
    if 99.95 <= scaled < 100:
        return "> 99.9 %"
    return f"{scaled:.2g} %" if scaled < 1 else f"{scaled:.3g} %"


def probability(value: float) -> str:
    """A probability in per cent, but `6.91e-06` below 0.01 %, where the magnitude matters."""
    return figure(value) if 0 < value < 1e-4 else percent(value)


def fitness(value: float, digits: int = 4) -> str:
    """The fitness of a sequence: `0.9731`, and near 1 enough digits to tell values apart:
    `0.999999612`."""
    if not 0.999 < value < 1:
        return figure(value, digits)
    return f"{value:.{2 - math.floor(math.log10(1 - value))}f}"


def size(value: float | None) -> str:
    """Bytes in decimal units: `273 MB`; a dash for None."""
    if value is None:
        return MISSING
    for unit in ("B", "kB", "MB", "GB"):
        if abs(value) < 999.5:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"


def duration(seconds: float | None) -> str:
    """Seconds as `4.2 s`, `3 min 05 s` or `2 h 10 min`; a dash for None."""
    if seconds is None:
        return MISSING
    if seconds < 99.95:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes:02d} min"


def age(seconds: float) -> str:
    """A time that has passed, in its largest unit: `40 s`, `12 min`, `3 h` or `5 d`."""
    for unit, size, most in (("s", 1, 60), ("min", 60, 60), ("h", 3600, 48)):
        if seconds < most * size:
            return f"{max(0, int(seconds // size))} {unit}"
    return f"{int(seconds // 86_400):,} d"


def points(value: float) -> str:
    """A difference of two shares in percentage points, with its sign: `+20.0`, `-0.5`."""
    text = f"{100 * value:+,.1f}"
    return "0.0" if float(text.replace(",", "")) == 0 else text


def in_one_unit(values: Sequence[float | None], unit: str = "") -> tuple[str, list[str]]:
    """Numbers for one column: a unit for all of them, and each number with as many decimals.

    Args:
        values: The numbers; None becomes a dash.
        unit: `share` (0.025 becomes `2.50` with the unit `%`), `bytes`, `s` (from 100 s on the
            numbers are `3 min 05 s`, without a unit), `probability`, or any other unit, which
            stays.
    """
    known = [abs(value) for value in values if value is not None and math.isfinite(value)]
    most = max(known, default=0.0)
    if unit == "s" and most >= 99.95:
        return "", [MISSING if value is None else _clock(value, most) for value in values]
    name, scale = _common_unit(unit, most)
    least = min((value for value in known if value), default=0.0) / scale
    if scale == 1 and all(value == int(value) for value in known):
        pattern = ",.0f"
    elif unit in ("share", "bytes", "s") or least >= 1e-3:
        # Three digits of the smallest number, but of the largest one more at most.
        decimals = max(0, min(2 - _magnitude(least), 3 - _magnitude(most / scale)))
        pattern = f",.{decimals}f"
    else:
        pattern = ".2e"
    return name, [
        MISSING
        if value is None
        else f"{value / scale:{pattern}}"
        if math.isfinite(value)
        else str(value)
        for value in values
    ]


def _clock(seconds: float, most: float) -> str:
    """Seconds in the unit of `most`: `0 min 04 s` or `2 h 10 min`."""
    if not math.isfinite(seconds):
        return str(seconds)
    minutes, rest = divmod(round(seconds), 60)
    if most < 3600:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60:,} h {minutes % 60:02d} min"


def _magnitude(value: float) -> int:
    return math.floor(math.log10(value)) if value else 0


def _common_unit(unit: str, most: float) -> tuple[str, float]:
    """The unit in which values up to `most` are written, and its size."""
    if unit == "share":
        return "%", 0.01
    if unit == "bytes":
        return next(((name, size) for name, size in _BYTES if most < 999.5 * size), ("TB", 1e12))
    return ("" if unit == "probability" else unit), 1.0


def moment(milliseconds: int | None) -> str:
    """Milliseconds since the epoch as `2026-03-01 09:30:00 UTC`; a dash for None."""
    if milliseconds is None:
        return MISSING
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


# Token text


def spelled(text: str) -> str:
    """`visible(text)` with control characters by name, `⟨LF⟩` for `␊`, which few fonts have."""
    return _named(visible(text))


def _named(text: str) -> str:
    return _PICTURES.sub(lambda picture: _NAMES[picture[0]], text)


def spelled_token(token: Token) -> str:
    """`visible_token(token)` with control characters by name."""
    return _named(visible_token(token))


def quoted(token: Token) -> str:
    """`spelled_token(token)` in guillemets, for a sentence."""
    return f"«{spelled_token(token)}»"


# Markdown


def grid(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[bool] = ()) -> str:
    """A Markdown table; the cells are Markdown already. `numbers` says which columns are aligned to
    the right."""
    rules = ["---:" if number else "---" for number in numbers] or ["---"] * len(head)
    lines = [head, rules, *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def code(text: str) -> str:
    """A code span that shows `text` unchanged, in a table too."""
    runs = re.findall(r"`+", text)
    fence = "`" * (1 + max(map(len, runs), default=0))
    padded = f" {text} " if runs else text
    return f"{fence}{padded}{fence}".replace("|", r"\|")


def fenced(text: str, language: str = "") -> str:
    """A block of code with a fence longer than any in `text`, which may contain one."""
    fence = "`" * max(3, *(len(ticks) + 1 for ticks in re.findall("`+", text) or [""]))
    return f"{fence}{language}\n{text}\n{fence}"


def prose(text: str) -> str:
    """A sentence with invisible characters spelled out and markup escaped."""
    return escaped(spelled(text).replace("␣", " "))


def escaped(text: str) -> str:
    """Text with Markdown's special characters escaped."""
    return re.sub(r"([\\`*_{}\[\]<>#|~&])", r"\\\1", text)
