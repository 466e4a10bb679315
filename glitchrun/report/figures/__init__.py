"""The figures of a run, drawn once for the page and for plots/.

Each module draws one: `draw(record)` returns it, or None where the record has nothing for it.
"""

from __future__ import annotations

from glitchrun.ledger.record import RunRecord
from glitchrun.report.figures import (
    ancestry,
    asr,
    discovery,
    entropy,
    fitness,
    next_token,
    norms,
    predictions,
    rank,
    severity,
)
from glitchrun.report.figures.style import Drawing

_FIGURES = (
    severity,
    discovery,
    norms,
    entropy,
    rank,
    asr,
    fitness,
    ancestry,
    next_token,
    predictions,
)


def drawings(record: RunRecord) -> list[Drawing]:
    """Every figure that the record has data for.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    return [drawing for module in _FIGURES if (drawing := module.draw(record))]
