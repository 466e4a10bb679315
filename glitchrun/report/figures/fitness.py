"""Fitness and diversity, generation by generation."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from typing import Any

from glitchrun.ledger.record import StepRecord
from glitchrun.report.figures.evolved import Rows, evolved
from glitchrun.report.figures.style import Drawing, new_figure, style
from glitchrun.report.formatting import counted, fitness
from glitchrun.report.palette import LIGHT

_COLOURS = ("glitch", "accent", "good", "confirmed")


def draw(steps: Sequence[StepRecord]) -> Drawing | None:
    """For each genetic step its best and mean fitness, and below them its diversity."""
    curves = [(step.id, rows) for step, rows in evolved(steps, "generations")]
    if not curves:
        return None
    with style():
        drawn = new_figure((5.6, 4.2))
        above, below = drawn.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        for (name, rows), colour in zip(curves, cycle(_COLOURS), strict=False):
            curve(above, below, rows, LIGHT[colour], f"{name} " if len(curves) > 1 else "")
    ends = "; ".join(_end(name, rows) for name, rows in curves)
    caption = (
        f"The best sequence so far and the mean of each population. {ends}. Diversity is how often "
        "two tokens of the population differ: near 0 all sequences are alike."
    )
    return Drawing("fitness", "Fitness by generation", caption, drawn)


def curve(above: Any, below: Any, rows: Rows, colour: str, name: str = "") -> None:
    """One search on two axes with a common abscissa: fitness, and diversity."""
    numbers = [row["generation"] for row in rows]
    columns = {key: [row[key] for row in rows] for key in ("best", "mean", "diversity")}
    marker = "o" if len(rows) == 1 else None
    above.plot(numbers, columns["best"], color=colour, lw=1.9, marker=marker, label=f"{name}best")
    above.plot(
        numbers, columns["mean"], color=colour, lw=1.2, ls="--", marker=marker, label=f"{name}mean"
    )
    fresh = [(row["generation"], row["best"]) for row in rows if row["injected"]]
    if fresh:
        look = {"marker": "^", "ls": "", "ms": 5, "color": colour}
        above.plot(*zip(*fresh, strict=True), label=f"{name}fresh sequences", **look)
    below.plot(numbers, columns["diversity"], color=colour, lw=1.2, marker=marker)
    above.set_ylabel("fitness")
    above.legend(loc="best")
    below.set_ylabel("diversity")
    below.set_ylim(-0.03, 1.03)
    below.set_xlabel("generation")
    below.xaxis.get_major_locator().set_params(integer=True)


def _end(name: str, rows: Rows) -> str:
    first, last = rows[0]["best"], rows[-1]["best"]
    bred = counted(rows[-1]["generation"], "generation")
    return f"{name}: from {fitness(first, 3)} to {fitness(last, 3)} in {bred}"
