"""A run's numbers as points of MLflow metrics.

The x axis of a series is the number of items done, so that runs of different speed can be compared.
A metric with a single value has x = 0: MLflow draws a metric as bars if its latest point is at 0,
and else as a line, which would be a single dot.

Values and times come from the ledger alone, so a point that is logged twice is the same point, and
MLflow keeps it once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TypeGuard

from glitchrun.events import TokenFact, Verified
from glitchrun.ledger.record import RunRecord, StepRecord
from glitchrun.spec.schema import fragments

HEADLINES = ("confirmed", "glitch")
"""The main results of a run, the most important first."""
_DENSE = 512
"""Points of a series that are all kept; later ones are thinned out."""


@dataclass(frozen=True, slots=True)
class Point:
    """One value of a metric."""

    key: str
    value: float
    at: int
    """Milliseconds since the epoch."""
    step: int
    """Number of items done; 0 for a metric that is no series."""


def points(record: RunRecord) -> list[Point]:
    """The points of the steps' metrics, the main results first.

    A longer record of the same run has the same points and more.
    """
    found = [point for step in record.steps for point in _step_points(step)]
    return sorted(found, key=lambda point: column_order(point.key)[0])


def model_metrics(record: RunRecord) -> dict[str, float]:
    """The metrics of loading the model and the plan's estimates of them, one value for each."""
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


def last_change(record: RunRecord) -> int:
    """The time of the record's last change, in milliseconds since the epoch."""
    batches = [step.batches[-1].at for step in record.steps if step.batches]
    return max(record.ended_at or record.started_at, *batches, record.started_at)


def is_finite(value: float | None) -> TypeGuard[float]:
    """Whether MLflow can show the value; it shows infinity as a large number."""
    return value is not None and math.isfinite(value)


def rounded(value: float) -> float:
    """`value` for a table: integers unchanged, other numbers with 7 significant digits."""
    return float(value) if float(value).is_integer() else float(f"{value:.7g}")


def headline(names: Mapping[str, object]) -> str | None:
    """The last of these metrics that is the most important result of a run; None if none is."""
    for wanted in HEADLINES:
        for name in reversed(list(names)):
            if name.rpartition("/")[2] == wanted:
                return name
    return None


SERIES = frozenset(
    {
        *("confirmed", "asr_mean", "validated", "attempts_per_second"),
        *("glitch", "severe", "verified", "tokens_per_second"),
    }
)
"""Metrics that grow while a step runs; every other metric is measured once, at the end."""


@cache
def columns() -> tuple[str, ...]:
    """The metrics that a table of runs shows, in order: those about tokens, then those that
    strategies declare in `x-headline`."""
    sure = ("recall_low", "false_alarm_rate")
    about_tokens = ("severe", "asr_mean", *sure, "glitch_rate", "verified", "tokens_per_second")
    headlines = [fragment.get("x-headline") for fragment in fragments().values()]
    declared = [
        name
        for one in headlines
        if one
        for name in dict.fromkeys([one["metric"], *one.get("cards", ())])
    ]
    return tuple(dict.fromkeys([*HEADLINES, *about_tokens, *declared]))


def column_order(name: str) -> tuple[int, str]:
    """The sort key of a metric's column; metrics that are not in `columns` come last."""
    bare, known = name.rpartition("/")[2], columns()
    return (known.index(bare) if bare in known else len(known), name)


def _step_points(step: StepRecord) -> Iterator[Point]:
    running = _Running()
    series: set[str] = set()
    # Glitches among controls do not count.
    own = [(at, timed) for at, timed in enumerate(step.batches) if not timed.batch.is_of_controls]
    is_series = sum(bool(timed.batch.token_facts) for _, timed in own) > 1
    for index, timed in own if is_series else ():
        running.add(timed.batch.token_facts, timed.batch.seconds)
        if _is_kept(index):
            for name, number in running.values():
                series.add(name)
                yield Point(f"{step.id}/{name}", rounded(number), timed.at, running.tokens)
    last = step.batches[-1] if step.batches else None
    # 1 ms after the last running point, so that MLflow takes the final value as the latest.
    at = last.at + 1 if last else step.started_at or 0
    for name, metric in step.metrics.items():
        if is_finite(metric.value):
            done = running.tokens if name in series else 0
            yield Point(f"{step.id}/{name}", rounded(metric.value), at, done)


def _is_kept(index: int) -> bool:
    """True for the first `_DENSE` points, then for every 2nd, 4th, ...: about 256 per doubling.

    It depends on the index alone, so that a series does not change when it grows.
    """
    stride = 1 << max(0, (index // _DENSE).bit_length())
    return index < _DENSE or index % stride == 0


class _Running:
    """Sums over the batches of a step so far."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._verified = self._glitch = self._severe = 0
        self._validated = self._confirmed = self._attempts = 0
        self._asr = 0.0

    @property
    def tokens(self) -> int:
        """Tokens verified or sampled."""
        return self._verified + self._validated

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
        """The sums and rates, under the names that the strategies use for their final metrics."""
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
