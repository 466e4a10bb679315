"""Runs a step as the runner does: its events, then its metrics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from glitchrun.events import Batch, Event, Measured
from glitchrun.spec.strategy import Strategy


def all_events(
    strategy: Strategy, config: Any, context: Any, history: Sequence[Batch] = ()
) -> list[Event]:
    """The new batches and artifacts of a step, and the metrics that follow from all its batches."""
    found = list(strategy.run(config, context, history))
    batches = [*history, *(event for event in found if isinstance(event, Batch))]
    measured = [event for event in found if isinstance(event, Measured)]
    kept = [event for event in found if not isinstance(event, Measured)]
    return [*kept, *strategy.metrics(config, batches, measured)]
