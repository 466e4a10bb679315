"""The figures of a comparison: counts with intervals, agreement, probabilities, other results.

Each function returns a `Drawing`, or None if there is nothing to draw.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from glitchrun.behaviour.significance import wilson
from glitchrun.report.comparison.pairs import MatchedToken, Pair
from glitchrun.report.comparison.results import Result, results
from glitchrun.report.comparison.sides import Side
from glitchrun.report.figures.style import LIGHT, SIZE, Drawing, label, new_figure
from glitchrun.report.formatting import counted

_SMALLEST = 1e-12
"""Probabilities below this are drawn here."""
_GRID = 200
"""Points that fall into the same cell of a grid of this many cells a side are drawn once."""
_PANELS = 6
"""Results drawn side by side."""
_ANNOTATED = 12
"""Sides up to which the cells of the agreement matrix contain numbers."""


def drawings(sides: Sequence[Side], pairs: Sequence[Pair]) -> list[Drawing]:
    """Every figure that the sides have data for. Needs `figures.style.style`."""
    with_tokens = [side for side in sides if side.tokens]
    about_tokens = [pair for pair in pairs if pair.left.tokens and pair.right.tokens]
    drawn = [
        draw_counts(with_tokens) if len(with_tokens) > 1 else None,
        draw_agreement(with_tokens, about_tokens) if len(with_tokens) > 2 else None,
        draw_probabilities(about_tokens[0]) if len(about_tokens) == 1 else None,
        draw_results(sides) if not about_tokens else None,
    ]
    return [one for one in drawn if one]


def _names(sides: Sequence[Side]) -> list[str]:
    return [f"{side.label}  {label(side.title, 30)}" for side in sides]


def draw_counts(sides: Sequence[Side]) -> Drawing | None:
    """Glitch tokens of the verified and confirmed ones of the sampled, with Wilson's intervals."""
    kinds = [
        ("glitch", "glitch tokens", [_count(one.glitch for one in s.verified) for s in sides]),
        ("confirmed", "confirmed", [_count(one.confirmed for one in s.sampled) for s in sides]),
    ]
    kinds = [kind for kind in kinds if any(n for _, n in kind[2])]
    if not kinds:
        return None
    figure = new_figure((5.6, 1.2 + 0.34 * len(sides)))
    panels = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
    for axes, (colour, name, counts) in zip(panels, kinds, strict=True):
        for place, (found, n) in enumerate(counts):
            if n:
                interval = wilson(found, n)
                errors = [
                    [max(0.0, found - n * interval.low)],
                    [max(0.0, n * interval.high - found)],
                ]
                look = {"color": LIGHT[colour], "ms": 5, "lw": 1.3, "capsize": 2}
                axes.errorbar(found, place, xerr=errors, fmt="o", **look)
        axes.set_xlabel(name)
        axes.set_xlim(0, 1.06 * max(_highest(found, n) for found, n in counts))
        axes.set_yticks(range(len(sides)), _names(sides))
        axes.set_ylim(len(sides) - 0.5, -0.5)
    caption = (
        "Glitch tokens are counted among the verified tokens, confirmed ones among the sampled "
        "tokens. Bars: Wilson's 95 % interval of the share, times the number of tokens."
    )
    return Drawing("counts", "Tokens found", caption, figure)


def _count(verdicts: Iterator[bool | None]) -> tuple[int, int]:
    found = list(verdicts)
    return sum(map(bool, found)), len(found)


def _highest(found: int, n: int) -> float:
    """The upper end of the interval, as a number of tokens."""
    return n * wilson(found, n).high if n else 0.0


def draw_agreement(sides: Sequence[Side], pairs: Sequence[Pair]) -> Drawing | None:
    """A matrix of the share of equal verdicts, with the number of tokens found by both."""
    known = [pair for pair in pairs if pair.counts.n]
    if not known:
        return None
    import numpy as np

    place = {side.label: number for number, side in enumerate(sides)}
    rows, columns = sides[1:], sides[:-1]
    shares = np.full((len(rows), len(columns)), np.nan)
    size = 1.2 + 0.62 * min(len(rows), _ANNOTATED)
    figure = new_figure((max(SIZE[0], size + 1.4), size))
    axes = figure.subplots()
    for pair in known:
        row, column = place[pair.right.label] - 1, place[pair.left.label]
        shares[row, column] = 100 * (pair.counts.agreement or 0)
        if len(sides) <= _ANNOTATED:
            text = f"{shares[row, column]:.1f} %\n{pair.counts.both:,}"
            box = {"facecolor": LIGHT["surface"], "edgecolor": "none", "pad": 1.5}
            axes.text(column, row, text, ha="center", va="center", fontsize=8, bbox=box)
    least = float(np.nanmin(shares))
    edges = np.arange(len(rows) + 1) - 0.5
    look = {"cmap": "Blues", "edgecolors": LIGHT["line"], "lw": 0.5}
    axes.pcolormesh(edges, edges, shares, vmin=min(least, 99.0) - 1, vmax=100, **look)
    axes.set_xticks(range(len(columns)), [side.label for side in columns])
    axes.set_yticks(range(len(rows)), _names(rows))
    axes.set_xlim(-0.5, len(columns) - 0.5)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(visible=False)
    caption = (
        "Share of equal verdicts among the tokens that both judged, and below it the number of "
        "tokens that both found. A darker cell is more agreement."
    )
    return Drawing("agreement", "Agreement of verdicts", caption, figure)


def draw_probabilities(pair: Pair) -> Drawing | None:
    """The probability of each token on both sides, on logarithmic axes."""
    both = [one for one in pair.matched if _is_drawn(one)]
    if not both:
        return None
    left, right = pair.left, pair.right
    groups = [
        ("same verdict", [one for one in both if one.agree], LIGHT["passed"], "o"),
        ("other verdict", [one for one in both if not one.agree], LIGHT["glitch"], "D"),
    ]
    figure = new_figure((5.6, 4.6))
    axes = figure.subplots()
    points = [_point(one) for one in both]
    low = min(min(point) for point in points)
    axes.plot([low, 1], [low, 1], color=LIGHT["muted"], lw=0.8, ls="--")
    for name, members, colour, marker in groups:
        if not members:
            continue
        shown = _distinct([_point(one) for one in members], low)
        text = f"{name} (n = {len(members):,})"
        x, y = zip(*shown, strict=True)
        axes.scatter(x, y, s=14, color=colour, marker=marker, alpha=0.6, lw=0, label=text)
    axes.set(xscale="log", yscale="log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.set_minor_formatter(lambda value, _: "")
    axes.set_xlabel(f"probability in {left.label}  {label(left.title, 30)}")
    axes.set_ylabel(f"probability in {right.label}  {label(right.title, 30)}")
    axes.legend(loc="upper left")
    caption = (
        f"{counted(len(both), 'token')} with a probability on both sides; the dashed line is "
        "equality. Points that would cover each other are drawn once."
    )
    if low == _SMALLEST:
        caption += f" Probabilities below {_SMALLEST:g} are drawn there."
    return Drawing("probabilities", "Probability against probability", caption, figure)


def _is_drawn(one: MatchedToken) -> bool:
    return all(side.p is not None and math.isfinite(side.p) for side in (one.left, one.right))


def _point(one: MatchedToken) -> tuple[float, float]:
    return max(one.left.p or 0.0, _SMALLEST), max(one.right.p or 0.0, _SMALLEST)


def _distinct(points: Sequence[tuple[float, float]], low: float) -> list[tuple[float, float]]:
    """One point for each occupied cell of a grid over the axes."""
    span = max(-math.log10(low), 1e-9)
    cells: dict[tuple[int, int], tuple[float, float]] = {}
    for x, y in points:
        key = (round(_GRID * math.log10(x) / span), round(_GRID * math.log10(y) / span))
        cells.setdefault(key, (x, y))
    return list(cells.values())


def draw_results(sides: Sequence[Side]) -> Drawing | None:
    """Bars of the main results of runs without verdicts on tokens."""
    found = results(sides)[:_PANELS]
    if not found:
        return None
    wide = min(2, len(found))
    deep = math.ceil(len(found) / wide)
    figure = new_figure((6.4, deep * (0.9 + 0.26 * len(sides))))
    panels = figure.subplots(deep, wide, sharey=True, squeeze=False).flat
    for axes, result in zip(panels, found, strict=False):
        _bars(axes, result, sides)
    for axes in list(panels)[len(found) :]:
        axes.set_visible(False)
    return Drawing("results", "Results", "The main results of each run, from 0.", figure)


def _bars(axes: Any, result: Result, sides: Sequence[Side]) -> None:
    texts = result.texts
    places = [place for place, value in enumerate(result.values) if value is not None]
    values = [value for value in result.values if value is not None]
    bars = axes.barh(places, values, color=LIGHT["passed"], height=0.6)
    axes.bar_label(bars, [texts[place] for place in places], padding=3, fontsize=8)
    axes.set_title(result.head)
    axes.set_yticks(range(len(sides)), _names(sides))
    axes.set_ylim(len(sides) - 0.5, -0.5)
    axes.margins(x=0.25)
    axes.set_xticks([])
    axes.grid(visible=False)
