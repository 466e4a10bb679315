"""Numbers as people read them, each with its unit."""

from __future__ import annotations

import math
from datetime import UTC, datetime

MISSING = "–"


def count(value: float | None) -> str:
    """`49,152`; a dash for None."""
    return MISSING if value is None else f"{value:,.0f}"


def counted(value: int, one: str, many: str | None = None) -> str:
    """`1 token`, `2 tokens`."""
    return f"{value:,} {one if value == 1 else many or one + 's'}"


def figure(value: float | None, digits: int = 3) -> str:
    """A number to so many significant digits, whole numbers in full."""
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


def share(part: float, whole: float) -> str:
    """`2.5 %`; a dash of nothing."""
    return MISSING if not whole else percent(part / whole)


def percent(value: float) -> str:
    """`2.5 %` for 0.025: three digits, never 0 % or 100 % for what only rounds to it. A difference
    may be negative: `-2.5 %`."""
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
    """`2.5 %`, and `6.91e-06` below 0.01 %: how small it is matters."""
    return figure(value) if 0 < value < 1e-4 else percent(value)


def fitness(value: float, digits: int = 4) -> str:
    """A share of what could be gained: `0.9731`, and near 1 three digits of what it lacks,
    `0.999999612`, where all would read 1."""
    if not 0.999 < value < 1:
        return figure(value, digits)
    return f"{value:.{2 - math.floor(math.log10(1 - value))}f}"


def size(value: float | None) -> str:
    """Bytes in decimal units: `273 MB`."""
    if value is None:
        return MISSING
    for unit in ("B", "kB", "MB", "GB"):
        if abs(value) < 999.5:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"


def duration(seconds: float | None) -> str:
    """`4.2 s`, `3 min 05 s`, `2 h 10 min`."""
    if seconds is None:
        return MISSING
    if seconds < 99.95:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes:02d} min"


def moment(milliseconds: int | None) -> str:
    """`2026-03-01 09:30:00 UTC`."""
    if milliseconds is None:
        return MISSING
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
