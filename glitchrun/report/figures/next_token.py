"""Next-token probabilities: before and after a sequence, and for prompts in several formats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from glitchrun.ledger.record import StepRecord
from glitchrun.report.figures.generations import Rows, evolved, rows_of
from glitchrun.report.figures.style import LIGHT, Drawing, label, new_figure, style
from glitchrun.report.formatting import counted, probability

_SHOWN = 14
"""Tokens shown: the goals, then the most likely ones before or after."""
PROMPTS = 4
"""Prompts drawn; the table has all of them."""
TOKENS = 8
"""Tokens shown of each prompt."""

Cells = Mapping[str, Any]


def draw_before_after(steps: Sequence[StepRecord]) -> Drawing | None:
    """Two bars for each token, without and with the best sequence; the caption has the goals."""
    found = [(step, _selected(step, rows)) for step, rows in evolved(steps, "distribution")]
    if not found:
        return None
    heights = [len(rows) + 1 for _, rows in found]
    with style():
        drawn = new_figure((5.6, 1.0 + 0.27 * sum(heights)))
        panels = drawn.subplots(len(found), 1, squeeze=False, height_ratios=heights)
        for axes, (step, rows) in zip(panels[:, 0], found, strict=True):
            _paired_bars(axes, rows)
            axes.set_title(step.id if len(found) > 1 else "")
    changes = " ".join(_changes(step, rows) for step, rows in found)
    caption = f"The most likely next tokens, without a sequence and after the best one. {changes}"
    return Drawing("next_token", "Next token before and after", caption, drawn)


def _selected(step: StepRecord, rows: Rows) -> Rows:
    goals = _goals(step)
    likely = sorted(
        rows, key=lambda r: (r["token_id"] not in goals, -max(r["p_before"], r["p_after"]))
    )
    return sorted(likely[:_SHOWN], key=lambda row: -row["p_before"])


def _goals(step: StepRecord) -> dict[int, str]:
    (start,) = rows_of(step, "baseline")
    named = {start["target_id"]: "target", start["wanted_id"]: "wanted"}
    return {token_id: name for token_id, name in named.items() if token_id is not None}


def _paired_bars(axes: Any, rows: Rows) -> None:
    places = range(len(rows))
    before = {"color": LIGHT["passed"], "label": "before"}
    after = {"color": LIGHT["glitch"], "hatch": "////", "label": "after the best sequence"}
    for key, shift, look in (("p_before", -0.2, before), ("p_after", 0.2, after)):
        numbers = [100 * row[key] for row in rows]
        axes.barh([place + shift for place in places], numbers, height=0.38, **look)
    axes.set_yticks(places, [f"{label(row['token'])} · {row['token_id']}" for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel("probability (%)")
    axes.legend(loc="lower right")


def _changes(step: StepRecord, rows: Rows) -> str:
    goals = _goals(step)
    parts = [
        f"the {goals[row['token_id']]} {label(row['token'])!r} goes from "
        f"{probability(row['p_before'])} (rank {row['rank_before']:,}) to "
        f"{probability(row['p_after'])} (rank {row['rank_after']:,})"
        for row in rows
        if row["token_id"] in goals
    ]
    return f"{step.id}: {', '.join(parts)}."


def draw_predictions(steps: Sequence[StepRecord]) -> Drawing | None:
    """Bars of the most likely tokens: a row for each prompt, a column for each format."""
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
                _prediction_bars(row[formats.index(answer["format"])], answer, top)
    caption = _predictions_caption(cases, hidden)
    return Drawing("predictions", "Predicted next tokens", caption, drawn)


def _cases(steps: Sequence[StepRecord]) -> list[tuple[Cells, list[Cells]]]:
    """Each prompt in each format, with its most likely tokens."""
    found = []
    for step in steps:
        for timed in step.batches:
            rows = [(entry.table, entry.cells) for entry in timed.batch.entries]
            for table, cells in rows:
                if table == "predictions":
                    own = [c for name, c in rows if name == "top" and c["case"] == cells["case"]]
                    found.append((cells, own[:TOKENS]))
    return found


def _prediction_bars(axes: Any, answer: Cells, top: Sequence[Cells]) -> None:
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


def _predictions_caption(cases: Sequence[tuple[Cells, list[Cells]]], hidden: int) -> str:
    means = (
        " The first token of the expected continuation is hatched; its rank is above."
        if any(answer["rank"] is not None for answer, _ in cases)
        else ""
    )
    rest = f" {counted(hidden, 'more prompt')} in the table." if hidden else ""
    return f"The {TOKENS} most likely next tokens of each prompt and format.{means}{rest}"
