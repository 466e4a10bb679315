"""Attack success rates with their intervals."""

from __future__ import annotations

from typing import Any

from glitchrun.events import Sampled
from glitchrun.ledger.record import RunRecord
from glitchrun.report.figures.style import Drawing, label, new_figure, style
from glitchrun.report.formatting import counted, percent
from glitchrun.report.palette import LIGHT
from glitchrun.report.totals import samples, thresholds

LABELLED = 30
"""Tokens up to which the figure names each one."""


def draw(record: RunRecord) -> Drawing | None:
    """Each token's ASR and interval: named while they are few, as a band when they are many."""
    found = sorted(samples(record), key=lambda fact: (fact.asr, fact.token.id))
    if not found:
        return None
    level = thresholds(record).asr
    few = len(found) <= LABELLED
    with style():
        drawn = new_figure((5.6, max(1.8, 0.9 + 0.2 * len(found)) if few else 3.5))
        axes = drawn.subplots()
        (_named if few else _band)(axes, found, level)
    return Drawing("asr", "Attack success rate", _caption(found, level), drawn)


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
    axes.set_xlabel("tokens, by rising ASR")
    axes.set_ylabel("failed attempts (%)")
    axes.legend(loc="best")


def _caption(found: list[Sampled], level: float) -> str:
    confirmed = sum(fact.confirmed for fact in found)
    sure = sum(fact.asr_low >= level for fact in found)
    return (
        f"Failed attempts of {counted(len(found), 'sampled token')} with Wilson's 95 % interval. "
        f"{confirmed:,} reach {percent(level)} (dashed), which confirms them; for {sure:,} the "
        "whole interval does."
    )
