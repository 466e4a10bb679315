"""The figures of a run, drawn once for the page and for plots/.

Figures of verdicts and samples are functions of this package that take the record. Figures of one
strategy are named in `Strategy.figures` and take the record's steps of that strategy. Each function
returns a `Drawing`, or None if there is nothing to draw.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from glitchrun.ledger.record import RunRecord, StepRecord
from glitchrun.report.figures import failures, indicators, verdict_histograms
from glitchrun.report.figures.style import Drawing
from glitchrun.spec.registry import imported
from glitchrun.spec.strategy import STRATEGIES

DPI = 150
"""Resolution of the PNG files, in dots per inch."""


def drawings(record: RunRecord) -> list[Drawing]:
    """Every figure that the record has data for.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    return [drawing for drawing in _drawn(record) if drawing]


def _drawn(record: RunRecord) -> Iterator[Drawing | None]:
    yield failures.draw_severity(record)
    for place, steps in _of_strategies(record).items():
        yield imported(place)(steps)
    yield verdict_histograms.draw_norms(record)
    yield verdict_histograms.draw_entropy(record)
    yield verdict_histograms.draw_rank(record)
    yield failures.draw_asr(record)
    yield indicators.draw_indicator(record)
    yield indicators.draw_pairs(record)


def _of_strategies(record: RunRecord) -> dict[str, list[StepRecord]]:
    """The figures that the record's strategies name, each with the steps that it is drawn from."""
    found: dict[str, list[StepRecord]] = {}
    for step in record.steps:
        strategy = STRATEGIES.get(step.strategy)
        for place in strategy.figures if strategy else ():
            found.setdefault(place, []).append(step)
    return found


def put_title(drawing: Drawing) -> None:
    """Writes the title above the figure, for the PNG file; the page has it beside the figure."""
    drawing.figure.suptitle(drawing.title, x=0.01, ha="left", fontsize=11)


def write_plots(drawn: Iterable[Drawing], folder: Path) -> list[Path]:
    """Writes `folder/plots/NAME.png` for each figure, with its title. Needs `style.style`.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    plots = folder / "plots"
    plots.mkdir(parents=True, exist_ok=True)
    paths = []
    for drawing in drawn:
        path = plots / f"{drawing.name}.png"
        put_title(drawing)
        # Without the matplotlib version in its metadata, equal records give equal files.
        drawing.figure.savefig(path, dpi=DPI, metadata={"Software": None})
        paths.append(path)
    return paths
