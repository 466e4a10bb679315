"""The look of the page and the figures: colours, matplotlib style, labels.

Pass and glitch differ in lightness and along the blue-orange axis, which all common forms of colour
blindness preserve; no figure relies on colour alone. Text colours have a contrast of at least 4.5
against the surface and the panel.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

from glitchrun.errors import MissingExtra
from glitchrun.report.formatting import spelled

LIGHT = {
    "surface": "#ffffff",
    "panel": "#f5f7f9",
    "line": "#d3dae1",
    "ink": "#1c2128",
    "muted": "#57606a",
    "accent": "#0550ae",
    "passed": "#3b7dbb",
    "glitch": "#b94a05",
    "confirmed": "#7a1230",
    "bad": "#b3261e",
    "good": "#1a6e37",
    "open": "#7d5a00",
}
DARK = {
    "surface": "#0f1419",
    "panel": "#181f27",
    "line": "#3a444f",
    "ink": "#e3e9ef",
    "muted": "#9aa6b2",
    "accent": "#79b8ff",
    "passed": "#5b9bd5",
    "glitch": "#f2994a",
    "confirmed": "#ff8fab",
    "bad": "#ff8a80",
    "good": "#7bd88f",
    "open": "#e3b341",
}

_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",  # text stays text: searchable, and in the page's font
    "svg.hashsalt": "glitchrun",  # equal figures give equal ids
    "text.parse_math": False,  # a token may contain dollar signs
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
    """A figure with its title and caption."""

    name: str
    """File name under plots/, without its suffix."""
    title: str
    caption: str
    """What the figure shows, in sentences that can be read without it."""
    figure: Any
    """A matplotlib Figure; it needs no closing."""


@contextmanager
def style() -> Iterator[None]:
    """Applies the style of the figures. It is needed while they are drawn and while they are saved.

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
    """An empty figure with constrained layout; `size` is in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=size, layout="constrained")


def label(text: str, longest: int = 22) -> str:
    """Token text for a figure: characters missing from the font escaped, long text cut."""
    drawn = "".join(c if ord(c) in _drawable() else f"⟨U+{ord(c):04X}⟩" for c in spelled(text))
    return drawn if len(drawn) <= longest else drawn[: longest - 1] + "…"


@cache
def _drawable() -> frozenset[int]:
    from matplotlib import font_manager, ft2font

    return frozenset(ft2font.FT2Font(font_manager.findfont("DejaVu Sans")).get_charmap())


def palette_css() -> str:
    """The colours as CSS custom properties; dark ones on a screen in dark mode. Paper is light."""
    return (
        f":root{{color-scheme:light;{_properties(LIGHT)}}}\n"
        "@media screen and (prefers-color-scheme:dark)"
        f"{{:root{{color-scheme:dark;{_properties(DARK)}}}}}\n"
    )


def _properties(colours: dict[str, str]) -> str:
    return "".join(f"--{name}:{value};" for name, value in colours.items())
