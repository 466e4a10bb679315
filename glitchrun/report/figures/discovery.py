"""Glitch tokens found by a search, against the tokens verified and the time spent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

from glitchrun.events import Verified
from glitchrun.ledger.record import StepRecord
from glitchrun.report.figures.style import LIGHT, Drawing, new_figure, style
from glitchrun.report.formatting import counted, duration, share

_COLOURS = ("glitch", "accent", "good", "muted")
_MARKS = ("o", "s", "^", "D")
COSTS = {"gradients": "gradient", "screens": "screen"}
"""Counters of a search's own work other than verifications."""


@dataclass(frozen=True, slots=True)
class DiscoveryCurve:
    """Tokens found and work done by a step, after each token."""

    step: StepRecord
    points: tuple[tuple[int, float, int, int], ...]
    """Cumulative (tokens verified, seconds, glitch tokens, severe glitch tokens), from zeros.

    Seconds include the search; the tokens of a batch share its time equally."""
    counters: Counter[str]

    @property
    def name(self) -> str:
        """The step and its search, for the legend."""
        return f"{self.step.id} ({self.step.params.get('search') or 'gradient'})"


def draw_discovery(steps: Sequence[StepRecord]) -> Drawing | None:
    """For each step, the tokens found against the tokens verified, and against time."""
    curves = [curve for step in steps if (curve := _curve(step))]
    if not curves:
        return None
    with style():
        drawn = new_figure((5.6, 3.8))
        _panels(drawn, curves)
    caption = (
        "A steep curve means that the search finds glitch tokens; a flat one, that it has "
        "exhausted its neighbourhood. "
        f"{' '.join(map(_cost, curves))}"
    )
    return Drawing("discovery", "Found against budget", caption, drawn)


def _curve(step: StepRecord) -> DiscoveryCurve | None:
    """The curve of a step, without controls; None if it has verified nothing yet."""
    points = [(0, 0.0, 0, 0)]
    counters: Counter[str] = Counter()
    seen: set[int] = set()
    for timed in step.batches:
        if timed.batch.is_of_controls:
            continue
        counters.update(timed.batch.counters)
        facts = [fact for fact in timed.batch.token_facts if isinstance(fact, Verified)]
        new = [fact for fact in facts if fact.token.id not in seen]
        seen.update(fact.token.id for fact in new)
        each = (timed.batch.seconds + timed.batch.search_seconds) / max(1, len(new))
        for fact in new:
            verified, seconds, glitch, severe = points[-1]
            found = (glitch + fact.glitch, severe + fact.severe)
            points.append((verified + 1, seconds + each, *found))
        if not new:  # such as screening the vocabulary: time without finds
            verified, seconds, glitch, severe = points[-1]
            points.append((verified, seconds + each, glitch, severe))
    return DiscoveryCurve(step, tuple(points), counters) if seen else None


def _panels(drawn: Any, curves: list[DiscoveryCurve]) -> None:
    by_count, by_time = drawn.subplots(1, 2, sharey=True)
    for curve, colour, mark in zip(curves, cycle(_COLOURS), cycle(_MARKS), strict=False):
        verified, seconds, glitch, severe = zip(*curve.points, strict=True)
        for axes, spent in ((by_count, verified), (by_time, seconds)):
            look = {"color": LIGHT[colour], "marker": mark, "markevery": (0.1, 0.2), "ms": 4}
            axes.plot(spent, glitch, lw=1.8, label=curve.name, **look)
            name = f"{curve.name}, severe"
            axes.plot(spent, severe, lw=1.4, ls="--", label=name, mfc="none", **look)
            axes.set_xlim(left=0)
            axes.set_ylim(bottom=0)
            axes.yaxis.get_major_locator().set_params(integer=True)
    by_count.xaxis.get_major_locator().set_params(integer=True)
    by_count.set_xlabel("tokens verified")
    by_time.set_xlabel("seconds")
    by_count.set_ylabel("glitch tokens found")
    drawn.legend(*by_count.get_legend_handles_labels(), loc="outside lower left", ncols=2)


def _cost(curve: DiscoveryCurve) -> str:
    """Tokens found and work done by a step, in units that all searches share."""
    verified, seconds, found, severe = curve.points[-1]
    spent = [counted(verified, "verification")] + [
        counted(curve.counters[name], one) for name, one in COSTS.items()
    ]
    return (
        f"{curve.step.id}: {found:,} of {verified:,} ({share(found, verified)}), "
        f"{severe:,} of them severe, for {', '.join(spent)} and {duration(seconds)}."
    )
