"""The colours of the page and the plots: one name, one pair of values for light and dark.

Pass and glitch are told apart by lightness and by hue along blue and orange, the axis that every
common colour blindness leaves; charts never rest on colour alone. Text colours have a contrast of
at least 4.5 on the surface and the panel.
"""

from __future__ import annotations

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


def css() -> str:
    """The colours as CSS custom properties, the dark ones where the reader's system asks for it."""
    return (
        f":root{{color-scheme:light dark;{_properties(LIGHT)}}}\n"
        f"@media (prefers-color-scheme:dark){{:root{{{_properties(DARK)}}}}}\n"
    )


def _properties(colours: dict[str, str]) -> str:
    return "".join(f"--{name}:{value};" for name, value in colours.items())
