"""Norm, entropy and rank of verified tokens: glitch tokens compared with all others."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from glitchrun.behaviour.significance import wilson
from glitchrun.events import ProbeResult, Verified
from glitchrun.ledger.record import RunRecord
from glitchrun.report.figures.style import LIGHT, Drawing, new_figure, style
from glitchrun.report.formatting import count, figure
from glitchrun.report.totals import verdicts

QUANTILES = 10
"""Groups of equal size in which the glitch share is computed, by norm."""


def draw_norms(record: RunRecord) -> Drawing | None:
    """Histograms of the embedding norm, and below them the glitch share by norm."""
    found = groups(verdicts(record), lambda fact: fact.token.norm)
    if not found.all:
        return None
    with style():
        drawn = new_figure((5.6, 4.4))
        upper, lower = drawn.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        shares(upper, found, bin_edges(found))
        _shares_by_norm(lower, found)
    return Drawing("norms", "Embedding norm against verdict", _norms_caption(found), drawn)


def _shares_by_norm(axes: Any, found: Groups) -> None:
    import numpy as np

    look = {"color": LIGHT["glitch"], "clip_on": False}  # a dot at 0 is drawn whole
    for part in np.array_split(_by_norm(found), min(QUANTILES, max(1, len(found.all) // 10))):
        glitch = int(part[:, 1].sum())
        interval = wilson(glitch, len(part))
        rate, middle = 100 * glitch / len(part), float(np.median(part[:, 0]))
        # Rounding may put a bound on the wrong side of the rate, which matplotlib rejects.
        errors = [[max(0.0, rate - 100 * interval.low)], [max(0.0, 100 * interval.high - rate)]]
        axes.errorbar(middle, rate, errors, fmt="o", ms=4, lw=1.2, **look)
    axes.set_ylabel("glitch share (%)")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("L2 norm of the input embedding")


def _by_norm(found: Groups) -> Any:
    """Norm and verdict (1 for glitch) of each token, by ascending norm: array `(N, 2)`."""
    import numpy as np

    pairs = [(norm, 1) for norm in found.glitch] + [(norm, 0) for norm in found.other]
    return np.array(sorted(pairs), dtype=float)


def _norms_caption(found: Groups) -> str:
    return (
        f"Above: distribution of the norms of each group. Median norm: {_medians(found)}. "
        "Below: share of glitch tokens among tokens of similar norm, in groups of equal size, with "
        f"Wilson's 95 % interval.{found.caveat()}"
    )


def draw_entropy(record: RunRecord) -> Drawing | None:
    """Histograms of the entropy of the next token where the probe asks for the token."""
    found = groups(_measured(record), lambda fact: closest(fact).entropy)
    if not found.all:
        return None
    with style():
        drawn = new_figure()
        axes = drawn.subplots()
        shares(axes, found, bin_edges(found))
        axes.set_xlabel("entropy where the token is requested (nats)")
    caption = (
        f"Uncertainty of the model about the next token; 0 is certainty. Median: "
        f"{_medians(found, ' nats')}. Of several probes, the one with the highest probability "
        f"counts.{found.caveat()}"
    )
    return Drawing("entropy", "Entropy by verdict", caption, drawn)


def draw_rank(record: RunRecord) -> Drawing | None:
    """Bars of the rank of each token, in bins that double in width: 1, 2–3, 4–7, ..."""
    found = groups(_measured(record), lambda fact: float(closest(fact).rank))
    if not found.all:
        return None
    with style():
        drawn = new_figure()
        _rank_bars(drawn.subplots(), found)
    return Drawing("rank", "Rank by verdict", _rank_caption(found), drawn)


def _rank_bars(axes: Any, found: Groups) -> None:
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
    axes.set_xlabel("rank of the token where it is requested")
    axes.set_ylabel("share of the group (%)")
    axes.legend(loc="best")


def _span(first: int) -> str:
    if first == 1:
        return "1"
    return f"{first}–{2 * first - 1}" if first < 1024 else f"{first // 1024}k–{first // 512}k"


def _rank_caption(found: Groups) -> str:
    text = "Rank 1 is the model's most likely token, as in every passed probe; 1k is 1,024."
    if found.glitch:
        text += f" Median rank of glitch tokens: {count(median(found.glitch))}."
    return text + found.caveat()


@dataclass(frozen=True)
class Groups:
    """One number for each token, by verdict; NaN and infinities are left out."""

    glitch: tuple[float, ...]
    other: tuple[float, ...]
    left_out: int

    @property
    def all(self) -> tuple[float, ...]:
        """The numbers of both groups."""
        return self.glitch + self.other

    def named(self) -> list[tuple[str, tuple[float, ...], dict[str, Any]]]:
        """Name, numbers and bar style of each non-empty group."""
        groups = [
            (f"not glitch (n = {len(self.other):,})", self.other, _look("passed", "")),
            (f"glitch (n = {len(self.glitch):,})", self.glitch, _look("glitch", "////")),
        ]
        return [group for group in groups if group[1]]

    def caveat(self) -> str:
        """A sentence about the numbers left out; empty if none."""
        return f" {self.left_out:,} left out: not finite." if self.left_out else ""


def groups(verified: Sequence[Verified], number: Callable[[Verified], float]) -> Groups:
    """`number` of each verified token, by verdict."""
    pairs = [(fact.glitch, number(fact)) for fact in verified]
    finite = [(glitch, value) for glitch, value in pairs if math.isfinite(value)]
    return Groups(
        glitch=tuple(value for glitch, value in finite if glitch),
        other=tuple(value for glitch, value in finite if not glitch),
        left_out=len(pairs) - len(finite),
    )


def _measured(record: RunRecord) -> list[Verified]:
    """The verdicts with a probability; answers compared as text have none."""
    return [fact for fact in verdicts(record) if fact.probes]


def closest(fact: Verified) -> ProbeResult:
    """The result of the probe with the highest probability."""
    return max(fact.probes.values(), key=lambda result: result.p)


def _look(colour: str, hatch: str) -> dict[str, Any]:
    return {"color": LIGHT[colour], "hatch": hatch}


def bin_edges(found: Groups) -> Any:
    """Edges `(B + 1,)` of B equal bins that cover both groups.

    B is a third of the size of the smaller group, but at least 8 and at most 40.
    """
    import numpy as np

    smaller = min((len(values) for _, values, _ in found.named()), default=0)
    return np.histogram_bin_edges(found.all, min(40, max(8, smaller // 3)))


def shares(axes: Any, found: Groups, bins: Any) -> None:
    """Histograms of both groups, each as a share of its own tokens, so that rare groups show."""
    import numpy as np

    for name, values, look in found.named():
        counts, _ = np.histogram(values, bins)
        axes.stairs(
            100 * counts / len(values),
            bins,
            fill=True,
            alpha=0.35,
            facecolor=look["color"],
            lw=0,
        )
        line = {"color": look["color"], "lw": 1.5, "ls": "-" if look["hatch"] else "--"}
        axes.stairs(100 * counts / len(values), bins, label=name, **line)
    axes.set_ylabel("share of the group (%)")
    axes.legend(loc="best")


def _medians(found: Groups, unit: str = "") -> str:
    """The medians of both groups in words."""
    return ", ".join(
        f"{name} {figure(median(values))}{unit}"
        for name, values in (("glitch", found.glitch), ("not glitch", found.other))
        if values
    )
