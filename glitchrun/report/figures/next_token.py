"""The next-token distribution without a sequence and with the best one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from glitchrun.ledger.record import StepRecord
from glitchrun.report.figures.evolved import Rows, evolved, rows_of
from glitchrun.report.figures.style import Drawing, label, new_figure, style
from glitchrun.report.formatting import probability
from glitchrun.report.palette import LIGHT

_SHOWN = 14
"""Tokens in the figure: the goals, then those that are likely before or after."""


def draw(steps: Sequence[StepRecord]) -> Drawing | None:
    """Two bars a token, before and after; the goals are named in the caption."""
    found = [(step, _shown(step, rows)) for step, rows in evolved(steps, "distribution")]
    if not found:
        return None
    heights = [len(rows) + 1 for _, rows in found]
    with style():
        drawn = new_figure((5.6, 1.0 + 0.27 * sum(heights)))
        panels = drawn.subplots(len(found), 1, squeeze=False, height_ratios=heights)
        for axes, (step, rows) in zip(panels[:, 0], found, strict=True):
            _bars(axes, rows)
            axes.set_title(step.id if len(found) > 1 else "")
    told = " ".join(_told(step, rows) for step, rows in found)
    caption = f"The likeliest next tokens without a sequence and after the best one. {told}"
    return Drawing("next_token", "Next token before and after", caption, drawn)


def _shown(step: StepRecord, rows: Rows) -> Rows:
    goals = _goals(step)
    likely = sorted(
        rows, key=lambda r: (r["token_id"] not in goals, -max(r["p_before"], r["p_after"]))
    )
    return sorted(likely[:_SHOWN], key=lambda row: -row["p_before"])


def _goals(step: StepRecord) -> dict[int, str]:
    (start,) = rows_of(step, "baseline")
    named = {start["target_id"]: "target", start["wanted_id"]: "wanted"}
    return {token_id: name for token_id, name in named.items() if token_id is not None}


def _bars(axes: Any, rows: Rows) -> None:
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


def _told(step: StepRecord, rows: Rows) -> str:
    goals = _goals(step)
    parts = [
        f"the {goals[row['token_id']]} {label(row['token'])!r} goes from "
        f"{probability(row['p_before'])} (rank {row['rank_before']:,}) to "
        f"{probability(row['p_after'])} (rank {row['rank_after']:,})"
        for row in rows
        if row["token_id"] in goals
    ]
    return f"{step.id}: {', '.join(parts)}."
