"""Rank of the token where it is asked for, by verdict."""

from __future__ import annotations

from statistics import median

from glitchrun.ledger.record import RunRecord
from glitchrun.report.figures.style import Drawing, Groups, closest, groups, new_figure, style
from glitchrun.report.formatting import count
from glitchrun.report.totals import verdicts


def draw(record: RunRecord) -> Drawing | None:
    """Bars over ranks that double from bin to bin: 1, 2–3, 4–7, ..."""
    found = groups(verdicts(record), lambda fact: float(closest(fact).rank))
    if not found.all:
        return None
    with style():
        drawn = new_figure()
        _bars(drawn.subplots(), found)
    return Drawing("rank", "Rank by verdict", _caption(found), drawn)


def _bars(axes, found: Groups) -> None:  # type: ignore[no-untyped-def]
    import numpy as np

    doublings = int(max(found.all)).bit_length()
    edges = 2 ** np.arange(doublings + 1)
    places = np.arange(doublings)
    named = found.named()
    width = 0.8 / len(named)
    for place, (name, values, look) in enumerate(named):
        counts, _ = np.histogram(values, edges - 0.5)
        left = places - 0.4 + (place + 0.5) * width
        axes.bar(left, 100 * counts / len(values), width, label=name, alpha=0.8, **look)
    axes.set_xticks(places, [_span(int(edge)) for edge in edges[:-1]], rotation=45, ha="right")
    axes.grid(visible=False, axis="x")
    axes.set_xlabel("rank of the token where it is asked for")
    axes.set_ylabel("share of the group (%)")
    axes.legend(loc="best")


def _span(first: int) -> str:
    if first == 1:
        return "1"
    return f"{first}–{2 * first - 1}" if first < 1024 else f"{first // 1024}k–{first // 512}k"


def _caption(found: Groups) -> str:
    text = "Rank 1 is the model's own choice, and what every passed probe has; 1k is 1,024."
    if found.glitch:
        text += f" Median rank of glitch tokens: {count(median(found.glitch))}."
    return text + found.caveat()
