"""What came in place of the tokens that failed, by how improbable they were."""

from __future__ import annotations

from typing import Any

from glitchrun.events import SEVERE
from glitchrun.ledger.record import RunRecord
from glitchrun.report.figures.style import Drawing, new_figure, style
from glitchrun.report.formatting import counted, share
from glitchrun.report.palette import LIGHT
from glitchrun.report.severity_tables import band_label
from glitchrun.report.totals import EMITTED, Band, bands

_LOOKS = {
    "other": ("glitch", "////"),
    "whitespace": ("muted", "...."),
    "case_space": ("accent", "\\\\\\\\"),
    "prefix": ("passed", ""),
    "unknown": ("line", ""),
}


def draw(record: RunRecord) -> Drawing | None:
    """One bar for each decade of probability, the most severe on top, in shares of the kinds."""
    found = bands(record)
    if not found:
        return None
    with style():
        drawn = new_figure()
        _bars(drawn, found)
    return Drawing("severity", "What was said instead, by probability", _caption(found), drawn)


def _bars(drawn: Any, found: list[Band]) -> None:
    axes = drawn.subplots()
    rows = range(len(found))
    left = [0.0] * len(found)
    for kind, (colour, hatch) in _LOOKS.items():
        widths = [100 * band.emitted.get(kind, 0) / max(1, band.failed) for band in found]
        if any(widths):
            look = {"color": LIGHT[colour], "hatch": hatch, "alpha": 0.85, "height": 0.72}
            axes.barh(rows, widths, left=left, label=EMITTED.get(kind, kind), **look)
            left = [start + width for start, width in zip(left, widths, strict=True)]
    for row, band in zip(rows, found, strict=True):
        axes.text(101.5, row, f"{band.failed:,}", va="center")
    severe = sum(band.severe for band in found)
    axes.axhline(severe - 0.5, color=LIGHT["ink"], lw=1, ls="--")
    axes.text(101.5, severe - 0.5, "severe ↑", va="center", fontsize=8)
    axes.set_yticks(rows, [band_label(band.low, band.high) for band in found])
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.grid(visible=False, axis="y")
    axes.set_ylabel("probability of the token")
    axes.set_xlabel("share of the tokens that failed there (%); their number at the right")
    drawn.legend(loc="outside upper left", ncols=2)


def _caption(found: list[Band]) -> str:
    failed = sum(band.failed for band in found)
    severe = sum(band.failed for band in found if band.severe)
    pieces = sum(band.emitted.get("prefix", 0) for band in found)
    severe_pieces = sum(band.emitted.get("prefix", 0) for band in found if band.severe)
    return (
        f"{counted(failed, 'token')} failed every probe, {severe:,} of them with a probability "
        f"below {SEVERE:g}. A shorter piece of the right text came in place of "
        f"{share(pieces, failed)} of all, and of {share(severe_pieces, severe)} of the latter."
    )
