"""Entropy of the next-token distribution, by verdict."""

from __future__ import annotations

from statistics import median

from glitchrun.ledger.record import RunRecord
from glitchrun.report.figures.style import (
    Drawing,
    bin_edges,
    closest,
    groups,
    new_figure,
    shares,
    style,
)
from glitchrun.report.formatting import figure
from glitchrun.report.totals import verdicts


def draw(record: RunRecord) -> Drawing | None:
    """Histograms of the entropy where each token was asked for."""
    found = groups(verdicts(record), lambda fact: closest(fact).entropy)
    if not found.all:
        return None
    with style():
        drawn = new_figure()
        axes = drawn.subplots()
        shares(axes, found, bin_edges(found))
        axes.set_xlabel("entropy where the token is asked for (nats)")
    medians = [
        f"{name} {figure(median(values))} nats"
        for name, values in (("glitch", found.glitch), ("not glitch", found.other))
        if values
    ]
    caption = (
        f"How sure the model is of what comes next. Median: {', '.join(medians)}. 0 is certainty; "
        f"several probes: the one in which the token was most probable.{found.caveat()}"
    )
    return Drawing("entropy", "Entropy by verdict", caption, drawn)
