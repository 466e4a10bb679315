"""The figures of a run, drawn once for the page and for plots/.

A figure of verdicts and samples is a module here with `draw(record)`. A figure of one strategy is
named in `Strategy.figures`; its `draw(steps)` gets the record's steps of that strategy. Each
returns a `Drawing`, or None where there is nothing to draw.
"""

from __future__ import annotations

from collections.abc import Iterator

from glitchrun.ledger.record import RunRecord, StepRecord
from glitchrun.report.figures import asr, entropy, norms, rank, severity
from glitchrun.report.figures.style import Drawing
from glitchrun.spec.registry import imported
from glitchrun.spec.strategy import STRATEGIES

_OF_FACTS = (norms, entropy, rank, asr)


def drawings(record: RunRecord) -> list[Drawing]:
    """Every figure that the record has data for.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    return [drawing for drawing in _drawn(record) if drawing]


def _drawn(record: RunRecord) -> Iterator[Drawing | None]:
    yield severity.draw(record)
    for place, steps in _of_strategies(record).items():
        yield imported(place)(steps)
    for module in _OF_FACTS:
        yield module.draw(record)


def _of_strategies(record: RunRecord) -> dict[str, list[StepRecord]]:
    """The figures that the record's strategies name, each with the steps that it is drawn from."""
    found: dict[str, list[StepRecord]] = {}
    for step in record.steps:
        strategy = STRATEGIES.get(step.strategy)
        for place in strategy.figures if strategy else ():
            found.setdefault(place, []).append(step)
    return found
