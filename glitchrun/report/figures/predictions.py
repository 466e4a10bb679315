"""The most likely next tokens of each prompt, its formats side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from glitchrun.ledger.record import StepRecord
from glitchrun.report.figures.style import Drawing, label, new_figure, style
from glitchrun.report.formatting import counted
from glitchrun.report.palette import LIGHT

PROMPTS = 4
"""Prompts drawn; every one is in the table."""
TOKENS = 8
"""Bars of each."""

Cells = Mapping[str, Any]


def draw(steps: Sequence[StepRecord]) -> Drawing | None:
    """Bars of the likeliest tokens: a row for each prompt, a column for each format."""
    cases = _cases(steps)
    if not cases:
        return None
    prompts = list(dict.fromkeys(answer["prompt"] for answer, _ in cases))
    formats = list(dict.fromkeys(answer["format"] for answer, _ in cases))
    shown, hidden = prompts[:PROMPTS], len(prompts[PROMPTS:])
    with style():
        drawn = new_figure((2.9 * len(formats), 0.7 + 2.3 * len(shown)))
        grid = drawn.subplots(len(shown), len(formats), squeeze=False)
        for answer, top in cases:
            if answer["prompt"] in shown:
                row = grid[shown.index(answer["prompt"])]
                _bars(row[formats.index(answer["format"])], answer, top)
    return Drawing("predictions", "What the model would say next", _caption(cases, hidden), drawn)


def _cases(steps: Sequence[StepRecord]) -> list[tuple[Cells, list[Cells]]]:
    """Each prompt in each format, with its likeliest tokens."""
    found = []
    for step in steps:
        for timed in step.batches:
            rows = [(entry.table, entry.cells) for entry in timed.batch.entries]
            for table, cells in rows:
                if table == "predictions":
                    own = [c for name, c in rows if name == "top" and c["case"] == cells["case"]]
                    found.append((cells, own[:TOKENS]))
    return found


def _bars(axes: Any, answer: Cells, top: Sequence[Cells]) -> None:
    names = [label(cells["token"], 14) for cells in top]
    heights = [100 * cells["p"] for cells in top]
    colours = [LIGHT["glitch" if cells["expected"] else "passed"] for cells in top]
    hatches = ["////" if cells["expected"] else "" for cells in top]
    places = range(len(top))
    axes.barh(places, heights, color=colours, hatch=hatches)
    axes.set_yticks(places, names)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlim(0, max(1.0, *heights) * 1.05)
    axes.set_xlabel("probability (%)")
    axes.set_title(f"{label(answer['prompt'], 20)}\n{answer['format']}{_rank(answer)}")


def _rank(answer: Cells) -> str:
    return "" if answer["rank"] is None else f": expected at {answer['rank']:,}"


def _caption(cases: Sequence[tuple[Cells, list[Cells]]], hidden: int) -> str:
    means = (
        " The expected continuation's first token is hatched, its rank stands above."
        if any(answer["rank"] is not None for answer, _ in cases)
        else ""
    )
    rest = f" {counted(hidden, 'more prompt')} in the table." if hidden else ""
    return f"The {TOKENS} likeliest next tokens of each prompt and format.{means}{rest}"
