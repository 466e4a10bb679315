"""A run's numbers as points of MLflow metrics.

The axis of a running series is the number of items done, so that runs of different speed can be
laid over each other. Values and times come from the ledger alone: a point that is logged twice is
the same point, and MLflow keeps it once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TypeGuard

from glitchrun.events import TokenFact, Verified
from glitchrun.ledger.record import RunRecord, StepRecord
from glitchrun.spec.schema import strategies

HEADLINES = ("confirmed", "glitch")
"""What a run is about, the most telling first."""
_DENSE = 512
"""So many points of a series are kept whole; further on ever fewer."""


@dataclass(frozen=True, slots=True)
class Point:
    key: str
    value: float
    at: int
    """Milliseconds since the epoch."""
    step: int


def points(record: RunRecord) -> list[Point]:
    """Every point of the steps' metrics, the headline first.

    What a longer record adds never changes a point that a shorter one of the same run had.
    """
    found = [point for step in record.steps for point in _step_points(step)]
    return sorted(found, key=lambda point: _place(point.key))


def state(record: RunRecord) -> dict[str, float]:
    """Numbers that have one value at a time: the model's, and the plan's estimates beside them."""
    memory = record.plan.get("memory") or {}
    estimates = {
        "model/bytes_estimate": memory.get("weight_bytes"),
        "model/peak_bytes_estimate": memory.get("total_bytes"),
    }
    measured = {
        name: metric.value for name, metric in record.metrics.items() if name.startswith("model/")
    }
    return {
        name: rounded(value)
        for name, value in {**measured, **estimates}.items()
        if is_finite(value)
    }


def last_moment(record: RunRecord) -> int:
    """When the record last changed, in milliseconds since the epoch."""
    batches = [step.batches[-1].at for step in record.steps if step.batches]
    return max(record.ended_at or record.started_at, *batches, record.started_at)


def is_finite(value: float | None) -> TypeGuard[float]:
    """Whether MLflow can show the value: it takes infinity for a large number."""
    return value is not None and math.isfinite(value)


def rounded(value: float) -> float:
    """`value` as a table shows it whole: integers as they are, others to 7 significant digits."""
    return float(value) if float(value).is_integer() else float(f"{value:.7g}")


def headline(names: Mapping[str, object]) -> str | None:
    """The one of these metrics that a run is about; None where there is none."""
    for wanted in HEADLINES:
        for name in reversed(list(names)):
            if name.rpartition("/")[2] == wanted:
                return name
    return None


@cache
def columns() -> tuple[str, ...]:
    """Metrics of a step that a table of runs shows, the first ones first: those about tokens, then
    what strategies declare as their `x-headline`."""
    about_tokens = ("severe", "asr_mean", "glitch_rate", "verified", "tokens_per_second")
    told = [fragment.get("x-headline") for fragment in strategies().values()]
    declared = [
        name
        for one in told
        if one
        for name in dict.fromkeys([one["metric"], *one.get("cards", ())])
    ]
    return tuple(dict.fromkeys([*HEADLINES, *about_tokens, *declared]))


def column_order(name: str) -> tuple[int, str]:
    """Sort key of metric columns; those that are not in `columns` come last."""
    bare, known = name.rpartition("/")[2], columns()
    return (known.index(bare) if bare in known else len(known), name)


def _place(name: str) -> int:
    return column_order(name)[0]


def _step_points(step: StepRecord) -> Iterator[Point]:
    running = _Running()
    for place, timed in enumerate(step.batches):
        if timed.batch.is_of_controls:
            continue  # what is found among controls is no find
        running.add(timed.batch.token_facts, timed.batch.seconds)
        if _is_kept(place):
            for name, number in running.values():
                yield Point(f"{step.id}/{name}", rounded(number), timed.at, timed.batch.done)
    # After the last running point, so that MLflow takes the final value for the latest.
    last = step.batches[-1] if step.batches else None
    at = last.at + 1 if last else step.started_at or 0
    for name, metric in step.metrics.items():
        if is_finite(metric.value):
            done = last.batch.done if last else 0
            yield Point(f"{step.id}/{name}", rounded(metric.value), at, done)


def _is_kept(place: int) -> bool:
    """Every point up to `_DENSE`, then every 2nd, every 4th, ...: about 256 for each doubling.

    A function of the place alone, so that a series does not change when it grows.
    """
    stride = 1 << max(0, (place // _DENSE).bit_length())
    return place < _DENSE or place % stride == 0


class _Running:
    """Sums over the batches of a step so far."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._verified = self._glitch = self._severe = 0
        self._validated = self._confirmed = self._attempts = 0
        self._asr = 0.0

    def add(self, facts: tuple[TokenFact, ...], seconds: float) -> None:
        self._seconds += seconds
        for fact in facts:
            if isinstance(fact, Verified):
                self._verified += 1
                self._glitch += fact.glitch
                self._severe += fact.severe
            else:
                self._validated += 1
                self._confirmed += fact.confirmed
                self._attempts += fact.attempts
                self._asr += fact.asr

    def values(self) -> Iterator[tuple[str, float]]:
        """Named as the strategies name what they end with."""
        if self._validated:
            yield "confirmed", float(self._confirmed)
            yield "asr_mean", self._asr / self._validated
            yield "validated", float(self._validated)
            if self._seconds:
                yield "attempts_per_second", self._attempts / self._seconds
        if self._verified:
            yield "glitch", float(self._glitch)
            yield "severe", float(self._severe)
            yield "verified", float(self._verified)
            if self._seconds:
                yield "tokens_per_second", self._verified / self._seconds
