"""Indicators of under-trained tokens: against the probability, and against one another."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from glitchrun.events import SEVERE
from glitchrun.ledger.record import RunRecord, StepRecord
from glitchrun.report.figures.style import LIGHT, Drawing, new_figure, style
from glitchrun.report.formatting import counted, figure, percent
from glitchrun.report.indicators import (
    StepIndicators,
    auc,
    groups,
    of_step,
    percent_lowest,
)
from glitchrun.report.token_rows import facts_by_token
from glitchrun.spec.indicators import INDICATORS

_LABELS = {
    "input_norm": "input norm",
    "output_norm": "output norm",
    "to_unused": "distance to\nreference rows",
    "to_unused_without_component": "… without first\ncomponent",
    "to_mean": "distance to mean",
}
_LEAST = 1e-12
"""Probabilities below this are drawn here."""
_MOST = 500
_MOST_IN_PAIRS = 150
"""Tokens of each kind that a figure draws. More are thinned out, as the caption says: ten panels of
thousands of dots would be most of the page."""
_LOOKS = {
    "severe": {"color": LIGHT["glitch"], "marker": "o", "s": 12, "alpha": 0.8, "zorder": 3},
    "glitch": {"color": LIGHT["glitch"], "marker": "x", "s": 10, "alpha": 0.35, "zorder": 2},
    "other": {"color": LIGHT["passed"], "marker": ".", "s": 6, "alpha": 0.35, "zorder": 1},
}


@dataclass(frozen=True)
class _Point:
    kind: str
    """severe, glitch or other."""
    p: float
    values: tuple[float | None, ...]


@dataclass(frozen=True)
class _Cloud:
    step: StepRecord
    found: StepIndicators
    points: list[_Point]
    thinned: bool


def _cloud(record: RunRecord, most: int) -> _Cloud | None:
    """Up to `most` points of each kind of the step that verified most tokens with indicators; None
    without any."""
    best: _Cloud | None = None
    for step in record.steps:
        found = of_step(step)
        points = list(_points(step, found)) if found else []
        if found and points and (best is None or len(points) > len(best.points)):
            best = _Cloud(step, found, points, thinned=False)
    if best is None:
        return None
    drawn: list[_Point] = []
    thinned = False
    for kind in _LOOKS:
        same = [point for point in best.points if point.kind == kind]
        every = -(-len(same) // most) or 1
        thinned = thinned or every > 1
        drawn += same[::every]
    return _Cloud(best.step, best.found, drawn, thinned)


def _points(step: StepRecord, found: StepIndicators) -> Iterator[_Point]:
    for token_id, (verified, _) in facts_by_token(step).items():
        if verified is None or token_id not in found.values or verified.p != verified.p:
            continue
        kind = "severe" if verified.severe else "glitch" if verified.glitch else "other"
        yield _Point(kind, max(verified.p, _LEAST), found.values[token_id])


def draw_indicator(record: RunRecord) -> Drawing | None:
    """The main indicator against the probability, with the threshold of Land and Bartolo."""
    cloud = _cloud(record, _MOST)
    if cloud is None:
        return None
    name = cloud.found.main
    place = [*INDICATORS].index(name)
    with style():
        drawn = new_figure()
        axes = drawn.subplots()
        for kind, look in _LOOKS.items():
            points = [one for one in cloud.points if one.kind == kind]
            known = [(x, one.p) for one in points if (x := one.values[place]) is not None]
            if known:
                axes.scatter(*zip(*known, strict=True), linewidths=0.8, label=kind, **look)
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda p, _: f"{p:.0e}" if p < 0.01 else f"{p:g}")
        axes.axhline(SEVERE, color=LIGHT["ink"], lw=0.8, ls=":", label="severe below")
        axes.set_xlabel(_LABELS[name].replace("\n", " "))
        axes.set_ylabel("probability of the token")
        threshold = cloud.found.thresholds[name]
        if threshold is not None:
            axes.axvline(
                threshold, color=LIGHT["ink"], lw=1, ls="--", label=f"lowest {percent_lowest()}"
            )
        axes.legend(loc="best", fontsize=8)
    return Drawing("indicator", "Indicator against probability", _caption(cloud, name), drawn)


def _caption(cloud: _Cloud, name: str) -> str:
    severe, other = groups(cloud.step, cloud.found, name)
    threshold = cloud.found.thresholds[name]
    sentences = [
        f"Step {cloud.step.id}. Horizontal: {INDICATORS[name]}.",
        "Low values are suspicious (Land and Bartolo 2024).",
    ]
    if threshold is not None:
        sentences.append(
            f"Dashed line: {percent_lowest()} of the ordinary tokens of the vocabulary are at or "
            "to the left of it."
        )
    if severe and threshold is not None:
        among = sum(value <= threshold for value in severe)
        sentences.append(
            f"{among:,} of the {counted(len(severe), 'severe token')} are there "
            f"({percent(among / len(severe))})."
        )
    if severe and other:
        sentences.append(
            f"AUC {figure(auc(severe, other))}: the probability that a severe token has a lower "
            "value than another verified token (0.5: no information)."
        )
    sentences.append(f"Reference rows: {cloud.found.reference}.")
    if cloud.thinned:
        sentences.append(_thinned(_MOST))
    return " ".join(sentences)


def _thinned(most: int) -> str:
    return f"At most {most:,} tokens of each kind are drawn, spread evenly."


def draw_pairs(record: RunRecord) -> Drawing | None:
    """Every two of the indicators against each other."""
    cloud = _cloud(record, _MOST_IN_PAIRS)
    if cloud is None:
        return None
    names = [
        name
        for place, name in enumerate(INDICATORS)
        if not (name == "output_norm" and cloud.found.tied)
        and any(one.values[place] is not None for one in cloud.points)
    ]
    if len(names) < 2:
        return None
    with style():
        size = len(names) - 1
        drawn = new_figure((1.2 + 1.5 * size, 0.8 + 1.4 * size))
        grid = drawn.subplots(size, size, squeeze=False, sharex="col", sharey="row")
        for row in range(size):
            for column in range(size):
                axes = grid[row][column]
                if column > row:
                    axes.set_visible(False)
                else:
                    _pair(axes, cloud, names[column], names[row + 1])
                    axes.tick_params(labelsize=7)
                    axes.locator_params(nbins=3)
                if row == size - 1:
                    axes.set_xlabel(_LABELS[names[column]], fontsize=8)
                if column == 0:
                    axes.set_ylabel(_LABELS[names[row + 1]], fontsize=8)
        if size == 1:
            grid[0][0].legend(fontsize=8)
        else:
            lines, labels = grid[size - 1][0].get_legend_handles_labels()
            drawn.legend(lines, labels, loc="upper right", fontsize=8)
    caption = (
        f"Each dot is a token that step {cloud.step.id} verified. An indicator is informative if "
        "the severe tokens lie apart from the others along its axis."
        + f" {_thinned(_MOST_IN_PAIRS)}"
        * cloud.thinned
    )
    return Drawing("indicators", "Indicators against one another", caption, drawn)


def _pair(axes: Any, cloud: _Cloud, x: str, y: str) -> None:
    places = [*INDICATORS].index(x), [*INDICATORS].index(y)
    for kind, look in _LOOKS.items():
        known = [
            (one.values[places[0]], one.values[places[1]])
            for one in cloud.points
            if one.kind == kind and None not in (one.values[places[0]], one.values[places[1]])
        ]
        if known:
            axes.scatter(*zip(*known, strict=True), linewidths=0.6, label=kind, **look)
