"""Verifies every selected token of the vocabulary."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from glitchrun.events import Batch, Event
from glitchrun.strategies.context import Context
from glitchrun.strategies.false_alarms import control_metrics, scanned_controls
from glitchrun.strategies.verdicts import Judge, in_order, verdict_metrics


@dataclass(frozen=True, slots=True)
class Config:
    probes: str | tuple[str, ...] = ("repeat",)
    batch_size: int | str = "auto"
    controls: int = 0


def run(config: Config, context: Context, history: Sequence[Batch]) -> Iterator[Event]:
    """Yields verdicts by ascending token id."""
    judge = Judge(context, config.probes, config.batch_size)
    batches = list(history)
    for batch in in_order(judge, context.scope(), history):
        batches.append(batch)
        yield batch
    for batch in scanned_controls(context, config.controls, batches):
        batches.append(batch)
        yield batch
    yield from verdict_metrics(batches)
    yield from control_metrics(config.controls, batches)
