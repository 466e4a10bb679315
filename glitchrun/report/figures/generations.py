"""The evolution of a genetic step: fitness by generation, and the ancestry of its winner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

from glitchrun.ledger.record import StepRecord
from glitchrun.report.figures.style import LIGHT, Drawing, label, new_figure, style
from glitchrun.report.formatting import counted, fitness

Rows = list[Mapping[str, Any]]
"""Rows of one of the step's tables, by column."""
_CURVES = ("glitch", "accent", "good", "confirmed")
_SHOWN = 16
"""Sequences shown, the youngest first."""
_ORIGINS = {
    "single": "muted",
    "seeded": "muted",
    "random": "muted",
    "injected": "open",
    "mutation": "glitch",
    "crossover": "accent",
    "both": "good",
}


def rows_of(step: StepRecord, table: str) -> Rows:
    """The rows of one of the step's tables, so far."""
    return [
        entry.cells
        for timed in step.batches
        for entry in timed.batch.entries
        if entry.table == table
    ]


def evolved(steps: Sequence[StepRecord], table: str) -> list[tuple[StepRecord, Rows]]:
    """The steps with rows in `table`, with those rows."""
    return [(step, rows) for step in steps if (rows := rows_of(step, table))]


def draw_fitness(steps: Sequence[StepRecord]) -> Drawing | None:
    """Best and mean fitness of each step, and below them its diversity."""
    curves = [(step.id, rows) for step, rows in evolved(steps, "generations")]
    if not curves:
        return None
    with style():
        drawn = new_figure((5.6, 4.2))
        above, below = drawn.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        for (name, rows), colour in zip(curves, cycle(_CURVES), strict=False):
            curve(above, below, rows, LIGHT[colour], f"{name} " if len(curves) > 1 else "")
    ends = "; ".join(_end(name, rows) for name, rows in curves)
    caption = (
        f"Fitness of the best sequence so far, and mean of each population. {ends}. Diversity is "
        "the probability that two tokens of the population differ; near 0 all sequences are alike."
    )
    return Drawing("fitness", "Fitness by generation", caption, drawn)


def curve(above: Any, below: Any, rows: Rows, colour: str, name: str = "") -> None:
    """Draws one search on two axes with a common abscissa: fitness above, diversity below."""
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


def draw_ancestry(steps: Sequence[StepRecord]) -> Drawing | None:
    """One line for each sequence, the winner on top, each connected to its parents."""
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
    origins = "; ".join(_origin(name, rows) for name, rows in lines)
    caption = f"The best sequence is on top; lines connect a sequence to its parents. {origins}."
    return Drawing("ancestry", "Ancestry of the winner", caption, drawn)


def _tree(axes: Any, rows: Rows) -> None:
    places = {row["ids"]: place for place, row in enumerate(rows)}
    for row in rows:
        for parent in (p for p in row["parents"] if p in places):
            ends = (row["generation"], rows[places[parent]]["generation"])
            heights = (places[row["ids"]], places[parent])
            axes.plot(ends, heights, color=LIGHT["muted"], lw=0.9, zorder=1)
    for how, colour in _ORIGINS.items():
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
    """One legend for all panels, in the order of the colours."""
    named = {line.get_label(): line for axes in panels for line in axes.lines}
    present = [how for how in _ORIGINS if how in named]
    handles = [named[how] for how in present]
    drawn.legend(handles, present, loc="outside lower right", ncols=4, columnspacing=1.2)


def _origin(name: str, rows: Rows) -> str:
    parents = counted(len(rows) - 1, "ancestor")
    shown = f", of which the {_SHOWN - 1} youngest are drawn" if len(rows) > _SHOWN else ""
    return f"{name}: appeared in generation {rows[0]['generation']} and has {parents}{shown}"
