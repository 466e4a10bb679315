"""How badly tokens fail: probabilities and answers of failures, attack success rates."""

from __future__ import annotations

from typing import Any

from glitchrun.events import SEVERE, Sampled
from glitchrun.ledger.record import RunRecord
from glitchrun.report.figures.style import LIGHT, Drawing, label, new_figure, style
from glitchrun.report.formatting import counted, percent, share
from glitchrun.report.severity_tables import band_label
from glitchrun.report.totals import EMITTED, Band, bands, samples, thresholds

_LOOKS = {
    "other": ("glitch", "////"),
    "whitespace": ("muted", "...."),
    "case_space": ("accent", "\\\\\\\\"),
    "prefix": ("passed", ""),
    "unknown": ("line", ""),
}
LABELLED = 30
"""Largest number of tokens at which the figure names each one."""


def draw_severity(record: RunRecord) -> Drawing | None:
    """A bar for each decade of probability, the most severe on top, divided by kind of answer."""
    found = bands(record)
    if not found:
        return None
    with style():
        drawn = new_figure()
        _severity_bars(drawn, found)
    return Drawing("severity", "Kind of answer by probability", _severity_caption(found), drawn)


def _severity_bars(drawn: Any, found: list[Band]) -> None:
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
    axes.set_xlabel("share of the failed tokens in the band (%); their number on the right")
    drawn.legend(loc="outside lower left", ncols=2)


def _severity_caption(found: list[Band]) -> str:
    failed = sum(band.failed for band in found)
    severe = sum(band.failed for band in found if band.severe)
    pieces = sum(band.emitted.get("prefix", 0) for band in found)
    severe_pieces = sum(band.emitted.get("prefix", 0) for band in found if band.severe)
    return (
        f"{counted(failed, 'token')} failed every probe, {severe:,} of them with a probability "
        f"below {SEVERE:g}. The model answered with a shorter piece of the right text for "
        f"{share(pieces, failed)} of them, and {share(severe_pieces, severe)} of the severe ones."
    )


def draw_asr(record: RunRecord) -> Drawing | None:
    """The ASR and interval of each token: with names if they are few, else as a band."""
    found = sorted(samples(record), key=lambda fact: (fact.asr, fact.token.id))
    if not found:
        return None
    level = thresholds(record).asr
    few = len(found) <= LABELLED
    with style():
        drawn = new_figure((5.6, max(1.8, 0.9 + 0.2 * len(found)) if few else 3.5))
        axes = drawn.subplots()
        (_named if few else _band)(axes, found, level)
    return Drawing("asr", "Attack success rate", _asr_caption(found, level), drawn)


def _named(axes: Any, found: list[Sampled], level: float) -> None:
    for place, fact in enumerate(found):
        colour = LIGHT["confirmed" if fact.confirmed else "passed"]
        axes.plot((100 * fact.asr_low, 100 * fact.asr_high), (place, place), color=colour, lw=1.4)
        fill = colour if fact.confirmed else LIGHT["surface"]
        axes.plot(100 * fact.asr, place, "o", ms=5, mec=colour, mfc=fill)
    axes.axvline(100 * level, color=LIGHT["ink"], lw=1, ls="--")
    axes.set_yticks(range(len(found)), [f"{label(f.token.text)} · {f.token.id}" for f in found])
    axes.set_ylim(-0.6, len(found) - 0.4)
    axes.set_xlim(-3, 103)
    axes.set_xlabel("failed attempts (%)")


def _band(axes: Any, found: list[Sampled], level: float) -> None:
    places = range(1, len(found) + 1)
    rates = [100 * fact.asr for fact in found]
    low, high = [100 * fact.asr_low for fact in found], [100 * fact.asr_high for fact in found]
    band = {"color": LIGHT["passed"], "alpha": 0.25, "lw": 0, "step": "mid"}
    axes.fill_between(places, low, high, label="95 % interval", **band)
    axes.step(places, rates, where="mid", color=LIGHT["confirmed"], lw=1.6, label="ASR")
    axes.axhline(100 * level, color=LIGHT["ink"], lw=1, ls="--", label="thresholds.asr")
    axes.set_xlim(1, len(found))
    axes.set_ylim(-3, 103)
    axes.set_xlabel("tokens, by ascending ASR")
    axes.set_ylabel("failed attempts (%)")
    axes.legend(loc="best")


def _asr_caption(found: list[Sampled], level: float) -> str:
    confirmed = sum(fact.confirmed for fact in found)
    sure = sum(fact.asr_low >= level for fact in found)
    return (
        f"Failed attempts of {counted(len(found), 'sampled token')} with Wilson's 95 % interval. "
        f"{confirmed:,} reach {percent(level)} (dashed) and count as confirmed; for {sure:,} "
        "of them even the lower bound does."
    )
