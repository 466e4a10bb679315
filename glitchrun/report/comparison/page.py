"""A comparison as one self-contained HTML page, in the style of the report."""

from __future__ import annotations

from collections.abc import Sequence

from glitchrun.report.comparison.figures import drawings
from glitchrun.report.comparison.pairs import Pair
from glitchrun.report.comparison.sections import sections
from glitchrun.report.comparison.sides import Side
from glitchrun.report.figures.style import style
from glitchrun.report.html import render_page

_SHOWN = 500
"""Rows of a table of tokens that differ, and as many that do not."""


def as_html(by: str, sides: Sequence[Side], pairs: Sequence[Pair]) -> str:
    """The comparison as a page.

    Args:
        by: The kind of verdict that is compared.
        sides: Two or more sides.
        pairs: Every two of the sides.

    Raises:
        MissingExtra: jinja2 or matplotlib is not installed.
    """
    experiments = {side.record.identity.experiment: None for side in sides if side.record}
    with style():
        return render_page(
            "comparison.html.j2",
            drawings(sides, pairs),
            noun="runs" if all(side.record for side in sides) else "runs and files",
            title=", ".join(experiments) or "result files",
            legend=[(side.label, side.title, side.name) for side in sides],
            sections=list(sections(by, sides, pairs, _SHOWN, equal_rows=True)),
        )
