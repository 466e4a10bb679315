"""Verifies the tokens given."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from glitchrun.events import Batch, Event
from glitchrun.strategies.context import Context
from glitchrun.strategies.false_alarms import control_metrics, judged_controls
from glitchrun.strategies.verdicts import Judge, in_order, verdict_metrics


@dataclass(frozen=True, slots=True)
class Config:
    tokens: Mapping[str, Any]
    probes: str | tuple[str, ...] = ("repeat",)
    batch_size: int | str = "auto"
    controls: int = 0


def run(config: Config, context: Context, history: Sequence[Batch]) -> Iterator[Event]:
    """Yields verdicts in the order in which the tokens are named, whatever their category."""
    judge = Judge(context, config.probes, config.batch_size)
    ids = [token.id for token in context.tokens(config.tokens)]
    batches = list(history)
    for batch in in_order(judge, ids, history):
        batches.append(batch)
        yield batch
    for batch in judged_controls(context, judge, config.controls, batches):
        batches.append(batch)
        yield batch
    yield from verdict_metrics(batches)
    yield from control_metrics(config.controls, batches)
