"""Embedding norms against verdicts."""

from __future__ import annotations

from typing import Any

from glitchrun.ledger.record import RunRecord
from glitchrun.report.figures.style import (
    Drawing,
    Groups,
    bin_edges,
    groups,
    new_figure,
    shares,
    style,
)
from glitchrun.report.formatting import figure
from glitchrun.report.palette import LIGHT
from glitchrun.report.totals import verdicts

QUANTILES = 10


def draw(record: RunRecord) -> Drawing | None:
    """Norms of glitch tokens and others, and the glitch share by norm."""
    found = groups(verdicts(record), lambda fact: fact.token.norm)
    if not found.all:
        return None
    with style():
        drawn = new_figure((5.6, 4.4))
        upper, lower = drawn.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        _histograms(upper, found)
        _shares_by_norm(lower, found)
    return Drawing("norms", "Embedding norm against verdict", _caption(found), drawn)


def _histograms(axes: Any, found: Groups) -> None:
    shares(axes, found, bin_edges(found))


def _shares_by_norm(axes: Any, found: Groups) -> None:
    import numpy as np
    from scipy.stats import binomtest

    look = {"color": LIGHT["glitch"], "clip_on": False}  # a share of 0 is a whole dot too
    for part in np.array_split(_by_norm(found), min(QUANTILES, max(1, len(found.all) // 10))):
        glitch = int(part[:, 1].sum())
        interval = binomtest(glitch, len(part)).proportion_ci(method="wilson")
        rate, middle = 100 * glitch / len(part), float(np.median(part[:, 0]))
        # The bounds enclose the rate but for rounding, which matplotlib refuses below zero.
        errors = [[max(0.0, rate - 100 * interval.low)], [max(0.0, 100 * interval.high - rate)]]
        axes.errorbar(middle, rate, errors, fmt="o", ms=4, lw=1.2, **look)
    axes.set_ylabel("glitch share (%)")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("L2 norm of the input embedding")


def _by_norm(found: Groups) -> Any:
    """Norm and glitch (0 or 1) of each token, by rising norm: float array (tokens, 2)."""
    import numpy as np

    pairs = [(norm, 1) for norm in found.glitch] + [(norm, 0) for norm in found.other]
    return np.array(sorted(pairs), dtype=float)


def _caption(found: Groups) -> str:
    from statistics import median

    medians = [
        f"{name} {figure(median(values))}"
        for name, values in (("glitch", found.glitch), ("not glitch", found.other))
        if values
    ]
    return (
        f"Above: how the norms of each group are spread. Median norm: {', '.join(medians)}. "
        "Below: share of glitch tokens among tokens of like norm, in groups of equal size, with "
        f"Wilson's 95 % interval.{found.caveat()}"
    )
