"""Glitch tokens found against tokens verified, by the steps that search."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle
from typing import Any

from glitchrun.ledger.record import RunRecord, StepRecord
from glitchrun.report.figures.style import Drawing, new_figure, style
from glitchrun.report.numbers import share
from glitchrun.report.palette import LIGHT
from glitchrun.report.table import facts_by_token

_COLOURS = ("glitch", "accent", "good", "muted")
_DASHES = ("-", "--", ":", "-.")


def draw(record: RunRecord) -> Drawing | None:
    """One line for each `mine` step."""
    curves = [(step, curve) for step in record.steps if (curve := _curve(step))]
    if not curves:
        return None
    with style():
        drawn = new_figure()
        axes = drawn.subplots()
        _lines(axes, curves)
    ends = [f"{step.id}: {_end(curve)}" for step, curve in curves]
    caption = (
        "A steep line is a search that finds; a flat one has used up its neighbourhood. "
        f"At the end, {'; '.join(ends)}."
    )
    return Drawing("discovery", "Found against verified", caption, drawn)


def _curve(step: StepRecord) -> list[tuple[int, int]]:
    """Tokens verified and glitch tokens found so far, where the latter grows and at the end."""
    if step.strategy != "mine":
        return []
    verified = [fact for fact, _ in facts_by_token(step).values() if fact]
    return list(_corners([fact.glitch for fact in verified]))


def _corners(glitches: list[bool]) -> Iterator[tuple[int, int]]:
    if not glitches:
        return
    yield 0, 0
    found = 0
    for place, glitch in enumerate(glitches, start=1):
        found += glitch
        if glitch:
            yield place, found
    yield len(glitches), found


def _lines(axes: Any, curves: list[tuple[StepRecord, list[tuple[int, int]]]]) -> None:
    for (step, curve), colour, dashes in zip(curves, cycle(_COLOURS), cycle(_DASHES), strict=False):
        name = f"{step.id} ({step.params.get('search') or 'gradient'})"
        look = {"color": LIGHT[colour], "ls": dashes, "lw": 1.8, "label": name}
        axes.plot(*zip(*curve, strict=True), drawstyle="steps-post", **look)
    axes.set_xlabel("tokens verified")
    axes.set_ylabel("glitch tokens found")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(loc="upper left")


def _end(curve: list[tuple[int, int]]) -> str:
    verified, found = curve[-1]
    return f"{found:,} of {verified:,} ({share(found, verified)})"
