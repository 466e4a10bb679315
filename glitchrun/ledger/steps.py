"""The store of steps: what each step measured, once for all runs under a tracking root.

ROOT/steps/KEY/                     one folder for all attempts with the same step key
    lock, owner.json                the lock of the process that works on the step
    attempt-1/                      `--fresh` and `--redo` start the next one
        ledger.jsonl                append-only, see checksums.py

A step key is a digest of everything that can change what the step measures (`plan/step_keys.py`).
The first line of a ledger says what it was made of. A run refers to the attempts that it uses, and
judges their facts by its own thresholds.

An open-ended search has an *extent*: the number of verifications after which a run ends it. Runs
with different extents share the ledger. Each reads the verifications up to its own.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from glitchrun.errors import RunError, file_access
from glitchrun.events import Batch, Measured, batch_from_json
from glitchrun.ledger.checksums import (
    Chain,
    Damage,
    Inspection,
    described,
    inspect,
    intact_lines,
    newer_format,
)
from glitchrun.ledger.files import LEDGER
from glitchrun.ledger.record import ModelRecord, RunIdentity, TimedBatch, model_from_json

STEPS = "steps"
"""The folder of all steps in a tracking root."""
_ATTEMPT = re.compile(r"attempt-([1-9][0-9]{0,8})")
Extent = int | None


@dataclass
class StepFold:
    """What a step measured, after the entries seen so far. Its facts are without verdicts."""

    folder: Path
    document: Mapping[str, Any] = field(default_factory=dict)
    """What the step key was made of, see `StepJournal.create`."""
    batches: list[TimedBatch] = field(default_factory=list)
    measured: dict[Extent, list[Measured]] = field(default_factory=dict)
    """The metrics that the step itself measured, by the extent at whose end it did."""
    ends: dict[Extent, int] = field(default_factory=dict)
    """When the step was finished, in milliseconds since the epoch, by its extent."""
    sizes: dict[Extent, int] = field(default_factory=dict)
    """Number of verified tokens at each of these ends."""
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
    _pending: list[Measured] = field(default_factory=list)
    _last: int | None = None

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
        """Milliseconds of work on what a run with this extent reads."""
        found = self._end_for(extent)
        if found is None:
            return self.elapsed
        at_end, elapsed = self.costs[found[0]]
        read = len(within(self.batches, extent))
        if read >= at_end:
            return elapsed
        return self.elapsed_at[read - 1] if read else 0

    def _end_for(self, extent: Extent) -> tuple[Extent] | None:
        """The end that a run with this extent uses: its own, or one at which nothing was left."""
        if extent in self.ends:
            return (extent,)
        for end, size in self.sizes.items():
            exhausted = end is None or size < end
            if exhausted and (extent is None or size <= extent):
                return (end,)
        return None

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
        if self.workers and self._last is not None and entry["kind"] != "session":
            worker = self.workers[-1]
            spent = max(0, entry["at"] - self._last)
            self.spent[worker["key"], worker["attempt"]] += spent
            self.elapsed += spent
        self._last = entry["at"]
        getattr(self, f"_see_{entry['kind']}")(entry)

    def _see_ledger(self, entry: Mapping[str, Any]) -> None:
        self.document = entry["step"]

    def _see_session(self, entry: Mapping[str, Any]) -> None:
        self.started_at = self.started_at or entry["at"]
        self.workers.append(entry["run"])
        self._pending.clear()

    def _see_model(self, entry: Mapping[str, Any]) -> None:
        self.model = model_from_json(entry["model"])

    def _see_batch(self, entry: Mapping[str, Any]) -> None:
        self.batches.append(TimedBatch(entry["at"], batch_from_json(entry)))
        self.elapsed_at.append(self.elapsed)

    def _see_measured(self, entry: Mapping[str, Any]) -> None:
        self._pending.append(Measured(entry["name"], entry["value"], entry["n"]))

    def _see_step_done(self, entry: Mapping[str, Any]) -> None:
        extent = entry["extent"]
        self.ends[extent] = entry["at"]
        self.sizes[extent] = verified(timed.batch for timed in within(self.batches, extent))
        self.costs[extent] = (len(self.batches), self.elapsed)
        self.measured[extent] = list(self._pending)
        self._pending.clear()

    def _see_damaged(self, entry: Mapping[str, Any]) -> None:
        kept = f"; all of it is kept in {entry['kept']}" if entry["kept"] else ""
        self.repairs.append(f"{entry['what']}{kept}")


def worker_of(run: RunIdentity) -> dict[str, Any]:
    """What a step's ledger says of a run that it was measured for."""
    names = ("experiment", "name", "key", "attempt")
    return {name: getattr(run, name) for name in names}


def _is_known_kind(kind: str) -> bool:
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


def step_folder(root: Path, key: str) -> Path:
    """The folder of all attempts at a step."""
    return root / STEPS / key


def attempt_folder(root: Path, key: str, attempt: int) -> Path:
    """The folder of one attempt at a step."""
    return step_folder(root, key) / f"attempt-{attempt}"


def attempts(root: Path, key: str) -> list[int]:
    """The numbers of the attempts at a step, ascending.

    Raises:
        RunError: the folder cannot be read.
    """
    folder = step_folder(root, key)
    with file_access(folder):
        paths = list(folder.iterdir()) if folder.is_dir() else []
        names = [path.name for path in paths if (path / LEDGER).exists()]
    return sorted(int(found[1]) for name in names if (found := _ATTEMPT.fullmatch(name)))


def current_step(root: Path, key: str, extent: Extent) -> StepFold | None:
    """The attempt that a run uses: the newest finished one, else the newest that can be read.

    Raises:
        RunError: no attempt can be read.
    """
    newest, failure = None, None
    for number in reversed(attempts(root, key)):
        try:
            found = read_step(attempt_folder(root, key, number))
        except RunError as error:
            failure = failure or error
            continue
        if found.finished(extent) and not found.damage:
            return found
        newest = newest or found
    if newest is None and failure is not None:
        raise failure
    return newest


def stored_steps(root: Path) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """The folder of every attempt at a step, and what its step key was made of, newest first.

    Ledgers without a readable first line are left out.

    Raises:
        RunError: the store cannot be read.
    """
    with file_access(root / STEPS):
        ledgers = [(path.stat().st_mtime_ns, path) for path in root.glob(f"{STEPS}/*/*/{LEDGER}")]
    for _, path in sorted(ledgers, reverse=True):
        if not _ATTEMPT.fullmatch(path.parent.name):
            continue
        with file_access(path), path.open("rb") as file:
            first = file.readline()
        if Chain(_is_known_kind).objection(first) is None:
            yield path.parent, json.loads(first)["step"]


@dataclass(frozen=True, slots=True)
class StepStatus:
    """What the store has of a step."""

    state: Literal["finished", "partial", "damaged"]
    attempt: int
    origin: str
    """The run for which it was measured first, as `EXPERIMENT · NAME KEY#N`."""


def step_status(
    root: Path, key: str, extent: Extent, attempt: int | None = None
) -> StepStatus | None:
    """What the store has of a step; None if nothing.

    Args:
        root: Tracking root.
        key: The step key.
        extent: The extent that a run needs.
        attempt: The attempt that a run uses already; None for the one that it would use.

    Raises:
        RunError: the step's files cannot be read.
    """
    if attempt is not None and attempt in attempts(root, key):
        found: StepFold | None = read_step(attempt_folder(root, key, attempt))
    else:
        found = current_step(root, key, extent)
    if found is None:
        return None
    state: Literal["finished", "partial", "damaged"] = "partial"
    if found.damage:
        state = "damaged"
    elif found.finished(extent):
        state = "finished"
    return StepStatus(state, found.attempt, found.origin)


def read_step(folder: Path) -> StepFold:
    """What an attempt at a step measured. A damaged ledger gives its intact part.

    Runs share steps, so the last ones read are kept until their ledger changes.

    Raises:
        RunError: the folder contains no step, files that cannot be read, or files that a newer
            glitchrun wrote.
    """
    try:
        found = (folder / LEDGER).stat()
    except OSError:
        return inspect_step(folder)[0]
    return _read_unchanged(folder, found.st_ino, found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=16)
def _read_unchanged(folder: Path, *state: int) -> StepFold:
    return inspect_step(folder)[0]


def is_intact(folder: Path, extent: Extent, *, done: bool) -> bool:
    """Whether the ledger of an attempt at a step is there and undamaged. Its facts are read only if
    the step has no end at this very extent.

    Args:
        folder: The attempt's folder.
        extent: The extent of a run that uses it.
        done: Whether that run has recorded the end of the step, which the ledger must then contain.

    Raises:
        RunError: the ledger cannot be read, or a newer glitchrun wrote it.
    """
    path = folder / LEDGER
    if not path.exists():
        return False
    with file_access(path), newer_format(path):
        inspection = inspect(path, _is_known_kind)
    if inspection.damage is not None or inspection.chain.head is None:
        return False
    if not done:
        return True
    lines = (line for _, line in intact_lines(path, inspection.good_bytes))
    ends = (json.loads(line) for line in lines if line.startswith(b'{"kind":"step_done"'))
    return any(end["extent"] == extent for end in ends) or read_step(folder).finished(extent)


def inspect_step(folder: Path) -> tuple[StepFold, Inspection]:
    """What an attempt at a step measured, and how much of its ledger is intact.

    Raises:
        RunError: see `read_step`.
    """
    path = folder / LEDGER
    if not path.exists():
        raise RunError(f"{folder}: the facts of this step are missing; restore the folder")
    with file_access(path), newer_format(path):
        inspection = inspect(path, _is_known_kind)
    fold = StepFold(folder)
    if inspection.chain.head is None and inspection.damage is None:
        missing = Damage(1, "the beginning of the ledger, or all of it, is missing")
        inspection = Inspection(inspection.chain, 0, missing)
    for number, line in intact_lines(path, inspection.good_bytes):
        try:
            fold.see(json.loads(line))
        except (AttributeError, KeyError, TypeError, ValueError) as exc:
            raise RunError(
                f"{path}:{number}: this version cannot read this entry ({type(exc).__name__}: "
                f"{exc}); a newer one has written it: update glitchrun"
            ) from exc
    if inspection.damage is not None:
        fold.damage = described(path, inspection, inspection.damage)
    return fold, inspection
