"""The rows that the figures of genetic steps are drawn from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from glitchrun.ledger.record import RunRecord, StepRecord

Rows = list[Mapping[str, Any]]


def rows_of(step: StepRecord, table: str) -> Rows:
    """What a step has put into one of its tables so far."""
    return [
        entry.cells
        for timed in step.batches
        for entry in timed.batch.entries
        if entry.table == table
    ]


def evolved(record: RunRecord, table: str) -> list[tuple[StepRecord, Rows]]:
    """The genetic steps that have rows in a table, with these."""
    steps = [step for step in record.steps if step.strategy == "genetic"]
    return [(step, rows) for step in steps if (rows := rows_of(step, table))]
