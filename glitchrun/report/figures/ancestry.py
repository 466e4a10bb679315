"""What the best sequence was bred from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from glitchrun.ledger.record import StepRecord
from glitchrun.report.figures.evolved import Rows, evolved
from glitchrun.report.figures.style import Drawing, label, new_figure, style
from glitchrun.report.formatting import counted, fitness
from glitchrun.report.palette import LIGHT

_SHOWN = 16
"""Ancestors that have a line of their own, the youngest first."""
_COLOURS = {
    "single": "muted",
    "seeded": "muted",
    "random": "muted",
    "injected": "open",
    "mutation": "glitch",
    "crossover": "accent",
    "both": "good",
}


def draw(steps: Sequence[StepRecord]) -> Drawing | None:
    """One line a sequence, the winner on top, each joined to its parents."""
    lines = [(step.id, rows) for step, rows in evolved(steps, "ancestry")]
    if not lines:
        return None
    heights = [min(len(rows), _SHOWN) + 1 for _, rows in lines]
    with style():
        drawn = new_figure((5.6, max(1.8, 0.2 + 0.7 * len(lines) + 0.24 * sum(heights))))
        panels = drawn.subplots(len(lines), 1, squeeze=False, height_ratios=heights)
        for axes, (name, rows) in zip(panels[:, 0], lines, strict=True):
            _tree(axes, rows[:_SHOWN])
            axes.set_title(name if len(lines) > 1 else "")
        _legend(drawn, panels[:, 0])
    told = "; ".join(_told(name, rows) for name, rows in lines)
    caption = f"The best sequence on top, each one joined to what it was bred from. {told}."
    return Drawing("ancestry", "Ancestry of the winner", caption, drawn)


def _tree(axes: Any, rows: Rows) -> None:
    places = {row["ids"]: place for place, row in enumerate(rows)}
    for row in rows:
        for parent in (p for p in row["parents"] if p in places):
            ends = (row["generation"], rows[places[parent]]["generation"])
            heights = (places[row["ids"]], places[parent])
            axes.plot(ends, heights, color=LIGHT["muted"], lw=0.9, zorder=1)
    for how, colour in _COLOURS.items():
        found = [(row["generation"], places[row["ids"]]) for row in rows if row["how"] == how]
        if found:
            axes.plot(*zip(*found, strict=True), "o", ms=6, color=LIGHT[colour], label=how)
    axes.set_yticks(
        range(len(rows)),
        [f"{label(row['text'], 30)} · {fitness(row['fitness'], 3)}" for row in rows],
    )
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel("generation")
    axes.margins(x=0.08)
    axes.xaxis.get_major_locator().set_params(integer=True)


def _legend(drawn: Any, panels: Any) -> None:
    """One for all panels, in the order of the colours."""
    named = {line.get_label(): line for axes in panels for line in axes.lines}
    present = [how for how in _COLOURS if how in named]
    handles = [named[how] for how in present]
    drawn.legend(handles, present, loc="outside lower right", ncols=4, columnspacing=1.2)


def _told(name: str, rows: Rows) -> str:
    parents = counted(len(rows) - 1, "ancestor")
    shown = f", of which the {_SHOWN - 1} youngest are drawn" if len(rows) > _SHOWN else ""
    return f"{name}: came up in generation {rows[0]['generation']} and has {parents}{shown}"
