"""What one attempt at a step measured, from its ledger, and how a run views it with verdicts.

Batches stay lines of the ledger until they are requested, because most readers of a run need none:
`status`, or the search for a run by its name.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from glitchrun.errors import RunError
from glitchrun.events import Batch, Measured
from glitchrun.events_json import batch_from_json
from glitchrun.ledger.files import LEDGER
from glitchrun.ledger.record import (
    LaterBatches,
    ModelRecord,
    Progress,
    RunIdentity,
    TimedBatch,
    model_from_json,
)
from glitchrun.spec.types import Thresholds
from glitchrun.verdicts import judged

_BATCH = re.compile(rb'\{"kind":"batch","at":(\d+),')
Extent = int | None


@dataclass
class StepFold:
    """What a step measured, after the entries seen so far. Its facts are without verdicts."""

    folder: Path
    document: Mapping[str, Any] = field(default_factory=dict)
    """What the step key was made of, see `StepJournal.create`."""
    measured: dict[Extent, list[Measured]] = field(default_factory=dict)
    """The metrics that the step itself measured, by the extent at whose end it did."""
    ends: dict[Extent, int] = field(default_factory=dict)
    """When the step was finished, in milliseconds since the epoch, by its extent."""
    started_at: int | None = None
    elapsed: int = 0
    """Milliseconds of work, without the pauses between sessions."""
    elapsed_at: list[int] = field(default_factory=list)
    """`elapsed` after each batch."""
    costs: dict[Extent, tuple[int, int]] = field(default_factory=dict)
    """Number of batches, and `elapsed`, at each end."""
    spent: Counter[tuple[str, int]] = field(default_factory=Counter)
    """The same milliseconds by the key and attempt of the run that spent them."""
    workers: list[Mapping[str, Any]] = field(default_factory=list)
    """The run that each session worked for: `experiment`, `name`, `key` and `attempt`."""
    model: ModelRecord | None = None
    """The model of the last session."""
    repairs: list[str] = field(default_factory=list)
    damage: str | None = None
    _batches: list[TimedBatch | bytes] = field(default_factory=list)
    """A batch stays a line of the ledger until it is requested."""
    _unread: int = 0
    """The batches from this one on may be lines."""
    _within: dict[Extent, int] = field(default_factory=dict)
    """Number of batches up to each of these ends, if the ledger says it."""
    _sizes: dict[Extent, int] = field(default_factory=dict)
    _pending: list[Measured] = field(default_factory=list)
    _last: int | None = None

    @property
    def batches(self) -> Sequence[TimedBatch]:
        """The batches of facts, without verdicts.

        Raises:
            RunError: this version cannot read a batch.
        """
        for place in range(self._unread, len(self._batches)):
            line = self._batches[place]
            if isinstance(line, bytes):
                with readable(self.folder / LEDGER):
                    entry = json.loads(line)
                    self._batches[place] = TimedBatch(entry["at"], batch_from_json(entry))
        self._unread = len(self._batches)
        return cast("list[TimedBatch]", self._batches)

    def finished(self, extent: Extent) -> bool:
        """Whether nothing is left to measure for a run with this extent."""
        return self._end_for(extent) is not None

    def measured_at(self, extent: Extent) -> list[Measured]:
        """The metrics that the step measured at the end that a run with this extent uses.

        Raises:
            KeyError: the step is not finished for it.
        """
        found = self._end_for(extent)
        if found is None:
            raise KeyError(extent)
        return self.measured[found[0]]

    def elapsed_until(self, extent: Extent) -> int:
        """Milliseconds that the facts took to measure which a run with this extent reads."""
        found = self._end_for(extent)
        if found is None:
            return self.elapsed
        at_end, elapsed = self.costs[found[0]]
        read = self._within.get(extent) or len(within(self.batches, extent))
        if read >= at_end:
            return elapsed
        return self.elapsed_at[read - 1] if read else 0

    def _end_for(self, extent: Extent) -> tuple[Extent] | None:
        """The end that a run with this extent uses: its own, or one at which nothing was left."""
        if extent in self.ends:
            return (extent,)
        for end in self.ends:
            size = self._size(end)
            exhausted = end is None or size < end
            if exhausted and (extent is None or size <= extent):
                return (end,)
        return None

    def _size(self, end: Extent) -> int:
        """Number of verified tokens at one of the ends."""
        if end not in self._sizes:
            batches = self.batches[: self.costs[end][0]]
            self._sizes[end] = verified(timed.batch for timed in within(batches, end))
        return self._sizes[end]

    @property
    def attempt(self) -> int:
        """The number of the attempt."""
        return int(self.folder.name.removeprefix("attempt-"))

    @property
    def origin(self) -> str:
        """The run that measured the first facts: `EXPERIMENT · NAME KEY#N`."""
        if not self.workers:
            return ""
        worker = self.workers[0]
        names = " · ".join(dict.fromkeys((worker["experiment"], worker["name"])))
        return f"{names} {worker['key'][:8]}#{worker['attempt']}"

    def measured_for(self, run: RunIdentity) -> bool:
        """Whether some of the work was done for this run."""
        return worker_of(run) in self.workers

    def see(self, entry: Mapping[str, Any]) -> None:
        """Adds one entry.

        Raises:
            AttributeError: the kind of entry is unknown.
            KeyError: a field is missing.
            TypeError: a field has another type, or is unknown.
            ValueError: a field has an invalid value.
        """
        self._time(entry["kind"], entry["at"])
        getattr(self, f"_see_{entry['kind']}")(entry)

    def see_line(self, line: bytes) -> None:
        """Adds the entry in a line of the ledger. A batch is read when it is asked for.

        Raises:
            Exception: see `see`.
        """
        found = _BATCH.match(line)
        if found is None:
            self.see(json.loads(line))
            return
        self._time("batch", int(found[1]))
        self._batches.append(line)
        self.elapsed_at.append(self.elapsed)

    def _time(self, kind: str, at: int) -> None:
        """Adds the time since the last entry to the session that spent it."""
        if self.workers and self._last is not None and kind != "session":
            worker = self.workers[-1]
            spent = max(0, at - self._last)
            self.spent[worker["key"], worker["attempt"]] += spent
            self.elapsed += spent
        self._last = at

    def _see_ledger(self, entry: Mapping[str, Any]) -> None:
        self.document = entry["step"]

    def _see_session(self, entry: Mapping[str, Any]) -> None:
        self.started_at = self.started_at or entry["at"]
        self.workers.append(entry["run"])
        self._pending.clear()

    def _see_model(self, entry: Mapping[str, Any]) -> None:
        self.model = model_from_json(entry["model"])

    def _see_batch(self, entry: Mapping[str, Any]) -> None:
        self._batches.append(TimedBatch(entry["at"], batch_from_json(entry)))
        self.elapsed_at.append(self.elapsed)

    def _see_measured(self, entry: Mapping[str, Any]) -> None:
        self._pending.append(Measured(entry["name"], entry["value"], entry["n"]))

    def _see_step_done(self, entry: Mapping[str, Any]) -> None:
        extent = entry["extent"]
        self.ends[extent] = entry["at"]
        self.costs[extent] = (len(self._batches), self.elapsed)
        if "batches" in entry:
            self._within[extent] = entry["batches"]
        self.measured[extent] = list(self._pending)
        self._pending.clear()

    def _see_damaged(self, entry: Mapping[str, Any]) -> None:
        kept = f"; all of it is kept in {entry['kept']}" if entry["kept"] else ""
        self.repairs.append(f"{entry['what']}{kept}")


def worker_of(run: RunIdentity) -> dict[str, Any]:
    """The entries of a step's ledger about a run that it was measured for."""
    names = ("experiment", "name", "key", "attempt")
    return {name: getattr(run, name) for name in names}


def is_known_kind(kind: str) -> bool:
    """Whether this version can read entries of a kind."""
    return hasattr(StepFold, f"_see_{kind}")


def verified(batches: Iterator[Batch]) -> int:
    """The number of tokens in batches, without controls."""
    return sum(len(batch.token_facts) for batch in batches)


def within(batches: Sequence[TimedBatch], extent: Extent) -> tuple[TimedBatch, ...]:
    """The batches up to an extent. If that is inside a batch, the batch is cut there."""
    if extent is None:
        return tuple(batches)
    taken: list[TimedBatch] = []
    left = extent
    for timed in batches:
        size = len(timed.batch.token_facts)
        if size and not left:
            break
        taken.append(timed if size <= left else replace(timed, batch=_first(timed.batch, left)))
        left -= min(size, left)
    return tuple(taken)


def _first(batch: Batch, count: int) -> Batch:
    """The first facts of a batch of verifications, with their share of its time and counters."""
    share = count / len(batch.facts)
    return replace(
        batch,
        facts=batch.facts[:count],
        done=batch.done - len(batch.facts) + count,
        seconds=batch.seconds * share,
        counters={name: round(number * share) for name, number in batch.counters.items()},
        search_seconds=batch.search_seconds * share,
    )


@contextmanager
def readable(path: Path, number: int | None = None) -> Iterator[None]:
    """Reports an entry, at a line number if it is known, that this version cannot read.

    Raises:
        RunError: the block could not read it.
    """
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError) as exc:
        place = path if number is None else f"{path}:{number}"
        raise RunError(
            f"{place}: this version cannot read this entry ({type(exc).__name__}: {exc}); a newer "
            "one has written it: update glitchrun"
        ) from exc


@dataclass
class StepView:
    """A run's view of a step in the store: up to its extent, judged by its thresholds."""

    key: str
    attempt: int
    extent: Extent
    reused: bool
    thresholds: Thresholds
    facts: StepFold | None = None
    followed: bool = False
    """Whether a journal adds to the facts."""
    missing: str | None = None
    """Why the facts cannot be read; None if they were."""
    counters: Mapping[str, int] | None = None
    """The counters of the batches, summed, if the run's ledger has them."""
    progress: Progress | None = None
    """Where the step ended, if the run's ledger has it."""
    _raw: list[TimedBatch] = field(default_factory=list)
    _judged: list[TimedBatch] = field(default_factory=list)
    _counted: Counter[str] = field(default_factory=Counter)

    def batches(self) -> tuple[TimedBatch, ...]:
        """The batches with verdicts. Only those that are new since the last call are judged."""
        if self.facts is None:
            return ()
        for place, timed in enumerate(within(self.facts.batches, self.extent)):
            if place < len(self._raw) and self._raw[place] is timed:
                continue
            for former in self._raw[place:]:
                self._counted.subtract(former.batch.counters)
            del self._raw[place:], self._judged[place:]
            self._raw.append(timed)
            self._judged.append(TimedBatch(timed.at, judged(timed.batch, self.thresholds)))
            self._counted.update(timed.batch.counters)
        return tuple(self._judged)

    def later(self) -> Sequence[TimedBatch]:
        """The batches, read and judged when they are asked for if nothing is added to them."""
        return self.batches() if self.followed else LaterBatches(self.batches)

    def counted(self) -> Mapping[str, int]:
        """The counters of the batches, summed."""
        if self.counters is not None:
            return self.counters
        self.batches()
        return self._counted

    def damage(self, name: str, done: bool) -> str | None:
        """What is wrong with the facts of step `name`; None if nothing is.

        Args:
            name: The step's id.
            done: Whether the run has recorded the end of the step.
        """
        if self.facts is None:
            return self.missing
        if self.facts.damage is None and done and not self.facts.finished(self.extent):
            return (
                f"{self.facts.folder}: the end of step {name} is missing; `glitchrun apply` "
                "measures it again"
            )
        return self.facts.damage
