"""A figure of the package's strategy."""

from collections.abc import Sequence
from typing import Any

from glitchrun.report.figures.style import Drawing, new_figure, style


def draw(steps: Sequence[Any]) -> Drawing | None:
    """A bar for each token, as high as it has letters."""
    rows = [entry.cells for step in steps for one in step.batches for entry in one.batch.entries]
    if not rows:
        return None
    with style():
        figure = new_figure((4, 3))
        figure.subplots().bar(range(len(rows)), [row["letters"] for row in rows])
    return Drawing("letters", "Letters of each token", "A bar for each token.", figure)
