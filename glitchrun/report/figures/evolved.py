"""The rows that the figures of genetic steps are drawn from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from glitchrun.ledger.record import StepRecord

Rows = list[Mapping[str, Any]]


def rows_of(step: StepRecord, table: str) -> Rows:
    """What a step has put into one of its tables so far."""
    return [
        entry.cells
        for timed in step.batches
        for entry in timed.batch.entries
        if entry.table == table
    ]


def evolved(steps: Sequence[StepRecord], table: str) -> list[tuple[StepRecord, Rows]]:
    """The steps that have rows in a table, with these."""
    return [(step, rows) for step in steps if (rows := rows_of(step, table))]
