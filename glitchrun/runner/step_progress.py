"""The progress of a step: its stage, count, rate and time left, from announcements and batches."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from threading import RLock

from glitchrun.events import Batch, Stage
from glitchrun.report.formatting import counted, duration, figure


@dataclass
class _Speed:
    """Work of one stage and the time that its batches took."""

    items: int = 0
    work: int = 0
    """Count of the stage's `work` counter."""
    seconds: float = 0.0

    def add(self, items: int, work: int, seconds: float) -> None:
        self.items += items
        self.work += work
        self.seconds += seconds


class StepProgress:
    """The progress of one step, or of loading a model. One thread may report while another reads.

    Times include everything that happens between batches. Rates are those of the batches: of this
    session, or before its first batch those of the recorded ones.
    """

    def __init__(self, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` returns seconds."""
        self.name = name
        self.stage: Stage | None = None
        """The present stage; None before the first one."""
        self.found: int | None = None
        """Tokens found so far; None for a step that is not about tokens."""
        self.workers = ""
        """How many workers share the step; empty if this process executes it."""
        self.changes = 0
        """Number of changes so far."""
        self.lock = RLock()
        self._clock = clock
        self._start = self._switched = self._updated = clock()
        self._done: dict[str, int] = defaultdict(int)
        self._recorded: dict[str, _Speed] = defaultdict(_Speed)
        self._measured: dict[str, _Speed] = defaultdict(_Speed)
        self._walls: dict[str, float] = defaultdict(float)
        """Seconds by stage."""

    # Input

    def resume(self, batch: Batch) -> None:
        """Adds a batch of an earlier session."""
        with self.lock:
            self._take(batch, self._recorded)
            self._walls[batch.stage] += batch.seconds + batch.search_seconds

    def begin(self, stage: Stage) -> None:
        """Begins or continues a stage."""
        with self.lock:
            if self.stage is None or stage.name != self.stage.name:
                self._switch()
            if stage != self.stage:
                self.stage = stage
                self.changes += 1

    def count(self, stage: Stage, done: int) -> None:
        """Counts the items of a stage that has no batches."""
        with self.lock:
            self.begin(stage)
            now = self._clock()
            seconds, self._updated = now - self._updated, now
            self._measured[stage.name].add(done - self._done[stage.name], 0, seconds)
            self._done[stage.name] = done
            self.changes += 1

    def staff(self, workers: int) -> None:
        """Shows how many workers share the step from now on."""
        with self.lock:
            self.workers = counted(workers, "worker")
            self.changes += 1

    def take(self, batch: Batch) -> None:
        """Adds a new batch."""
        with self.lock:
            self._take(batch, self._measured)

    def _take(self, batch: Batch, speeds: dict[str, _Speed]) -> None:
        stage = self.stage
        if stage is None or stage.name != batch.stage:
            is_of_tokens = batch.token_facts or batch.screened or batch.is_of_controls
            is_of_phrases = any(entry.table == "phrases" for entry in batch.entries)
            unit = "tokens" if is_of_tokens else "phrases" if is_of_phrases else "items"
            stage = Stage(batch.stage, batch.total, unit=unit)
        elif batch.total is not None:
            stage = replace(stage, total=batch.total)
        self.begin(stage)
        work = batch.counters.get(stage.work, 0)
        items = batch.done - self._done[stage.name]
        speeds[stage.name].add(items, work, batch.seconds + batch.search_seconds)
        self._done[stage.name] = batch.done
        if facts := batch.token_facts:
            self.found = (self.found or 0) + sum(fact.flagged for fact in facts)
        self._updated = self._clock()
        self.changes += 1

    def _switch(self) -> None:
        """Ends the present stage."""
        now = self._clock()
        self._walls[self.stage.name if self.stage else "preparation"] += now - self._switched
        self._switched = self._updated = now

    # Output

    @property
    def done(self) -> int:
        """Finished items of the present stage."""
        return self._done[self.stage.name] if self.stage else 0

    @property
    def share(self) -> float | None:
        """Finished share of the present stage; None if its total is not known."""
        if self.stage is None or self.stage.total is None:
            return None
        return self.done / self.stage.total if self.stage.total else 1.0

    @property
    def percent(self) -> str:
        """The finished share in whole per cent, rounded down; empty if it is not known."""
        return "" if self.share is None else f"{math.floor(100 * self.share)} %"

    @property
    def label(self) -> str:
        """The stage's name, unless it only repeats the unit."""
        return "" if self.stage is None or self.stage.name == self.stage.unit else self.stage.name

    @property
    def rate(self) -> str:
        """Items or work in a second, with the unit; empty if it is not known yet."""
        if self.stage is None:
            return ""
        speed, stage = self._speed(self.stage), self.stage
        amount, unit = (speed.work, stage.work) if speed.work else (speed.items, stage.unit)
        return f"{_number(amount / speed.seconds)} {unit}/s" if amount and speed.seconds else ""

    @property
    def left(self) -> float | None:
        """Estimated seconds until the present stage ends, an upper bound if only a bound of its
        items is known; None if it cannot be known."""
        if self.stage is None:
            return None
        speed = self._speed(self.stage)
        total = self.stage.most if self.stage.total is None else self.stage.total
        if total is None or not speed.items or not speed.seconds:
            return None
        since, ahead = self._clock() - self._updated, self.stage.ahead
        remaining = (total - self.done - ahead) * speed.seconds / (speed.items + ahead)
        return max(0.0, remaining - since)

    @property
    def elapsed(self) -> float:
        """Seconds since the step began, without the pauses between sessions."""
        before = sum(speed.seconds for speed in self._recorded.values())
        return before + self._clock() - self._start

    def _speed(self, stage: Stage) -> _Speed:
        measured = self._measured[stage.name]
        return measured if measured.items else self._recorded[stage.name]

    @property
    def line(self) -> str:
        """The progress as one line of text."""
        with self.lock:
            begun = f"{self.label} {self._counted}".strip() if self.stage else "preparing"
            found = "" if self.found is None else f"{self.found:,} found"
            parts = [begun, found, self.rate, self.workers, self._time_left]
            parts.append(f"{_whole(self.elapsed)} elapsed")
            return f"{self.name}: {', '.join(filter(None, parts))}"

    @property
    def _counted(self) -> str:
        assert self.stage is not None
        total, most, unit = self.stage.total, self.stage.most, self.stage.unit
        if not unit:
            return ""
        if total is not None:
            return f"{self.done:,} of {total:,} {unit} ({self.percent})"
        return f"{self.done:,} of at most {most:,} {unit}" if most else f"{self.done:,} {unit}"

    @property
    def _time_left(self) -> str:
        if self.stage is None or self.left is None or self.share == 1:
            return ""
        words = "at most" if self.stage.total is None else "about"
        scope = f" in {self.label}" if self.label else ""
        return f"{words} {_whole(self.left)} left{scope}"

    def finished(self) -> str:
        """The line about a finished step: its duration, by stage if it has several."""
        with self.lock:
            self._switch()
            parts = {name: wall for name, wall in self._walls.items() if name}
            if parts.get("preparation", 0) < 1:
                parts.pop("preparation", None)
            walls = ", ".join(f"{name} {duration(wall)}" for name, wall in parts.items())
            by_stage = f" ({walls})" if len(parts) > 1 else ""
            found = "" if self.found is None else f", {counted(self.found, 'token')} found"
            return f"{self.name}: finished in {duration(self.elapsed)}{by_stage}{found}"


def _number(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else figure(rate, 2)


def _whole(seconds: float) -> str:
    """A duration in whole seconds."""
    return duration(round(seconds))
