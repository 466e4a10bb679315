"""What the figures share: their look, their two groups of tokens, labels that can be drawn."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

from glitchrun.errors import MissingExtra
from glitchrun.events import ProbeResult, Verified
from glitchrun.report.formatting import spelled
from glitchrun.report.palette import LIGHT

_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",  # text stays text: it can be searched, and takes the page's font
    "svg.hashsalt": "glitchrun",  # equal figures give equal ids
    "text.parse_math": False,  # a token may hold dollar signs
    "font.size": 9.5,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "text.color": LIGHT["ink"],
    "axes.labelcolor": LIGHT["ink"],
    "axes.titlecolor": LIGHT["ink"],
    "axes.edgecolor": LIGHT["muted"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LIGHT["line"],
    "grid.linewidth": 0.6,
    "xtick.color": LIGHT["muted"],
    "ytick.color": LIGHT["muted"],
    "xtick.labelcolor": LIGHT["ink"],
    "ytick.labelcolor": LIGHT["ink"],
    "legend.frameon": False,
    "figure.facecolor": LIGHT["surface"],
    "savefig.facecolor": LIGHT["surface"],
    "axes.facecolor": "none",
    "hatch.linewidth": 0.9,
    "hatch.color": LIGHT["surface"],
}
SIZE = (5.6, 3.5)
"""Width and height of a figure in inches."""


@dataclass(frozen=True)
class Drawing:
    """A figure with what goes around it."""

    name: str
    """File name under plots/, without its ending."""
    title: str
    caption: str
    """What is seen, in sentences that stand without the figure."""
    figure: Any
    """A matplotlib Figure; belongs to nobody else and needs no closing."""


@contextmanager
def style() -> Iterator[None]:
    """The look of the figures: to be in force while they are drawn and while they are saved.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as exc:
        raise MissingExtra("matplotlib") from exc
    with matplotlib.rc_context(_STYLE):
        yield


def new_figure(size: tuple[float, float] = SIZE) -> Any:
    """An empty figure that arranges itself."""
    from matplotlib.figure import Figure

    return Figure(figsize=size, layout="constrained")


def label(text: str, longest: int = 22) -> str:
    """Token text that matplotlib's own font can draw: other characters escaped, long text cut."""
    drawn = "".join(c if ord(c) in _drawable() else f"⟨U+{ord(c):04X}⟩" for c in spelled(text))
    return drawn if len(drawn) <= longest else drawn[: longest - 1] + "…"


@cache
def _drawable() -> frozenset[int]:
    from matplotlib import font_manager, ft2font

    return frozenset(ft2font.FT2Font(font_manager.findfont("DejaVu Sans")).get_charmap())


@dataclass(frozen=True)
class Groups:
    """One number for each token, by verdict. Numbers that are not finite are left out, counted."""

    glitch: tuple[float, ...]
    other: tuple[float, ...]
    left_out: int

    @property
    def all(self) -> tuple[float, ...]:
        return self.glitch + self.other

    def named(self) -> list[tuple[str, tuple[float, ...], dict[str, Any]]]:
        """Name, numbers and bar style of each group that has any."""
        groups = [
            (f"not glitch (n = {len(self.other):,})", self.other, _bars("passed", "")),
            (f"glitch (n = {len(self.glitch):,})", self.glitch, _bars("glitch", "////")),
        ]
        return [group for group in groups if group[1]]

    def caveat(self) -> str:
        """A sentence on what was left out; empty where nothing was."""
        return f" {self.left_out:,} left out: no finite number." if self.left_out else ""


def groups(verified: Sequence[Verified], number: Callable[[Verified], float]) -> Groups:
    """A number of each verified token, by verdict."""
    pairs = [(fact.glitch, number(fact)) for fact in verified]
    finite = [(glitch, value) for glitch, value in pairs if math.isfinite(value)]
    return Groups(
        glitch=tuple(value for glitch, value in finite if glitch),
        other=tuple(value for glitch, value in finite if not glitch),
        left_out=len(pairs) - len(finite),
    )


def closest(fact: Verified) -> ProbeResult:
    """The probe in which the token was most probable."""
    return max(fact.probes.values(), key=lambda result: result.p)


def _bars(colour: str, hatch: str) -> dict[str, Any]:
    return {"color": LIGHT[colour], "hatch": hatch}


def bin_edges(found: Groups) -> Any:
    """Edges of equal bins over both groups: the fewer tokens the smaller one has, the wider."""
    import numpy as np

    smaller = min((len(values) for _, values, _ in found.named()), default=0)
    return np.histogram_bin_edges(found.all, min(40, max(8, smaller // 3)))


def shares(axes: Any, found: Groups, bins: Any) -> None:
    """Histograms of both groups, each as a share of its own tokens, so that a rare group shows."""
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
