"""The figures as PNG files."""

from __future__ import annotations

from pathlib import Path

from glitchrun.ledger.record import RunRecord
from glitchrun.report.figures import drawings
from glitchrun.report.figures.style import style

DPI = 150


def write_plots(record: RunRecord, folder: Path) -> list[Path]:
    """Writes `folder/plots/NAME.png` for every figure that the record has data for.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    plots = folder / "plots"
    plots.mkdir(parents=True, exist_ok=True)
    paths = []
    with style():
        for drawing in drawings(record):
            path = plots / f"{drawing.name}.png"
            drawing.figure.suptitle(drawing.title, x=0.01, ha="left", fontsize=11)
            # Without the version that wrote it, equal records give equal files.
            drawing.figure.savefig(path, dpi=DPI, metadata={"Software": None})
            paths.append(path)
    return paths
